"""Models: linen modules with encode, decode and prior, each for one datapoint, each a NumPyro distribution."""

from aevb.models.families import FAMILIES
from aevb.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from aevb.models.posteriors import DiagonalGaussian, FactorizedPosterior
from aevb.models.priors import FactorizedPrior, StandardNormal
from aevb.models.vae import VAE, check_pair, generative, has_closed_form_kl, init, vae

__all__ = [
    "FAMILIES",
    "VAE",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiagonalGaussian",
    "FactorizedPosterior",
    "FactorizedPrior",
    "Gaussian",
    "StandardNormal",
    "check_pair",
    "generative",
    "has_closed_form_kl",
    "init",
    "vae",
]
