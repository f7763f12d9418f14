"""From asking for machines to giving them up, against a stand-in gcloud and hosts that are folders; no real TPU."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from tpu_world import (
    MACHINES,
    NAMED,
    ONCE,
    ROOT,
    SWEEP,
    TRAIN,
    TWICE,
    WAIT,
    ZONE,
    Clock,
    World,
    made,
    running,
    started,
    until,
)

from aevb.errors import InputError
from launch import gcloud, hosts, tpu_vm, watch
from launch.accelerators import accelerator
from launch.gcloud import GcloudError, Runner, Target


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
