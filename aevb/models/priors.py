"""Priors p(z): linen modules without an input, so that a prior may have parameters too."""

import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over z `[latent]`."""

    latent_dim: int

    def __call__(self) -> dist.Distribution:
        return dist.Normal(jnp.zeros(self.latent_dim), jnp.ones(self.latent_dim)).to_event(1)
