"""Models: linen modules with encode, decode and prior, each for one datapoint, each a NumPyro distribution."""

from aevb.models.families import FAMILIES
from aevb.models.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    floored,
)
from aevb.models.masked_autoencoder import MaskedAutoencoder, Restored, masked_autoencoder
from aevb.models.posteriors import DiagonalGaussian, FactorizedPosterior, FullGaussian, PointMass, top_k
from aevb.models.priors import ConditionalGaussian, FactorizedPrior, StandardNormal
from aevb.models.vae import VAE, Given, check_pair, generative, has_closed_form_kl, init, vae

__all__ = [
    "FAMILIES",
    "VAE",
    "Bernoulli",
    "Categorical",
    "ConditionalGaussian",
    "ContinuousBernoulli",
    "DiagonalGaussian",
    "DiscretizedLogisticMixture",
    "FactorizedPosterior",
    "FactorizedPrior",
    "FullGaussian",
    "Gaussian",
    "Given",
    "Laplace",
    "MaskedAutoencoder",
    "NegativeBinomial",
    "PointMass",
    "Poisson",
    "Restored",
    "StandardNormal",
    "ZeroInflatedNegativeBinomial",
    "check_pair",
    "floored",
    "generative",
    "has_closed_form_kl",
    "init",
    "masked_autoencoder",
    "top_k",
    "vae",
]
