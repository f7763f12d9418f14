"""What a data set is here, and how one without splits of its own is divided."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aevb.errors import InputError


class RandomAccess(Protocol):
    """Examples too large for memory: decoded one at a time, picklable for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


class Datapoint(NamedTuple):
    """One example as models see it.

    Attributes:
      x: what the likelihood is asked about, float32 `[*event]`.
      context: what encoder, decoder and prior are told beside it, float32 `[context]`; None for models without.
      corrupted: what the encoder sees in the place of x, float32 `[*event]`; None where it sees x.
    """

    x: jax.Array
    context: jax.Array | None = None
    corrupted: jax.Array | None = None

    @property
    def seen(self) -> jax.Array:
        """What the encoder sees, `[*event]`."""
        return self.x if self.corrupted is None else self.corrupted


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples `[N, *event]`, uint8 (value/255 is the datapoint) or float32; their labels.

    Labels are classes, int32 `[N]`, or vectors, float32 `[N, context]`, or None. Classes may have names.
    """

    examples: np.ndarray | RandomAccess
    labels: np.ndarray | None
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits of one event shape, (height, width, channels) for images; `splits` tells their origin."""

    name: str
    event_shape: tuple[int, ...]
    train: Split
    validation: Split
    test: Split
    splits: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """The chosen rows of examples that stay out of memory."""

    examples: RandomAccess
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.examples[int(self.indices[index])]


def _take(split: Split, indices: np.ndarray) -> Split:
    labels = None if split.labels is None else split.labels[indices]
    if isinstance(split.examples, np.ndarray):
        return dataclasses.replace(split, examples=split.examples[indices], labels=labels)
    if len(indices) == 0:  # an empty split still has an event shape, which a RandomAccess could not tell
        example = split.examples[0]
        return dataclasses.replace(split, examples=np.empty((0, *example.shape), example.dtype), labels=labels)
    return dataclasses.replace(split, examples=Rows(split.examples, indices), labels=labels)


@dataclasses.dataclass(frozen=True)
class LabelContext:
    """From a label to the vector that a conditional model is told: a class as one of `size`, a vector as it is."""

    size: int
    classes: bool

    def __call__(self, label: jax.Array) -> jax.Array:
        return jax.nn.one_hot(label, self.size) if self.classes else jnp.float32(label)


def label_context(dataset: Dataset) -> LabelContext:
    """The context that the labels of a data set make.

    Raises:
      InputError: a split has no labels, or labels that the training split does not know.
    """
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    splits = {name: split for name, split in splits.items() if len(split.examples)}
    without = [name for name, split in splits.items() if split.labels is None]
    if without:
        raise InputError(
            f"labels are asked for, but the {without[0]} split of {dataset.name} has no labels: use data with labels, "
            "or no context (--config.model.context=none)"
        )
    labels = dataset.train.labels
    for name, split in splits.items():
        if split.labels.shape[1:] != labels.shape[1:]:
            raise InputError(
                f"the labels of the {name} split of {dataset.name} are {_width(split.labels)}, those of the training "
                f"split {_width(labels)}: a context has one width, so give all splits the same"
            )
    if labels.ndim == 2:
        return LabelContext(labels.shape[1], classes=False)
    known = np.unique(labels)
    if not np.array_equal(known, np.arange(len(known))):
        raise InputError(
            f"the training split of {dataset.name} has {len(known)} classes, numbered from {known[0]} to {known[-1]}: "
            "number them from 0 without gaps"
        )
    for name, split in splits.items():
        strange = np.setdiff1d(split.labels, known)
        if len(strange):
            raise InputError(
                f"the {name} split of {dataset.name} has the label {strange[0]}, but the training split only 0 to "
                f"{known[-1]}: give the training split examples of each class"
            )
    return LabelContext(len(known), classes=True)


def _width(labels: np.ndarray) -> str:
    return "classes" if labels.ndim == 1 else f"vectors of {labels.shape[1]}"


def head(split: Split, num: int | None) -> Split:
    """The first `num` examples of a split; all of them if there are fewer, or no number is given."""
    if num is None or num >= len(split.examples):
        return split
    return _take(split, np.arange(num))


def without_class(dataset: Dataset, label: int) -> Dataset:
    """The data set whose training and validation examples are none of a class; its test split keeps them, as strangers.

    Raises:
      InputError: there are no classes, the training or the test split has none of this one, or no other is left.
    """
    parts = {name: getattr(dataset, name) for name in ("train", "validation")}
    for name, split in {**parts, "test": dataset.test}.items():
        if split.labels is None or split.labels.ndim != 1:
            raise InputError(f"class {label} is to be held out, but the {name} split of {dataset.name} has no classes")
        if name != "validation" and label not in split.labels:
            known = ", ".join(map(str, np.unique(split.labels)))
            raise InputError(
                f"class {label} is to be held out, but the {name} split of {dataset.name} has only {known}"
            )
    if (dataset.train.labels == label).all():
        raise InputError(f"class {label} is to be held out, and the train split of {dataset.name} has no other")
    left = {name: _take(split, np.flatnonzero(split.labels != label)) for name, split in parts.items()}
    splits = f"{dataset.splits}; class {label} left out of train and validation"
    return dataclasses.replace(dataset, **left, splits=splits)


def _count(key: str, size: float, total: int) -> int:
    if not math.isfinite(size) or size < 0 or (size >= 1 and size != int(size)):
        raise InputError(f"{key}={size} must be a fraction below 1 or a whole number of examples")
    return int(size) if size >= 1 or size == 0 else max(1, round(size * total))


def _check_alike(name: str, parts: Mapping[str, Split]) -> tuple[int, ...]:
    first = parts["train"].examples[0]
    for part, split in parts.items():
        other = split.examples[0]
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"{name}: the {part} examples are {other.dtype} {list(other.shape)} but the train examples "
                f"are {first.dtype} {list(first.shape)}; give all splits the same type and event shape"
            )
    return first.shape


def divide(
    name: str,
    parts: Mapping[str, Split],
    *,
    validation_size: float,
    test_size: float,
    seed: int,
    last_rows: bool = False,
) -> Dataset:
    """Completes the splits a source has of its own: a missing validation or test split is taken from `train`.

    Args:
      name: the data set, for messages.
      parts: non-empty splits by name; `train`, and `validation` and `test` where the source has them.
      validation_size: a fraction of `train` if below 1, else a number; for a missing validation split.
      test_size: the same for the test split.
      seed: of the permutation (NumPy's Philox); the test split does not depend on `validation_size`.
      last_rows: take the last rows of `train`, not permuted ones (MNIST's usual 50,000 / 10,000 / 10,000).

    Returns:
      The data set with its three splits; a size of 0 gives an empty split `[0, *event]`.

    Raises:
      InputError: sizes that are none or leave nothing to train on; splits that differ in type or event shape.
    """
    event_shape = _check_alike(name, parts)
    total = len(parts["train"].examples)
    sizes = {"test": test_size, "validation": validation_size}
    counts = {part: _count(f"{part}_size", sizes[part], total) for part in sizes if part not in parts}
    if sum(counts.values()) >= total:
        asked = " and ".join(f"{part}_size={sizes[part]}" for part in counts)
        raise InputError(f"{asked} leave none of the {total} examples of {name} for training; make them smaller")
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative")

    result = dict(parts)
    if any(counts.values()) and not last_rows:
        order = np.random.Generator(np.random.Philox(seed)).permutation(total)
    else:
        order = np.arange(total)[::-1]
    taken = 0
    for part, count in counts.items():
        rows = order[taken : taken + count]
        result[part] = _take(parts["train"], np.sort(rows) if last_rows else rows)
        taken += count
    if taken:
        result["train"] = _take(parts["train"], np.sort(order[taken:]))
    return Dataset(name, event_shape, **result, splits=_sentence(parts, counts, total, seed, last_rows))


def _sentence(parts: Mapping[str, Split], counts: Mapping[str, int], total: int, seed: int, last_rows: bool) -> str:
    own = ", ".join(
        f"{part} ({len(parts[part].examples)})" for part in ("train", "validation", "test") if part in parts
    )
    none = "".join(f"; no {part}" for part, count in counts.items() if not count)
    if not any(counts.values()):
        return f"all splits are the source's own: {own}{none}"
    carved = " and ".join(f"{part} ({count})" for part, count in reversed(counts.items()) if count)
    how = "its last rows" if last_rows else f"a random permutation with seed {seed}"
    return f"{carved} taken from train by {how}, leaving {total - sum(counts.values())}; the source's own: {own}{none}"
