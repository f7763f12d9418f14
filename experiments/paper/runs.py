"""The runs behind the paper's figures, as many side by side as there are devices; figures share those in common."""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import build, checkpointed, cli, side_by_side, workdir
from experiments.artist import Artist
from experiments.paper.curves import Curve

CONFIG = "experiments/configs/paper.py"
# What `experiments.train` calls a data set and an algorithm of the paper, and how many examples it trains on.
DATASETS = {"mnist": ("mnist", 50_000), "frey": ("frey_face", 1_572)}
ALGORITHMS = {"aevb": "aevb", "wake-sleep": "wake_sleep", "mcem": "mcem", "full-vb": "full_vb"}
STEP_SIZES = pathlib.Path(__file__).with_name("step_sizes.csv")  # see step_sizes.py


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of one algorithm on one data set.

    Attributes:
      figure, panel: what its curves belong to; "F" is the study of appendix F, and a run that is only drawn from has
        none.
      dataset: "mnist" or "frey".
      algorithm: of `ALGORITHMS`.
      latent_dim: the size of z.
      train_size: train on the first so many examples; 0 is all of them.
      overrides: further `KEY=VALUE` of the config.
      step_size: of Adagrad; None is the one that was chosen for this run in `step_sizes.csv`.
    """

    figure: str
    panel: str
    dataset: str
    algorithm: str
    latent_dim: int
    train_size: int = 0
    overrides: tuple[str, ...] = ()
    step_size: float | None = None

    @property
    def kind(self) -> str:
        """What is trained on what."""
        size = f"_n{self.train_size}" if self.train_size else ""
        figure = {"3": "_fig3", "F": "_study"}.get(self.figure, "")
        return f"{self.dataset}{size}{figure}_nz{self.latent_dim}_{ALGORITHMS[self.algorithm]}"

    def name(self, seed: int) -> str:
        """Of its folder."""
        trial = f"_step{self.step_size}" if self.step_size else ""
        return f"{self.kind}{trial}_seed{seed}"

    def num_epochs(self, training_points: float) -> float:
        return training_points / (self.train_size or DATASETS[self.dataset][1])

    def arguments(self, training_points: float, seed: int) -> list[str]:
        """The arguments of `experiments.train`, but for its --workdir."""
        overrides = {
            "seed": seed,
            "model.latent_dim": self.latent_dim,
            "optimizer.learning_rate": self.step_size or chosen_step_size(self.kind),
            "data.train_size": self.train_size,
            "train.num_epochs": self.num_epochs(training_points),
        }
        dataset = DATASETS[self.dataset][0]
        return [
            f"--config={CONFIG}:{dataset},{ALGORITHMS[self.algorithm]}",
            *(f"--config.{key}={value}" for key, value in overrides.items()),
            *(f"--config.{override}" for override in self.overrides),
        ]


def chosen_step_size(kind: str) -> float:
    """Adagrad's step size for a kind of run: of those tried the best on the training set.

    Raises:
      InputError: none was tried on it, or none came to its end.
    """
    with STEP_SIZES.open() as file:
        tried = [row for row in csv.DictReader(file) if row["run"] == kind and row["train_nats"]]
    if not tried:
        raise InputError(f"{STEP_SIZES} has no step size for {kind}: run experiments.paper.step_sizes --only={kind}")
    return float(max(tried, key=lambda row: float(row["train_nats"]))["step_size"])


def define_flags(training_points: float, some: bool = True) -> None:
    """The flags that the commands of this folder have in common; --only where a command can do with some runs."""
    flags.DEFINE_string("workdir", "runs/paper", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", None, "Where figure, CSV and table go; the workdir unless given.")
    flags.DEFINE_float("training_points", training_points, "Training points of each run.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of every run.", lower_bound=0)
    if some:
        flags.DEFINE_string("only", "", "Only the runs whose names start with one of these, separated by commas.")
    flags.DEFINE_integer("jobs", None, "Runs side by side; one a device, or one a core, unless given.", lower_bound=1)


def out_folder() -> epath.Path:
    folder = epath.Path(flags.FLAGS.out or flags.FLAGS.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def chosen(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that --only names.

    Raises:
      InputError: it names none.
    """
    starts = tuple(flags.FLAGS.only.split(","))
    some = [job for job in jobs if job.name(flags.FLAGS.seed).startswith(starts)]
    if not some:
        names = ", ".join(job.name(flags.FLAGS.seed) for job in jobs)
        raise InputError(f"--only={flags.FLAGS.only} names no run: the runs are {names}")
    return some


def run(jobs: Sequence[Job], may_diverge: bool = False) -> None:
    """Bring every job to its number of training points, several side by side.

    Raises:
      InputError: runs failed; the others are done. Names them and their logs. Not so for runs that ended in numbers
        that are not finite, where they may diverge.
    """
    points, seed = flags.FLAGS.training_points, flags.FLAGS.seed
    trainings = [
        side_by_side.Training(job.name(seed), job.arguments(points, seed), job.num_epochs(points)) for job in jobs
    ]
    fine = (0, cli.NON_FINITE) if may_diverge else (0,)
    side_by_side.train(trainings, epath.Path(flags.FLAGS.workdir), flags.FLAGS.jobs, fine)


def curves(job: Job) -> list[Curve]:
    """The curves that a job's run has drawn so far, up to the training points asked for.

    The bound on training data is the mean over the minibatches since the evaluation before, as they were trained on;
    marginal likelihoods are those that were measured on each split.
    """
    seed = flags.FLAGS.seed
    rows = workdir.read_metrics(epath.Path(flags.FLAGS.workdir) / job.name(seed))
    points: dict[str, list[tuple[float, float]]] = {"train": [], "test": []}
    since: list[float] = []
    for row in rows:
        if row["examples_seen"] > flags.FLAGS.training_points + 100:
            break
        if "log_marginal" in row:
            points[row["split"]].append((row["examples_seen"], row["log_marginal"]))
        elif job.figure == "2" and row["split"] == "train":
            since.append(row["elbo"])
        elif job.figure == "2":
            points["train"].append((row["examples_seen"], float(np.mean(since))))
            points["test"].append((row["examples_seen"], row["elbo"]))
            since = []
    names = (job.figure, job.dataset, job.panel, job.algorithm)
    return [Curve(*names, split, seed, *np.array(values).T) for split, values in points.items() if values]


def artist(job: Job) -> Artist:
    """The model that a job has trained, ready to be drawn from."""
    folder = epath.Path(flags.FLAGS.workdir) / job.name(flags.FLAGS.seed)
    trained = build.build(workdir.read_config(folder))
    return Artist(trained, checkpointed.restore(trained, folder)[0])
