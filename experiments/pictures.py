"""Pictures of a trained model: functions of an artist and a number, to a figure and the arrays behind it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb import data, models, training
from aevb.inference.diagnostics import active_units
from experiments.artist import Arrays, Artist
from experiments.build import Run

MOST_CLASSES = 50  # rows that a picture can hold
USED_EXAMPLES = 1000  # tell which elements of a code are used


def samples(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """Means of p(x | z) for `num` draws z from the prior."""
    from aevb import figures

    contexts, keys = artist.contexts(num), jax.random.split(artist.key, num)
    z = np.asarray(jax.vmap(lambda context, key: artist.given(context).prior().sample(key))(contexts, keys))
    arrays = {"z": z, "context": contexts, "mean": artist.decode(z, contexts)}
    return figures.samples(artist.shown(arrays["mean"])), arrays


def classes(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """A row a class, up to 50, and `num` columns, each of one draw u of a latent's place in the prior."""
    from aevb import figures

    u = np.asarray(jax.random.uniform(artist.key, (num, artist.run.model.latent_dim), minval=2.0**-24))
    contexts = artist.contexts_of(np.arange(min(artist.run.context.size, MOST_CLASSES)))
    z = np.stack([artist.prior_quantiles(u, context) for context in contexts])
    arrays = {"z": z, "context": contexts, "mean": artist.decode(z, contexts[:, None])}
    names = artist.split.names or [str(i) for i in range(len(z))]
    return figures.classes(artist.shown(arrays["mean"]), names[: len(z)]), arrays


def reconstructions(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The first `num` datapoints of the split above the means of p(x | z) at their posterior means."""
    from aevb import figures

    encoded = artist.encode(num)
    arrays = {name: encoded[name] for name in ("x", "context")} | {"z": encoded["mean"]}
    arrays["mean"] = artist.decode(encoded["mean"], encoded["context"])
    return figures.reconstructions(artist.shown(arrays["x"]), artist.shown(arrays["mean"])), arrays


def restorations(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The first `num` datapoints, what a mask leaves of each, and the image with its masked patches as predicted."""
    from aevb import figures

    mapped = artist.run.once(_restored_of_split, artist.split_name)
    split, key = data.head(artist.split, num), artist.run.split_key(artist.split_name)
    arrays = training.collect(mapped(artist.replicated, split, key))
    rows = {"data": "x", "seen": "seen", "model": "mean"}
    shown = np.stack([artist.shown(arrays[name]) for name in rows.values()])
    return figures.classes(shown, list(rows), ""), arrays


def _restored_of_split(run: Run, name: str) -> Callable:
    """`map_examples` of what a mask leaves of an example, and of what is made of it, for `run.once`."""

    def one(params: Any, point: data.Datapoint, key: jax.Array) -> Arrays:
        bound = run.model.bind({"params": params})
        restored = bound(point.x, key)
        seen = jnp.where(restored.masked[:, None], 0.5, bound.patches(point.x))
        return {"x": point.x, "seen": bound.image(seen), "mean": bound.whole(restored, point.x)}

    return run.map_split(one, name)


def interpolations(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """`num` straight lines of 10 points between two datapoints: their posterior means, and their contexts."""
    from aevb import figures

    encoded = artist.encode(2 * num)
    t = np.linspace(0, 1, 10, dtype=np.float32)[:, None]

    def lines(ends: np.ndarray) -> np.ndarray:
        pairs = ends[: len(ends) // 2 * 2].reshape(-1, 2, 1, ends.shape[-1])
        return (1 - t) * pairs[:, 0] + t * pairs[:, 1]

    z, contexts = (None if ends is None else lines(ends) for ends in (encoded["mean"], encoded["context"]))
    arrays = {"z": z, "context": contexts, "mean": artist.decode(z, contexts)}
    return figures.interpolations(artist.shown(arrays["mean"])), arrays


def traversals(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """Each latent dimension moved over `num` quantiles of the prior, those of N(0, 1) at -3 to 3; others stay.

    A conditional model shows one context, the first that there is.
    """
    from scipy.stats import norm

    from aevb import figures

    latent_dim = artist.run.model.latent_dim
    values = np.linspace(-3, 3, num, dtype=np.float32)
    context = artist.one_context()
    moved = artist.prior_quantiles(norm.cdf(values), context)  # [num, latent]
    median = np.broadcast_to(artist.prior_quantiles(np.array([0.5]), context), (latent_dim, num, latent_dim))
    z = np.where(np.eye(latent_dim, dtype=bool)[:, None], moved[None], median)
    arrays = {"z": z, "context": context, "mean": artist.decode(z, context)}
    if artist.run.learner.has_encoder:
        arrays["kl_per_dim"] = artist.encode(1000)["kl_per_dim"].mean(axis=0)
    normal = isinstance(artist.run.model.prior, models.StandardNormal)
    places = values if normal else norm.cdf(values)
    what = "value of the latent $z_i$" if normal else "quantile of the prior of the latent $z_i$"
    return figures.traversals(artist.shown(arrays["mean"]), places, arrays.get("kl_per_dim"), what), arrays


def manifold(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """A `num` by `num` grid on the unit square, through the inverse CDF of the prior, decoded (the paper's Fig. 4).

    A conditional model shows one context, the first that there is.
    """
    from aevb import figures

    context = artist.one_context()
    values = artist.prior_quantiles((np.arange(num) + 0.5) / num, context)
    z = np.stack(np.meshgrid(values[:, 0], values[:, 1]), axis=-1)  # z[i, j] = (values[j, 0], values[i, 1])
    arrays = {"z": z, "context": context, "mean": artist.decode(z, context)}
    return figures.manifold(artist.shown(arrays["mean"]), values), arrays


def latents(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The posterior means of the first `num` datapoints by label, in two dimensions (PCA if there are more)."""
    from aevb import figures

    arrays = {"mean": artist.encode(num)["mean"]}
    labels = artist.split.labels
    if labels is not None and labels.ndim == 1:
        arrays["label"] = labels[:num]
    return figures.latents(arrays["mean"], arrays.get("label"), artist.split.names), arrays


def kl_per_dim(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The mean KL of each latent dimension over the first `num` datapoints, the active ones marked."""
    from aevb import figures

    encoded = artist.encode(num)
    classes = encoded["context"] if artist.run.context is not None and artist.run.context.classes else None
    arrays = {"kl_per_dim": encoded["kl_per_dim"].mean(axis=0), "active": active_units(encoded["mean"], classes)}
    return figures.kl_per_dim(arrays["kl_per_dim"], arrays["active"]), arrays


def filters(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """What each of `num` elements of the code adds to a picture: decode(e_j) - decode(0), each on a scale of its own.

    First those that move pictures most: the standard deviation of the element over the first 1000 examples, times the
    norm of what it adds. A dead element is last.
    """
    from aevb import figures

    size = artist.run.model.latent_dim
    z, context = np.eye(size, dtype=np.float32), artist.one_context()
    added = artist.decode(z, context) - artist.decode(np.zeros((1, size), np.float32), context)
    flat = added.reshape(size, -1)
    moved = artist.codes(*artist.examples(USED_EXAMPLES)).std(axis=0) * np.linalg.norm(flat, axis=1)
    order = np.argsort(-moved, kind="stable")[:num]
    largest = np.abs(flat[order]).max(axis=1).reshape(-1, *[1] * (added.ndim - 1))
    shown = figures.samples((1 + added[order] / np.maximum(largest, 1e-12)) / 2)
    return shown, {"z": z[order], "filter": added[order], "moved": moved[order]}
