"""Models: linen modules with encode, decode and prior, each for one datapoint, each a NumPyro distribution."""

from aevb.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from aevb.models.posteriors import DiagonalGaussian
from aevb.models.priors import StandardNormal
from aevb.models.vae import VAE, generative, init, vae

__all__ = [
    "VAE",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiagonalGaussian",
    "Gaussian",
    "StandardNormal",
    "generative",
    "init",
    "vae",
]
