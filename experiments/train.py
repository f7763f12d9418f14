"""Train a model from a config; running the same command again resumes it, or says that it is finished.

python -m experiments.train --config=experiments/configs/vae.py --workdir=runs/digits

With --distributed in each of several processes, on one host or many, they make one run, in a folder that all see.
"""

import time

_STARTED = time.time()  # before the heavy imports: what a person waits for

from experiments import cli  # noqa: E402

if __name__ == "__main__":
    cli.leave_on_signal()  # also in the middle of the imports, which take seconds

import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
import zlib  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from etils import epath  # noqa: E402

from aevb import data, processes, training  # noqa: E402
from aevb.checkpoints import Checkpoints  # noqa: E402
from aevb.errors import InputError  # noqa: E402
from experiments import build, checkpointed, distributed, progress, settings, summary, workdir  # noqa: E402
from experiments.build import Run  # noqa: E402

# Keys that may change between two starts of one run: where the data lies, what is looked at, how long it goes on.
WATCHING = {
    "data.dir",
    "data.workers",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.num_samples",
    "eval.batch_size",
}
# These, too, unless it is the evaluations that tell a run when to stop.
PACE = {"train.log_every_steps", "train.eval_every_steps", "train.eval_growth"}
LENGTHENING = "train.num_epochs"
JOINING = ("distributed", "coordinator", "num_processes", "process_id")


def check_workdir(folder: epath.Path, run: Run) -> None:
    """See that the run in the folder, if there is one, is this one; write nothing.

    Raises:
      InputError: another run is in the folder, or something else is.
    """
    ours = settings.flatten(run.config.to_dict())
    of_a_start = (workdir.LOCK, ".config.json.")  # which was killed
    if (folder / "config.json").exists():
        theirs = settings.flatten(workdir.read_config(folder).to_dict())
        allowed = WATCHING | (set() if run.patience else PACE)
        if ours[LENGTHENING] >= theirs[LENGTHENING]:
            allowed = allowed | {LENGTHENING}
        differ = [key for key in ours if ours[key] != theirs[key] and key not in allowed]
        if differ:
            named = ", ".join(f"{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in differ)
            raise InputError(f"{folder} holds a run of another config ({named}): choose another --workdir")
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --workdir")
    elif folder.exists() and not all(path.name.startswith(of_a_start) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no run: choose another --workdir")


def check_devices(run: Run) -> None:
    """Refuse a batch that does not divide over the devices.

    Raises:
      InputError: it does not.
    """
    devices = jax.device_count()
    if run.batch_size % devices:
        raise InputError(
            f"config.train.batch_size is {run.batch_size}, which does not divide over {devices} devices: "
            f"set it to a multiple of {devices}"
        )


def check_alike(run: Run) -> None:
    """See that all processes have the same config, examples and versions: else they would train on in silence.

    Raises:
      InputError: one has others than process 0.
    """
    config = settings.flatten(run.config.to_dict())
    del config["data.dir"]  # each host has its data where it has them
    facts = {"config": config, "set of library versions": workdir.versions()}
    for name in build.SPLITS:
        facts[f"{name} split"] = fingerprint(getattr(run.dataset, name))
    facts = json.loads(json.dumps(facts))
    first = processes.told_by_first(lambda: facts)
    for name in facts:
        votes = processes.votes(facts[name] != first[name])
        if any(votes):
            raise InputError(f"process {votes.index(True)} has another {name} than process 0: make them the same")


def fingerprint(split: data.Split) -> list[int]:
    """How many examples a split has, and checksums of some of them, spread over it, and of all labels."""
    num = len(split.examples)
    rows = np.unique(np.linspace(0, num - 1, min(num, 64)).astype(int))  # all are too many where they stream
    examples = training.read_rows(split.examples, rows) if num else np.zeros(0)
    labels = np.zeros(0) if split.labels is None else np.asarray(split.labels)
    return [num, *(zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in (examples, labels))]


def check_room(folders: Sequence[epath.Path], run: Run) -> None:
    """Refuse to start runs whose checkpoints would not fit: parameters, their optimizer's state and average.

    Args:
      folders: of runs like this one, each on its disk.
      run: one of them.

    Raises:
      InputError: a disk has no room for those on it.
    """
    state = jax.eval_shape(run.init_state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    of_one = size * (run.config.train.keep_checkpoints + 3) + 32 * 2**20
    places = [
        next(path for path in (folder, *folder.parents) if path.exists())
        for folder in folders
        if not workdir.in_store(folder)
    ]
    disks = [os.stat(place).st_dev for place in places]
    for place, disk in zip(places, disks, strict=True):
        free, needed = shutil.disk_usage(place).free, of_one * disks.count(disk)
        if free < needed:
            who = "the run needs" if disks.count(disk) == 1 else f"{disks.count(disk)} runs need"
            raise InputError(
                f"{place} has {free / 2**20:.0f} MiB free and {who} {needed / 2**20:.0f} MiB for checkpoints and "
                "figures: make room or choose another --workdir"
            )


def train(run: Run, folder: epath.Path) -> tuple[Any, list[dict[str, Any]], float | None]:
    """Train from the last whole checkpoint to the end, or until stopped early or by a signal.

    Returns:
      The replicated state at the end, the rows of metrics.jsonl, and the seconds from the start to the end of the
      first call; None if no step was left to make.
    """
    keys = run.config.train
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(cli.Preemption())
        last, best = (
            stack.enter_context(contextlib.closing(Checkpoints(folder / "checkpoints" / name, keep)))
            for name, keep in (("last", keys.keep_checkpoints), ("best", 1))
        )
        state, first = progress.resume(run, folder, last, best)
        journal = progress.open_journal(run, folder, first)
        progress.look_if_owed(run, journal, first, state, best)
        stack.enter_context(contextlib.closing(journal))
        replicated, step, first_step_seconds = training.replicate(state), first, None
        steps = training.train(
            run.learner,
            state,
            run.feed,
            run.preprocess["train"],
            num_steps=first if progress.stopped_early(run, journal.rows) else run.num_steps,
            steps_per_call=keys.log_every_steps,
            ema_decay=run.ema_decay,
        )
        started = time.perf_counter()
        for replicated, metrics in steps:
            elapsed = time.perf_counter() - started
            first_step_seconds = first_step_seconds or time.time() - _STARTED
            step += len(metrics["loss"])
            journal.add(progress.training_row(run, step, metrics, elapsed))
            at_end = step == run.num_steps
            due = at_end or progress.evaluation_due(keys, step)
            stopped = any(processes.votes(bool(preemption.requested)))
            if due and not stopped:  # who goes on makes it: what stops a run may not wait for long
                if progress.look(run, journal, step, checkpointed.evaluated_params(replicated)):
                    progress.save(best, step, replicated)
                stopped = any(processes.votes(bool(preemption.requested)))
            journal.write()
            ended = at_end or progress.stopped_early(run, journal.rows)
            if ended or stopped or step % keys.checkpoint_every_steps == 0:
                best.wait()  # a run that goes on from here must find the best one up to here
                journal.flush()
                progress.save(last, step, replicated)
            if ended or stopped:
                break
            started = time.perf_counter()
    if any(processes.votes(bool(preemption.requested))):
        by = preemption.requested or "a signal to another process"
        raise cli.Stopped(f"stopped by {by} at step {step}, saved: run the same command to go on")
    return replicated, journal.rows, first_step_seconds


def finished(run: Run, folder: epath.Path) -> str | None:
    """What to say of the run in the folder if it has come to its end and its summary is written."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    told = workdir.read_json(path)
    if told["status"] == "early_stopped":
        return f"{folder} is finished: it stopped early at step {told['step']}; look at {folder / 'report.html'}"
    if told["step"] < run.num_steps:
        return None
    return f"{folder} is finished; look at {folder / 'report.html'}, or raise --config.{LENGTHENING} to go on"


def describe(run: Run) -> str:
    """What is about to be trained, on what."""
    counts = ", ".join(f"{len(getattr(run.dataset, name).examples):,} {name}" for name in build.SPLITS)
    shape = "x".join(map(str, run.dataset.event_shape))
    examples = run.dataset.train.examples
    if isinstance(examples, np.ndarray) and examples.dtype != np.uint8:
        low, high = examples.min(), examples.max()
        shape += f" from {low:.4g} to {high:.4g}" + (" (clipped to [0, 1] in pictures)" * bool(low < 0 or high > 1))
    params = jax.eval_shape(run.init_state).params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"{run.dataset.name}: {counts} examples of {shape}, binarization {run.facts['binarization']}, "
        f"likelihood {run.facts['likelihood']}; {size:,} parameters, {run.num_steps:,} steps on "
        f"{jax.device_count()} {jax.default_backend()} device(s)"
        + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
    )


@contextlib.contextmanager
def opened(run: Run, folder: epath.Path) -> Iterator[None]:
    """The folder of a run, made if it is not there, held for this process, and with the run's config in it.

    Of several processes the first holds it for all.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(workdir.claim(folder))
            print(f"{folder}: {describe(run)}", flush=True)
            workdir.sweep(folder)
            workdir.write_json(folder / "config.json", run.config.to_dict())

        processes.told_by_first(claim)
        blind = processes.votes(not (folder / "config.json").exists())
        if any(blind):
            raise InputError(
                f"process {blind.index(True)} does not see {folder / 'config.json'}, which process 0 has written: give "
                "all processes a --workdir that they share"
            )
        yield


def command(path: str, overrides: list[str], folder: epath.Path) -> str:
    """The line for a shell that makes this run, from wherever `python -m experiments.train` is found."""
    arguments = [f"--config={path}", *overrides, f"--workdir={folder}"]
    return shlex.join(["python", "-m", "experiments.train", *arguments])


def main(argv: list[str]) -> None:
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    cli.refuse([argument for argument in argv if argument not in overrides])
    path = cli.required("config", "experiments/configs/vae.py")
    folder = workdir.at(cli.required("workdir", "runs/digits"))
    with distributed.joined(*(flags.FLAGS[name].value for name in JOINING)):
        run = build.build(settings.load(path, overrides))
        if jax.process_count() > 1:
            check_alike(run)
        processes.told_by_first(lambda: check_workdir(folder, run))
        check_devices(run)
        if end := processes.told_by_first(lambda: finished(run, folder)):
            print(end)
            return
        processes.told_by_first(lambda: check_room([folder], run))
        with opened(run, folder):
            workdir.remove(folder / "summary.json")  # of a shorter run that now goes on
            workdir.remove(folder / workdir.FAILURE)  # of a pack that could not
            summary.finish(run, folder, *train(run, folder), started=_STARTED, command=command(path, overrides, folder))


if __name__ == "__main__":
    flags.DEFINE_string(
        "config", None, "A file of experiments/configs, with :DATASET; --config.KEY=VALUE changes a key."
    )
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
    flags.DEFINE_bool("distributed", False, "Be one of several processes that make one run, on one host or many.")
    flags.DEFINE_string("coordinator", None, "Of --distributed: HOST:PORT of process 0, where JAX does not find it.")
    flags.DEFINE_integer("num_processes", None, "Of --distributed: how many processes make the run.")
    flags.DEFINE_integer("process_id", None, "Of --distributed: which of them this one is, from 0.")
    cli.run(main)
