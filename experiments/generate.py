"""Draw from a trained model: a picture and the arrays behind it.

python -m experiments.generate --workdir=runs/digits --what=samples --num=64
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from aevb import bounds, data, models, training
from aevb.errors import InputError
from aevb.inference.diagnostics import active_units
from experiments import build, checkpointed, cli, evaluate, numbers, workdir
from experiments.build import Run

Arrays = dict[str, np.ndarray]
MOST_CLASSES = 50  # rows that a picture can hold


class Artist:
    """A trained model, ready to be drawn from; its pictures show the test split, or train where that is empty.

    A conditional model draws in the contexts of the datapoints of that split, one after another, or in that of one
    label.

    Raises:
      InputError: the model knows no such label.
    """

    def __init__(self, run: Run, params: Any, label: int | None = None) -> None:
        self.run = run
        self.replicated = params
        self.params = training.unreplicate(params)
        self.split_name = "test" if len(run.dataset.test.examples) else "train"
        self.split = run.split(self.split_name)
        self.key = run.draw_key
        self.label = label
        check_label(run, label)
        self.white = 1.0
        if run.model.likelihood.support == "counts" and len(run.model.event_shape) > 1:
            self.white = max(float(np.max(run.dataset.train.examples[:1000])), 1.0)
        self._decode = jax.jit(jax.vmap(self._decode_one, (None, 0, 0)))
        self._encode = run.map_split(self._encode_one, self.split_name)

    def given(self, context: jax.Array | None) -> models.Given:
        """The model that was told a context."""
        return self.run.model.bind({"params": self.params}).given(context)

    def contexts(self, num: int) -> np.ndarray | None:
        """The contexts of `num` pictures, `[num, context]`; None for a model without."""
        if self.run.context is None:
            return None
        if self.label is not None:
            return self.contexts_of(np.full(num, self.label))
        return self.contexts_of(np.resize(self.split.labels[:num], (num, *self.split.labels.shape[1:])))

    def one_context(self) -> np.ndarray | None:
        """The first context, `[context]`."""
        contexts = self.contexts(1)
        return None if contexts is None else contexts[0]

    def contexts_of(self, labels: np.ndarray) -> np.ndarray:
        """The contexts that labels make, `[num, context]`."""
        return np.asarray(jax.vmap(self.run.context)(labels))

    def decode(self, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The mean of p(x | z) of each z `[..., latent]`, as `[..., *event]`, in one context or one for each z."""
        if context is not None:
            context = jnp.broadcast_to(context, (*z.shape[:-1], context.shape[-1])).reshape(-1, context.shape[-1])
        flat = self._decode(self.params, jnp.asarray(z).reshape(-1, z.shape[-1]), context)
        return np.asarray(flat).reshape(*z.shape[:-1], *self.run.model.event_shape)

    def prior_quantiles(self, u: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The inverse CDF of the prior, `[num, latent]`, at u in (0, 1), `[num]` for all dimensions or for each."""
        prior = self.given(context).prior()
        u = np.broadcast_to(u.reshape(len(u), -1), (len(u), self.run.model.latent_dim))
        return np.asarray(jax.vmap(prior.base_dist.icdf)(jnp.asarray(u, jnp.float32)))

    def shown(self, x: np.ndarray) -> np.ndarray:
        """x in units of a picture's white: 1, or of images of counts the most that there is in the training data."""
        return x / self.white

    def encode(self, num: int) -> Arrays:
        """The first `num` datapoints and their contexts, with the mean and KL per dimension of their posteriors."""
        return training.collect(
            self._encode(self.replicated, data.head(self.split, num), self.run.split_key(self.split_name))
        )

    def _decode_one(self, params: Any, z: jax.Array, context: jax.Array | None) -> jax.Array:
        return self.run.model.bind({"params": params}).given(context).decode(z).mean

    def _encode_one(self, params: Any, point: data.Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        if isinstance(self.run.model, models.MaskedAutoencoder):
            return {"context": None, "mean": self.run.model.bind({"params": params}).encode(point.x).mean}
        vae = self.run.model.bind({"params": params}).given(point.context)
        posterior = vae.encode(point.x)
        if not self.run.learner.has_bound:
            return {"x": point.x, "context": point.context, "mean": posterior.mean}
        z = jax.vmap(posterior.sample)(jax.random.split(key, evaluate.KL_SAMPLES))
        kl_per_dim = bounds.kl_per_dim(posterior, vae.prior(), z)
        return {"x": point.x, "context": point.context, "mean": posterior.mean, "kl_per_dim": kl_per_dim}


def check_label(run: Run, label: int | None) -> None:
    """Refuse a label that the model was not told of in training.

    Raises:
      InputError: the model has no context, one of vectors, or not this class.
    """
    if label is None:
        return
    if run.context is None or not run.context.classes:
        was = "nothing" if run.context is None else "vectors"
        raise InputError(
            f"--label is {label}, but the model was told {was} of a datapoint: train with --config.model.context=label "
            "on data with classes"
        )
    if not 0 <= label < run.context.size:
        raise InputError(f"--label is {label}, and the classes of {run.dataset.name} are 0 to {run.context.size - 1}")


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

    model = artist.run.model

    def one(params: Any, point: data.Datapoint, key: jax.Array) -> Arrays:
        bound = model.bind({"params": params})
        restored = bound(point.x, key)
        seen = jnp.where(restored.masked[:, None], 0.5, bound.patches(point.x))
        return {"x": point.x, "seen": bound.image(seen), "mean": bound.whole(restored, point.x)}

    mapped = artist.run.map_split(one, artist.split_name)
    split, key = data.head(artist.split, num), artist.run.split_key(artist.split_name)
    arrays = training.collect(mapped(artist.replicated, split, key))
    rows = {"data": "x", "seen": "seen", "model": "mean"}
    shown = np.stack([artist.shown(arrays[name]) for name in rows.values()])
    return figures.classes(shown, list(rows), ""), arrays


def interpolations(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """`num` straight lines of 10 points between two datapoints: their posterior means, and their contexts."""
    from aevb import figures

    encoded = artist.encode(2 * num)
    if len(encoded["mean"]) < 2:
        raise InputError(f"the {artist.split_name} split has {len(encoded['mean'])} example, and a line needs two")
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
    """What each of the first `num` elements of the code adds to a picture: decode(e_j) - decode(0), each on a scale."""
    from aevb import figures

    size = artist.run.model.latent_dim
    z, context = np.eye(size, dtype=np.float32)[:num], artist.one_context()
    added = artist.decode(z, context) - artist.decode(np.zeros((1, size), np.float32), context)
    largest = np.abs(added).reshape(len(added), -1).max(axis=1).reshape(-1, *[1] * (added.ndim - 1))
    return figures.samples((1 + added / np.maximum(largest, 1e-12)) / 2), {"z": z, "filter": added}


# What can be asked for, and how many of it there are unless it is said.
WHAT: dict[str, tuple[Callable[[Artist, int], tuple[Any, Arrays]], int]] = {
    "samples": (samples, 64),
    "classes": (classes, 10),
    "reconstructions": (reconstructions, 10),
    "restorations": (restorations, 10),
    "interpolations": (interpolations, 8),
    "traversals": (traversals, 7),
    "manifold": (manifold, 20),
    "latents": (latents, 10_000),
    "filters": (filters, 100),
}
# What every run draws at its end.
REPORTED = WHAT | {"kl_per_dim": (kl_per_dim, 10_000)}
# What can be drawn for one label.
OF_ONE_LABEL = ("samples", "traversals", "manifold")
# What shows codes of data, which only an encoder makes.
ENCODED = ("reconstructions", "interpolations", "latents", "kl_per_dim")


def can_draw(run: Run, name: str) -> bool:
    """Whether a picture is one of this model: a manifold has two dimensions, codes come from an encoder, z of a prior.

    The code of an autoencoder has no prior to draw from; what it has instead is a dictionary.
    """
    if name == "classes":
        return run.context is not None and run.context.classes and run.has_prior
    is_masked = isinstance(run.model, models.MaskedAutoencoder)
    if name in ("restorations", "filters"):
        return is_masked if name == "restorations" else not run.has_prior and not is_masked
    if is_masked:
        return name == "latents"
    if not run.has_prior:
        return name in ("reconstructions", "interpolations", "latents")
    return (name != "manifold" or run.model.latent_dim == 2) and (name not in ENCODED or run.learner.has_encoder)


def draw_all(run: Run, params: Any, folder: epath.Path) -> None:
    """Every picture of a run, into a folder."""
    from aevb import figures

    artist = Artist(run, params)
    for name, (draw, num) in REPORTED.items():
        if can_draw(run, name):
            figures.save(draw(artist, num)[0], folder / f"{name}.png")


def main(argv: list[str]) -> None:
    from aevb import figures

    cli.refuse(argv)
    folder = epath.Path(cli.required("workdir", "runs/digits"))
    what = cli.required("what", "samples")
    if what not in WHAT:
        raise InputError(f"--what is {what!r}: choose one of {', '.join(WHAT)}")
    out = epath.Path(flags.FLAGS.out) if flags.FLAGS.out else folder / "figures" / f"{what}.png"
    if out.suffix != ".png" or out.is_dir():
        raise InputError(f"--out is {str(out)!r}: give a file that ends in .png (the arrays go beside it as .npz)")
    run = build.build(workdir.read_config(folder))
    if what == "manifold" and run.model.latent_dim != 2:
        raise InputError(
            f"a manifold is drawn for 2 latent dimensions, and this model has {run.model.latent_dim}: "
            "use --what=traversals, or train with --config.model.latent_dim=2"
        )
    check_label(run, flags.FLAGS.label)
    if flags.FLAGS.label is not None and what not in OF_ONE_LABEL:
        raise InputError(f"--label is for {', '.join(OF_ONE_LABEL)}, and {what} have labels of their own: leave it out")
    if what == "classes" and not can_draw(run, what):
        raise InputError(
            "classes are drawn by a model that was told them: train with --config.model.context=label on labelled data"
        )
    if what == "restorations" and not can_draw(run, what):
        raise InputError("restorations are a masked autoencoder's: use --what=reconstructions")
    if not can_draw(run, what) and isinstance(run.model, models.MaskedAutoencoder):
        raise InputError(f"{what} are no pictures of a masked autoencoder: use --what=restorations or latents")
    if not can_draw(run, what) and not run.has_prior:
        raise InputError(f"{what} are drawn from a prior, and an autoencoder has none: use --what=reconstructions")
    if not can_draw(run, what) and what == "filters":
        raise InputError(
            "filters are the dictionary of an autoencoder, and this model has a prior: use --what=traversals"
        )
    if not can_draw(run, what):
        raise InputError(
            f"{what} are made of codes of data, and {run.facts['learner']} trains no encoder: use --what=samples"
        )
    params, which = checkpointed.restore(run, folder)
    draw, default = WHAT[what]
    figure, arrays = draw(Artist(run, params, flags.FLAGS.label), flags.FLAGS.num or default)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    numbers.check_finite(arrays, f"what {folder} draws")
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, out)
    workdir.write_arrays(out.with_suffix(".npz"), arrays)
    print(f"wrote {out} and {out.with_suffix('.npz').name}, from step {which['step']} of {folder}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_string("what", None, f"What to draw: {', '.join(WHAT)}.")
    flags.DEFINE_integer("num", None, "How many; each kind of picture has its own default.", lower_bound=1)
    flags.DEFINE_integer("label", None, "Draw this class; of a model with --config.model.context=label.")
    flags.DEFINE_string("out", None, "The PNG to write, beside an .npz; in the run's figures unless given.")
    cli.run(main)
