"""Train trials that differ in numbers alone as one program, each to what `experiments.train` would make of it.

python -m experiments.packed --trials=trials.json

The file holds {"config": "experiments/configs/vae.py:digits", "overrides": ["--config.train.num_epochs=30"], "trials":
[{"workdir": "runs/a", "overrides": ["--config.seed=0"]}, {"workdir": "runs/b", "overrides": ["--config.seed=1"]}]}.
Every workdir is one that experiments.train goes on from, evaluates and draws. The same command resumes; trials that
stand at different steps are packed as those behind catch up. A trial that leaves the numbers gets a failure.json, which
holds it until the file is removed, and the others go on. On a CPU each core is a device, and the devices share the
trials among them.
"""

import time

_STARTED = time.time()  # before the heavy imports: what a person waits for

from experiments import cli  # noqa: E402

if __name__ == "__main__":
    cli.leave_on_signal()  # also in the middle of the imports, which take seconds

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from etils import epath  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from aevb import packing, training  # noqa: E402
from aevb.checkpoints import Checkpoints  # noqa: E402
from aevb.errors import InputError, NonFiniteError, SamplingError  # noqa: E402
from experiments import build, checkpointed, progress, settings, summary, train, workdir  # noqa: E402
from experiments.build import Run  # noqa: E402

PACKABLE = build.NUMBERS  # the keys of the config in which packed trials may differ


@dataclasses.dataclass
class Asked:
    """A trial as the file names it: its folder, its config, and the command that would make it alone."""

    folder: epath.Path
    config: ConfigDict
    command: str


@dataclasses.dataclass(eq=False)
class Trial:
    """A trial under way.

    Attributes:
      run, folder, command: what it is.
      last, best, journal: what it leaves.
      state, step: where it stands; the state is there wherever something is done with it.
      unsaved_best: the step and state that are the best on validation and not yet in `best`.
      failed: whether it left the numbers.
    """

    run: Run
    folder: epath.Path
    command: str
    last: Checkpoints
    best: Checkpoints
    journal: progress.Journal
    state: Any
    step: int
    unsaved_best: tuple[int, Any] | None = None
    failed: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether there are steps left to make."""
        ended = self.step == self.run.num_steps or progress.stopped_early(self.run, self.journal.rows)
        return not (self.failed or ended)

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """What ends a run of experiments.train with the exit code 3 ends this trial, and no other."""
        try:
            yield
        except (NonFiniteError, SamplingError) as error:
            self.failed = True
            if self.unsaved_best is not None:
                self.best.save(*self.unsaved_best)
            reason = " ".join(str(error).split())
            workdir.write_json(self.folder / workdir.FAILURE, {"reason": reason})
            print(f"{self.folder}: {reason}", file=sys.stderr, flush=True)

    def look(self, step: int, metrics: dict[str, np.ndarray], elapsed: float, evaluated: Any) -> None:
        """Tell the steps of a call, and how the state after them does, if it is given."""
        self.journal.add(progress.training_row(self.run, step, metrics, elapsed))
        if evaluated is not None:
            params = training.replicate(checkpointed.evaluated_params(evaluated))
            if progress.look(self.run, self.journal, step, params):
                progress.check_state(evaluated, step)
                self.unsaved_best = step, evaluated
        self.journal.write()


def read(path: str) -> list[Asked]:
    """The trials of a file.

    Raises:
      InputError: it is none, or its trials differ in more than numbers.
    """
    form = '{"config": FILE, "overrides": [...], "trials": [{"workdir": DIR, "overrides": [...]}, ...]}'
    if not epath.Path(path).exists():
        raise InputError(f"--trials={path} is not there: correct it, or write {form}")
    asked = workdir.read_json(epath.Path(path))
    try:
        config, common = asked["config"], list(asked["overrides"])
        given = [(each["workdir"], common + list(each["overrides"])) for each in asked["trials"]]
        if not all(isinstance(text, str) and text for folder, own in given for text in (config, folder, *own)):
            raise TypeError
    except (KeyError, TypeError, IndexError):
        raise InputError(f"--trials={path} holds no trials: write {form}") from None
    if not given:
        raise InputError(f"--trials={path} holds an empty list of trials: write {form}")
    trials = []
    for folder, overrides in given:
        place = workdir.at(folder)
        trials.append(Asked(place, settings.load(config, overrides), train.command(config, overrides, place)))
    check_alike(trials)
    return trials


def check_alike(trials: Sequence[Asked]) -> None:
    """Refuse trials that are not one program, or that share a folder.

    Raises:
      InputError: they are.
    """
    first, *others = trials
    values = settings.flatten(first.config.to_dict())
    for other in others:
        for key, value in settings.flatten(other.config.to_dict()).items():
            if value != values[key] and key not in PACKABLE:
                raise InputError(
                    f"config.{key} is {values[key]!r} in {first.folder} and {value!r} in {other.folder}, and packed "
                    f"trials differ in {', '.join(PACKABLE)} alone: train these one by one"
                )
    folders = [os.path.normpath(trial.folder) for trial in trials]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)} is the workdir of several trials: give each its own")


def make_runs(trials: Sequence[Asked]) -> list[Run]:
    """The runs of trials, of one data set, one model and one set of programs.

    Raises:
      InputError: a config cannot be used, or its data stream.
    """
    first = build.build(trials[0].config)
    if not isinstance(first.dataset.train.examples, np.ndarray):
        raise InputError(
            f"{first.dataset.name} streams from disk with config.data.memory_limit_mb="
            f"{first.config.data.memory_limit_mb}, and packed trials share examples in memory: raise the limit, or "
            "train the trials one by one"
        )
    return [first, *(build.variant(first, trial.config) for trial in trials[1:])]


def opened(stack: contextlib.ExitStack, run: Run, asked: Asked) -> Trial:
    """A trial where it stands, with its journal and its checkpoints open."""
    (asked.folder / "summary.json").unlink(missing_ok=True)  # of a shorter run that now goes on
    last, best = (
        stack.enter_context(contextlib.closing(Checkpoints(asked.folder / "checkpoints" / name, keep)))
        for name, keep in (("last", run.config.train.keep_checkpoints), ("best", 1))
    )
    state, step = progress.resume(run, asked.folder, last, best)
    journal = progress.open_journal(run, asked.folder, step, shown=False)
    trial = Trial(run, asked.folder, asked.command, last, best, journal, state, step)
    with trial.marked():
        progress.look_if_owed(run, journal, step, state, best)
    stack.enter_context(contextlib.closing(journal))
    return trial


def train_all(trials: Sequence[Trial], preemption: cli.Preemption) -> float | None:
    """Train all to their ends, or until a signal; those behind first, up to where the next ones stand.

    Or to just behind them, where a call ends: what a trial tells must not depend on where its neighbours stopped.

    Returns:
      The seconds from the start to the end of the first call; None if no step was left to make.
    """
    first_step_seconds = None
    while not preemption.requested and (going := [trial for trial in trials if trial.goes_on]):
        step = min(trial.step for trial in going)
        run = going[0].run
        until = min((trial.step for trial in going if trial.step > step), default=run.num_steps)
        until = min(until + -until % run.config.train.log_every_steps, run.num_steps)
        seconds = train_together([trial for trial in going if trial.step == step], until, preemption)
        first_step_seconds = first_step_seconds or seconds
    return first_step_seconds


def train_together(trials: Sequence[Trial], until: int, preemption: cli.Preemption) -> float:
    """Train trials that stand at one step up to another, or until all have ended, or until a signal.

    Returns:
      The seconds from the start of the command to the end of the first call.
    """
    run, step, first_call = trials[0].run, trials[0].step, None
    keys = run.config.train
    calls = packing.train_packed(
        run.learner,
        [trial.state for trial in trials],
        [trial.run.feed for trial in trials],
        run.preprocess["train"],
        num_steps=until,
        steps_per_call=keys.log_every_steps,
        ema_decay=run.ema_decay,
    )
    started = time.perf_counter()
    for packed, metrics, errors in calls:
        elapsed = time.perf_counter() - started
        first_call = first_call or time.time() - _STARTED
        stopping = bool(preemption.requested)  # a signal from here on is for the next call
        step += len(metrics[0]["loss"])
        due = not stopping and (step == run.num_steps or progress.evaluation_due(keys, step))
        saves = stopping or step == until or step % keys.checkpoint_every_steps == 0
        states = packing.unpack(packed, len(trials)) if due or saves else [None] * len(trials)
        going = [trial for trial in trials if trial.goes_on]
        for trial, state, of_trial, error in zip(trials, states, metrics, errors, strict=True):
            if trial in going:
                with trial.marked():
                    if error is not None:
                        raise error
                    trial.look(step, of_trial, elapsed, state if due else None)
                trial.state, trial.step = state, step
        tell(going)
        save([trial for trial in going if not trial.failed and (saves or not trial.goes_on)])
        if stopping or not any(trial.goes_on for trial in trials):
            break
        started = time.perf_counter()
    return first_call


def save(trials: Sequence[Trial]) -> None:
    """Save where trials stand, and before it what a trial that goes on from here must find: the best one up to here."""
    for trial in trials:
        if trial.unsaved_best is not None:
            trial.best.save(*trial.unsaved_best)
    for trial in trials:
        trial.best.wait()
        trial.unsaved_best = None
        trial.journal.flush()
        with trial.marked():
            progress.check_state(trial.state, trial.step)
            trial.last.save(trial.step, trial.state)


def tell(trials: Sequence[Trial]) -> None:
    """A line on how the trials did that were under way."""
    rows = [row for trial in trials if not trial.failed for row in trial.journal.rows[-3:] if row["split"] == "train"]
    rows = [row for row in rows if row["step"] == trials[0].step]
    if not rows:
        return
    name = next(name for name in progress.SHOWN if name in rows[0])
    low, high = (f"{extreme(row[name] for row in rows):{progress.SHOWN[name]}}" for extreme in (min, max))
    rate = sum(row["examples_per_second"] for row in rows)
    print(
        f"step {rows[0]['step']}/{trials[0].run.num_steps} of {len(rows)} trials: {name.replace('_', '-')} {low} to "
        f"{high}, {rate:,.0f} examples/s together",
        flush=True,
    )


def use_cores(num_trials: int) -> None:
    """On a CPU, let each core be a device, of which no trial needs more than one: small products gain little from two.

    Must come before JAX is asked for its devices. A number in XLA_FLAGS stays.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", min(cores, num_trials))


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    asked = read(cli.required("trials", "trials.json"))
    use_cores(len(asked))
    runs = make_runs(asked)
    left, failed = [], []
    for trial, run in zip(asked, runs, strict=True):
        train.check_workdir(trial.folder, run)
        end = train.finished(run, trial.folder)
        if end:
            print(end)
        else:
            (failed if (trial.folder / workdir.FAILURE).exists() else left).append((trial, run))
    train.check_room([trial.folder for trial, _ in left], runs[0])
    with contextlib.ExitStack() as claims:
        for trial, run in left:
            claims.enter_context(train.opened(run, trial.folder))
        with contextlib.ExitStack() as stack:
            preemption = stack.enter_context(cli.Preemption())
            trials = [opened(stack, run, trial) for trial, run in left]
            first_step_seconds = train_all(trials, preemption)
        if preemption.requested:
            step = min((trial.step for trial in trials if not trial.failed), default=0)
            stopped = f"stopped by {preemption.requested} at step {step}"
            cli.fail(f"{stopped}, saved: run the same command to go on", cli.PREEMPTED)
        for trial in trials:
            if not trial.failed:
                with trial.marked():
                    finish(trial, first_step_seconds, len(trials) - 1)
    lost = [trial.folder for trial, _ in failed] + [trial.folder for trial in trials if trial.failed]
    if lost:
        where = [str(folder / workdir.FAILURE) for folder in lost]
        cli.fail(f"{len(where)} of {len(asked)} trials failed: see {', '.join(where)}", cli.NON_FINITE)


def finish(trial: Trial, first_step_seconds: float | None, packed_with: int) -> None:
    """Evaluate, draw, summarise and report a trial that has come to its end."""
    summary.finish(
        trial.run,
        trial.folder,
        training.replicate(trial.state),
        trial.journal.rows,
        first_step_seconds,
        started=_STARTED,
        command=trial.command,
        packed_with=packed_with,
    )


if __name__ == "__main__":
    flags.DEFINE_string("trials", None, "A JSON file of the config, its overrides and the trials; see above.")
    cli.run(main)
