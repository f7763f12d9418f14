"""One job of a sweep: its process, started again where that can help, and what its trials tell meanwhile."""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from experiments import cli, workdir
from experiments.pages import read_if_there
from launch import metrics, trials
from launch.definition import LENGTH, Sweep, rounded
from launch.metrics import Metric
from launch.trials import Trial

COMMAND = ("-m", "experiments.train")
HELD = pathlib.Path(__file__).with_name("held.py")
RETRIES = 3  # of a process that ended as it should not
RETRIES_OF_NON_FINITE = 1  # the same steps give the same numbers, but where the hardware is not exact
TELL_SECONDS = 5.0  # between two signs of life
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0  # for a stopped run to save
HELD_SECONDS = 900.0  # for another process to leave the folder of a trial, as one that a lost node left behind


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that makes one trial, or several at once.

    Attributes:
      name: of the sweep's own lines.
      trials: that it makes.
      command: of Python, with its arguments.
    """

    name: str
    trials: list[Trial]
    command: list[str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every process of a sweep needs to know; it travels to the nodes.

    Attributes:
      sweep: as it was read.
      metric: that it is judged by.
      root: the sweep's folder, absolute.
      jobs: by number; empty where trials are drawn as the sweep goes on.
      command: of Python, which takes the arguments of experiments.train.
      cwd: where the files are found that the sweep names.
      env: what a process is given beside its node's own environment.
      cores: that a process is held to; 0 for as many as there are.
      rows: whether each row is told, for a scheduler that stops trials early.
      steps_per_epoch: by the trial's name; those drawn later have the one under "".
    """

    sweep: Sweep
    metric: Metric
    root: str
    jobs: list[Job]
    command: list[str]
    cwd: str
    env: Mapping[str, str]
    cores: int
    rows: bool
    steps_per_epoch: Mapping[str, float]

    @property
    def folder(self) -> epath.Path:
        return epath.Path(self.root)

    def job(self, config: Mapping[str, Any]) -> Job:
        """The job that Tune means: it names its number, or the values that a search has drawn."""
        if "job" in config:
            return self.jobs[config["job"]]
        drawn = {key: rounded(value, self.sweep.distributions[key]) for key, value in config.items()}
        return self.single(trials.make(self.sweep, drawn))

    def single(self, trial: Trial) -> Job:
        """The job that makes one trial."""
        there = f"--workdir={trials.folder(self.folder, trial)}"
        return Job(trial.name, [trial], [*self.command, *trials.arguments(self.sweep, trial), there])


class Watch:
    """A job on its way; `tell` says again and again how it stands, and `stop` ends it, saved.

    The result of `tell` has `score`, the metric so far, `epoch`, where it is of a row but the last, and at the end
    `done` and `outcomes`: of each trial its status, a sentence where it failed, and whether that is final.
    """

    def __init__(self, plan: Plan, job: Job) -> None:
        self.plan, self.job = plan, job
        self.process: subprocess.Popen | None = None
        self.attempts: dict[int, int] = {}  # by exit code
        self.rows, self.size, self.told = [], 0, 0  # of metrics.jsonl
        self.score: float | None = None
        self.resources = contextlib.ExitStack()
        self.free_since = time.monotonic()  # from when on a process could have trained
        self.asked = [each for each in job.trials if not trials.state(plan.folder, each).final]
        self.open = self.asked

    def tell(self) -> dict[str, Any]:
        """What is new, after as long as it takes to know, but at most a few seconds."""
        until = time.monotonic() + TELL_SECONDS
        while time.monotonic() < until:
            if self.open and self.process is None and self._may_start():
                self._start()
            if self.open and self.process is None and time.monotonic() - self.free_since > HELD_SECONDS:
                return self._done({each.name: self._held(each) for each in self.asked})
            code = self.process.poll() if self.process else None if self.open else 0
            if self.plan.rows and (row := self._next_row()):
                return row
            if code is not None and (ended := self._ended(code)):
                return ended
            time.sleep(POLL_SECONDS)
        return {"score": math.nan if self.score is None else self.score}

    def stop(self) -> None:
        """End the process, which saves; where it does not leave, without its leave.

        A scheduler looks at what was: a trial that has come to its last step meanwhile is left to evaluate it.
        """
        if self.process is not None and self.process.poll() is None:
            if self.plan.rows and self._at_last_step():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_SECONDS)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        self.resources.close()

    def _may_start(self) -> bool:
        """Whether no other process trains there: one that a lost node leaves behind, or the same trial drawn twice."""
        if not all(is_free(trials.folder(self.plan.folder, each)) for each in self.open):
            return False
        self.open = [each for each in self.open if not trials.state(self.plan.folder, each).final]
        return bool(self.open)

    def _start(self) -> None:
        if not os.path.isdir(self.plan.cwd):
            raise FileNotFoundError(
                f"{socket.gethostname()} has no folder {self.plan.cwd}: install the checkout there on every node"
            )
        if not (self.plan.folder / "sweep.json").exists():
            raise FileNotFoundError(
                f"{socket.gethostname()} does not see {self.plan.root}: give a --workdir that all nodes share"
            )
        cores = self.resources.enter_context(free_cores(self.plan.cores))
        held = [sys.executable, "-I", "-S", str(HELD), str(os.getpid()), ",".join(map(str, cores))]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.plan.folder / "compiled" / socket.gethostname())}
        env = cache | os.environ | self.plan.env
        with self._log().open("ab") as log:
            self.before = log.tell()
            self.process = subprocess.Popen(
                [*held, sys.executable, *self.job.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.plan.cwd,
                env=env,
                start_new_session=True,  # a Ctrl-C is the sweep's, which stops its trials in its own way
            )

    def _log(self) -> pathlib.Path:
        """The file that the process writes to; below a cloud's folder there is none that could be added to."""
        path = trials.log(self.plan.folder, self.job.trials[0])
        if workdir.in_store(self.plan.root):
            return pathlib.Path(tempfile.gettempdir()) / f"{self.job.name}.{os.getpid()}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(path)

    def _next_row(self) -> dict[str, Any] | None:
        """The next row of the metric that has not been told."""
        trial = self.job.trials[0]
        there = trials.folder(self.plan.folder, trial)
        size = (there / "metrics.jsonl").stat().length if (there / "metrics.jsonl").exists() else 0
        if size != self.size:
            self.rows, self.size = metrics.curve(there, self.plan.metric), size
        if len(self.rows) <= self.told:
            return None
        row, self.told = self.rows[self.told], self.told + 1
        self.score = row[self.plan.metric.name]
        if row["step"] >= self._num_steps():  # all is paid for: no scheduler may stop it now
            return {"score": self.score}
        return {"score": self.score, "epoch": row["step"] / self._steps_per_epoch()}

    def _steps_per_epoch(self) -> float:
        told = self.plan.steps_per_epoch
        return told.get(self.job.trials[0].name) or told[""]

    def _num_steps(self) -> int:
        return math.ceil(self.job.trials[0].config[LENGTH] * self._steps_per_epoch())

    def _at_last_step(self) -> bool:
        return trials.state(self.plan.folder, self.job.trials[0]).step >= self._num_steps()

    def _ended(self, code: int) -> dict[str, Any] | None:
        """The result of a process that has ended; None where it is to be started again."""
        ran, self.process = self.process is not None, None
        self.resources.close()
        self.free_since = time.monotonic()
        self.attempts[code] = self.attempts.get(code, 0) + 1
        if ran and code and self._worth_another(code):
            return None
        if ran and workdir.in_store(self.plan.root):
            trials.log(self.plan.folder, self.job.trials[0]).write_bytes(self._log().read_bytes())
        return self._done({each.name: self._outcome(each, code) for each in self.asked})

    def _done(self, outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {"score": self._final_score(outcomes), "outcomes": outcomes, "done": True}

    def _held(self, trial: Trial) -> dict[str, Any]:
        """Of a trial whose folder is not given free."""
        reason = f"another process trains in {trials.folder(self.plan.folder, trial)} or beside it: end it"
        return {"status": trials.FAILED, "reason": reason, "final": False}

    def _final_score(self, outcomes: Mapping[str, Mapping[str, Any]]) -> float | None:
        """Of the first trial; None where it has failed, now or before."""
        trial = self.job.trials[0]
        status = (
            outcomes[trial.name]["status"] if trial.name in outcomes else trials.state(self.plan.folder, trial).status
        )
        found = metrics.score(trials.folder(self.plan.folder, trial), self.plan.metric)
        return None if status == trials.FAILED or found is None else found[0]

    def _worth_another(self, code: int) -> bool:
        """Whether the same command may come further: not after a wrong call, and not for ever."""
        if code == cli.WRONG_CALL and "another process is training" not in self._sentence(code):
            return False
        if code == cli.NON_FINITE and len(self.job.trials) > 1:  # the others of the pack are at their end
            return False
        if code == cli.NON_FINITE:
            return self.attempts[code] <= RETRIES_OF_NON_FINITE
        return sum(self.attempts.values()) <= RETRIES

    def _outcome(self, trial: Trial, code: int) -> dict[str, Any]:
        """Of a trial whose job has ended for good: finished, or failed with its reason."""
        state = trials.state(self.plan.folder, trial)
        if state.final:  # by another process, it may be
            return {"status": state.status, "reason": state.reason, "final": True}
        own = read_if_there(trials.folder(self.plan.folder, trial) / workdir.FAILURE).get("reason")
        reason = own or self._sentence(code)
        return {"status": trials.FAILED, "reason": reason, "final": bool(own) or code == cli.NON_FINITE}

    def _sentence(self, code: int) -> str:
        """The last line of what the process said, and how it ended where that is no sentence of its own."""
        with self._log().open("rb") as log:
            log.seek(self.before)
            lines = log.read().decode(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else "it said nothing"
        if code in (cli.WRONG_CALL, cli.NON_FINITE):
            return last
        times = sum(self.attempts.values())
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"{how}{memory}, {times} times; its last words: {last}"


def is_free(folder: epath.Path) -> bool:
    """Whether no process trains in the folder of a run."""
    if workdir.in_store(folder):
        return True
    try:
        held = os.open(folder / workdir.LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(held)
    return True


@contextlib.contextmanager
def free_cores(num: int) -> Iterator[list[int]]:
    """So many cores of this machine that no other job is held to; none where there are not as many.

    Two single-threaded runs side by side do more than one on two threads after another, for the products are small.
    """
    if not num or not hasattr(os, "sched_getaffinity"):
        yield []
        return
    folder = pathlib.Path(tempfile.gettempdir()) / f"aevb-cores-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        found = []
        for core in sorted(os.sched_getaffinity(0)):
            file = stack.enter_context(open(folder / str(core), "w"))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it, however this process ends
                found.append(core)
            if len(found) == num:
                break
        if len(found) < num:
            stack.close()
            found = []
        yield found
