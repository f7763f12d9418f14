"""From stored examples to datapoints: uint8 to [0, 1], and the binarization by name.

Which binarization was used decides which numbers a likelihood can be compared with, so it is always named:

- `none`: values as they are, uint8 as value / 255;
- `static`: one Bernoulli draw per pixel with probability value / 255, made once per data seed;
- `dynamic`: the same draw, made afresh each time an example is seen;
- `threshold`: 1 where value / 255 > 0.5;
- `grey`: values in [0, 1] given to a Bernoulli as if they were draws; what comes out is not a density.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from aevb.data import Datapoint, RandomAccess, Split
from aevb.data.corruption import Corrupt
from aevb.errors import InputError

BINARIZATIONS = ("none", "static", "dynamic", "threshold", "grey")

DRAWN_AT_ONCE = 10_000  # examples, in one call

# From (stored example, its label or None, its index in the split, a key for this sighting) to the datapoint.
Preprocess = Callable[[jax.Array, jax.Array | None, jax.Array, jax.Array], Datapoint]
Context = Callable[[jax.Array], jax.Array]  # from a label to the vector that models are told


def to_unit(stored: jax.Array) -> jax.Array:
    """What a stored example stands for, float32 `[*event]`: uint8 as value / 255, floats as they are."""
    return stored / jnp.float32(255) if stored.dtype == jnp.uint8 else stored


def bernoulli_pixels(key: jax.Array, stored: jax.Array) -> jax.Array:
    """One draw of each pixel with P(1) = its value in [0, 1], float32 `[*event]`.

    Each pixel is compared with 16 random bits, two pixels a 32-bit word, which halves the cost of the draw: P(1) is
    within 2^-17 of the pixel's value, and exact at 0 and 1. Flat, because XLA's loops over 28x28x1 are slow.
    """
    flat = stored.reshape(-1)
    words = jax.random.bits(key, (-(-flat.size // 2),), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: flat.size]
    threshold = jnp.round(to_unit(flat) * 2**16).astype(jnp.int32)
    return (bits < threshold).astype(jnp.float32).reshape(stored.shape)


def make_preprocess(
    binarization: str,
    static_key: jax.Array | None = None,
    context: Context | None = None,
    corrupt: Corrupt | None = None,
) -> Preprocess:
    """The function that turns one stored example into one datapoint.

    Args:
      binarization: a name of `BINARIZATIONS`.
      static_key: what `static` draws derive from, with the example's index; one key a split.
      context: what a label becomes; None leaves labels out of the datapoint.
      corrupt: what the encoder sees of x, afresh each time an example is seen; None shows it x.

    Raises:
      InputError: for an unknown name.
    """
    if binarization not in BINARIZATIONS:
        raise InputError(f"binarization {binarization!r} is unknown: choose one of {', '.join(BINARIZATIONS)}")

    def values(stored: jax.Array, example_id: jax.Array, key: jax.Array) -> jax.Array:
        if binarization == "dynamic":
            return bernoulli_pixels(key, stored)
        if binarization == "static":
            return bernoulli_pixels(jax.random.fold_in(static_key, example_id), stored)
        if binarization == "threshold":
            return (to_unit(stored) > 0.5).astype(jnp.float32)
        return to_unit(stored)

    def preprocess(stored: jax.Array, label: jax.Array | None, example_id: jax.Array, key: jax.Array) -> Datapoint:
        told = None if context is None else context(label)
        if corrupt is None:
            return Datapoint(values(stored, example_id, key), told)
        key, noise_key = jax.random.split(key)
        x = values(stored, example_id, key)
        return Datapoint(x, told, corrupt(noise_key, x))

    return preprocess


def prepare(
    split: Split,
    binarization: str,
    static_key: jax.Array | None = None,
    context: Context | None = None,
    corrupt: Corrupt | None = None,
) -> tuple[Split, Preprocess]:
    """A split, and the function that turns one of its stored examples into a datapoint.

    The static draw of a split in memory is made here, once, so that no step makes it again: it comes back as uint8 0
    and 255. Its bits are those of `make_preprocess`.
    """
    if binarization != "static" or not isinstance(split.examples, np.ndarray):
        return split, make_preprocess(binarization, static_key, context, corrupt)
    draw = jax.jit(jax.vmap(lambda stored, i: bernoulli_pixels(jax.random.fold_in(static_key, i), stored).astype(bool)))
    starts = range(0, len(split.examples), DRAWN_AT_ONCE)
    blocks = [split.examples[start : start + DRAWN_AT_ONCE] for start in starts]
    drawn = [
        np.asarray(draw(block, np.arange(len(block)) + start)) for start, block in zip(starts, blocks, strict=True)
    ]
    ones = np.concatenate(drawn) if drawn else split.examples
    return dataclasses.replace(split, examples=ones * np.uint8(255)), make_preprocess(
        "none", context=context, corrupt=corrupt
    )


def check_values(examples: np.ndarray | RandomAccess, binarization: str, support: str, what: str) -> None:
    """Refuse examples that the likelihood has no density for; every value is looked at, also of a set on disk.

    Args:
      examples: stored examples, `[N, *event]`.
      binarization: a name of `BINARIZATIONS`.
      support: the likelihood's, "binary", "unit", "real", "levels" or "counts".
      what: how to call the examples in the message.

    Raises:
      InputError: `grey` for a likelihood that has a density of grey values, values outside [0, 1] that a binarization
        or the likelihood needs inside, grey values for a Bernoulli without a binarization, or values that are no
        levels or no counts for a likelihood of those.
    """
    if support in ("levels", "counts"):
        _check_whole(examples, binarization, support, what)
        return
    if binarization == "grey" and support != "binary":
        raise InputError(
            "binarization 'grey' gives grey values to a Bernoulli likelihood, and this one has a density for them: "
            "use --config.data.binarization=none"
        )
    if len(examples) == 0:
        return
    is_bytes = examples[0].dtype == np.uint8
    if not is_bytes and (binarization != "none" or support != "real"):
        low = min(block.min() for block in _blocks(examples))
        high = max(block.max() for block in _blocks(examples))
        if not (low >= 0 and high <= 1):  # so NaN is refused
            raise InputError(
                f"{what} has values from {low:.4g} to {high:.4g}, but binarization {binarization!r} with a likelihood "
                f"of {support!r} values needs them in [0, 1]: rescale the data, store them as uint8 0..255, or use "
                "--config.model.likelihood=gaussian with --config.data.binarization=none"
            )
    one = 255 if is_bytes else 1
    if support == "binary" and binarization == "none" and not all(_is_binary(b, one) for b in _blocks(examples)):
        raise InputError(
            f"{what} has grey values, and a Bernoulli likelihood is a mass on 0 and 1 only: choose "
            "--config.data.binarization=static, dynamic, threshold or grey (grey is not a density), or "
            "--config.model.likelihood=continuous_bernoulli or gaussian"
        )


def _check_whole(examples: np.ndarray | RandomAccess, binarization: str, support: str, what: str) -> None:
    """Refuse what a likelihood of levels k / 255 or of counts gives no mass."""
    if binarization != "none":
        raise InputError(
            f"binarization {binarization!r} leaves no {support}, which the likelihood has its mass on: "
            "use --config.data.binarization=none"
        )
    if len(examples) == 0:
        return
    is_bytes = examples[0].dtype == np.uint8
    if is_bytes and support == "counts":
        raise InputError(
            f"{what} is stored as uint8, which stands for value / 255, and a likelihood of counts needs the counts "
            "themselves: store them as float32"
        )
    if is_bytes:
        return
    levels = support == "levels"  # which float32 rounds, where counts are exact
    scale, most, words = (255, 255, "levels k / 255") if levels else (1, 2**24, "counts 0, 1, 2, ...")
    for block in _blocks(examples):
        whole = np.round(block * np.float32(scale))
        near = np.abs(block * np.float32(scale) - whole) <= (1e-3 if levels else 0)
        wrong = ~(near & (whole >= 0) & (whole <= most))  # NaN is wrong
        if wrong.any():
            raise InputError(
                f"{what} holds {block[wrong][0]:.6g}, and the likelihood has a mass for {words} only: rescale or round "
                "the data, or choose a likelihood with a density, such as --config.model.likelihood=gaussian"
            )


def _blocks(examples: np.ndarray | RandomAccess) -> Iterator[np.ndarray]:
    """All examples: an array whole, a set on disk one by one."""
    if isinstance(examples, np.ndarray):
        yield examples
    else:
        yield from (examples[i] for i in range(len(examples)))


def _is_binary(examples: np.ndarray, one: int) -> bool:
    return bool(((examples == 0) | (examples == one)).all())
