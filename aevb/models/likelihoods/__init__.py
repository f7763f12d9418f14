"""Likelihoods p(x | z): from the decoder's output for one datapoint to a NumPyro distribution over x `[*event]`.

A likelihood is a linen module with `output_shape(event_shape)`, the shape it wants from the decoder: one trailing axis
holds the parameters of each element of x, or of each pixel. `support` names the values it has a density or mass for:

| likelihood | `support` | x | `log_prob`, nats per datapoint |
| --- | --- | --- | --- |
| `Bernoulli` | "binary" | 0 or 1 | mass; of values between them the cross-entropy, which is neither mass nor density |
| `ContinuousBernoulli` | "unit" | [0, 1] | density |
| `Gaussian`, `Laplace` | "real" | any real number | density |
| `Categorical` | "levels" | k / 255 for k = 0..255 | mass |
| `DiscretizedLogisticMixture` | "levels" | k / 255, an image `[H, W, 1 or 3]` | mass |
| `Poisson`, `NegativeBinomial`, `ZeroInflatedNegativeBinomial` | "counts" | 0, 1, 2, ... | mass |

A mass is at most 1 and can be compared with any other mass of the same x. A density depends on the units of x and has
no upper end: the two are never compared. All datapoints are float32, which holds the counts up to 2^24 exactly. A level
or a count that is none, such as x with noise added, has a log mass of minus infinity.
"""

from aevb.models.likelihoods.continuous import (
    ContinuousBernoulli,
    ContinuousBernoulliLogits,
    Gaussian,
    Laplace,
    floored,
)
from aevb.models.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from aevb.models.likelihoods.levels import (
    Bernoulli,
    Categorical,
    CategoricalLevels,
    DiscretizedLogisticMixture,
    LogisticMixtureLevels,
)

__all__ = [
    "Bernoulli",
    "Categorical",
    "CategoricalLevels",
    "ContinuousBernoulli",
    "ContinuousBernoulliLogits",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "LogisticMixtureLevels",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "floored",
]
