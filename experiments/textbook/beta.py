"""What beta does: reconstructions, samples and active units of models of MNIST trained with beta from 0.1 to 10.

    python -m experiments.textbook.beta --workdir=runs/textbook --out=experiments/results/textbook

A run a beta, in a folder of its own below --workdir; the same command resumes them. Writes `beta.csv`, `beta.png` and
`beta_samples.png`. All bounds are at beta = 1. The quality of samples is a Fréchet distance (`sample_quality.py`).
"""

import numpy as np
from absl import flags
from etils import epath

from experiments import build, checkpointed, cli, pictures, side_by_side, workdir
from experiments.artist import Artist
from experiments.textbook import draw, sample_quality

CONFIG = "experiments/configs/vae.py:mnist"
BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0)
EXAMPLES = 2000  # of the test split, for the bound and the NLL
NUM = 10_000  # samples that are judged
SHOWN = 10  # of them in the picture
TOLD = ("num_examples", "log_likelihood", "kl", "elbo", "nll", "nll_stderr", "active_units")  # by its evaluation
COLUMNS = ("beta", *TOLD, "frechet_distance", "seed")


def training(beta: float, seed: int, num_epochs: float) -> side_by_side.Training:
    """The run with one beta."""
    overrides = {"seed": seed, "bound.kl_weight": beta, "train.num_epochs": num_epochs, "eval.max_examples": EXAMPLES}
    given = [f"--config={CONFIG}", *(f"--config.{key}={value}" for key, value in overrides.items())]
    return side_by_side.Training(f"beta{beta:g}_seed{seed}", given, num_epochs)


def measure(folder: epath.Path, features: sample_quality.Features) -> tuple[dict, np.ndarray]:
    """The numbers of a finished run, and some of its samples."""
    run = build.build(workdir.read_config(folder))
    artist = Artist(run, checkpointed.restore(run, folder)[0])
    samples = pictures.samples(artist, NUM)[1]["mean"]
    evaluation = workdir.read_json(folder / "summary.json")["evaluation"]
    numbers = {key: evaluation[key] for key in TOLD}
    return numbers | {"frechet_distance": features.distance(samples)}, samples


def main(argv: list[str]) -> None:
    from aevb import figures

    cli.refuse(argv)
    root, seed = epath.Path(flags.FLAGS.workdir), flags.FLAGS.seed
    trainings = [training(beta, seed, flags.FLAGS.num_epochs) for beta in BETAS]
    side_by_side.train(trainings, root, flags.FLAGS.jobs)
    for each in trainings:
        side_by_side.check_length(each, root)
    dataset = build.build(workdir.read_config(root / trainings[0].name)).dataset
    features = sample_quality.Features.learn(dataset.train, dataset.test)
    floor = features.distance(dataset.train.examples)
    measured = [measure(root / each.name, features) for each in trainings]
    rows = [{"beta": beta, "seed": seed, **numbers} for beta, (numbers, _) in zip(BETAS, measured, strict=True)]
    folder = epath.Path(flags.FLAGS.out or root)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_csv(folder / "beta.csv", COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    figures.save(draw.beta(rows, floor), folder / "beta.png")
    shown = figures.classes(np.stack([each[:SHOWN] for _, each in measured]), [f"{beta:g}" for beta in BETAS], "β")
    figures.save(shown, folder / "beta_samples.png")
    print((folder / "beta.csv").read_text())
    print(f"a Fréchet distance of {floor:.2f} is between training and test images")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/textbook", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", None, "Where figures and beta.csv go; the workdir unless given.")
    flags.DEFINE_float("num_epochs", 30.0, "Of every run.", lower_bound=0.01)
    flags.DEFINE_integer("seed", 0, "Of every run.", lower_bound=0)
    flags.DEFINE_integer("jobs", None, "Runs side by side; one a device, or one a core, unless given.", lower_bound=1)
    cli.run(main)
