"""From asking for machines to giving them up, against a stand-in gcloud and hosts that are folders; no real TPU."""

import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator

import pytest
from tpu_world import ROOT, World, until

from aevb.errors import InputError
from launch import gcloud, hosts, watch
from launch.accelerators import accelerator
from launch.gcloud import GcloudError, Runner, Target

ZONE = "us-west4-a"
MACHINES = ["--name=vae", f"--zone={ZONE}", "--accelerator_type=v5litepod-16"]
CONFIG = ["--config=experiments/configs/vae.py", "--config.train.batch_size=128"]
TRAIN = ["--", *CONFIG, "--workdir=gs://runs/digits"]
WAIT = "while ! test -e $STAND_IN/go; do sleep 0.02; done"  # as long as the test wants


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path).make()
    for name in ("PATH", "STAND_IN"):
        monkeypatch.setenv(name, made.env[name])
    monkeypatch.setattr(hosts, "pack", lambda archive: tarfile.open(archive, "w:gz").close())  # of this process alone
    yield made
    made.clear()


@pytest.fixture
def four() -> Target:
    """One spot slice of four hosts."""
    return Target("vae", ZONE, accelerator("v5litepod-16", ZONE), spot=True)


class Clock:
    """The sleep of launch.watch: remembers how long, and lets something happen meanwhile."""

    def __init__(self, *happens: Callable[[], object]) -> None:
        self.happens, self.slept = list(happens), []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < 100, "it waits for ever"
        if self.happens:
            self.happens.pop(0)()
        time.sleep(0.05)


def made(world: World, target: Target, job: str) -> watch.Job:
    """Machines that are set up, and what starts a run on them."""
    run = Runner()
    run(gcloud.create(target))
    hosts.install(target, run)  # of an empty checkout
    world.job(job)
    line = hosts.command("experiments.train", ["--x"])
    return watch.Job(lambda: hosts.start(target, Runner(), line, everywhere=True))


def started(world: World) -> dict[str, int]:
    """How often the run was started on each host."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in (world.folder / "hosts").glob("*/started")}


def test_from_asking_to_giving_up(world: World):
    world.put("new.json", ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    ended = world.run("create", *MACHINES, "--spot", "--yes")
    assert ended.returncode == 0, ended.stderr
    created = world.queue()["vae"]
    assert list(created["nodes"]) == ["vae"]
    ended = world.run("setup", *MACHINES)
    assert ended.returncode == 0, ended.stderr
    assert "vae is WAITING_FOR_RESOURCES; waiting" in ended.stdout
    assert ended.stdout.count("ready jax 0.10.2") == 4
    home = world.folder / "hosts/vae-w-2"
    assert (home / "aevb/experiments/configs/vae.py").read_bytes() == (ROOT / "experiments/configs/vae.py").read_bytes()
    assert not list((home / "aevb").rglob("__pycache__"))
    assert "-e .[gcs,launch,tfds] jax[tpu]" in (home / "image.log").read_text()
    world.job("echo training; exit 0")
    ended = world.run("train", *MACHINES, *TRAIN)
    assert ended.returncode == 0, ended.stderr
    assert started(world) == {f"vae-w-{i}": 1 for i in range(4)}
    assert (home / "started").read_text() == f"-m experiments.train {' '.join(TRAIN[1:])} --distributed\n"
    assert "training" in (home / "aevb-run/log").read_text()
    assert (home / "aevb-run/exit_code").read_text() == "0\n"
    ended = world.run("status", *MACHINES)
    assert "vae: ACTIVE" in ended.stdout and ended.stdout.count("exited 0") >= 4
    ended = world.run("delete", *MACHINES[:2], "--yes")
    assert (ended.returncode, world.queue()) == (0, {})
    assert "nothing is left to delete" in world.run("delete", *MACHINES[:2], "--yes").stdout
    assert "vae: not there" in world.run("status", *MACHINES).stdout
    # One question of the project before each command, then what it is for.
    order = " ".join(world.calls()).split("get-value")
    assert [part.split() for part in order[1:]] == [
        ["create"],
        ["describe", "scp", "install"],
        ["describe", "state", "start", "state"],
        ["describe", "state"],
        ["delete"],
        ["delete"],
        ["describe"],
    ]


def test_a_run_goes_on_without_us_and_is_not_started_twice(world: World, four: Target):
    made(world, four, WAIT)
    code = "import runpy, signal\nfrom launch import watch\nwatch.POLL = 0.05\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background shell turns off
    code += "runpy.run_module('launch.tpu_vm', run_name='__main__', alter_sys=True)"
    arguments = [sys.executable, "-c", code, "train", *MACHINES, *TRAIN]
    with subprocess.Popen(
        arguments, env=world.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        until(lambda: len(started(world)) == 4)
        for line in first.stdout:
            if "vae-w-3 running" in line and not line.startswith("+"):
                break
        first.send_signal(signal.SIGINT)
        assert first.wait() == 75
        assert "the same command watches it again" in first.stderr.read()
    other = world.run("train", *MACHINES, *TRAIN, "--config.seed=1")
    assert other.returncode == 2
    assert "runs something else" in other.stderr and other.stderr.count("\n") == 1
    assert "a run is under way on vae-w-0, vae-w-1" in world.run("setup", *MACHINES).stderr
    (world.folder / "go").touch()
    ended = world.run("train", *MACHINES, *TRAIN)
    assert ended.returncode == 0, ended.stderr
    assert max(started(world).values()) <= 2  # the second time if it had ended by then, which resumes a finished run


def test_the_exit_code_is_that_of_the_host_with_a_reason(world: World, four: Target):
    """One ends with 3; those that wait for it are stopped (75), as experiments.train stops them."""
    made(world, four, "echo a loss of $HOST; case $HOST in *-2) exit 3;; *) exit 75;; esac")
    ended = world.run("train", *MACHINES, *TRAIN)
    assert ended.returncode == 3
    assert "a loss of vae-w-2" in ended.stdout
    assert ended.stderr == "the run on vae ended with exit code 3: see what is above\n"


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["running", "exited 3"], None),
        (["exited 0", "exited 0"], 0),
        (["exited 0", "exited 75"], 75),
        (["exited 75", "exited 2"], 2),
        (["exited 137", "exited 75"], 137),
        (["died", "exited 75"], 75),
        (["died", "exited 1"], 1),
        (["idle", "exited 0"], 1),
    ],
)
def test_verdict(states: list[str], code: int | None):
    assert watch.verdict({f"host-{i}": state for i, state in enumerate(states)}) == code


def test_machines_that_are_taken_are_asked_for_again(world: World, four: Target, capsys: pytest.CaptureFixture):
    job = made(world, four, f"echo start $1; {WAIT}")
    world.put("new.json", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    clock = Clock(lambda: None, lambda: world.take("vae"), lambda: (world.folder / "go").touch())
    assert watch.follow(four, job, Runner(), clock) == 0
    assert "vae is PREEMPTED: its spot machines were taken; trying again in 60 s" in capsys.readouterr().out
    assert started(world) == {f"vae-w-{i}": 1 for i in range(4)}  # on the new hosts, whose folders are new
    calls = world.calls()
    again = calls[calls.index("delete") :]
    assert again[:7] == ["delete", "describe", "create", "describe", "scp", "install", "state"]
    assert again[7] == "start"


def test_machines_that_are_no_spot_machines_are_not(world: World, four: Target):
    target = Target(four.name, four.zone, four.accelerator)
    job = made(world, target, WAIT)
    with pytest.raises(InputError, match="vae is PREEMPTED: delete vae, create it again"):
        watch.follow(target, job, Runner(), Clock(lambda: world.take("vae")))
    assert world.calls().count("create") == 1


def test_what_somebody_else_deleted_is_not_asked_for_again(world: World, four: Target):
    job = made(world, four, WAIT)

    def gone() -> None:
        world.clear()
        Runner()(gcloud.delete("vae", ZONE))

    with pytest.raises(InputError, match="vae is not in us-west4-a"):
        watch.follow(four, job, Runner(), Clock(gone))
    assert world.calls().count("create") == 1


def test_new_machines_that_fail_are_asked_for_more_and_more_seldom(world: World, four: Target):
    job = made(world, four, WAIT)
    world.put("new.json", ["FAILED"])
    clock = Clock(lambda: world.take("vae"))
    with pytest.raises(InputError, match="given up after 10 attempts in a row"):
        watch.follow(four, job, Runner(), clock)
    waits = [seconds for seconds in clock.slept[1:] if seconds]
    assert waits == sorted(waits) and waits[0] == watch.POLL and waits[-1] == watch.LONGEST
    assert 4 <= world.calls().count("create") <= 10


def test_a_connection_that_fails_for_a_while_changes_nothing(world: World, four: Target):
    job = made(world, four, WAIT)
    clock = Clock(
        lambda: world.put("fail.json", {"ssh": 3, "describe": 1}),
        *[lambda: None] * 4,
        lambda: (world.folder / "go").touch(),
    )
    assert watch.follow(four, job, Runner(), clock) == 0
    assert clock.slept[:5] == [60, 60, 120, 240, 480]
    assert started(world) == {f"vae-w-{i}": 1 for i in range(4)}
    assert world.calls().count("create") == 1


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_run_that_was_stopped_goes_on(world: World, four: Target, end: str):
    """Stopped with all saved (75) on all hosts; or ended with its shell, as by a machine that starts anew."""
    job = made(world, four, f"test $1 = 2 && exit 0; {'exit 75' if end == 'stopped' else WAIT}")
    kill = [lambda: [world.kill(f"vae-w-{i}") for i in range(4)]] if end == "killed" else []
    assert watch.follow(four, job, Runner(), Clock(*kill)) == 0
    assert started(world) == {f"vae-w-{i}": 2 for i in range(4)}


def test_a_rest_of_a_run_is_stopped_before_it_starts_anew(world: World, four: Target):
    """One host still runs, and saves when it is told to stop; the others have ended."""
    job = made(world, four, f"trap 'touch ~/saved; exit 75' TERM; test $HOST = vae-w-1 || exit 1; {WAIT}")
    job.start()
    until(lambda: list(hosts.states(four, Runner()).values()).count("running") == 1)
    world.job("exit 0")
    job.start()
    assert (world.folder / "hosts/vae-w-1/saved").exists()
    assert started(world) == {f"vae-w-{i}": 2 for i in range(4)}
    assert set(hosts.states(four, Runner()).values()) == {"exited 0"}


def test_a_slice_that_gcloud_leaves_out_is_noticed(world: World):
    """Its exit code is 0 then."""
    target = Target("vae", ZONE, accelerator("v5litepod-4", ZONE), num_slices=2)
    made(world, target, "exit 0")
    assert sorted(path.name for path in (world.folder / "hosts").iterdir()) == ["vae-0-w-0", "vae-1-w-0"]
    (world.folder / "unprepared").write_text("vae-1")
    with pytest.raises(GcloudError, match=re.escape("1 of 2 hosts of vae answered (vae-0-w-0)")):
        hosts.states(target, Runner())


def test_hosts_that_are_not_set_up(world: World, four: Target):
    Runner()(gcloud.create(four))
    ended = world.run("train", *MACHINES, *TRAIN)
    assert ended.returncode == 2
    assert "vae-w-0, vae-w-1, vae-w-2, vae-w-3 of vae is not set up: run setup first" in ended.stderr


def test_a_sweep_starts_ray_and_runs_on_its_head(world: World, four: Target):
    """4 chips a trial are all of a host, which libtpu must not take for a part of the slice."""
    made(world, four, "exit 0")
    sweep = world.folder / "none"
    ended = world.run("sweep", *MACHINES, "--tpus_per_trial=4", "--", f"--sweep={sweep}", "--workdir=gs://runs/sweep")
    assert "is no file of this checkout" in ended.stderr
    given = ["--sweep=launch/examples/train.slurm", "--workdir=gs://runs/sweep"]  # any file of the checkout
    ended = world.run("sweep", *MACHINES, "--tpus_per_trial=4", "--", *given)
    assert ended.returncode == 0, ended.stderr
    alone = "1,1,1 2,2,1 ray start"
    head = f'{alone} --head --port=6379 --resources={{"TPU": 4}} --disable-usage-stats'
    worker = f'{alone} --address=10.0.0.10:6379 --resources={{"TPU": 4}} --disable-usage-stats'
    for i in range(4):
        told = world.text(f"hosts/vae-w-{i}/ray.log").splitlines()
        assert [line for line in told if " stop " not in line] == [worker if i else head]
    line = f"-m launch.sweep {' '.join(given)} --address=10.0.0.10:6379 --tpus_per_trial=4\n"
    assert (world.folder / "hosts/vae-w-0/started").read_text() == line
    assert list(started(world)) == ["vae-w-0"]
    assert world.calls()[-6:] == ["state", "ray head", "ray worker", "state", "start", "state"]


def test_results_and_logs_come_back(world: World, four: Target):
    made(world, four, "echo a line of the log")
    run = ["--name=vae", f"--zone={ZONE}"]
    assert world.run("train", *MACHINES, *TRAIN).returncode == 0
    (world.folder / "hosts/vae-w-0/aevb/runs/x").mkdir(parents=True)
    (world.folder / "hosts/vae-w-0/aevb/runs/x/report.html").write_text("page")
    ended = world.run("fetch", *run, "--workdir=runs/x", f"--to={world.folder}/here")
    assert ended.returncode == 0, ended.stderr
    assert world.text("here/report.html") == "page"
    ended = world.run("fetch", *run, "--workdir=gs://runs/digits", f"--to={world.folder}/here")
    assert f"+ gcloud storage rsync gs://runs/digits {world.folder}/here --recursive\n" in ended.stdout
    code = "from launch import hosts\nhosts.LOG = hosts.LOG.replace('{follow}', '')\nimport runpy\n"
    code += "runpy.run_module('launch.tpu_vm', run_name='__main__', alter_sys=True)"
    ended = subprocess.run(
        [sys.executable, "-c", code, "logs", *run], env=world.env, cwd=ROOT, capture_output=True, text=True
    )
    assert "a line of the log" in ended.stdout


def test_a_dry_run_needs_no_gcloud_and_runs_nothing(world: World):
    os.remove(world.folder / "path/gcloud")
    plans = [
        ("create", [], "queued-resources create vae"),
        ("setup", [], "--command=mkdir"),
        ("train", TRAIN, "experiments.train --config=experiments/configs/vae.py"),
        ("sweep", ["--", "--sweep=launch/examples/train.slurm", "--workdir=gs://r/s"], "--address=HEAD:6379"),
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


REFUSED = {
    "no command": ([], ["nothing is no command", "create, setup"]),
    "command": (["creat", *MACHINES], ["'creat' is no command"]),
    "flag": (["create", "--nam=x"], ["do you mean --name?"]),
    "no name": (["create"], ["--name is missing"]),
    "no zone": (["create", "--name=vae"], ["--zone is missing"]),
    "no type": (["create", *MACHINES[:2]], ["--accelerator_type is missing", "v5litepod-16"]),
    "type": (["create", *MACHINES[:2], "--accelerator_type=v5e-16"], ["v5e-16 is unknown", "v5litepod-16?"]),
    "zone": (["create", "--name=vae", "--zone=moon-1", MACHINES[2]], ["--zone=moon-1", "us-west4-a"]),
    "name": (["create", "--name=My_VAE", *MACHINES[1:]], ["--name=My_VAE is no name"]),
    "slices": (["create", *MACHINES, "--num_slices=0"], ["--num_slices=0"]),
    "money": (["create", *MACHINES], ["which costs money", "no terminal", "--yes"]),
    "spot money": (["train", *MACHINES, "--spot", *TRAIN], ["whenever its spot machines are taken", "--yes"]),
    "machines": (["delete", *MACHINES[:2]], ["delete vae", "no terminal", "--yes"]),
    "no config": (["train", *MACHINES, "--", "--workdir=gs://r/x"], ["--config is missing after --"]),
    "config": (["train", *MACHINES, "--", "--config=/etc/passwd", "--workdir=gs://r/x"], ["no file of this checkout"]),
    "key": (["train", *MACHINES, *TRAIN, "--config.model.latent_dimm=3"], ["latent_dimm is unknown"]),
    "batch": (["train", *MACHINES, "--", CONFIG[0], "--workdir=gs://r/x"], ["batch_size is 100", "16 devices"]),
    "workdir": (["train", *MACHINES, "--", *CONFIG, "--workdir=runs/x"], ["is on one host", "has 4"]),
    "no workdir": (["train", *MACHINES, "--", *CONFIG], ["--workdir is missing after --"]),
    "lost": (
        ["train", *MACHINES[:2], "--accelerator_type=v5litepod-4", "--spot", "--", *CONFIG, "--workdir=runs/x"],
        ["goes with a spot machine"],
    ),
    "chips": (["sweep", *MACHINES, "--tpus_per_trial=8"], ["--tpus_per_trial=8", "4 chips on a host", "1, 2, 4"]),
    "part of a chip": (["sweep", *MACHINES, "--tpus_per_trial=0"], ["--tpus_per_trial=0"]),
    "stray": (["setup", *MACHINES, "--", "--x"], ["'--x' after --", "leave it out"]),
    "what to fetch": (["fetch", *MACHINES[:2]], ["--workdir is missing"]),
}


def test_wrong_calls_are_a_sentence_and_change_nothing(world: World):
    calls = world.run_all([arguments for arguments, _ in REFUSED.values()])
    for (name, (_, words)), ended in zip(REFUSED.items(), calls, strict=True):
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), (name, ended.stderr)
        assert [word for word in words if word not in ended.stderr] == [], (name, ended.stderr)
    assert set(world.calls()) <= {"get-value"}
    assert not (world.folder / "queue.json").exists()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_is_asked_about_money(world: World, answer: str):
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "launch.tpu_vm", "create", *MACHINES, "--spot"]
    with subprocess.Popen(
        arguments, env=world.env, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        os.write(ours, f"{answer}\n".encode())
        out, err = asking.communicate()
    question = (
        "Ask Google for 1 x spot v5litepod-16 (16 chips, 4x4, on 4 host(s)) in us-west4-a, which costs money? [y/N]"
    )
    assert question in out
    assert (asking.returncode, "vae" in world.queue()) == ((0, True) if answer == "y" else (2, False))
    assert err == ("" if answer == "y" else "nothing was done\n")
    for end in (ours, theirs):
        os.close(end)


def test_no_project_and_no_gcloud(world: World):
    (world.folder / "project").write_text("(unset)")
    assert "no project is set" in world.run("create", *MACHINES, "--yes").stderr
    os.remove(world.folder / "path/gcloud")
    world_env = world.env | {"PATH": f"{world.folder}/path"}
    ended = subprocess.run(
        [sys.executable, "-m", "launch.tpu_vm", "create", *MACHINES, "--yes"],
        env=world_env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "there is no gcloud on the PATH" in ended.stderr


def test_what_gcloud_says_of_a_failure_is_passed_on(world: World, four: Target):
    Runner()(gcloud.create(four))
    ended = world.run("create", *MACHINES, "--yes")
    assert ended.returncode == 2
    assert (
        "queued-resources create vae failed with exit code 1: ERROR: (gcloud.stand-in) ALREADY_EXISTS" in ended.stderr
    )
