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
from tpu_world import MACHINES, NAMED, ROOT, SWEEP, TRAIN, ZONE, World, until

from aevb.errors import InputError
from experiments import cli
from launch import gcloud, hosts, tpu_vm, watch
from launch.accelerators import accelerator
from launch.gcloud import GcloudError, Runner, Target

WAIT = "while ! test -e $STAND_IN/go; do sleep 0.02; done"  # as long as the test wants
ODD = "--x=a 'b' $HOME"  # an argument that a shell must not touch
ONCE = {f"vae-w-{i}": 1 for i in range(4)}
TWICE = dict.fromkeys(ONCE, 2)


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


def running(target: Target, arguments: list[str]) -> watch.Job:
    """What starts a training run on the hosts, or finds it."""
    line = hosts.command("experiments.train", arguments)
    return watch.Job(lambda: hosts.start(target, Runner(), line, everywhere=True))


def made(world: World, target: Target, job: str) -> watch.Job:
    """Machines that are set up, and what starts a run on them."""
    Runner()(gcloud.create(target))
    hosts.install(target, Runner())  # of an empty checkout
    world.job(job)
    return running(target, [ODD])


def started(world: World) -> dict[str, int]:
    """How often the run was started on each host."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in (world.folder / "hosts").glob("*/started")}


def test_from_asking_to_giving_up(world: World):
    world.put("new.json", ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    world.job("echo training; exit 0")
    calls = [["create", *MACHINES, "--spot", "--yes"], ["setup", *MACHINES], ["train", *MACHINES, *TRAIN]]
    ended = world.run_all([*calls, ["status", *MACHINES]])
    assert [(each.returncode, each.stderr) for each in ended] == [(0, "")] * 4
    assert list(world.queue()["vae"]["nodes"]) == ["vae"]
    assert "vae is WAITING_FOR_RESOURCES; waiting" in ended[1].stdout
    assert ended[1].stdout.count("ready jax 0.10.2") == 4
    assert "vae: ACTIVE" in ended[3].stdout and ended[3].stdout.count("exited 0") >= 4
    home = world.folder / "hosts/vae-w-2"
    assert (home / "aevb/experiments/configs/vae.py").read_bytes() == (ROOT / "experiments/configs/vae.py").read_bytes()
    assert not list((home / "aevb").rglob("__pycache__"))
    assert "-e .[gcs,launch,tfds] jax[tpu]" in (home / "image.log").read_text()
    assert started(world) == ONCE
    assert (home / "started").read_text() == f"-m experiments.train {' '.join(TRAIN[1:])} --distributed\n"
    assert "training" in (home / "aevb-run/log").read_text()
    assert (home / "aevb-run/exit_code").read_text() == "0\n"
    delete = ["delete", *NAMED, "--yes"]
    ended = world.run_all([delete, delete, ["status", *MACHINES]])
    assert ([each.returncode for each in ended], world.queue()) == ([0, 0, 0], {})
    assert "nothing is left to delete" in ended[1].stdout
    assert "vae: not there" in ended[2].stdout
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
    other, again = world.run_all([["train", *MACHINES, *TRAIN, "--config.seed=1"], ["setup", *MACHINES]])
    assert other.returncode == again.returncode == 2
    assert "runs something else" in other.stderr and other.stderr.count("\n") == 1
    assert "a run is under way on vae-w-0, vae-w-1" in again.stderr
    job, clock = running(four, [*TRAIN[1:], "--distributed"]), Clock((world.folder / "go").touch)
    assert watch.follow(four, job, Runner(), clock) == 0
    assert (clock.slept[0], started(world)) == (watch.POLL, ONCE)


def test_the_exit_code_is_that_of_the_host_with_a_reason(world: World, four: Target):
    """One ends with 3; those that wait for it are stopped (75), as experiments.train stops them."""
    made(world, four, "echo a loss of $HOST; case $HOST in *-2) exit 3;; *) exit 75;; esac")
    ended = world.run("train", *MACHINES, *TRAIN)
    assert ended.returncode == 3
    assert "a loss of vae-w-2" in ended.stdout
    assert ended.stderr == f"the run on vae ended with exit code 3: see what is above; {watch.COST}\n"


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
        (["not set up", "exited 0"], 1),
    ],
)
def test_verdict(states: list[str], code: int | None):
    assert watch.verdict({f"host-{i}": state for i, state in enumerate(states)}) == code


def test_machines_that_are_taken_are_asked_for_again(
    world: World, four: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The first deletion of the old ones comes to nothing, and is repeated."""
    job = made(world, four, f"echo start $1; {WAIT}")
    world.put("new.json", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    world.put("stuck.json", 1)
    monkeypatch.setattr(watch, "LOOKS", 2)
    clock = Clock(lambda: None, lambda: world.take("vae"), (world.folder / "go").touch)
    assert watch.follow(four, job, Runner(), clock) == 0
    told = capsys.readouterr().out
    assert "vae is PREEMPTED: its spot machines were taken; trying again in 60 s" in told
    assert "vae is DELETING 2 minutes after it was deleted: look at it in the console; trying again in 120 s" in told
    assert started(world) == ONCE  # on the new hosts, whose folders are new
    calls = " ".join(world.calls())
    assert calls.count("create") == 2
    assert "delete describe delete describe create describe scp install state start" in calls


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


def test_new_machines_that_fail_are_not_asked_for_for_ever(world: World, four: Target, monkeypatch: pytest.MonkeyPatch):
    job = made(world, four, WAIT)
    world.put("new.json", ["FAILED"])
    monkeypatch.setattr(watch, "ATTEMPTS", 4)
    with pytest.raises(cli.Interrupted, match=rf"vae is FAILED: .*; given up after 4 .*; {watch.COST}"):
        watch.follow(four, job, Runner(), Clock(lambda: world.take("vae")))
    assert world.calls().count("create") == 4


def test_what_is_deleted_during_the_wait_is_not_asked_for_again(world: World, four: Target):
    job = made(world, four, WAIT)
    clock = Clock(lambda: world.take("vae"), lambda: Runner()(gcloud.delete("vae", ZONE)))
    with pytest.raises(InputError, match="vae is not in us-west4-a"):
        watch.follow(four, job, Runner(), clock)
    assert (world.calls().count("create"), world.queue()) == (1, {})


def test_what_is_deleted_after_it_was_asked_for_again_stays_so(world: World, four: Target):
    """The new ones fail, and their owner gives them up while the next attempt is waited for."""
    job = made(world, four, WAIT)
    world.put("new.json", ["FAILED"])
    clock = Clock(lambda: world.take("vae"), lambda: None, lambda: Runner()(gcloud.delete("vae", ZONE)))
    with pytest.raises(InputError, match="vae is not in us-west4-a"):
        watch.follow(four, job, Runner(), clock)
    assert (world.calls().count("create"), world.queue()) == (2, {})


def test_what_another_has_renewed_during_the_wait_is_left_alone(world: World, four: Target):
    """Another has deleted, created, set up and started meanwhile: its run is watched on."""
    job = made(world, four, WAIT)

    def renew() -> None:
        Runner()(gcloud.delete("vae", ZONE))
        made(world, four, WAIT).start()

    clock = Clock(lambda: world.take("vae"), renew, (world.folder / "go").touch)
    assert watch.follow(four, job, Runner(), clock) == 0
    assert (world.calls().count("create"), world.calls().count("delete")) == (2, 1)
    assert started(world) == ONCE


def test_attempts_are_made_more_and_more_seldom():
    waits: list[float] = []
    patience = watch.Patience(waits.append)
    for _ in range(9):
        patience.wait("no")
    assert waits == [60, 120, 240, 480, 960, 1800, 1800, 1800, 1800]
    with pytest.raises(cli.Interrupted, match=f"no; given up after 10 attempts in a row.*; {watch.COST}"):
        patience.wait("no")


def test_a_connection_that_fails_for_a_while_changes_nothing(world: World, four: Target):
    job = made(world, four, WAIT)
    fails = {"ssh": ["UNAVAILABLE: try later", "INTERNAL: an error", "it broke"], "describe": ["no more capacity"]}
    clock = Clock(lambda: world.put("fail.json", fails), *[lambda: None] * 4, (world.folder / "go").touch)
    assert watch.follow(four, job, Runner(), clock) == 0
    assert clock.slept[:5] == [60, 60, 120, 240, 480]
    assert started(world) == ONCE
    assert world.calls().count("create") == 1


def test_a_long_wait_outlives_what_passes(world: World, four: Target):
    world.put("new.json", ["ACCEPTED", "WAITING_FOR_RESOURCES", "ACTIVE"])
    Runner()(gcloud.create(four))
    clock = Clock(lambda: world.put("fail.json", {"describe": ["UNAVAILABLE: try later"] * 2}))
    assert watch.wait_for_machines(four, Runner(), clock) == watch.ACTIVE
    assert clock.slept == [60, 60, 120, 60]


def test_exit_codes_tell_what_may_pass(world: World):
    """75 where the same command may go on, 2 where it would meet the same again."""
    asked = [["create", *MACHINES, "--yes"]] * 2
    (world.folder / "fail.json").write_text('{"scp": ["UNAVAILABLE: try later"]}')
    world.put("new.json", ["ACTIVE", "ACTIVE", "FAILED"])
    ended = world.run_all([*asked, ["setup", *MACHINES], ["status", *MACHINES], ["setup", *MACHINES]])
    assert [each.returncode for each in ended] == [0, 2, 75, 0, 2], [each.stderr for each in ended]
    assert "vae is FAILED: delete it and create it again" in ended[4].stderr


def test_of_two_who_start_at_once_one_does(world: World, four: Target):
    """The other leaves no trace, so that the run can still be stopped; and nothing is called started that is not."""
    made(world, four, WAIT).start()
    home = world.folder / "hosts/vae-w-0"
    place = {"HOME": str(home), "PATH": f"{world.folder}/bin:/usr/bin:/bin", "HOST": home.name}
    place["STAND_IN"] = str(world.folder)
    late = hosts.START.removeprefix(hosts.BUSY).replace("-w 30", "-w 0.1").replace("COMMAND", "'echo other'")
    before = [(home / "aevb-run" / name).read_text() for name in ("pid", "command", "log")]

    def ask(script: str) -> subprocess.CompletedProcess:
        script = f"cd ~/aevb-run; {script}"
        return subprocess.run(["sh", "-c", script], env=place, cwd=home, capture_output=True, text=True)

    assert ask(late).returncode == 0
    time.sleep(0.3)
    assert [(home / "aevb-run" / name).read_text() for name in ("pid", "command", "log")] == before
    assert "stopped" in ask(hosts.STOP).stdout
    until(lambda: hosts.states(four, Runner())["vae-w-0"] != "running")
    (home / "aevb-run/exit_code").unlink(missing_ok=True)
    lost = ask(late.replace("setsid nohup", "false").replace("seq 100", "seq 2"))
    assert (lost.returncode, lost.stdout) == (1, "")
    assert "the run did not start on vae-w-0" in lost.stderr


def test_what_would_fail_again_is_not_repeated(world: World, four: Target):
    Runner()(gcloud.create(four))
    world.put("fail.json", {"describe": ["PERMISSION_DENIED: the role was taken away"]})
    clock = Clock()
    with pytest.raises(InputError, match=r"PERMISSION_DENIED: the role was taken away$"):
        watch.follow(four, watch.Job(lambda: None), Runner(), clock)
    assert clock.slept == []


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_run_that_was_stopped_goes_on(world: World, four: Target, end: str):
    """Stopped with all saved (75) on all hosts; or ended with its shell, as by a machine that starts anew."""
    job = made(world, four, f"test $1 = 2 && exit 0; {'exit 75' if end == 'stopped' else WAIT}")
    kill = [lambda: [world.kill(f"vae-w-{i}") for i in range(4)]] if end == "killed" else []
    assert watch.follow(four, job, Runner(), Clock(*kill)) == 0
    assert started(world) == TWICE
    assert world.text("hosts/vae-w-3/started") == f"-m experiments.train {ODD}\n" * 2


def test_a_rest_of_a_run_is_stopped_before_it_starts_anew(world: World, four: Target):
    """One host still runs, and saves when it is told to stop; the others have ended."""
    job = made(world, four, f"trap 'touch ~/saved; exit 75' TERM; test $HOST = vae-w-1 || exit 1; {WAIT}")
    job.start()
    until(lambda: list(hosts.states(four, Runner()).values()).count("running") == 1)
    world.job("exit 0")
    job.start()
    assert (world.folder / "hosts/vae-w-1/saved").exists()
    assert started(world) == TWICE
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
    with pytest.raises(InputError, match=r"^vae-w-0, vae-w-1, vae-w-2, vae-w-3 of vae is not set up: run setup first$"):
        running(four, []).start()
    with pytest.raises(InputError, match=r"^vae-w-0 of vae is not set up"):  # and not that it has no Ray
        hosts.start(four, Runner(), "x", everywhere=False, before=lambda: hosts.start_ray(four, Runner(), 1))


def test_a_sweep_starts_ray_and_runs_on_its_head(world: World, four: Target, capsys: pytest.CaptureFixture):
    """4 chips a trial are all of a host, which libtpu must not take for a part of the slice."""
    made(world, four, WAIT)
    line = hosts.command("launch.sweep", [*SWEEP[1:], "--address=auto", "--tpus_per_trial=4"])
    for _ in range(2):  # the second time it is there
        hosts.start(four, Runner(), line, everywhere=False, before=lambda: hosts.start_ray(four, Runner(), 4))
    alone = "1,1,1 2,2,1 ray start"
    head = f'{alone} --head --port=6379 --resources={{"TPU": 4}} --disable-usage-stats'
    worker = f'{alone} --address=10.0.0.10:6379 --resources={{"TPU": 4}} --disable-usage-stats'
    for i in range(4):
        told = world.text(f"hosts/vae-w-{i}/ray.log").splitlines()
        assert [line for line in told if " stop " not in line] == [worker if i else head]
    other = world.run("sweep", *MACHINES, "--tpus_per_trial=2", *SWEEP)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "vae runs something else" in other.stderr and "--tpus_per_trial=4" in other.stderr
    (world.folder / "go").touch()
    until(lambda: set(hosts.states(four, Runner(), everywhere=False).values()) == {"exited 0"})
    ended = world.run("sweep", *MACHINES, "--tpus_per_trial=4", *SWEEP)
    assert ended.returncode == 0, ended.stderr
    assert world.text("hosts/vae-w-0/started") == f"-m launch.sweep {line.split(' -m launch.sweep ')[1]}\n" * 2
    assert list(started(world)) == ["vae-w-0"]
    assert world.calls()[-5:] == ["state", "ray head", "ray worker", "start", "state"]


@pytest.mark.parametrize("host", ["vae-w-0", "vae-w-2"])
def test_no_sweep_without_ray(world: World, four: Target, host: str):
    made(world, four, "exit 0")
    (world.folder / "no_ray").write_text(host)
    with pytest.raises(GcloudError, match="no Ray here"):
        hosts.start(four, Runner(), "x", everywhere=False, before=lambda: hosts.start_ray(four, Runner(), 4))
    assert "start" not in world.calls()


def test_results_and_logs_come_back(
    world: World, four: Target, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    made(world, four, "echo a line of the log").start()
    (world.folder / "hosts/vae-w-0/aevb/runs/x").mkdir(parents=True)
    (world.folder / "hosts/vae-w-0/aevb/runs/x/report.html").write_text("page")
    here = f"{world.folder}/here"
    paths = ("runs/x", "gs://runs/digits")
    ended = world.run_all([["fetch", *NAMED, f"--workdir={path}", f"--to={here}"] for path in paths])
    assert [(each.returncode, each.stderr) for each in ended] == [(0, "")] * 2
    assert world.text("here/report.html") == "page"
    assert f"+ gcloud storage rsync gs://runs/digits {here} --recursive\n" in ended[1].stdout
    monkeypatch.setattr(hosts, "LOG", hosts.LOG.replace("{follow}", ""))  # so that it ends
    until(lambda: set(hosts.states(four, Runner()).values()) == {"exited 0"})
    tpu_vm.logs("vae", ZONE, Runner(), [])
    assert "\na line of the log\n" in capfd.readouterr().out


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
