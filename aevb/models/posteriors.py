"""Posteriors q(z | x): from the encoder's output for one datapoint to a NumPyro distribution over z `[latent]`.

A posterior is a linen module with `output_shape(latent_dim)`, the shape it wants from the encoder.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn
from numpyro.distributions.transforms import LowerCholeskyTransform

from aevb.errors import InputError
from aevb.models.families import FAMILIES


class DiagonalGaussian(nn.Module):
    """q(z | x) = N(mu, diag(sigma^2)), with heads for mu and log sigma^2 (Kingma & Welling, eq. 9)."""

    def output_shape(self, latent_dim: int) -> tuple[int, ...]:
        return (2, latent_dim)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        mean, log_variance = outputs
        return dist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1)


class FullGaussian(nn.Module):
    """q(z | x) = N(mu, L L^T), with heads for mu, the strictly lower triangle of L row by row, and log L_jj.

    In this order; outputs of zeros are N(0, I). Draws are `z = mu + L noise` (Kingma & Welling, 1906.02691, section
    2.5.1).
    """

    def output_shape(self, latent_dim: int) -> tuple[int, ...]:
        return (latent_dim + latent_dim * (latent_dim + 1) // 2,)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        latent_dim = (math.isqrt(9 + 8 * outputs.size) - 3) // 2  # the root of output_shape
        mean, triangle = jnp.split(outputs, [latent_dim])
        return dist.MultivariateNormal(mean, scale_tril=LowerCholeskyTransform()(triangle))


class FactorizedPosterior(nn.Module):
    """q(z | x) = prod_j q(z_j | x) of one of the `FAMILIES`, with a head for each of its parameters (section 2.4).

    Attributes:
      family: a key of `FAMILIES`, which say how the outputs `[parameters, latent]` become parameters.
    """

    family: str

    def output_shape(self, latent_dim: int) -> tuple[int, ...]:
        return (len(FAMILIES[self.family].constrain), latent_dim)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        family = FAMILIES[self.family]
        parameters = [constrain(output) for constrain, output in zip(family.constrain, outputs, strict=True)]
        return family.distribution(*parameters).to_event(1)


class PointMass(nn.Module):
    """q(z | x) = delta(z - code(outputs)): the deterministic code of an autoencoder, all of its mass on one z.

    It has no density, so no KL and no bound: what is trained is the log-likelihood of its one z.

    Attributes:
      activation: from the encoder's output `[latent]` to the code; linear where it is None.
    """

    activation: Callable[[jax.Array], jax.Array] | None = None

    def output_shape(self, latent_dim: int) -> tuple[int, ...]:
        return (latent_dim,)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        return dist.Delta(outputs if self.activation is None else self.activation(outputs), event_dim=1)


def top_k(k: int) -> Callable[[jax.Array], jax.Array]:
    """The k largest elements as they are and all others 0: k-sparse codes (Makhzani & Frey, 1312.5663).

    Of elements that are equal the first are kept, so that never more than k are.

    Raises:
      InputError: k is below 1; at trace time, when the code has fewer elements.
    """
    if k < 1:
        raise InputError(f"k is {k}: a k-sparse code keeps at least 1 element")

    def keep(outputs: jax.Array) -> jax.Array:
        if k > outputs.size:
            raise InputError(f"k is {k}, but the code has {outputs.size} elements: keep at most as many")
        _, kept = jax.lax.top_k(outputs, k)
        return jnp.where(jnp.zeros(outputs.shape, bool).at[kept].set(True), outputs, 0.0)

    return keep
