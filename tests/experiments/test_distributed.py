"""One run over two real processes on this machine: the numbers of one process, and no way of dying that leaves one."""

import json
import os
import pathlib
import re
import signal
import socket
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import CONFIG, SMALL, Ended
from etils import epath
from test_train import after, unfinished, without_times

from experiments import distributed, workdir

LEAVING = 30  # seconds that any process may take to leave; where a machine is busy, as many more as a run takes there
# As in SMALL, but so long that there is time to disturb it, and saved often.
LONGER = [*SMALL, "--config.train.num_epochs=8", "--config.train.checkpoint_every_steps=10"]


def free_port() -> int:
    with socket.create_server(("", 0)) as taken:
        return taken.getsockname()[1]


def calls(*args: str, others: tuple[str, ...] = (), prelude: str = "", devices: int = 1, count: int = 2) -> list[dict]:
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


def disturb(command, run: tuple[pathlib.Path, float], victim: int, signum: int, step: int) -> list[Ended]:
    """A run of two processes, of which one gets a signal once a step is told; both must leave soon."""
    folder, usual = run
    started = command.start(calls(*LONGER, f"--workdir={folder}"))
    wait_until(after(folder / "metrics.jsonl", f'"step": {step},'))
    os.kill(started[victim].pid, signum)
    ended, seconds = [], []
    for index, call in enumerate(started):
        since = time.monotonic()
        if signum == signal.SIGSTOP and index == victim:  # the other one, whose end was asked for first, has left
            os.kill(call.pid, signal.SIGCONT)
        ended.append(call.ended())
        seconds.append(time.monotonic() - since)
    assert max(seconds) < LEAVING + usual, seconds
    return ended


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
def undisturbed(command, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, float]:
    """The same run by one process on one device, never stopped, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, command.ok("train", *LONGER, f"--workdir={folder}").seconds


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
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3, err_msg=where)
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
    """Preempted, killed, killed at the head, stopped, resumed by one process and by two: the run of one process."""
    reference, usual = undisturbed
    run = tmp_path, usual
    ended = disturb(command, run, 1, signal.SIGTERM, 10)
    assert [each.code for each in ended] == [75, 75], ended
    saved = last_step(tmp_path)
    assert saved == workdir.read_metrics(epath.Path(tmp_path))[-1]["step"]
    assert (
        ended[0].err
        == f"stopped by a signal to another process at step {saved}, saved: run the same command to go on\n"
    )
    assert (ended[1].out, ended[1].err) == ("", "")
    assert "on 2 cpu device(s) of 2 processes" in ended[0].out

    one = command(
        "train", *LONGER, f"--workdir={tmp_path}", sigterm_when=after(tmp_path / "metrics.jsonl", '"step": 30,')
    )
    assert one.code == 75, one.err
    assert f"resuming {tmp_path} at step {saved} " in one.out
    saved = last_step(tmp_path)

    ended = disturb(command, run, 1, signal.SIGKILL, 45)
    assert [each.code for each in ended] == [75, -9], ended
    assert f"resuming {tmp_path} at step {saved} " in ended[0].out
    assert ended[0].err.splitlines()[-1].startswith("process 1 of 2 is gone")
    assert last_step(tmp_path) >= saved

    ended = disturb(command, run, 0, signal.SIGKILL, 60)
    assert [each.code for each in ended] == [-9, 75], ended
    assert ended[1].err.splitlines()[-1].startswith("process 0 of 2 is gone")

    ended = disturb(command, run, 1, signal.SIGSTOP, 75)
    assert [each.code for each in ended] == [75, 75], ended
    assert ended[0].err.startswith("process 1 of 2 is gone, or stands still")

    ended = [call.ended() for call in command.start(calls(*LONGER, f"--workdir={tmp_path}", devices=2))]
    assert [each.code for each in ended] == [0, 0], ended
    assert "look at" in ended[0].out
    assert_same_metrics(tmp_path, reference)
    hardware = json.loads((tmp_path / "summary.json").read_text())["hardware"]
    assert (hardware["device_count"], hardware["process_count"]) == (4, 2)

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
    args += ["--config.optimizer.boundaries=13", "--config.optimizer.scales=1e38"]
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


def test_a_coordinator_that_is_not_there_is_told_in_time(command, tmp_path: pathlib.Path):
    prelude = "from experiments import distributed; distributed.START_SECONDS = 2"
    (call,) = calls(*SMALL, f"--workdir={tmp_path}/run", prelude=prelude)[1:]
    ended = command.start([call])[0].ended()
    assert ended.code == 2, ended
    assert ended.err.startswith("the 2 processes of this run did not come together at 127.0.0.1:")
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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
