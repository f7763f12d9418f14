"""Waiting for machines and for runs on them, against a stand-in gcloud and hosts that are folders; no real TPU."""

import pytest
from tpu_world import ODD, ONCE, TWICE, WAIT, ZONE, Clock, World, made, started

from aevb.errors import InputError
from experiments import cli
from launch import gcloud, watch
from launch.gcloud import Runner, Target


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
