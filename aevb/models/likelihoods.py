"""Likelihoods p(x | z): from the decoder's output for one datapoint to a NumPyro distribution over x `[*event]`.

A likelihood is a linen module with `output_shape(event_shape)`, the shape it wants from the decoder: one trailing axis
holds the parameters of each element of x. `support` names the values it has a density or mass for: "binary" {0, 1},
"unit" [0, 1], "real".
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample


class Bernoulli(nn.Module):
    """Independent Bernoulli pixels from logits (appendix C.1); log mass in nats, finite for every finite logit."""

    support = "binary"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        # Validation gives values between 0 and 1 a mass of 0, and the grey binarization means to have them.
        return dist.BernoulliLogits(outputs[..., 0], validate_args=False).to_event(outputs.ndim - 1)


class ContinuousBernoulli(nn.Module):
    """Independent continuous Bernoulli pixels on [0, 1] from logits (Loaiza-Ganem & Cunningham, 2019)."""

    support = "unit"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        return ContinuousBernoulliLogits(outputs[..., 0]).to_event(outputs.ndim - 1)


class Gaussian(nn.Module):
    """Independent Gaussian pixels (appendix C.2), log density in nats per datapoint in the units of x.

    Attributes:
      scale: the standard deviation of every element; None lets the decoder give each its own,
        `sigma^2 = exp(log_variance) + min_scale^2`.
      min_scale: the floor under a learned standard deviation. The density of a pixel grows without bound as sigma
        goes to 0, so without a floor the bound measures how constant the most constant pixel is.
      sigmoid_mean: pass the means through a sigmoid onto (0, 1), as the paper does for Frey Face.
    """

    scale: float | None = None
    min_scale: float = 0.01
    sigmoid_mean: bool = False
    support = "real"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1 if self.scale is not None else 2)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        mean = nn.sigmoid(outputs[..., 0]) if self.sigmoid_mean else outputs[..., 0]
        if self.scale is not None:
            scale = jnp.full_like(mean, self.scale)
        else:
            scale = jnp.sqrt(jnp.exp(outputs[..., 1]) + self.min_scale**2)
        return dist.Normal(mean, scale).to_event(mean.ndim)


class ContinuousBernoulliLogits(dist.Distribution):
    """p(x) = C(l) exp(l x - softplus(l)) on [0, 1], with l the logits; NumPyro has no continuous Bernoulli.

    With t = l / 2 the constant is `log C = log(t / sinh t) + log cosh t + log 2 = log(2 t / tanh t)`, even in l and
    smooth; near 0, where the ratio is 0/0, its Taylor series `log 2 + t^2/3 - 7 t^4/90` is used.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval
    reparametrized_params: ClassVar = ["logits"]
    pytree_data_fields = ("logits",)

    def __init__(self, logits: ArrayLike, *, validate_args: bool | None = None) -> None:
        (self.logits,) = promote_shapes(logits)
        super().__init__(jnp.shape(self.logits), validate_args=validate_args)

    def _log_normalizer(self) -> jax.Array:
        t = jnp.abs(self.logits) / 2
        near_zero = t < 0.1
        safe = jnp.where(near_zero, 1.0, t)  # both branches are finite, so that neither poisons the gradient
        return jnp.where(near_zero, jnp.log(2.0) + t**2 / 3 - 7 * t**4 / 90, jnp.log(2 * safe / jnp.tanh(safe)))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        return self.logits * value - jax.nn.softplus(self.logits) + self._log_normalizer()

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Inverse CDF: `x = 1 + log1p((1 - u) (e^-l - 1)) / l` for l > 0, u itself as l -> 0, mirrored for l < 0."""
        logits = jnp.broadcast_to(self.logits, (*sample_shape, *self.batch_shape))
        u = jax.random.uniform(key, logits.shape, logits.dtype)
        magnitude = jnp.abs(logits)
        safe = jnp.where(magnitude < 1e-4, 1.0, magnitude)
        x = jnp.where(magnitude < 1e-4, u, 1 + jnp.log1p((1 - u) * jnp.expm1(-safe)) / safe)
        return jnp.clip(jnp.where(logits < 0, 1 - x, x), 0.0, 1.0)

    rsample = sample

    @property
    def mean(self) -> jax.Array:
        """`1 / (1 - e^-l) - 1 / l = 1/2 + 1 / (2 tanh(l/2)) - 1 / l`, and `1/2 + l/12` near 0."""
        near_zero = jnp.abs(self.logits) < 0.1
        safe = jnp.where(near_zero, 1.0, self.logits)
        away = 0.5 + 0.5 / jnp.tanh(safe / 2) - 1 / safe
        return jnp.where(near_zero, 0.5 + self.logits / 12 - self.logits**3 / 720, away)
