"""One run over several processes: they come together, and however one of them ends, all end, soon, with an exit code.

JAX's runtime joins the processes; it also aborts them, in its own time and words, once it has lost one. So each process
beats every second into the key-value store of the coordinator, which is process 0, and listens to the others. One that
is not heard of (killed, stopped, cut off) or says that it failed takes the others with it; process 0 says why, once.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator

import jax

from aevb import processes
from aevb.errors import InputError
from experiments import cli
from experiments.aborts import Aborts

START_SECONDS = 120  # for all processes to come together
SILENT_SECONDS = 15  # without a beat a process is gone
SILENT_AFTER_ERROR = 8  # the same, once something failed in this process, as it does when another one dies
BEAT_SECONDS = 1.0
GRACE_SECONDS = 3  # for a process to fail of what another one failed of, in its own words
# Process 0 stays, since with it the coordinator goes, and JAX aborts who is left. With what comes before, under 30.
FAREWELL_SECONDS = 10
KEYS = "aevb/"
GONE = "start all processes again with the same command to go on from the last checkpoint"


@contextlib.contextmanager
def joined(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Make this process one of a run over several; nothing where that is not asked for.

    Inside, only process 0 prints. An exception in here does not come out: it ends this process and all others.

    Args:
      distributed: whether to. Without the three others JAX finds them: of Cloud TPU, Slurm, MPI, Kubernetes.
      coordinator: HOST:PORT, of process 0.
      num_processes: of the whole run.
      process_id: of this one, from 0.

    Raises:
      InputError: the arguments contradict each other, or nothing tells which processes there are.
      Interrupted: the processes do not come together.
    """
    _check(distributed, coordinator, num_processes, process_id)
    if not distributed:
        if jax.process_count() > 1:  # a TPU's runtime knows of its other hosts by itself
            raise InputError(f"this is one of {jax.process_count()} processes of a run: add --distributed")
        yield
        return
    others = _come_together(coordinator, num_processes, process_id)
    with contextlib.ExitStack() as stack:
        if not processes.is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            _check_devices()
            yield
            others.finish()
        except Exception as error:
            others.fail_of(error)
    cli.leave_on_signal()


def _check(distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Refuse flags that contradict each other."""
    by_hand = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    given = [f"--{name}" for name, value in by_hand.items() if value is not None]
    missing = [f"--{name}" for name, value in by_hand.items() if value is None]
    if given and not distributed:
        raise InputError(f"{' and '.join(given)} without --distributed: add it, or leave them out")
    if given and missing:
        raise InputError(
            f"{' and '.join(given)} without {' and '.join(missing)}: give all three, or none where JAX finds them "
            "(Cloud TPU, Slurm, MPI, Kubernetes)"
        )
    if not given:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator is {coordinator!r}: give HOST:PORT, where process 0 is and a port free there")
    if num_processes < 1:
        raise InputError(f"--num_processes is {num_processes}: it must be at least 1")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id is {process_id}: with --num_processes={num_processes} it must be from 0 to "
            f"{num_processes - 1}, another one in each process"
        )
    if process_id == 0:
        _check_port(int(port))


def _check_port(port: int) -> None:
    """Refuse a port that the coordinator, which listens on every address, could not have."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        raise InputError(
            f"--coordinator has port {port}, which cannot be listened on here ({error.strerror}): choose another one"
        ) from None


def _come_together(coordinator: str | None, num_processes: int | None, process_id: int | None) -> "_Others":
    """Call `jax.distributed.initialize`, and connect the devices.

    Raises:
      InputError: nothing tells which processes there are.
      Interrupted: some of them did not come, which another start may mend.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `cli.Preemption`
    who = "the processes of this run" if num_processes is None else f"the {num_processes} processes of this run"
    where = coordinator or "their coordinator"
    aborts = Aborts()

    def apart(why: str) -> str:
        return (
            f"{who} did not come together at {where} {why}: see that each is started, with the same --coordinator and "
            "--num_processes, and another --process_id, and can reach it"
        )

    with aborts.native_words_kept():
        aborts.explain = lambda: (apart(aborts.reason() or f"within {START_SECONDS} s"), cli.PREEMPTED)
        cli.leave_on_signal(aborts.end)
        error = _error_of(
            lambda: jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=START_SECONDS,
                heartbeat_timeout_seconds=4 * SILENT_SECONDS,  # ours comes first
                shutdown_timeout_seconds=SILENT_SECONDS,
            )
        )
        if error and (coordinator is not None or jax.distributed.is_initialized()):
            raise cli.Interrupted(apart(f"({_words(error)})")) from error
        if error:
            raise InputError(
                f"--distributed finds no processes to join ({_words(error)}): start it where JAX finds them (Cloud "
                "TPU, Slurm, MPI, Kubernetes), or give --coordinator=HOST:PORT, --num_processes and --process_id"
            ) from error
        others = _Others(aborts)
        aborts.explain = others.explain_abort
        cli.leave_on_signal(others.fail)
        if error := _error_of(processes.meet):
            sentence = f"{who} met, but cannot work together ({_words(error)}): see that all hosts can reach each other"
            others.fail_of(cli.Interrupted(f"{sentence} on every port"))
    return others


def _error_of(wait: Callable[[], None]) -> Exception | None:
    """What a call raises, if it does; made in a thread, since signals are not heard while it waits for others."""
    failed = []

    def call() -> None:
        try:
            wait()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    return failed[0] if failed else None


def _words(error: Exception) -> str:
    """The beginning of what an error says, in a line."""
    return " ".join(str(error).split())[:300]


def _check_devices() -> None:
    """Refuse processes with unequal numbers of devices: a batch is split over the processes in equal parts."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"process {index} has {counts[index]}" for index in sorted(counts))
        raise InputError(f"the processes have unequal numbers of devices ({told}): give each as many")


class _Others:
    """The other processes of the run: heard of every second, and left together with."""

    def __init__(self, aborts: Aborts) -> None:
        # Not public, and not likely to go: Orbax reads it in the same words.
        from jax._src import distributed

        self._say, self._client = aborts.say, distributed.global_state.client
        self._address = distributed.global_state.coordinator_address
        # Known before the devices are, which are asked for together.
        self._index, self._count = distributed.global_state.process_id, distributed.global_state.num_processes
        self._heard = {index: time.monotonic() for index in range(self._count) if index != self._index}
        self._beat = dict.fromkeys(self._heard, "")
        self._num_beats = dict.fromkeys(self._heard, 0)
        self._left: dict[int, tuple[str, int, float]] = {}
        self._leaving: dict[str, list[threading.Thread]] = {}
        self._done = threading.Event()
        for run in (self._exchange, self._judge):
            threading.Thread(target=run, daemon=True).start()

    def fail(self, sentence: str, code: int) -> None:
        """End this process, and thereby all of them, with a sentence that process 0 says and an exit code."""
        call = [threading.current_thread()]
        first = self._leaving.setdefault("first", call)  # at once: a signal may come between any two steps of Python
        if first is not call:
            if first == call:
                return  # a signal while leaving: go on with that
            threading.Event().wait()
        told = self._tell(sentence, code)
        if self._index == 0:
            self._say(sentence)
            self._wait_for_others()
        elif not told:
            self._say(f"process {self._index}: {sentence}")
        sys.stdout.flush()
        cli.leave(code)

    def fail_of(self, error: Exception) -> None:
        """End all processes because of an exception in this one, or of the process whose end it came from."""
        explained = cli.explained(error)
        passing = explained is None or explained[1] == cli.PREEMPTED  # as where another one has left
        lost = None if isinstance(error, cli.Stopped) else self._lost()
        if lost is not None:
            explained = self._gone(lost), cli.PREEMPTED
        elif passing and self._left and not isinstance(error, cli.Stopped):
            explained = self._told_by_who_left()
        elif explained is None:
            traceback.print_exception(error)
            explained = "it failed, for the reason in its own output: mend it, and repeat", 1
        self.fail(*explained)

    def finish(self) -> None:
        """Let go of the others, once all have come to the end."""
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("the end of the run")
        self._done.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nothing is left to do that could fail
            jax.distributed.shutdown()

    def explain_abort(self) -> tuple[str, int] | None:
        """What an abort means: that the coordinator is gone, or nothing that is known."""
        host, _, port = self._address.rpartition(":")
        if self._index == 0 or self._done.is_set():
            return None
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            return self._gone(0), cli.PREEMPTED
        return None

    def _told_by_who_left(self) -> tuple[str, int]:
        """The sentence and the code of the first process that has left, of those that another start may not mend."""
        left = list(self._left.items())
        index, (sentence, code, _) = min(left, key=lambda each: (each[1][1] == cli.PREEMPTED, each[1][2]))
        return f"process {index}: {sentence}", code

    def _gone(self, index: int) -> str:
        return f"process {index} of {self._count} is gone, or stands still: {GONE}"

    def _exchange(self) -> None:
        """Beat, and listen to the others."""
        for beat in itertools.count():
            try:
                self._client.key_value_set(f"{KEYS}beat/{self._index}", str(beat), allow_overwrite=True)
                told = self._client.key_value_dir_get(KEYS)
            except jax.errors.JaxRuntimeError:
                told = []  # who cannot be reached is not heard of, and judged by that
            for key, value in told:
                self._hear(*key.split("/")[-2:], value)
            if self._done.wait(BEAT_SECONDS):
                return

    def _hear(self, kind: str, index: str, value: str) -> None:
        now, index = time.monotonic(), int(index)
        if index == self._index:
            return
        if kind == "beat" and self._beat[index] != value:
            self._beat[index], self._heard[index] = value, now
            self._num_beats[index] += 1
        if kind == "left" and index not in self._left:
            self._left[index] = (*json.loads(value), now)

    def _judge(self) -> None:
        """Leave when another process has left, or is not heard of."""
        looked = time.monotonic()
        while not self._done.wait(BEAT_SECONDS / 2):
            now = time.monotonic()
            if now - looked > SILENT_AFTER_ERROR:  # it was this process that stood still
                self._heard = dict.fromkeys(self._heard, now)
            looked = now
            if any(now - at > GRACE_SECONDS for _, _, at in list(self._left.values())):
                self.fail(*self._told_by_who_left())
            silent = self._silent(SILENT_SECONDS)
            if silent:
                self.fail(self._gone(silent[0]), cli.PREEMPTED)

    def _silent(self, seconds: float, since: float = 0.0) -> list[int]:
        """Who was not heard of for so long, of those who have not left."""
        now = time.monotonic()
        return [
            index for index, at in self._heard.items() if now - max(at, since) > seconds and index not in self._left
        ]

    def _lost(self) -> int | None:
        """Who is gone, as far as can be told within seconds; None once every other one lives, or said that it left.

        One beat may be from before its end and be heard after it, two are not.
        """
        start, before = time.monotonic(), dict(self._num_beats)
        while any(num < before[index] + 2 and index not in self._left for index, num in self._num_beats.items()):
            silent = self._silent(SILENT_AFTER_ERROR, start)
            if silent:
                return silent[0]
            time.sleep(0.1)
        return None

    def _tell(self, sentence: str, code: int) -> bool:
        """Tell the others that this process leaves; whether it could be told."""
        told = threading.Event()

        def tell() -> None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"{KEYS}left/{self._index}", json.dumps([sentence, code]))
                told.set()

        threading.Thread(target=tell, daemon=True).start()
        return told.wait(2)

    def _wait_for_others(self) -> None:
        """Stay until all others have left or are silent, for so long at most."""
        end = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < end and len(self._left) + len(self._silent(GRACE_SECONDS)) < len(self._heard):
            time.sleep(0.1)
