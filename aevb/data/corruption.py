"""Corruptions of an input, whose target stays clean: functions of a key and one datapoint (Vincent et al., 2010).

What an encoder sees in the place of x, `[*event]`. They are made from a key per datapoint and step, so that neither the
batch nor the devices change them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aevb.errors import InputError

Corrupt = Callable[[jax.Array, jax.Array], jax.Array]  # (key, x) -> what is seen of x


def masking(level: float) -> Corrupt:
    """Each element is 0 with probability `level`, in [0, 1)."""
    _check_share("masking", level)
    return lambda key, x: jnp.where(jax.random.bernoulli(key, level, x.shape), 0.0, x)


def gaussian(level: float) -> Corrupt:
    """`x + level * e`, e ~ N(0, I); `level` is the standard deviation, in units of x, above 0."""
    if not 0 < level < float("inf"):
        raise InputError(f"the level of gaussian noise is {level}: a standard deviation must be above 0")
    return lambda key, x: x + level * jax.random.normal(key, x.shape)


def salt_and_pepper(level: float) -> Corrupt:
    """Each element is 0 or 1, either as likely, with probability `level`, in [0, 1)."""
    _check_share("salt and pepper", level)

    def corrupt(key: jax.Array, x: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, x.shape)
        return jnp.where(u < level / 2, 0.0, jnp.where(u < level, 1.0, x))

    return corrupt


def _check_share(name: str, level: float) -> None:
    if not 0 <= level < 1:
        raise InputError(f"the level of {name} noise is {level}: a probability of an element must be in [0, 1)")


CORRUPTIONS: dict[str, Callable[[float], Corrupt]] = {
    "masking": masking,
    "gaussian": gaussian,
    "salt_and_pepper": salt_and_pepper,
}
