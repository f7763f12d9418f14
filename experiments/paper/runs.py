"""The runs behind the paper's figures: each one of `experiments.train`, as many side by side as there are devices.

A run has a folder of its own, so that the same command resumes what was stopped, leaves alone what is finished, and
goes on where more training points are asked for. Figures share the runs they have in common.
"""

import csv
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import build, cli, evaluate, generate, workdir
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
    fine = (0, cli.PREEMPTED, cli.NON_FINITE) if may_diverge else (0, cli.PREEMPTED)
    root, points, seed = epath.Path(flags.FLAGS.workdir), flags.FLAGS.training_points, flags.FLAGS.seed
    root.mkdir(parents=True, exist_ok=True)
    places = SimpleQueue()
    for place in _places(flags.FLAGS.jobs):
        places.put(place)
    children: list[subprocess.Popen] = []
    stopped: list[int] = []

    def stop(signum: int, frame: object) -> None:
        stopped.append(signum)
        for child in children:
            child.terminate()

    before = {signum: signal.signal(signum, stop) for signum in cli.STOPS}

    def work(job: Job) -> str | None:
        """Run one job on the first free place; its name if it failed."""
        folder, place = root / job.name(seed), places.get()
        started = time.perf_counter()
        try:
            if stopped or _long_enough(folder, job.num_epochs(points)):
                return None
            with open(f"{folder}.log", "a") as log:
                command = [sys.executable, "-m", "experiments.train", *job.arguments(points, seed)]
                child = subprocess.Popen([*command, f"--workdir={folder}"], stdout=log, stderr=log, **place)
                children.append(child)
                if stopped:  # since it was looked at
                    child.terminate()
                code = child.wait()
        finally:
            places.put(place)
        print(f"{job.name(seed)}: exit code {code} after {time.perf_counter() - started:.0f} s", flush=True)
        return None if code in fine else job.name(seed)

    with ThreadPoolExecutor(max_workers=places.qsize()) as pool:
        failed = [name for name in pool.map(work, jobs) if name]
    for signum, handler in before.items():
        signal.signal(signum, handler)
    if stopped:
        cli.fail(f"stopped by {signal.Signals(stopped[0]).name}: run the same command to go on", cli.PREEMPTED)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(jobs)} runs failed: see {', '.join(f'{root}/{n}.log' for n in failed)}"
        )


def _places(num: int | None) -> list[dict]:
    """What each of the runs side by side is started with: a GPU, or a core, of its own.

    On a CPU two single-threaded runs do more work than one run on two threads after another, for the matrix products
    are small.
    """
    probe = "import jax; print(jax.default_backend(), jax.local_device_count())"
    backend, count = subprocess.check_output([sys.executable, "-c", probe], text=True).split()
    if backend == "gpu":
        ids = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(int(count))))).split(",")
        return [{"env": os.environ | {"CUDA_VISIBLE_DEVICES": ids[i % len(ids)]}} for i in range(num or len(ids))]
    if backend == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        num = num or len(cores)
        if num > 1:
            return [{"preexec_fn": lambda i=i: os.sched_setaffinity(0, {cores[i % len(cores)]})} for i in range(num)]
    return [{} for _ in range(num or 1)]


def _long_enough(folder: epath.Path, num_epochs: float) -> bool:
    """Whether the run in a folder has come to an end that is not before this one."""
    if not (folder / "summary.json").exists():
        return False
    return workdir.read_config(folder).train.num_epochs >= num_epochs


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


def artist(job: Job) -> generate.Artist:
    """The model that a job has trained, ready to be drawn from."""
    folder = epath.Path(flags.FLAGS.workdir) / job.name(flags.FLAGS.seed)
    trained = build.build(workdir.read_config(folder))
    return generate.Artist(trained, evaluate.restore(trained, folder)[0])
