"""Likelihoods with a density: Gaussian and Laplace on the real line, the continuous Bernoulli on [0, 1]."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from aevb.errors import InputError

MAX_LOG_SQUARED_SCALE = 88.0  # float32 ends at e^88.7


class ContinuousBernoulli(nn.Module):
    """Independent continuous Bernoulli pixels on [0, 1] from logits (Loaiza-Ganem & Cunningham, 2019)."""

    support = "unit"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        return ContinuousBernoulliLogits(outputs[..., 0]).to_event(outputs.ndim - 1)


class _LocationScale(nn.Module):
    """Independent elements of one `family`, log density in nats per datapoint in the units of x.

    Attributes:
      scale: the scale of every element, sigma or b; None lets the decoder give each its own,
        `scale^2 = exp(output) + min_scale^2`; "shared" is one trained number for all elements and datapoints, through
        the same formula, and at its best the root mean square error of the means (Gaussian) or their mean absolute
        error (Laplace) over the data, as in the sigma-VAE (Rybkin et al., 2021, 2006.13202). That one computes it from
        a minibatch; here it climbs the bound like every other parameter.
      min_scale: the floor under a learned scale. The density of a pixel grows without bound as its scale goes to 0, so
        without a floor the bound measures how constant the most constant pixel is. `floored` says where it holds.
      sigmoid_mean: pass the means through a sigmoid onto (0, 1), as the paper does for Frey Face.
    """

    scale: float | Literal["shared"] | None = None
    min_scale: float = 0.01
    sigmoid_mean: bool = False
    support = "real"

    def setup(self) -> None:
        if isinstance(self.scale, str):
            self.log_squared_scale = self.param("log_squared_scale", nn.initializers.zeros, ())

    @property
    def learns_scale(self) -> bool:
        return self.scale is None or isinstance(self.scale, str)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(self.scale, str) and self.scale != "shared":
            raise InputError(f"scale is {self.scale!r}: give a number, 'shared', or None for one an element")
        if self.learns_scale and not self.min_scale > 0:
            raise InputError(f"min_scale is {self.min_scale}: a learned scale needs a floor above 0")
        return (*event_shape, 2 if self.scale is None else 1)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        mean = nn.sigmoid(outputs[..., 0]) if self.sigmoid_mean else outputs[..., 0]
        if self.scale is None:
            scale = self._learned(outputs[..., 1])
        elif isinstance(self.scale, str):
            scale = jnp.broadcast_to(self._learned(self.log_squared_scale), mean.shape)
        else:
            scale = jnp.full_like(mean, self.scale)
        return self.family(mean, scale).to_event(mean.ndim)

    def _learned(self, log_squared: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.exp(jnp.minimum(log_squared, MAX_LOG_SQUARED_SCALE)) + self.min_scale**2)


class Gaussian(_LocationScale):
    """Independent Gaussian pixels (appendix C.2), their standard deviation fixed, shared or each its own."""

    family = dist.Normal


class Laplace(_LocationScale):
    """Independent Laplace pixels, `p(x) = exp(-|x - mean| / b) / (2 b)`, with b fixed, shared or each its own."""

    family = dist.Laplace


def floored(distribution: dist.Distribution, likelihood: Gaussian | Laplace) -> jax.Array:
    """Which elements of x have a learned scale at its floor, bool `[*event]`: `scale^2 < 2 min_scale^2`.

    There the floor is the larger part of `exp(output) + min_scale^2`, so the density at those elements says what
    `min_scale` is rather than what was learned.

    Args:
      distribution: p(x | z) as `likelihood` made it.
      likelihood: one with a fixed scale has no floor, and no element at it.
    """
    return likelihood.learns_scale & (distribution.base_dist.scale**2 < 2 * likelihood.min_scale**2)


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
