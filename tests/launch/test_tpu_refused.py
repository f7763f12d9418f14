"""What launch.tpu_vm refuses before anything is asked for, and what it only says with --dry_run."""

import os
import pathlib

import pytest
from tpu_world import CONFIG, MACHINES, NAMED, ROOT, SWEEP, TRAIN, World

from aevb.errors import InputError
from launch import hosts, tpu_vm
from launch.accelerators import accelerator
from launch.gcloud import Target

REFUSED = {
    "no command": ([], ["nothing is no command", "create, setup"]),
    "command": (["creat", *MACHINES], ["'creat' is no command"]),
    "flag": (["create", "--nam=x"], ["do you mean --name?"]),
    "no name": (["create"], ["--name is missing"]),
    "no zone": (["create", "--name=vae"], ["--zone is missing"]),
    "no type": (["create", *NAMED], ["--accelerator_type is missing", "v5litepod-16"]),
    "type": (["create", *NAMED, "--accelerator_type=v5e-16"], ["v5e-16 is unknown", "v5litepod-16?"]),
    "zone": (["create", "--name=vae", "--zone=moon-1", MACHINES[2]], ["--zone=moon-1", "us-west4-a"]),
    "name": (["create", "--name=My_VAE", *MACHINES[1:]], ["--name=My_VAE is no name"]),
    "slices": (["create", *MACHINES, "--num_slices=0"], ["--num_slices=0"]),
    "money": (["create", *MACHINES], ["which costs money", "no terminal", "--yes"]),
    "spot money": (["train", *MACHINES, "--spot", *TRAIN], ["whenever its spot machines are taken", "--yes"]),
    "machines": (["delete", *NAMED], ["delete vae", "no terminal", "--yes"]),
    "no config": (["train", *MACHINES, "--", "--workdir=gs://r/x"], ["--config is missing after --"]),
    "config": (["train", *MACHINES, "--", "--config=/etc/passwd", "--workdir=gs://r/x"], ["no file of this checkout"]),
    "key": (["train", *MACHINES, *TRAIN, "--config.model.latent_dimm=3"], ["latent_dimm is unknown"]),
    "batch": (["train", *MACHINES, "--", CONFIG[0], "--workdir=gs://r/x"], ["batch_size is 100", "16 devices"]),
    "workdir": (["train", *MACHINES, "--", *CONFIG, "--workdir=runs/x"], ["is on one host", "has 4"]),
    "no workdir": (["train", *MACHINES, "--", *CONFIG], ["--workdir is missing after --"]),
    "lost": (
        ["train", *NAMED, "--accelerator_type=v5litepod-4", "--spot", "--", *CONFIG, "--workdir=runs/x"],
        ["goes with a spot machine"],
    ),
    "chips": (["sweep", *MACHINES, "--tpus_per_trial=8"], ["--tpus_per_trial=8", "4 chips on a host", "1, 2, 4"]),
    "part of a chip": (["sweep", *MACHINES, "--tpus_per_trial=0"], ["--tpus_per_trial=0"]),
    "no sweep": (["sweep", *MACHINES, "--", "--workdir=gs://r/x"], ["--sweep is missing after --"]),
    "sweep": (["sweep", *MACHINES, "--", "--sweep=/x.py", "--workdir=gs://r/x"], ["--sweep=/x.py is no file of this"]),
    "no get_sweep": (["sweep", *MACHINES, "--", "--sweep=launch/held.py", "--workdir=gs://r/x"], ["has no get_sweep"]),
    "batch of a trial": (
        ["sweep", *NAMED, "--accelerator_type=v5litepod-8", "--tpus_per_trial=8", *SWEEP],
        ["batch_size is 100", "8 devices of a trial with --tpus_per_trial=8"],
    ),
    "sweep's workdir": (["sweep", *MACHINES, *SWEEP[:2], "--workdir=runs/x"], ["is on one host", "has 4"]),
    "stray": (["setup", *MACHINES, "--", "--x"], ["'--x' after --", "leave it out"]),
    "what to fetch": (["fetch", *NAMED], ["--workdir is missing"]),
}


def test_wrong_calls_are_a_sentence_and_change_nothing(tmp_path: pathlib.Path):
    world = World(tmp_path).make()
    calls = world.run_all([arguments for arguments, _ in REFUSED.values()])
    for (name, (_, words)), ended in zip(REFUSED.items(), calls, strict=True):
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), (name, ended.stderr)
        assert [word for word in words if word not in ended.stderr] == [], (name, ended.stderr)
    assert set(world.calls()) <= {"get-value"}
    assert not (world.folder / "queue.json").exists()


@pytest.mark.parametrize("lacking", ["project", "gcloud"])
def test_no_project_and_no_gcloud(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, lacking: str):
    world = World(tmp_path).make()
    if lacking == "project":
        (world.folder / "project").write_text("(unset)")
    else:
        os.remove(world.folder / "path/gcloud")
        monkeypatch.setenv("PATH", "")
    calls = [[command, *MACHINES, "--yes"] for command in ("create", "setup", "status", "logs", "delete")]
    calls += [["train", *MACHINES, *TRAIN], ["sweep", *MACHINES, *SWEEP], ["fetch", *NAMED, *TRAIN[-1:], "--to=x"]]
    words = {"project": "no project is set: ", "gcloud": "there is no gcloud on the PATH: "}
    for arguments, ended in zip(calls, world.run_all(calls), strict=True):
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), (arguments, ended.stderr)
        assert ended.stderr.startswith(words[lacking])
    assert set(world.calls()) == ({"get-value"} if lacking == "project" else set())


OVER_TWO = ".* 2 devices of a trial with --tpus_per_trial=1"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("grid={'model.latent_dimm': [1]}", "latent_dimm is unknown"),
        ("grid={'train.batch_size': [100, 101]}", f"batch_size is 101, {OVER_TWO}"),
        ("grid={'train.batch_size': [100, 101], 'seed': [0, 1]}", f"batch_size is 101, {OVER_TWO}"),
        (f"grid={{'seed': [0]}}, config='{ROOT}/experiments/configs/vae.py'", "config=/.* is no file of this checkout"),
    ],
)
def test_sweeps_that_cannot_be(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, fields: str, words: str):
    """A chip of a v2 is two devices, over which a batch must divide, but not where it is packed, on one of them."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "launch").mkdir()
    config = "" if "config" in fields else ", config='experiments/configs/vae.py'"
    code = f"def get_sweep(): return Sweep({fields}{config}, metric='validation elbo', budget=Budget(1))"
    (tmp_path / "launch/mine.py").write_text(f"from launch.definition import Budget, Sweep\n{code}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    target = Target("vae", "us-central1-b", accelerator("v2-8", "us-central1-b"))
    given = ["--sweep=launch/mine.py", "--workdir=runs/x"]
    with pytest.raises(InputError, match=words):
        tpu_vm.check_sweep(target, given, 1)
    if "'seed': [0, 1]" in fields:
        tpu_vm.check_sweep(target, [*given, "--packed"], 1)
    else:  # each trial is alone in its pack, or cannot be at all
        with pytest.raises(InputError, match=words):
            tpu_vm.check_sweep(target, [*given, "--packed"], 1)


def test_a_dry_run_needs_no_gcloud_and_runs_nothing(tmp_path: pathlib.Path):
    world = World(tmp_path).make()
    os.remove(world.folder / "path/gcloud")
    plans = [
        ("create", [], "queued-resources create vae"),
        ("setup", [], "--command=mkdir"),
        ("train", TRAIN, "experiments.train --config=experiments/configs/vae.py"),
        ("sweep", SWEEP, "--address=auto --tpus_per_trial=1"),
        ("delete", [], "queued-resources delete vae"),
    ]
    calls = world.run_all([[command, *MACHINES, "--spot", "--dry_run", *rest] for command, rest, _ in plans])
    for (_, _, last), ended in zip(plans, calls, strict=True):
        assert ended.returncode == 0, ended.stderr
        assert last in ended.stdout
        commands = ended.stdout.removeprefix("+ gcloud ").split("\n+ gcloud ")  # and nothing but commands
        assert all(each.split()[0] in ("compute", "storage") for each in commands)
        assert commands[-1].endswith(" --quiet\n") or len(commands[-1].splitlines()) == 1
    assert world.calls() == []
