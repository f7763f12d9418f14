"""Priors p(z): linen modules of the context, which most ignore; a prior may have parameters too."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn

from aevb.models.families import FAMILIES
from aevb.networks import MLP


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over z `[latent]`."""

    latent_dim: int

    def __call__(self, context: jax.Array | None = None) -> dist.Distribution:
        del context
        return dist.Normal(jnp.zeros(self.latent_dim), jnp.ones(self.latent_dim)).to_event(1)


class ConditionalGaussian(nn.Module):
    """p(z | c) = N(mu(c), diag(sigma^2(c))) over z `[latent]`, with mu and log sigma^2 from an MLP of the context c.

    Its first weights are small, so that it starts near N(0, I). Without hidden layers, which is all that a class needs,
    each class has a Gaussian of its own.
    """

    latent_dim: int
    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, context: jax.Array) -> dist.Distribution:
        mean, log_variance = MLP((2, self.latent_dim), hidden=self.hidden, init_scale=0.01, name="network")(context)
        return dist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1)


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

    def __call__(self, context: jax.Array | None = None) -> dist.Distribution:
        del context
        family = FAMILIES[self.family]
        return family.distribution(*(jnp.full(self.latent_dim, value) for value in family.standard)).to_event(1)
