"""Waiting: for machines to be given, for a run on them to end, and for others where spot machines are taken away."""

import dataclasses
import time
from collections.abc import Callable

from aevb.errors import InputError
from experiments import cli
from launch import gcloud, hosts
from launch.gcloud import GcloudError, Runner, Target

ACTIVE, ABSENT = "ACTIVE", "absent"  # of a queued resource: it has its machines; there is none
GONE = ("FAILED", "SUSPENDING", "SUSPENDED")  # of a queued resource: it gives no machines any more
TAKEN = ("PREEMPTED", "TERMINATED", "STOPPED", ABSENT)  # of a slice, while its queued resource is still active
POLL = 60.0  # seconds between two looks
LOOKS = 10  # at a queued resource that was deleted, until it is gone
LONGEST = 1800.0  # seconds between two attempts at most, each waiting twice as long as the one before
ATTEMPTS = 10  # in a row that come to nothing
STEADY = 600.0  # seconds after which a run counts as having gone on, and attempts are counted anew
COST = "the machines still cost: delete gives them up"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on machines that are set up.

    Attributes:
      start: starts it, or finds it running; whatever calls it again makes it go on.
      everywhere: whether it runs on every host, or on the first of the first slice.
    """

    start: Callable[[], None]
    everywhere: bool = True


@dataclasses.dataclass
class Patience:
    """How often something came to nothing in a row, and the wait before it is tried again."""

    sleep: Callable[[float], None]
    failed: int = 0

    def wait(self, why: str) -> None:
        """Wait before another attempt, longer each time.

        Raises:
          Interrupted: that was the last.
        """
        self.failed += 1
        if self.failed >= ATTEMPTS:
            raise cli.Interrupted(
                f"{why}; given up after {ATTEMPTS} attempts in a row: the same command goes on; {COST}"
            )
        seconds = min(POLL * 2 ** (self.failed - 1), LONGEST)
        print(f"{why}; trying again in {seconds:.0f} s", flush=True)
        self.sleep(seconds)


def queue_state(target: Target, run: Runner) -> str:
    """Of the queued resource, ABSENT if there is none.

    Raises:
      InputError: gcloud cannot say.
    """
    return _state(run, gcloud.state(target.name, target.zone))


def wait_for_machines(target: Target, run: Runner, sleep: Callable[[float], None] = time.sleep) -> str:
    """Wait until the queued resource has its machines, however long the queue is, or gives none.

    Returns:
      Its state: ACTIVE, or one of GONE.

    Raises:
      InputError: it is not there.
      Interrupted: gcloud does not say for long how far it is.
    """
    told, patience = "", Patience(sleep)
    while True:
        try:
            state = queue_state(target, run)
        except GcloudError as error:
            patience.wait(str(error))
            continue
        patience.failed = 0
        if state == ACTIVE or state in GONE:
            return state
        if state in (ABSENT, "DELETING"):
            raise InputError(f"{target.name} is not in {target.zone}: create asks Google for it")
        if state != told:
            print(f"{target.name} is {state}; waiting (Ctrl-C leaves it in the queue)", flush=True)
        told = state
        sleep(POLL)


def follow(target: Target, job: Job, run: Runner, sleep: Callable[[float], None] = time.sleep) -> int:
    """Start a job and wait for its end; on spot machines that are taken away, ask for others and go on.

    Returns:
      The job's exit code: the worst of all hosts.

    Raises:
      InputError: the machines are gone for good, or the run cannot be started.
      Interrupted: they cannot be reached, or there are no others, however often it was tried.
    """
    patience = Patience(sleep)
    ours, installed, started = False, True, False  # whether it is we who deleted; how far the machines are
    since, told = time.monotonic(), ""
    while True:
        try:
            if what := _taken(target, run, ours, sleep):
                if not target.spot:
                    raise InputError(f"{what}: delete {target.name}, create it again, and run setup and this again")
                patience.wait(f"{what}: its spot machines were taken")
                started = False
                if not _taken(target, run, ours, sleep):  # somebody else has brought them back meanwhile
                    continue
                ours, installed = True, False
                _remove(target, run, sleep)
                run(gcloud.create(target))
                ours = False
                continue
            ours = False
            if not installed:
                hosts.install(target, run)
                installed = True
            if not started:
                job.start()
                started, since = True, time.monotonic()
            states = hosts.states(target, run, everywhere=job.everywhere)
            if run.dry_run:
                return 0
        except GcloudError as error:
            patience.wait(str(error))
            continue
        words = ", ".join(f"{host} {state}" for host, state in sorted(states.items()))
        if words != told:
            print(words, flush=True)
        told, code = words, verdict(states)
        if time.monotonic() - since > STEADY:
            patience.failed = 0
        if code is None:
            sleep(POLL)
        elif code == cli.PREEMPTED:
            patience.wait(f"the run was stopped ({words})")
            started = False
        else:
            return code


def verdict(states: dict[str, str]) -> int | None:
    """What a run came to: None while it runs somewhere; else its exit code, the worst of all hosts.

    A host that ended of itself is a reason. One that was stopped with all saved (75), or whose machine was started
    anew (died), is none: if there is no other, the run can go on.
    """
    if "running" in states.values():
        return None
    meant = {"died": cli.PREEMPTED, "idle": 1, hosts.BARE: 1}
    codes = {meant[state] if state in meant else int(state.removeprefix("exited ")) for state in states.values()}
    return max(codes - {0, cli.PREEMPTED}, default=cli.PREEMPTED if cli.PREEMPTED in codes else 0)


def _taken(target: Target, run: Runner, ours: bool, sleep: Callable[[float], None]) -> str:
    """A sentence if machines were taken away, else nothing; waits for those that are still to be given.

    Args:
      ours: whether it is we who deleted the queued resource, to ask for it again.

    Raises:
      InputError: somebody else has deleted it.
    """
    state = queue_state(target, run)
    if ours and state in (ABSENT, "DELETING"):
        return f"{target.name} is {state}"
    if state != ACTIVE:
        state = wait_for_machines(target, run, sleep)
    if state in GONE:
        return f"{target.name} is {state}"
    for node in target.nodes:
        if not run.dry_run and (state := _state(run, gcloud.node_state(node, target.zone))) in TAKEN:
            return f"{node} is {state}"
    return ""


def _state(run: Runner, question: list[str]) -> str:
    """What gcloud answers, ABSENT if there is no such thing."""
    try:
        return run(question, supposed=ACTIVE, repeated=True).strip()
    except GcloudError as error:
        if error.absent:
            return ABSENT
        raise


def _remove(target: Target, run: Runner, sleep: Callable[[float], None]) -> None:
    """Give up what is left of machines that were taken.

    Raises:
      GcloudError: it does not go away.
    """
    if queue_state(target, run) != ABSENT:
        run(gcloud.delete(target.name, target.zone))
    for _ in range(LOOKS):
        if (state := queue_state(target, run)) == ABSENT:
            return
        sleep(POLL)
    raise GcloudError(
        f"{target.name} is {state} {LOOKS * POLL / 60:.0f} minutes after it was deleted: look at it in the console"
    )
