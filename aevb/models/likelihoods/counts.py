"""Likelihoods of counts 0, 1, 2, ...: Poisson, and the negative binomial with and without additional zeros.

Every parameter is a bounded function of the decoder's output, so that log mass and gradient are finite whatever the
decoder says. In float32 the log mass of a count x has an error of up to 2e-7 x log x nats: 1e-3 at a thousand.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn

# Rates are between e^-16 and e^16 = 8.9e6, for float32 holds every count up to 2^24 = e^16.6 and no further. Under an
# exponential link, unlike a softplus, outputs of the order 1 reach counts of every size.
MAX_LOG_RATE = 16.0
# Dispersions are between e^-9 and e^9. The further below, the closer to a Poisson, but NumPyro computes
# `log(1 + mean dispersion) / dispersion`, whose error in float32, 6e-8 / dispersion, is 5e-4 nats at e^-9.
MAX_LOG_DISPERSION = 9.0
# A share of additional zeros beyond 1 - e^-16 would rest on float32's rounding of 1.
MAX_GATE_LOGIT = 16.0


def _bounded(output: jax.Array, limit: float) -> jax.Array:
    """In [-limit, limit], smooth, and the output itself near 0."""
    return limit * jnp.tanh(output / limit)


def _rate(output: jax.Array) -> jax.Array:
    return jnp.exp(_bounded(output, MAX_LOG_RATE))


def _concentration(log_dispersion: jax.Array, mean: jax.Array) -> jax.Array:
    """`1 / dispersion` for each element, from one logarithm for all of them or one each."""
    return jnp.broadcast_to(jnp.exp(-_bounded(log_dispersion, MAX_LOG_DISPERSION)), mean.shape)


class Poisson(nn.Module):
    """Independent Poisson counts from the logarithms of their rates."""

    support = "counts"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        return dist.Poisson(_rate(outputs[..., 0])).to_event(outputs.ndim - 1)


class NegativeBinomial(nn.Module):
    """Independent negative binomial counts from their log mean: `Var(x) = mean + dispersion mean^2`.

    Attributes:
      shared_dispersion: whether one trained number is the log dispersion of all elements; else the decoder gives each
        its own.
    """

    shared_dispersion: bool = False
    support = "counts"

    def setup(self) -> None:
        if self.shared_dispersion:
            self.log_dispersion = self.param("log_dispersion", nn.initializers.zeros, ())

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1 if self.shared_dispersion else 2)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        mean = _rate(outputs[..., 0])
        log_dispersion = self.log_dispersion if self.shared_dispersion else outputs[..., 1]
        return dist.NegativeBinomial2(mean, _concentration(log_dispersion, mean)).to_event(mean.ndim)


class ZeroInflatedNegativeBinomial(nn.Module):
    """`p(x) = gate [x = 0] + (1 - gate) NegativeBinomial(x)`: counts of which a share is lost, as in sequencing.

    The decoder gives each element a log mean, a logit of `gate`, and a log dispersion unless that is shared. The mean
    is the negative binomial's; that of x is `(1 - gate) mean`.

    Attributes:
      shared_dispersion: as for `NegativeBinomial`.
    """

    shared_dispersion: bool = False
    support = "counts"

    def setup(self) -> None:
        if self.shared_dispersion:
            self.log_dispersion = self.param("log_dispersion", nn.initializers.zeros, ())

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 2 if self.shared_dispersion else 3)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        mean, gate_logits = _rate(outputs[..., 0]), _bounded(outputs[..., 1], MAX_GATE_LOGIT)
        log_dispersion = self.log_dispersion if self.shared_dispersion else outputs[..., 2]
        concentration = _concentration(log_dispersion, mean)
        return dist.ZeroInflatedNegativeBinomial2(mean, concentration, gate_logits=gate_logits).to_event(mean.ndim)
