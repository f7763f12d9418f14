"""Test likelihoods of the models that are taught, each trained from its config: likelihoods.csv.

    python -m experiments.textbook.likelihoods --workdir=runs/textbook --out=experiments/results/textbook

Each is trained in a folder of its own below --workdir, as many side by side as there are cores or GPUs (`--jobs`); the
same command resumes them.
"""

import csv
import io
from collections.abc import Mapping

from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import cli, side_by_side, workdir

_IWAE = ("bound.name=iwae", "bound.num_samples=5", "bound.kl_schedule=constant", "bound.kl_warmup_steps=0")
# A config, and what a run changes in it.
RUNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vae": ("vae.py:mnist", ()),
    "full_covariance": ("vae.py:mnist", ("model.posterior=full_gaussian",)),
    "cvae_given_label": ("cvae.py:mnist", ()),
    "burda_vae_1": ("burda.py:mnist,sgvb_b,1", ()),
    "burda_vae_5": ("burda.py:mnist,sgvb_b,5", ()),
    "burda_iwae_5": ("burda.py:mnist,iwae,5", ()),
    "gated": ("gated.py:mnist", ()),
    "gated_iwae_5": ("gated.py:mnist", (*_IWAE, "train.num_epochs=350.0")),
    "static_burda_vae_1": ("burda.py:binarized_mnist,sgvb_b,1", ()),
    "static_burda_iwae_5": ("burda.py:binarized_mnist,iwae,5", ()),
    "static_gated": ("gated.py:binarized_mnist", ("train.patience=10", "eval.num_samples=1000")),
    "conv": ("conv.py:mnist", ()),
    "long_vae": ("vae.py:mnist", ("train.num_epochs=400",)),
    "frey_learned": ("vae.py:frey_face", ("model.latent_dim=10",)),
    "frey_shared": ("vae.py:frey_face", ("model.latent_dim=10", "model.scale=shared")),
    "frey_fixed": ("vae.py:frey_face", ("model.latent_dim=10", "model.scale=fixed")),
}
COLUMNS = (
    "model",
    "dataset",
    "binarization",
    "bound",
    "num_samples",
    "num_examples",
    "nll",
    "nll_stderr",
    "elbo",
    "seed",
    "train_seconds",
    "hardware",
    "command",
)


def training(name: str, seed: int, num_epochs: float | None) -> side_by_side.Training:
    """The run of a name, which its folder has too."""
    config, overrides = RUNS[name]
    given = {"seed": seed, "train.num_epochs": num_epochs}
    overrides = [*overrides, *(f"{key}={value}" for key, value in given.items() if value)]
    return side_by_side.training(f"{name}_seed{seed}", config, overrides)


def row(folder: epath.Path, name: str, command: list[str]) -> dict[str, str | int | float] | None:
    """What a run came to, and the command that makes it again; None where it has not come to its end."""
    if not (folder / "summary.json").exists():
        return None
    summary = workdir.read_json(folder / "summary.json")
    evaluation = summary["evaluation"]
    return {
        "model": name,
        "dataset": summary["dataset"],
        "binarization": summary["binarization"],
        "bound": summary["bound"],
        **{key: evaluation[key] for key in ("num_samples", "num_examples")},
        **{key: round(evaluation[key], 3) for key in ("nll", "nll_stderr", "elbo")},
        "seed": summary["seed"],
        "train_seconds": round(summary["train_seconds"]),
        "hardware": hardware(summary["hardware"]),
        "command": " ".join(["python -m experiments.train", *command, f"--workdir=runs/{name}"]),
    }


def hardware(told: dict) -> str:
    """What a run was trained on, from its summary."""
    if told["platform"] == "cpu":
        return f"{told['cores']} core{'s' * (told['cores'] > 1)} of {told['cpu']}"
    return f"{told['device_count']} x {told['device']}"


def write(path: epath.Path, rows: list[dict]) -> None:
    """Add rows to the table, in place of those of the same model and seed."""
    table = {}
    if path.exists():
        table = {(old["model"], int(old["seed"])): old for old in csv.DictReader(io.StringIO(path.read_text()))}
    table |= {(new["model"], new["seed"]): new for new in rows}
    order = {name: place for place, name in enumerate(RUNS)}
    keys = sorted(table, key=lambda key: (order.get(key[0], len(order)), *key))
    workdir.write_csv(path, COLUMNS, [[table[key][column] for column in COLUMNS] for key in keys])


def chosen() -> list[str]:
    """The runs that --only names.

    Raises:
      InputError: it names none.
    """
    some = [name for name in RUNS if name.startswith(tuple(flags.FLAGS.only.removesuffix(",").split(",")))]
    if not some:
        raise InputError(f"--only={flags.FLAGS.only} names no run: the runs are {', '.join(RUNS)}")
    return some


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    root, seed = epath.Path(flags.FLAGS.workdir), flags.FLAGS.seed
    trainings = {name: training(name, seed, flags.FLAGS.num_epochs) for name in chosen()}
    side_by_side.train(list(trainings.values()), root, flags.FLAGS.jobs)
    for each in trainings.values():
        side_by_side.check_length(each, root)
    rows = [row(root / each.name, name, each.arguments) for name, each in trainings.items()]
    folder = epath.Path(flags.FLAGS.out or root)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "likelihoods.csv", [each for each in rows if each])
    print((folder / "likelihoods.csv").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/textbook", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", None, "Where likelihoods.csv goes; the workdir unless given.")
    flags.DEFINE_string("only", "", "Only the runs whose names start with one of these, separated by commas.")
    flags.DEFINE_float("num_epochs", None, "Of every run; its config's own unless given.", lower_bound=0.01)
    flags.DEFINE_integer("seed", 0, "Of every run.", lower_bound=0)
    flags.DEFINE_integer("jobs", None, "Runs side by side; one a device, or one a core, unless given.", lower_bound=1)
    cli.run(main)
