"""Priors p(z): linen modules without an input, so that a prior may have parameters too."""

import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn

from aevb.models.families import FAMILIES


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over z `[latent]`."""

    latent_dim: int

    def __call__(self) -> dist.Distribution:
        return dist.Normal(jnp.zeros(self.latent_dim), jnp.ones(self.latent_dim)).to_event(1)


class FactorizedPrior(nn.Module):
    """p(z) = prod_j p(z_j) over z `[latent]`, the standard member of one of the `FAMILIES`.

    On the real line location 0 and scale 1 (Student t with 5 degrees of freedom); Exponential(1); Weibull of scale 1
    and concentration 2; log-normal with log z ~ N(0, 1); Gamma(2, 1); Beta(1, 1), the uniform; Kumaraswamy(2, 2).

    Attributes:
      family: a key of `FAMILIES`.
      latent_dim: the size of z.
    """

    family: str
    latent_dim: int

    def __call__(self) -> dist.Distribution:
        family = FAMILIES[self.family]
        return family.distribution(*(jnp.full(self.latent_dim, value) for value in family.standard)).to_event(1)
