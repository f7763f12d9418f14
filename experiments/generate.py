"""Draw from a trained model: a picture and the arrays behind it.

python -m experiments.generate --workdir=runs/digits --what=samples --num=64
python -m experiments.generate --workdir=runs/digits --what=denoise --noise=gaussian --level=0.5
python -m experiments.generate --workdir=runs/digits --what=inpaint --files=mine.png,others.npy
python -m experiments.generate --workdir=runs/digits --what=arithmetic --minus=7 --plus=1,4
"""

from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath

from aevb import models, processes
from aevb.data.corruption import CORRUPTIONS
from aevb.errors import InputError
from experiments import build, checkpointed, cli, code_pictures, numbers, pictures, restored_pictures, workdir
from experiments.artist import Arrays, Artist, check_label
from experiments.build import Run

# What can be asked for, and how many of it there are unless it is said.
WHAT: dict[str, tuple[Callable[..., tuple[Any, Arrays]], int]] = {
    "samples": (pictures.samples, 64),
    "classes": (pictures.classes, 10),
    "reconstructions": (pictures.reconstructions, 10),
    "restorations": (pictures.restorations, 10),
    "interpolations": (pictures.interpolations, 8),
    "traversals": (pictures.traversals, 7),
    "manifold": (pictures.manifold, 20),
    "latents": (pictures.latents, 10_000),
    "filters": (pictures.filters, 100),
    "denoise": (restored_pictures.denoise, 10),
    "inpaint": (restored_pictures.inpaint, 10),
    "neighbours": (code_pictures.neighbours, 8),
    "arithmetic": (code_pictures.arithmetic, 6),
}
# What is drawn where it is asked for alone.
ON_DEMAND = ("inpaint", "neighbours", "arithmetic")
# What a run draws at its end, if it can be drawn of its model; noise taken away, where the model was trained to.
REPORTED = {name: drawn for name, drawn in WHAT.items() if name not in ON_DEMAND}
REPORTED |= {"kl_per_dim": (pictures.kl_per_dim, 10_000)}
# Flags, and the pictures that know them.
OPTIONS = {
    "label": ("samples", "traversals", "manifold", "denoise", "inpaint"),
    "noise": ("denoise",),
    "level": ("denoise",),
    "share": ("inpaint",),
    "files": ("denoise", "inpaint"),
    "minus": ("arithmetic",),
    "plus": ("arithmetic",),
}
# What shows codes of data, which only an encoder makes.
ENCODED = ("reconstructions", "interpolations", "latents", "kl_per_dim", "denoise", *ON_DEMAND)
# What is drawn from z's prior, or laid out by it.
OF_THE_PRIOR = ("samples", "classes", "traversals", "manifold", "kl_per_dim")
# Of a masked autoencoder, whose code of an image is not what it decodes.
OF_MASKED = ("restorations", "inpaint", "latents", "neighbours")


def why_not(run: Run, what: str) -> str | None:
    """Why a picture is not one of this model, and what to do, in a sentence; None where it is one."""
    latent_dim = run.model.latent_dim
    if isinstance(run.model, models.MaskedAutoencoder):
        return _why_not_masked(run.model, what)
    if what == "restorations":
        return "restorations are a masked autoencoder's: use --what=reconstructions"
    if what in OF_THE_PRIOR and not run.has_prior:
        return f"--what={what} draws from a prior, and an autoencoder has none: use --what=reconstructions"
    if what in ENCODED and not run.learner.has_encoder:
        return f"--what={what} needs codes of data, and {run.facts['learner']} trains no encoder: use --what=samples"
    drawn = run.dataset.test if len(run.dataset.test.examples) else run.dataset.train
    if what == "interpolations" and len(drawn.examples) < 2:
        return "an interpolation leads from one example to another, and the data to draw are one example"
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
    if what == "inpaint" and len(run.model.event_shape) < 2:
        shape = list(run.model.event_shape)
        return f"--what=inpaint hides the centre of images, and these datapoints have shape {shape}: use --what=denoise"
    if what == "arithmetic" and run.context is not None:
        return (
            "--what=arithmetic moves a code from class to class, and a model that is told the label keeps it out of "
            "the code: train with --config.model.context=none, or use --what=classes"
        )
    return None


def _why_not_masked(model: models.MaskedAutoencoder, what: str) -> str | None:
    if what == "denoise":
        return (
            "a masked autoencoder is trained on hidden patches alone and takes no noise from those that it sees: use "
            "--what=inpaint"
        )
    if what not in OF_MASKED:
        return (
            f"--what={what} is not drawn by a masked autoencoder, which decodes no code of a whole image: use "
            f"--what={' or '.join(OF_MASKED)}"
        )
    if what == "inpaint" and model.normalise:
        return (
            "--what=inpaint needs the mean and variance of patches that are hidden, which config.vit.normalise takes "
            "out of what is learned: train with --config.vit.normalise=False"
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
        if can_draw(run, name) and (name != "denoise" or run.corruption is not None):
            figure, _ = draw(artist, num)  # by all processes, since examples go through the devices of all
            if processes.is_first():
                figures.save(figure, folder / f"{name}.png")


def main(argv: list[str]) -> None:
    from aevb import figures

    cli.refuse(argv)
    folder = workdir.at(cli.required("workdir", "runs/digits"))
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
    options = {name: flags.FLAGS[name].value for name in OPTIONS if flags.FLAGS[name].value is not None}
    for name in options:
        if what not in OPTIONS[name]:
            raise InputError(f"--{name} is for {', '.join(OPTIONS[name])}, and not for {what}: leave it out")
    label = options.pop("label", None)
    params, which = checkpointed.restore(run, folder)
    draw, default = WHAT[what]
    figure, arrays = draw(Artist(run, params, label), flags.FLAGS.num or default, **options)
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
    flags.DEFINE_enum("noise", None, list(CORRUPTIONS), "Of denoise; as in training, or gaussian, unless given.")
    flags.DEFINE_float(
        "level", None, "Of denoise: the share of elements, or gaussian's standard deviation; as in training, or 0.25."
    )
    flags.DEFINE_float("share", None, "Of inpaint: the share of the area to hide; 0.25 unless given.")
    flags.DEFINE_list("files", None, "Of denoise and inpaint: images or .npy files in the place of test examples.")
    flags.DEFINE_list("minus", None, "Of arithmetic: the classes that codes are moved from, such as 7.")
    flags.DEFINE_list("plus", None, "Of arithmetic: the classes that codes are moved to, such as 1,4.")
    flags.DEFINE_string("out", None, "The PNG to write, beside an .npz; in the run's figures unless given.")
    cli.run(main)
