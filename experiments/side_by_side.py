"""Runs of `experiments.train` next to each other: one a device, or one a core, each in a folder of its own.

The same call resumes what was stopped, leaves alone what is finished, and goes on where more epochs are asked for.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from aevb.errors import InputError
from experiments import cli, settings, workdir


class Training(NamedTuple):
    """A run to be made.

    Attributes:
      name: of its folder, and of its log beside it.
      arguments: of `experiments.train`, but for its --workdir.
      num_epochs: the length that they name.
    """

    name: str
    arguments: list[str]
    num_epochs: float


class Job(NamedTuple):
    """A command to be run.

    Attributes:
      name: to call it by.
      arguments: of `python -m`.
      log: the file that is added to with what it prints.
    """

    name: str
    arguments: list[str]
    log: str


def training(name: str, config: str, overrides: Sequence[str]) -> Training:
    """The run of a file of experiments/configs and KEY=VALUE overrides, in a folder of this name."""
    arguments = [f"--config=experiments/configs/{config}", *(f"--config.{override}" for override in overrides)]
    return Training(name, arguments, _asked(arguments).train.num_epochs)


def train(runs: Sequence[Training], root: epath.Path, num: int | None, fine: Sequence[int] = (0,)) -> None:
    """Bring every run to its length, `num` side by side: one a device, or one a core, if that is None.

    Raises:
      InputError: runs ended in another exit code than those that are fine; the others are done. Names their logs.
    """
    root.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(
            each.name,
            ["experiments.train", *each.arguments, f"--workdir={root / each.name}"],
            f"{root / each.name}.log",
        )
        for each in runs
        if not _long_enough(root / each.name, each)
    ]
    run(jobs, num, fine)


def run(jobs: Sequence[Job], num: int | None, fine: Sequence[int] = (0,)) -> None:
    """Run every command, `num` side by side: one a device, or one a core, if that is None.

    Raises:
      InputError: some ended in another exit code than those that are fine; the others are done. Names their logs.
    """
    if not jobs:
        return
    places = SimpleQueue()
    for place in _places(num):
        places.put(place)
    children: list[subprocess.Popen] = []
    stopped: list[int] = []

    def stop(signum: int, frame: object) -> None:
        stopped.append(signum)
        for child in children:
            child.terminate()

    before = {signum: signal.signal(signum, stop) for signum in cli.STOPS}

    def work(job: Job) -> Job | None:
        """Run one command on the first free place; the command itself if it failed."""
        place, started = places.get(), time.perf_counter()
        try:
            if stopped:
                return None
            with open(job.log, "a") as log:
                child = subprocess.Popen([sys.executable, "-m", *job.arguments], stdout=log, stderr=log, **place)
                children.append(child)
                if stopped:  # since it was looked at
                    child.terminate()
                code = child.wait()
        finally:
            places.put(place)
        print(f"{job.name}: exit code {code} after {time.perf_counter() - started:.0f} s", flush=True)
        return None if code in (*fine, cli.PREEMPTED) else job

    with ThreadPoolExecutor(max_workers=places.qsize()) as pool:
        failed = [job for job in pool.map(work, jobs) if job]
    for signum, handler in before.items():
        signal.signal(signum, handler)
    if stopped:
        cli.fail(f"stopped by {signal.Signals(stopped[0]).name}: run the same command to go on", cli.PREEMPTED)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} runs failed: see {', '.join(job.log for job in failed)}")


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


def check_length(run: Training, root: epath.Path) -> None:
    """Refuse a finished run that went on for longer than this one: its numbers are not this one's.

    Raises:
      InputError: it was trained for another number of epochs.
    """
    made = workdir.read_config(root / run.name).train.num_epochs
    if made != run.num_epochs:
        raise InputError(
            f"{root / run.name} was trained for {made:g} epochs, not {run.num_epochs:g}: ask for as many, or give "
            "another --workdir"
        )


def _long_enough(folder: epath.Path, run: Training) -> bool:
    """Whether the run in a folder is this one, and has come to an end that is not before this one's."""
    if not (folder / "summary.json").exists():
        return False
    made = settings.flatten(workdir.read_config(folder).to_dict())
    asked = settings.flatten(_asked(run.arguments).to_dict())
    of_length = ("train.num_epochs", "optimizer.decay_steps")  # the second is filled in from the first
    alike = all(made[key] == value for key, value in asked.items() if key not in of_length)
    return alike and made["train.num_epochs"] >= run.num_epochs


def _asked(arguments: Sequence[str]) -> ConfigDict:
    """The config that the arguments of `experiments.train` name."""
    return settings.load(arguments[0].removeprefix("--config="), arguments[1:])
