"""One run over two real processes on this machine: the numbers of one process, and no way of dying that leaves one."""

import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable

import numpy as np
import pytest
from conftest import CONFIG, SMALL, Ended
from etils import epath
from test_train import after, unfinished, without_times

from aevb.data import Split
from experiments import distributed, train, workdir

LEAVING = 30  # seconds that any process may take to leave
# As in SMALL, but so long that there is time to disturb it, and saved often.
LONGER = [*SMALL, "--config.train.num_epochs=10", "--config.train.checkpoint_every_steps=10"]
# JAX has process 0 alone write to the cache of compiled programs, for the sake of cloud storage: here each may.
CACHED = """
import types
from jax._src import compiler
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as taken:
        return taken.getsockname()[1]


def calls(
    *args: str, others: tuple[str, ...] = (), prelude: str = CACHED, devices: int = 1, count: int = 2
) -> list[dict]:
    """The calls of each process of one run; `others` are arguments of all but the first."""
    joining = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return [
        {
            "module": "train",
            "args": [*args, *joining, f"--process_id={index}", *(others if index else ())],
            "env": env,
            "prelude": prelude,
        }
        for index in range(count)
    ]


def disturb(command, folder: pathlib.Path, victim: int, signum: int, devices: int = 1) -> list[Ended]:
    """How the victim of a signal, sent some steps on, and the other of two processes ended; both in time."""
    further = further_than_ever(folder)
    both = calls(*LONGER, f"--workdir={folder}", devices=devices)
    other, disturbed = command.start([both[1 - victim], both[victim]])
    wait_until(further)
    os.kill(disturbed.pid, signum)
    since = time.monotonic()
    ended = [other.ended()]
    assert time.monotonic() - since < LEAVING
    if signum == signal.SIGSTOP:
        os.kill(disturbed.pid, signal.SIGCONT)
        since = time.monotonic()
    ended.append(disturbed.ended())
    assert time.monotonic() - since < LEAVING
    return ended[::-1]


def further_than_ever(folder: pathlib.Path) -> Callable[[], bool]:
    """Whether the run in a folder has told of ten steps more than it has by now."""
    rows = workdir.read_metrics(epath.Path(folder))
    return after(folder / "metrics.jsonl", f'"step": {(rows[-1]["step"] if rows else 0) + 10},')


def wait_until(moment: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end
        time.sleep(0.005)


def last_step(folder: pathlib.Path) -> int:
    """The newest checkpoint, which must be whole."""
    steps = [int(path.name) for path in (folder / "checkpoints/last").iterdir() if path.name.isdecimal()]
    assert (folder / "checkpoints/last" / str(max(steps)) / "sha256.json").exists()
    return max(steps)


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same run by one process on one device, never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command.ok("train", *LONGER, f"--workdir={folder}")
    return folder


def assert_close(found: object, expected: object, where: str = "") -> None:
    """Equal but for what float32 sums in another order make of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}[{index}]")
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5, err_msg=where)
    else:
        assert found == expected, where


def assert_same_metrics(folder: pathlib.Path, reference: pathlib.Path) -> None:
    found, expected = (
        [without_times(row) for row in workdir.read_metrics(epath.Path(path))] for path in (folder, reference)
    )
    assert_close(found, expected, "metrics")
    found, expected = (without_times(json.loads((path / "summary.json").read_text())) for path in (folder, reference))
    for summary in (found, expected):
        del summary["hardware"]
    assert_close(found, expected, "summary")
    assert json.loads((folder / "evaluation.json").read_text())["num_examples"] == 359
    assert {path.name for path in folder.rglob("*.png")} == {path.name for path in reference.rglob("*.png")}
    assert unfinished(folder) == []


def test_no_end_of_a_process_changes_what_a_run_ends_with(command, undisturbed, tmp_path: pathlib.Path):
    """Either one preempted, killed, stopped; resumed by one process and by two: the run of one process."""
    victim, other = disturb(command, tmp_path, 1, signal.SIGTERM)
    assert (victim.code, other.code) == (75, 75), (victim, other)
    saved = last_step(tmp_path)
    assert saved == workdir.read_metrics(epath.Path(tmp_path))[-1]["step"]
    words = f"stopped by a signal to another process at step {saved}, saved: run the same command to go on\n"
    assert other.err == words
    assert (victim.out, victim.err) == ("", "")
    assert "on 2 cpu device(s) of 2 processes" in other.out

    one = command("train", *LONGER, f"--workdir={tmp_path}", sigterm_when=further_than_ever(tmp_path))
    assert one.code == 75, one.err
    assert f"resuming {tmp_path} at step {saved} " in one.out
    saved = last_step(tmp_path)

    victim, other = disturb(command, tmp_path, 0, signal.SIGTERM, devices=2)
    assert (victim.code, other.code) == (75, 75), (victim, other)
    assert "on 4 cpu device(s) of 2 processes" in victim.out
    assert f"resuming {tmp_path} at step {saved} " in victim.out
    saved = last_step(tmp_path)
    assert victim.err.startswith(f"stopped by SIGTERM at step {saved}, saved")

    # One that is stopped is as silent as one that is killed; that the coordinator stands still is another thing.
    for signum, index in ((signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 0)):
        victim, other = disturb(command, tmp_path, index, signum)
        assert (victim.code, other.code) == (-9 if signum == signal.SIGKILL else 75, 75), (victim, other)
        assert f"process {index} of 2 is gone, or stands still" in other.err.splitlines()[-1]
        saved, before = last_step(tmp_path), saved
        assert saved >= before

    ended = [call.ended() for call in command.start(calls(*LONGER, f"--workdir={tmp_path}"))]
    assert [each.code for each in ended] == [0, 0], ended
    assert "look at" in ended[0].out
    assert_same_metrics(tmp_path, undisturbed)
    hardware = json.loads((tmp_path / "summary.json").read_text())["hardware"]
    assert (hardware["device_count"], hardware["process_count"]) == (2, 2)

    again = [call.ended() for call in command.start(calls(*LONGER, f"--workdir={tmp_path}"))]
    assert [each.code for each in again] == [0, 0], again
    assert "is finished" in again[0].out
    assert again[1].out == ""


def test_what_is_not_finite_ends_both_with_one_sentence(command, tmp_path: pathlib.Path):
    """On data that stream from disk, by two processes."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), dtype=np.uint8))
    args = [*SMALL, f"--config={CONFIG}:arrays", f"--config.data.dir={tmp_path}/images.npy"]
    args += ["--config.data.memory_limit_mb=0", "--config.data.workers=0", "--config.train.batch_size=10"]
    args += ["--config.optimizer.name=sgd", "--config.optimizer.schedule=piecewise", f"--workdir={tmp_path}/run"]
    args += ["--config.optimizer.boundaries=13", "--config.optimizer.scales=1e38", "--config.train.eval_every_steps=50"]
    ended = [call.ended() for call in command.start(calls(*args))]
    assert [each.code for each in ended] == [3, 3], ended
    assert ended[0].err.startswith("step 1")
    assert ended[0].err.count("\n") == 1
    assert ended[1].err == ""
    assert [row["step"] for row in workdir.read_metrics(epath.Path(tmp_path / "run"))][-1] == 10


@pytest.mark.parametrize(
    ("args", "others", "sentence"),
    [
        (["--config.train.batch_size=25"], (), "does not divide over 2 devices"),
        ([], ("--config.train.ema_decay=0.5",), "process 1 has another config"),
    ],
)
def test_a_wrong_call_of_both_is_one_sentence_and_makes_nothing(command, tmp_path, args, others, sentence):
    started = command.start(calls(*SMALL, f"--workdir={tmp_path}/run", *args, others=others))
    ended = [call.ended() for call in started]
    assert [each.code for each in ended] == [2, 2], ended
    assert sentence in ended[0].err
    assert ended[0].err.count("\n") == 1
    assert ended[1].err == ""
    assert list(tmp_path.iterdir()) == []


DIES = (
    "import os, signal; from aevb import processes; processes.meet = lambda: (open({!r}, 'w'), os.kill(os.getpid(), 9))"
)
IMPATIENT = "from experiments import distributed; distributed.START_SECONDS = 2"
REFUSED = "import jax, os; jax.distributed.initialize = lambda *_, **__: (os.write(2, b'{}'), os.abort())"


def test_a_start_that_fails_is_told_and_worth_another(command, tmp_path: pathlib.Path):
    """Side by side: either of two killed in the start; one whose coordinator is not there; one that JAX aborts; one
    that is preempted while it waits."""
    args = [*SMALL, f"--workdir={tmp_path}/run"]
    died = [tmp_path / "0", tmp_path / "1"]
    pairs = [calls(*args), calls(*args)]
    for index, pair in enumerate(pairs):
        pair[index]["prelude"] = DIES.format(str(died[index]))
    late = calls(*args, prelude=IMPATIENT)[1]
    lost = calls(*args, prelude=REFUSED.format("F11 absl::Status: INTERNAL: no route\\n*** Check failure"))[1]
    started = command.start([late, lost, *pairs[0], *pairs[1]])
    late, lost, *ended = [call.ended() for call in started]
    assert time.time() - max(path.stat().st_mtime for path in died) < LEAVING
    assert [each.code for each in (late, lost, *ended)] == [75, 75, -9, 75, 75, -9]
    assert late.err.startswith("the 2 processes of this run did not come together at 127.0.0.1:")
    assert "within 2 s: see that each is started" in late.err
    assert "(INTERNAL: no route): see that each is started" in lost.err
    assert "process 0 of 2 is gone" in ended[1].err
    assert "process 1 of 2 is gone" in ended[2].err
    assert [each.err.count("\n") for each in (late, lost, ended[1], ended[2])] == [1, 1, 1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_a_process_that_waits_for_others_can_be_preempted(command, tmp_path: pathlib.Path):
    (call,) = calls(*SMALL, f"--workdir={tmp_path}/run")[:1]
    (started,) = command.start([call])
    port = int(re.search(r"--coordinator=127.0.0.1:(\d+)", " ".join(call["args"]))[1])
    wait_until(lambda: is_open(port))
    os.kill(started.pid, signal.SIGTERM)
    ended = started.ended()
    assert (ended.code, ended.err) == (75, "stopped by SIGTERM: run the same command to go on\n")


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("line", range(8))
def test_a_signal_at_any_moment_of_leaving(monkeypatch: pytest.MonkeyPatch, line: int):
    """Its handler runs between two lines of the main thread, which must leave all the same."""
    others = object.__new__(distributed._Others)
    others._index, others._leaving, others._tell = 1, {}, lambda *_: True
    left = threading.Event()
    monkeypatch.setattr(distributed.cli, "leave", lambda code: left.set())
    num = 0

    def trace(frame: types.FrameType, event: str, _: object) -> Callable | None:
        nonlocal num
        if frame.f_code is not distributed._Others.fail.__code__ or event != "line":
            return trace
        num += 1
        if num == line + 1:
            sys.settrace(None)
            others.fail("stopped by SIGTERM", 75)
        return trace

    def leave() -> None:
        sys.settrace(trace)
        others.fail("process 0 of 2 is gone", 75)

    threading.Thread(target=leave, daemon=True).start()
    assert left.wait(10)


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({1: ("stopped", 75, 5.0), 2: ("step 4 has loss nan", 3, 2.0)}, ("process 2: step 4 has loss nan", 3)),
        ({1: ("stopped", 75, 2.0), 2: ("step 4 has loss nan", 3, 5.0)}, ("process 2: step 4 has loss nan", 3)),
        ({1: ("process 2: bad", 2, 5.0), 2: ("bad", 2, 2.0)}, ("process 2: bad", 2)),
        ({1: ("process 2: stopped", 75, 5.0), 2: ("stopped", 75, 2.0)}, ("process 2: stopped", 75)),
    ],
)
def test_what_another_start_may_not_mend_is_told_of_those_who_left(left, told):
    others = object.__new__(distributed._Others)
    others._left = left
    assert others._told_by_who_left() == told


def test_other_examples_or_labels_are_seen():
    examples, labels = np.arange(300, dtype=np.uint8).reshape(50, 6), np.arange(50)
    other, relabelled = examples.copy(), labels.copy()
    other[20, 3], relabelled[33] = 1, 0
    found = [train.fingerprint(Split(*each)) for each in ((examples, labels), (other, labels), (examples, relabelled))]
    assert found[0] == train.fingerprint(Split(list(examples), labels.copy()))
    assert found[1] != found[0] != found[2]
    assert train.fingerprint(Split(examples[:0], None))[0] == 0


HAND = {"coordinator": "host:1234", "num_processes": 2, "process_id": 1}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"distributed": False}, "--coordinator and --num_processes and --process_id without --distributed"),
        ({"process_id": None}, "--coordinator and --num_processes without --process_id: give all three, or none"),
        ({"coordinator": None}, "--num_processes and --process_id without --coordinator"),
        ({"process_id": 2}, "--process_id is 2: with --num_processes=2 it must be from 0 to 1"),
        ({"process_id": -1}, "--process_id is -1"),
        ({"num_processes": 0}, "--num_processes is 0: it must be at least 1"),
        ({"coordinator": "host"}, "--coordinator is 'host': give HOST:PORT"),
        ({"coordinator": "host:70000"}, "--coordinator is 'host:70000'"),
    ],
)
def test_flags_that_contradict_each_other(given, sentence):
    with (
        pytest.raises(distributed.InputError, match=re.escape(sentence)),
        distributed.joined(**{"distributed": True} | HAND | given),
    ):
        raise AssertionError("joined")


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(distributed.InputError, match=f"--coordinator has port {port}, which cannot be listened on"),
            distributed.joined(True, f"127.0.0.1:{port}", 2, 0),
        ):
            raise AssertionError("joined")
