"""Draw from a trained model: a picture and the arrays behind it.

python -m experiments.generate --workdir=runs/digits --what=samples --num=64
"""

from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath

from aevb import models
from aevb.errors import InputError
from experiments import build, checkpointed, cli, numbers, pictures, workdir
from experiments.artist import Arrays, Artist, check_label
from experiments.build import Run

# What can be asked for, and how many of it there are unless it is said.
WHAT: dict[str, tuple[Callable[[Artist, int], tuple[Any, Arrays]], int]] = {
    "samples": (pictures.samples, 64),
    "classes": (pictures.classes, 10),
    "reconstructions": (pictures.reconstructions, 10),
    "restorations": (pictures.restorations, 10),
    "interpolations": (pictures.interpolations, 8),
    "traversals": (pictures.traversals, 7),
    "manifold": (pictures.manifold, 20),
    "latents": (pictures.latents, 10_000),
    "filters": (pictures.filters, 100),
}
# What every run draws at its end, if it can be drawn of its model.
REPORTED = WHAT | {"kl_per_dim": (pictures.kl_per_dim, 10_000)}
# What can be drawn for one label.
OF_ONE_LABEL = ("samples", "traversals", "manifold")
# What shows codes of data, which only an encoder makes.
ENCODED = ("reconstructions", "interpolations", "latents", "kl_per_dim")
# What is drawn from z's prior, or laid out by it.
OF_THE_PRIOR = ("samples", "classes", "traversals", "manifold", "kl_per_dim")
# Of a masked autoencoder, whose code of an image is not what it decodes.
OF_MASKED = ("restorations", "latents")


def why_not(run: Run, what: str) -> str | None:
    """Why a picture is not one of this model, and what to do, in a sentence; None where it is one."""
    latent_dim = run.model.latent_dim
    if isinstance(run.model, models.MaskedAutoencoder):
        return _why_not_masked(what)
    if what == "restorations":
        return "restorations are a masked autoencoder's: use --what=reconstructions"
    if what in OF_THE_PRIOR and not run.has_prior:
        return f"--what={what} draws from a prior, and an autoencoder has none: use --what=reconstructions"
    if what in ENCODED and not run.learner.has_encoder:
        return f"--what={what} needs codes of data, and {run.facts['learner']} trains no encoder: use --what=samples"
    if what == "classes" and not (run.context is not None and run.context.classes):
        return (
            "classes are drawn by a model that was told them: train with --config.model.context=label on labelled data"
        )
    if what == "manifold" and latent_dim != 2:
        return (
            f"a manifold is drawn for 2 latent dimensions, and this model has {latent_dim}: use --what=traversals, or "
            "train with --config.model.latent_dim=2"
        )
    if what == "filters" and run.has_prior:
        return "filters are the dictionary of an autoencoder, and this model has a prior: use --what=traversals"
    return None


def _why_not_masked(what: str) -> str | None:
    if what not in OF_MASKED:
        return (
            f"--what={what} is not drawn by a masked autoencoder, which decodes no code of a whole image: use "
            f"--what={' or '.join(OF_MASKED)}"
        )
    return None


def can_draw(run: Run, what: str) -> bool:
    """Whether a picture is one of this model."""
    return why_not(run, what) is None


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
    refusal = why_not(run, what)
    if refusal is not None:
        raise InputError(refusal)
    check_label(run, flags.FLAGS.label)
    if flags.FLAGS.label is not None and what not in OF_ONE_LABEL:
        raise InputError(f"--label is for {', '.join(OF_ONE_LABEL)}, and {what} have labels of their own: leave it out")
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
