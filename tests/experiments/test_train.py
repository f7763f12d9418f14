"""Training from the command line: what a run leaves, and that no way of stopping it changes what it ends with."""

import fcntl
import json
import os
import pathlib
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import CONFIG, ROOT, SMALL
from etils import epath
from PIL import Image
from test_evaluate import flip_a_bit

from aevb.checkpoints import Checkpoints
from aevb.errors import InputError, NonFiniteError
from experiments import build, progress, report, workdir

FIGURES = ["interpolations", "kl_per_dim", "latents", "learning_curves", "manifold"] + [
    "reconstructions", "samples", "traversals",
]  # fmt: skip


def without_times(value: Any) -> Any:
    """What may not differ between two equal runs."""
    if isinstance(value, dict):
        timed = ("_seconds", "_per_second", "_memory_gib", "command")  # which names the folder
        return {key: without_times(item) for key, item in value.items() if not key.endswith(timed)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The last and the best state, leaf by leaf."""
    import jax

    state = build.build(workdir.read_config(epath.Path(folder))).init_state()
    leaves = {}
    for which in ("last", "best"):
        checkpoints = Checkpoints(folder / "checkpoints" / which)
        restored, step, passed_over = checkpoints.restore(state)
        checkpoints.close()
        assert passed_over == []
        plain = restored.replace(key=jax.random.key_data(restored.key))
        for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
            leaves[f"{which} {step} {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return leaves


def assert_same_run(folder: pathlib.Path, reference: pathlib.Path) -> None:
    for name in ("metrics.jsonl", "summary.json", "evaluation.json"):
        found, expected = (
            without_times([json.loads(line) for line in path.read_text().splitlines()])
            if name.endswith("l")
            else without_times(json.loads(path.read_text()))
            for path in (folder / name, reference / name)
        )
        assert found == expected, name
    found, expected = arrays(folder), arrays(reference)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name].tobytes() != expected[name].tobytes()] == []
    assert unfinished(folder) == []


def unfinished(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "tmp" in path.name]


def test_what_a_run_leaves(finished: pathlib.Path):
    names = {workdir.LOCK, "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "figures", "summary.json"}
    assert {path.name for path in finished.iterdir()} == names | {"report.html", "evaluation.json"}
    assert sorted(path.stem for path in finished.glob("figures/*.png")) == FIGURES
    for path in finished.glob("figures/*.png"):
        with Image.open(path) as image:
            image.load()
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    parts = {"step", "split", "examples_seen", "elbo", "log_likelihood", "kl"}
    more = {"examples_per_second", "kl_weight", "learning_rate", "grad_norm", "loss"}
    whole = {"elbo_stderr", "num_samples", "num_examples"}
    assert all(set(row) == parts | (more if row["split"] == "train" else whole) for row in rows)
    assert all(row["elbo"] == pytest.approx(row["log_likelihood"] - row["kl"]) for row in rows)
    assert [row["step"] for row in rows if row["split"] == "train"] == [5, 10, 15, 20, 25, 30, 35, 38]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [10, 20, 30, 38]
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["examples_seen"]) == ("finished", 38, 3800)
    assert set(summary["bounds"]) == {"train", "validation", "test"}
    assert summary["bounds"]["validation"]["final"]["elbo"] == rows[-1]["elbo"]
    best = max((row for row in rows if row["split"] == "validation"), key=lambda row: row["elbo"])
    assert summary["bounds"]["validation"]["best"]["step"] == summary["bounds"]["test"]["best"]["step"] == best["step"]
    assert summary["evaluation"] == json.loads((finished / "evaluation.json").read_text())
    assert summary["command"] == f"python -m experiments.train {' '.join(SMALL)} --workdir={finished}"
    assert 0 < summary["first_step_seconds"] < summary["total_seconds"]
    assert 0.1 < summary["peak_memory_gib"] < 16
    config = json.loads((finished / "config.json").read_text())
    assert set(config) == {"seed", "dataset", "data", "model", "vit", "bound", "learner", "optimizer", "train", "eval"}


def test_the_page_is_there_before_a_run_is_finished(finished: pathlib.Path, tmp_path: pathlib.Path):
    """And says what it would say of the finished run."""
    page, summary = finished / "report.html", finished / "summary.json"
    assert page.stat().st_mtime_ns < summary.stat().st_mtime_ns
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    again = report.write(tmp_path).read_text().replace(str(tmp_path), str(finished))
    assert again == page.read_text()


def test_tensorboard(finished: pathlib.Path):
    """The event file by its framing: length, its checksum, a record, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, pictures = {}, set()
    for path in finished.glob("tensorboard/*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("image"):
                    pictures.add(value.tag)
                else:
                    scalars[value.tag, event.step] = value.simple_value
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("elbo", "kl", "log_likelihood"):
            assert scalars[f"{row['split']}/{name}", row["step"]] == pytest.approx(row[name], rel=1e-6)
    assert sorted(pictures) == FIGURES


def test_again_says_finished(command, finished: pathlib.Path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    ended = command.ok("train", *SMALL, f"--workdir={finished}", "--config.eval.num_samples=7")
    assert "is finished" in ended.out
    assert "raise --config.train.num_epochs" in ended.out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


# The changes to files of a run of SMALL are about 160: config.json, checkpoints at 15, 30 and 38 of last and at
# 10, 20, 30 and 38 of best, each with its manifest, rows in between, and evaluation and figures at the end.
def test_killed_at_any_moment(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    for fuse in (1, 4, 18, 30, 75, 40, 60):
        ended = command("train", *SMALL, f"--workdir={tmp_path}", fuse=fuse, watch=str(tmp_path))
        assert ended.code == -9
        assert ended.err == ""
    command.ok("train", *SMALL, f"--workdir={tmp_path}")
    assert_same_run(tmp_path, finished)


def after(path: pathlib.Path, text: str = "") -> Callable[[], bool]:
    """Whether a file is there and holds a text."""
    return lambda: path.exists() and text in path.read_text(errors="replace")


STOP = """
from experiments import progress
def stopped_at(run, step, *rest, row_of=progress.training_row):
    if step == {step}:
        __import__("os").kill(__import__("os").getpid(), 15)
    return row_of(run, step, *rest)
progress.training_row = stopped_at
"""


def test_sigterm(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    """While it starts, while it trains, and while it evaluates at the end: 75 each time, soon, and nothing broken."""
    moments = [
        {"sigterm_when": after(tmp_path / "config.json")},
        {"prelude": STOP.format(step=20)},
        {"sigterm_when": after(tmp_path / "figures/learning_curves.png")},
    ]
    for moment in moments:
        ended = command("train", *SMALL, f"--workdir={tmp_path}", **moment)
        assert ended.code == 75, ended.err
        assert ended.err.startswith("stopped by SIGTERM")
        assert ended.err.count("\n") == 1
        if "prelude" in moment:
            rows = workdir.read_metrics(epath.Path(tmp_path))
            assert (rows[-1]["step"], rows[-1]["split"]) == (20, "train")  # the evaluation is for who goes on
            assert "at step 20, saved" in ended.err
            assert (tmp_path / "checkpoints/last/20").exists()
    command.ok("train", *SMALL, f"--workdir={tmp_path}")
    assert_same_run(tmp_path, finished)


def test_sigterm_while_importing(environment: dict[str, str], tmp_path: pathlib.Path):
    args = ["-X", "importtime", "-m", "experiments.train", *SMALL, f"--workdir={tmp_path}/run"]
    with subprocess.Popen([sys.executable, *args], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as run:
        while not run.stderr.readline().split("|")[-1].strip().startswith("jax"):
            pass
        started = time.monotonic()
        run.terminate()
        err = run.stderr.read()
        assert run.wait() == 75
    assert time.monotonic() - started < 5
    assert "stopped by SIGTERM" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_damaged_checkpoint(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    """A finished run without its summary goes on from step 30, since 38 is damaged, and ends as it did."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    step = tmp_path / "checkpoints/last/38"
    flip_a_bit(step)
    ended = command.ok("train", *SMALL, f"--workdir={tmp_path}")
    assert f"{step} is damaged" in ended.err
    assert ended.err.endswith("using step 30\n")
    assert_same_run(tmp_path, finished)
    for step in (tmp_path / "checkpoints/last").iterdir():
        flip_a_bit(step)
    (tmp_path / "summary.json").unlink()
    ended = command.ok("train", *SMALL, f"--workdir={tmp_path}")
    assert "going on from the best one" in ended.err
    assert_same_run(tmp_path, finished)
    command.ok("evaluate", f"--workdir={tmp_path}", "--num_samples=2", "--max_examples=5")


def test_only_damage_makes_a_run_forget_its_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    """Not that they cannot be restored for another reason, which may pass."""

    def restored(run: object, which: str) -> tuple[dict, int]:
        if which == "last":
            raise InputError("the checkpoints do not fit (UNAVAILABLE)")
        return {}, 3

    monkeypatch.setattr(progress.checkpointed, "restore_state", restored)
    with pytest.raises(InputError, match="UNAVAILABLE"):
        progress.resume(None, tmp_path, "last", "best")


def test_not_finite(command, tmp_path: pathlib.Path):
    """Gradient descent with steps of 1e4 leaves the numbers; what was saved before stays, and is finite."""
    args = [*SMALL, f"--workdir={tmp_path}", "--config.optimizer.name=sgd", "--config.train.checkpoint_every_steps=5"]
    args += [
        "--config.optimizer.schedule=piecewise",
        "--config.optimizer.boundaries=13",
        "--config.optimizer.scales=1e38",
    ]
    ended = command("train", *args)
    assert ended.code == 3
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("step 1")
    assert "lower the learning rate" in ended.err
    assert not (tmp_path / "summary.json").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 10
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert all(np.isfinite(leaf).all() for leaf in arrays(tmp_path).values())
    assert command("train", *args).code == 3


def test_row_that_is_not_finite(tmp_path: pathlib.Path):
    journal = progress.Journal(epath.Path(tmp_path), [], 10, 0)
    with pytest.raises(NonFiniteError, match="step 5 has elbo nan"):
        journal.add({"step": 5, "split": "validation", "elbo": float("nan"), "kl": 1.0})
    journal.close()
    assert not (tmp_path / "metrics.jsonl").exists()


EARLY = [*SMALL, "--config.train.patience=2", "--config.train.num_epochs=40", "--config.optimizer.learning_rate=0.3"]


def test_early_stopping(command, tmp_path: pathlib.Path):
    """A huge step size soon stops improving; killed and resumed it stops at the same step, and is finished then."""
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    command.ok("train", *EARLY, f"--workdir={reference}")
    summary = json.loads((reference / "summary.json").read_text())
    bounds = [
        json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines() if "validation" in line
    ]
    best = max(bounds, key=lambda row: row["elbo"])
    assert summary["status"] == "early_stopped"
    assert summary["step"] == bounds[-1]["step"] == best["step"] + 20 < summary["num_steps"]
    assert (summary["evaluation"]["checkpoint"], summary["evaluation"]["step"]) == ("best", best["step"])
    assert summary["bounds"]["test"]["best"]["step"] == best["step"]
    assert command("train", *EARLY, f"--workdir={killed}", fuse=70, watch=str(killed)).code == -9
    command.ok("train", *EARLY, f"--workdir={killed}")
    assert_same_run(killed, reference)
    ended = command.ok("train", *EARLY, f"--workdir={killed}", "--config.train.num_epochs=50")
    assert "stopped early at step" in ended.out


def test_lengthened(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    ended = command.ok("train", *SMALL, f"--workdir={tmp_path}", "--config.train.num_epochs=4")
    assert "at step 38 of 51" in ended.out
    before, rows = (
        [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path)
    )
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows[len(before) :] if row["split"] == "train"] == [40, 45, 50, 51]
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 51


def test_streaming_and_grey(command, tmp_path: pathlib.Path):
    """A .npy file that stays on disk: trained, killed, resumed and evaluated as without the kill; grey is marked."""
    images = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    args = [*SMALL, f"--config={CONFIG}:arrays", f"--config.data.dir={tmp_path}/images.npy"]
    args += ["--config.data.memory_limit_mb=0", "--config.data.workers=0", "--config.train.batch_size=10"]
    args += ["--config.model.likelihood=bernoulli", "--config.data.binarization=grey", "--config.model.latent_dim=2"]
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    ended = command.ok("train", *args, f"--workdir={reference}")
    assert "binarization grey: not a density" in ended.out
    assert "not a density" in (reference / "report.html").read_text()
    assert command("train", *args, f"--workdir={killed}", fuse=60, watch=str(killed)).code == -9
    command.ok("train", *args, f"--workdir={killed}")
    assert_same_run(killed, reference)
    summary = json.loads((killed / "summary.json").read_text())
    assert summary["density"] is summary["evaluation"]["density"] is False
    result = json.loads(command.ok("evaluate", f"--workdir={killed}", "--num_samples=20").out)
    assert without_times(result) == without_times(summary["evaluation"])
    assert result["num_examples"] == 20


def test_again_on_a_terminal(environment: dict[str, str], finished: pathlib.Path, tmp_path: pathlib.Path):
    """A bar tells bound, speed and time left; the first step is there soon; and the run is the one without a bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    env = environment | {"TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *SMALL, f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    ) as run:
        os.close(theirs)
        shown = ""
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        assert run.wait() == 0
    os.close(ours)
    bars = [bar for bar in shown.split("\r") if "elbo" in bar]
    assert "38/38" in bars[-1]
    assert "nats" in bars[-1]
    assert "examples/s" in bars[-1]
    assert any("<" in bar for bar in bars)  # elapsed<left
    assert json.loads((tmp_path / "summary.json").read_text())["first_step_seconds"] < 30
    assert_same_run(tmp_path, finished)


def test_real_data(command, data_dir: str, tmp_path: pathlib.Path):
    """Frey Face, from the folder that AEVB_DATA_DIR names."""
    args = [f"--config={CONFIG}:frey_face", "--config.train.num_epochs=0.1", "--config.eval.num_samples=5"]
    command.ok("train", *args, f"--workdir={tmp_path}", AEVB_DATA_DIR=data_dir)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert sum(summary["num_examples"].values()) == 1965
    assert summary["binarization"] == "none"
