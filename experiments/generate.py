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

from aevb import bounds, data, training
from aevb.errors import InputError
from aevb.inference.diagnostics import active_units
from experiments import build, cli, evaluate, workdir
from experiments.build import Run

Arrays = dict[str, np.ndarray]


class Artist:
    """A trained model, ready to be drawn from; its pictures show the test split, or train where that is empty."""

    def __init__(self, run: Run, params: Any) -> None:
        self.run = run
        self.replicated = params
        self.params = training.unreplicate(params)
        self.split_name = "test" if len(run.dataset.test.examples) else "train"
        self.split = run.split(self.split_name)
        self.key = run.draw_key
        self._decode = jax.jit(jax.vmap(lambda params, z: run.model.bind({"params": params}).decode(z).mean, (None, 0)))
        self._encode = run.map_split(self._encode_one, self.split_name)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """The mean of p(x | z) of each z `[..., latent]`, as `[..., *event]`."""
        flat = self._decode(self.params, jnp.asarray(z).reshape(-1, z.shape[-1]))
        return np.asarray(flat).reshape(*z.shape[:-1], *self.run.model.event_shape)

    def prior_quantiles(self, u: np.ndarray) -> np.ndarray:
        """The inverse CDF of each dimension of the prior at u `[num]` in (0, 1), `[num, latent]`."""
        prior = self.run.model.bind({"params": self.params}).prior()
        u = np.broadcast_to(u[:, None], (len(u), self.run.model.latent_dim))
        return np.asarray(jax.vmap(prior.base_dist.icdf)(jnp.asarray(u, jnp.float32)))

    def encode(self, num: int) -> Arrays:
        """The first `num` datapoints with the mean and KL per dimension of their posteriors."""
        return training.collect(
            self._encode(self.replicated, data.head(self.split, num), self.run.split_key(self.split_name))
        )

    def _encode_one(self, params: Any, point: data.Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        vae = self.run.model.bind({"params": params}).given(point.context)
        posterior = vae.encode(point.x)
        z = jax.vmap(posterior.sample)(jax.random.split(key, evaluate.KL_SAMPLES))
        return {"x": point.x, "mean": posterior.mean, "kl_per_dim": bounds.kl_per_dim(posterior, vae.prior(), z)}


def samples(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """Means of p(x | z) for `num` draws z from the prior."""
    from aevb import figures

    prior = artist.run.model.bind({"params": artist.params}).prior()
    z = np.asarray(jax.vmap(prior.sample)(jax.random.split(artist.key, num)))
    arrays = {"z": z, "mean": artist.decode(z)}
    return figures.samples(arrays["mean"]), arrays


def reconstructions(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The first `num` datapoints of the split above the means of p(x | z) at their posterior means."""
    from aevb import figures

    encoded = artist.encode(num)
    arrays = {"x": encoded["x"], "z": encoded["mean"], "mean": artist.decode(encoded["mean"])}
    return figures.reconstructions(arrays["x"], arrays["mean"]), arrays


def interpolations(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """`num` straight lines of 10 points between the posterior means of two datapoints."""
    from aevb import figures

    ends = artist.encode(2 * num)["mean"]
    if len(ends) < 2:
        raise InputError(f"the {artist.split_name} split has {len(ends)} example, and a line needs two")
    pairs = ends[: len(ends) // 2 * 2].reshape(-1, 2, 1, ends.shape[-1])
    t = np.linspace(0, 1, 10, dtype=np.float32)[:, None]
    z = (1 - t) * pairs[:, 0] + t * pairs[:, 1]
    arrays = {"z": z, "mean": artist.decode(z)}
    return figures.interpolations(arrays["mean"]), arrays


def traversals(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """Each latent dimension moved over `num` quantiles of the prior, those of N(0, 1) at -3 to 3; others stay."""
    from scipy.stats import norm

    from aevb import figures

    latent_dim = artist.run.model.latent_dim
    values = np.linspace(-3, 3, num, dtype=np.float32)
    moved = artist.prior_quantiles(norm.cdf(values))  # [num, latent]
    median = np.broadcast_to(artist.prior_quantiles(np.array([0.5])), (latent_dim, num, latent_dim))
    z = np.where(np.eye(latent_dim, dtype=bool)[:, None], moved[None], median)
    arrays = {"z": z, "mean": artist.decode(z)}
    if artist.run.learner.has_encoder:
        arrays["kl_per_dim"] = artist.encode(1000)["kl_per_dim"].mean(axis=0)
    return figures.traversals(arrays["mean"], values, arrays.get("kl_per_dim")), arrays


def manifold(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """A `num` by `num` grid on the unit square, through the inverse CDF of the prior, decoded (the paper's Fig. 4)."""
    from aevb import figures

    values = artist.prior_quantiles((np.arange(num) + 0.5) / num)
    z = np.stack(np.meshgrid(values[:, 0], values[:, 1]), axis=-1)  # z[i, j] = (values[j, 0], values[i, 1])
    arrays = {"z": z, "mean": artist.decode(z)}
    return figures.manifold(arrays["mean"]), arrays


def latents(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The posterior means of the first `num` datapoints by label, in two dimensions (PCA if there are more)."""
    from aevb import figures

    arrays = {"mean": artist.encode(num)["mean"]}
    labels = artist.split.labels
    if labels is not None:
        arrays["label"] = labels[:num]
    return figures.latents(arrays["mean"], arrays.get("label")), arrays


def kl_per_dim(artist: Artist, num: int) -> tuple[Any, Arrays]:
    """The mean KL of each latent dimension over the first `num` datapoints, the active ones marked."""
    from aevb import figures

    encoded = artist.encode(num)
    arrays = {"kl_per_dim": encoded["kl_per_dim"].mean(axis=0), "active": active_units(encoded["mean"])}
    return figures.kl_per_dim(arrays["kl_per_dim"], arrays["active"]), arrays


# What can be asked for, and how many of it there are unless it is said.
WHAT: dict[str, tuple[Callable[[Artist, int], tuple[Any, Arrays]], int]] = {
    "samples": (samples, 64),
    "reconstructions": (reconstructions, 10),
    "interpolations": (interpolations, 8),
    "traversals": (traversals, 7),
    "manifold": (manifold, 20),
    "latents": (latents, 10_000),
}
# What every run draws at its end.
REPORTED = WHAT | {"kl_per_dim": (kl_per_dim, 10_000)}
# What shows codes of data, which only an encoder makes.
ENCODED = ("reconstructions", "interpolations", "latents", "kl_per_dim")


def can_draw(run: Run, name: str) -> bool:
    """Whether a picture is one of this model: a manifold has two dimensions, codes come from an encoder."""
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
    if not can_draw(run, what):
        raise InputError(
            f"{what} are made of codes of data, and {run.facts['learner']} trains no encoder: use --what=samples"
        )
    params, which = evaluate.restore(run, folder)
    draw, default = WHAT[what]
    figure, arrays = draw(Artist(run, params), flags.FLAGS.num or default)
    evaluate.check_finite(arrays, f"what {folder} draws")
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, out)
    workdir.write_arrays(out.with_suffix(".npz"), arrays)
    print(f"wrote {out} and {out.with_suffix('.npz').name}, from step {which['step']} of {folder}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_string("what", None, f"What to draw: {', '.join(WHAT)}.")
    flags.DEFINE_integer("num", None, "How many; each kind of picture has its own default.", lower_bound=1)
    flags.DEFINE_string("out", None, "The PNG to write, beside an .npz; in the run's figures unless given.")
    cli.run(main)
