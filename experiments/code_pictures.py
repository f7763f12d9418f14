"""Pictures of what codes are like: which examples lie near each other, and what leads from class to class.

Codes are means of the posterior, of the examples as they are stored, grey where they are grey, whatever the training
made of them. Those of a conditional model are made in the context of each example, and hold what is left beside it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from aevb import data, training
from aevb.errors import InputError
from experiments import reconstruct, usefulness
from experiments.artist import Arrays, Artist

NEIGHBOURS = 6  # of each example, by its code and by its pixels
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # of the way from class to class
BLOCK = 5000  # training examples that are searched at once


def neighbours(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The first `num` examples, each beside the 6 nearest training examples by its code and the 6 by its pixels.

    Both distances are Euclidean, plain: the scale that `downstream.standardise(each=False)` gives the whole code
    changes no order. Where there is no test split, an example's first neighbour is itself.
    """
    from aevb import figures

    run = artist.run
    train, held_out = run.dataset.train, data.head(artist.split, num)
    codes, of_train = (usefulness.encode(run, artist.replicated, split) for split in (held_out, train))
    x, contexts = artist.examples(num)
    arrays = {"x": x, "context": contexts, "code": codes}
    found = {
        "code": nearest(codes, (of_train[i : i + BLOCK] for i in range(0, len(of_train), BLOCK)), NEIGHBOURS),
        "pixels": nearest(x.reshape(len(x), -1), _pixels(train.examples), NEIGHBOURS),
    }
    for by, (indices, distances) in found.items():
        rows = training.read_rows(train.examples, indices.reshape(-1))
        neighbour = reconstruct.values(rows).reshape(*indices.shape, *x.shape[1:])
        arrays |= {f"index_by_{by}": indices, f"distance_by_{by}": distances, f"nearest_by_{by}": neighbour}
    parts = [x[:, None], *(arrays[f"nearest_by_{by}"] for by in found)]
    names = [artist.split_name, *(f"nearest by {by}" for by in found)]
    shown = artist.shown(np.concatenate(parts, axis=1))
    return figures.beside(shown, names, [part.shape[1] for part in parts]), arrays


def nearest(queries: np.ndarray, blocks: Iterable[np.ndarray], num: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of many points to each of a few, by brute force.

    Args:
      queries: `[M, D]`.
      blocks: the points, in order, some `[B, D]` at a time.
      num: how many; fewer where there are fewer points.

    Returns:
      Their indices, the smaller first of equals, and their Euclidean distances, ascending: `[M, num]` both.
    """
    from scipy.spatial.distance import cdist

    indices, distances = np.empty((len(queries), 0), int), np.empty((len(queries), 0))
    start = 0
    for block in blocks:
        new = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        indices = np.concatenate([indices, new], axis=1)
        distances = np.concatenate([distances, cdist(queries, block)], axis=1)
        order = distances.argsort(axis=1, kind="stable")[:, :num]
        indices, distances = (np.take_along_axis(each, order, axis=1) for each in (indices, distances))
        start += len(block)
    return indices, distances


def _pixels(examples: np.ndarray | data.RandomAccess) -> Iterator[np.ndarray]:
    """All examples, flat, some at a time."""
    for start in range(0, len(examples), BLOCK):
        rows = training.read_rows(examples, np.arange(start, min(start + BLOCK, len(examples))))
        yield reconstruct.values(rows).reshape(len(rows), -1)


def arithmetic(
    artist: Artist, num: int, minus: Sequence[str] | None = None, plus: Sequence[str] | None = None
) -> tuple[Any, Arrays]:
    """The first `num` examples of some classes, and what is decoded from their codes z moved towards other classes.

    Along a row it is the mean of p(x | z + t v) at t = 0, the reconstruction, to 1.5, with `v = mean code of the
    training examples in plus - mean code of those in minus`.

    Args:
      artist: of a model that decodes codes.
      num: how many.
      minus, plus: numbers of classes.

    Raises:
      InputError: the data have no classes, or none of those; a class is on both sides, or a side has none.
    """
    from aevb import figures

    run, train = artist.run, artist.run.dataset.train
    sides = {name: _classes(artist, name, given) for name, given in (("minus", minus), ("plus", plus))}
    both = sorted(set(sides["minus"]) & set(sides["plus"]))
    if both:
        raise InputError(f"--minus and --plus both name the class {both[0]}: a code is moved from one to another")
    rows = np.flatnonzero(np.isin(artist.split.labels, sides["minus"]))[:num]
    if not len(rows):
        raise InputError(f"the {artist.split_name} split has no example of --minus={_listed(sides['minus'])}")
    codes = usefulness.encode(run, artist.replicated, train)
    means = {name: codes[np.isin(train.labels, side)].mean(axis=0, dtype=np.float64) for name, side in sides.items()}
    v, t = np.float32(means["plus"] - means["minus"]), np.float32(STEPS)
    x = reconstruct.values(training.read_rows(artist.split.examples, rows))
    z = artist.codes(x, None)[:, None] + t[:, None] * v
    arrays = {"x": x, "label": artist.split.labels[rows], "t": t, "v": v, "z": z, "mean": artist.decode(z, None)}
    shown = artist.shown(np.concatenate([x[:, None], arrays["mean"]], axis=1))
    names = ["data", f"$t$ = {STEPS[0]:g}", *(f"{step:g}" for step in STEPS[1:])]
    what = f"$z + t\\,v$, $v$ = mean code of {_listed(sides['plus'])} − mean code of {_listed(sides['minus'])}"
    return figures.beside(shown, names, [1] * len(names), what), arrays


def _classes(artist: Artist, name: str, given: Sequence[str] | None) -> list[int]:
    """The classes of a flag, each of which the training split has.

    Raises:
      InputError: there are none, or not these.
    """
    dataset = artist.run.dataset
    labels = dataset.train.labels
    if labels is None or labels.ndim != 1:
        has = "no labels" if labels is None else "vectors for labels"
        raise InputError(f"--what=arithmetic is between classes, and {dataset.name} has {has}: use data with classes")
    if not given:
        raise InputError(f"--{name} is missing: give classes, for example --minus=7 --plus=1,4")
    known = {str(label): int(label) for label in np.unique(labels)}
    for each in given:
        if each not in known:
            some = ", ".join([*list(known)[:20], *["..."] * (len(known) > 20)])
            raise InputError(f"--{name} names the class {each!r}, and those of {dataset.name} are {some}: choose these")
    return sorted({known[each] for each in given})


def _listed(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes))
