"""Likelihoods of pixels that take 2 values or 256: Bernoulli, categorical, and the discretized logistic mixture."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from aevb.errors import InputError

LEVELS = 256
# Of a logistic on [-1, 1]. The lower end is PixelCNN++'s: there 97 % of the mass is on one level. At the upper one half
# of it is on 0 and half on 255, and in between the mass of a level is still far above float32's smallest number.
LOG_SCALES = (-7.0, 7.0)


class Bernoulli(nn.Module):
    """Independent Bernoulli pixels from logits (appendix C.1); log mass in nats, finite for every finite logit."""

    support = "binary"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, 1)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        # Validation gives values between 0 and 1 a mass of 0, and the grey binarization means to have them.
        return dist.BernoulliLogits(outputs[..., 0], validate_args=False).to_event(outputs.ndim - 1)


class Categorical(nn.Module):
    """Independent elements with a logit for each of the 256 levels, which knows nothing of their order."""

    support = "levels"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, LEVELS)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        return CategoricalLevels(outputs).to_event(outputs.ndim - 1)


class DiscretizedLogisticMixture(nn.Module):
    """Independent pixels, each a mixture of discretized logistics (Salimans et al., 2017, 1701.05517, PixelCNN++).

    The decoder gives each pixel of an image `[H, W, C]` K mixture logits, `C K` locations and as many log scales, and a
    colour pixel `3 K` coefficients besides, which pass through a tanh: 3 K numbers a grey pixel, 10 K a colour one.
    `LogisticMixtureLevels` says what they are.

    Attributes:
      num_components: K.
    """

    num_components: int = 10
    support = "levels"

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """`[H, W, 1, parameters of a pixel]`: the weights of the mixture belong to no single channel.

        Raises:
          InputError: the event is not an image with 1 or 3 channels.
        """
        if len(event_shape) != 3 or event_shape[-1] not in (1, 3):
            raise InputError(
                f"a datapoint has the shape {tuple(event_shape)}, but a discretized logistic mixture needs an image "
                "[height, width, channels] with 1 or 3 channels: reshape the data or use the categorical likelihood"
            )
        return (*event_shape[:2], 1, (3 if event_shape[-1] == 1 else 10) * self.num_components)

    def __call__(self, outputs: jax.Array) -> dist.Distribution:
        parts = outputs.reshape(*outputs.shape[:2], -1, self.num_components)
        channels = 1 if parts.shape[-2] == 3 else 3
        logits, location, log_scale, coefficients = jnp.split(parts, (1, 1 + channels, 1 + 2 * channels), axis=-2)
        log_scale = jnp.clip(log_scale, *LOG_SCALES)
        return LogisticMixtureLevels(logits[..., 0, :], location, log_scale, jnp.tanh(coefficients))


class _Levels(constraints.Constraint):
    """k / 255 for k = 0..255, up to the rounding of float32."""

    is_discrete = True

    def __call__(self, x: ArrayLike) -> jax.Array:
        level = jnp.asarray(x) * (LEVELS - 1)
        return (jnp.abs(level - jnp.round(level)) < 1e-3) & (level > -0.5) & (level < LEVELS - 0.5)


levels = _Levels()


def _level(x: ArrayLike) -> jax.Array:
    """k, int32, of x = k / 255."""
    return jnp.round(jnp.asarray(x) * (LEVELS - 1)).astype(jnp.int32)


def _value(level: jax.Array) -> jax.Array:
    """x = k / 255."""
    return level / jnp.float32(LEVELS - 1)


class CategoricalLevels(dist.Distribution):
    """`P(x = k / 255) = softmax(logits)_k`; NumPyro's categorical is over the indices k."""

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = levels
    pytree_data_fields = ("logits",)

    def __init__(self, logits: ArrayLike, *, validate_args: bool | None = None) -> None:
        (self.logits,) = promote_shapes(logits)
        super().__init__(jnp.shape(self.logits)[:-1], validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        # A masked sum, since the gradient of an indexing is a scatter, which takes twice as long on a CPU.
        is_level = jax.nn.one_hot(_level(value), LEVELS, dtype=bool)
        return jnp.where(is_level, nn.log_softmax(self.logits), 0.0).sum(-1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        return _value(jax.random.categorical(key, self.logits, shape=(*sample_shape, *self.batch_shape)))

    @property
    def mean(self) -> jax.Array:
        return jnp.matmul(nn.softmax(self.logits), _value(jnp.arange(LEVELS)), precision="highest")


class LogisticMixtureLevels(dist.Distribution):
    """A mixture of discretized logistics over the levels of each pixel of an image `[H, W, C]`, C = 1 or 3.

    With `y = 2 x - 1` in [-1, 1], component k has the weight `softmax(logits)_k`, and gives the channel c of a pixel
    the mass that a logistic has within half a level of y; levels 0 and 255 take all that lies beyond them:

        P(y) = F(y + 1/255) - F(y - 1/255),  F(t) = sigmoid((t - m_c) / exp(log_scale_c)),

    with F = 0 below level 0 and F = 1 above level 255. The m of red is its location; that of green is
    `location_G + a_0 y_R`, that of blue `location_B + a_1 y_R + a_2 y_G`, at the true y of the other channels. The
    weight is of the whole pixel, so the channels depend on each other through the component too.

    Args:
      logits: `[H, W, K]`.
      location: `[H, W, C, K]`, in units of y.
      log_scale: `[H, W, C, K]`, from -7 to 7, in units of y.
      coefficients: a_0, a_1 and a_2 of a colour image, `[H, W, 3, K]`; none of a grey one, `[H, W, 0, K]`.
    """

    arg_constraints: ClassVar = {
        "logits": constraints.real,
        "location": constraints.real,
        "log_scale": constraints.interval(*LOG_SCALES),
        "coefficients": constraints.real,
    }
    support = constraints.independent(levels, 3)
    pytree_data_fields = ("logits", "location", "log_scale", "coefficients")

    def __init__(
        self,
        logits: jax.Array,
        location: jax.Array,
        log_scale: jax.Array,
        coefficients: jax.Array,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.location, self.log_scale, self.coefficients = logits, location, log_scale, coefficients
        super().__init__(event_shape=jnp.shape(location)[:-1], validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        level, log_mass = _level(value)[..., None], nn.log_softmax(self.logits)
        y = 2 * _value(level) - 1
        for c in range(self.event_shape[-1]):
            location = self._location_given(c, y)
            log_mass += _log_mass(level[..., c, :], location, self.log_scale[..., c, :])
        return logsumexp(log_mass, axis=-1).sum((-2, -1))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """A component for each pixel, then its channels in turn, each rounded before the next one reads it."""
        if sample_shape:
            return jax.vmap(lambda key: self.sample(key, sample_shape[1:]))(jax.random.split(key, sample_shape[0]))
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, self.logits)[..., None]
        noise = jax.random.logistic(noise_key, self.event_shape)
        x = jnp.zeros(self.event_shape)
        for c in range(self.event_shape[-1]):
            locations = self._location_given(c, 2 * x[..., None] - 1)
            location, log_scale = (
                jnp.take_along_axis(parameter, component, axis=-1)[..., 0]
                for parameter in (locations, self.log_scale[..., c, :])
            )
            x = x.at[..., c].set(_nearest(location + jnp.exp(log_scale) * noise[..., c]))
        return x

    @property
    def mean(self) -> jax.Array:
        """`[H, W, C]`: each component's mean over its 256 levels, weighted; exact for grey images and for red.

        For green and blue the means of the other channels stand for their values, where the exact sums would be over
        256 and 65,536 of them. That changes nothing while the mean of a discretized logistic is linear in its location,
        that is, as far as the component has no mass on 0 and 255.
        """
        x = jnp.zeros(self.location.shape)
        for c in range(self.event_shape[-1]):
            location = self._location_given(c, 2 * x - 1)
            x = x.at[..., c, :].set(_mean(location, self.log_scale[..., c, :]))
        return (nn.softmax(self.logits)[..., None, :] * x).sum(-1)

    def _location_given(self, channel: int, y: jax.Array) -> jax.Array:
        """m of one channel, `[H, W, K]`, where the earlier ones have the values y `[H, W, C, 1 or K]`."""
        first = channel * (channel - 1) // 2
        location = self.location[..., channel, :]
        for earlier in range(channel):
            location = location + self.coefficients[..., first + earlier, :] * y[..., earlier, :]
        return location


def _log_mass(level: jax.Array, location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """log P(level) under a discretized logistic, without a difference of numbers that round to each other.

    `sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))`, where b - a is known: 2/255 over the scale.
    """
    y, precision, last = 2 * _value(level) - 1, jnp.exp(-log_scale), LEVELS - 1
    log_below = -nn.softplus(-(y + 1 / last - location) * precision)
    log_above = -nn.softplus((y - 1 / last - location) * precision)
    log_width = jnp.log(-jnp.expm1(-2 / last * precision))
    return (
        jnp.where(level < last, log_below, 0.0)
        + jnp.where(level > 0, log_above, 0.0)
        + jnp.where((level > 0) & (level < last), log_width, 0.0)
    )


def _mean(location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """E[x] of a discretized logistic: `255 x` is the number of edges between levels that lie below a draw."""
    precision = jnp.exp(-log_scale)

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        edge = (2 * k + 1) / (LEVELS - 1) - 1
        return total + nn.sigmoid((location - edge) * precision)

    # A loop, since a sum over a new axis takes 255 times the memory of all components of a picture.
    return jax.lax.fori_loop(0, LEVELS - 1, add, jnp.zeros_like(location)) / (LEVELS - 1)


def _nearest(y: jax.Array) -> jax.Array:
    """The x of the level nearest to y; all y beyond -1 and 1 belong to the ends."""
    return _value(jnp.round((jnp.clip(y, -1.0, 1.0) + 1) / 2 * (LEVELS - 1)))
