"""What is left to do of a sweep, and its jobs and packs, without Ray."""

import dataclasses
import fcntl
import json
import pathlib
import types

import pytest
from etils import epath
from sweep_world import CONFIG, LR, ROOT, drawn, leave, rows, sweep

from aevb.errors import InputError
from experiments import settings, train, workdir
from launch import definition, metrics, packs, trials, tuning, watching
from launch import sweep as command
from launch.definition import Budget, Choice, Uniform

STAND_IN = str(pathlib.Path(__file__).with_name("stand_in_train.py"))
KILLED = "killed by SIGKILL (out of memory?), 4 times; its last words: it said nothing"


def test_what_is_done_is_not_done_again(tmp_path):
    root, told = epath.Path(tmp_path), sweep(grid={"seed": list(range(6))})
    found = trials.known(told)
    leave(trials.folder(root, found[0]), found[0], metrics=rows(-30.0), summary={"status": "finished"})
    leave(trials.folder(root, found[1]), found[1], metrics=rows(-30.0, -29.0))
    leave(trials.folder(root, found[2]), found[2], metrics=rows(-30.0))
    trials.record(root, found[2], trials.STOPPED, "behind", True)
    trials.record(root, found[3], trials.FAILED, "nan", True)
    trials.record(root, found[4], trials.FAILED, "killed", False)
    states = {each.name: trials.state(root, each) for each in found}
    assert [each.status for each in states.values()] == [
        trials.FINISHED, trials.BEGUN, trials.STOPPED, trials.FAILED, trials.FAILED, trials.WAITING,
    ]  # fmt: skip
    assert [each.step for each in states.values()] == [10, 20, 10, 0, 0, 0]
    assert trials.to_do(states) == ["seed1", "seed4", "seed5"]
    trials.record(root, found[0], trials.STOPPED, "behind", True)  # it was to be stopped, and finished before
    assert trials.state(root, found[0]).status == trials.FINISHED
    longer = trials.known(sweep(grid={"seed": [1]}, budget=Budget(num_epochs=40)))
    with pytest.raises(InputError, match=r"another config \(train.num_epochs is 30.0 there and 40.0 here\)"):
        trials.state(root, longer[0])


def test_a_search_finds_the_trials_that_it_has_begun(tmp_path):
    distributions = {"model.latent_dim": Uniform(2, 5), "model.hidden": Choice(["(30,)", "(20, 10)"])}
    root, told = epath.Path(tmp_path), drawn("optuna", distributions=distributions)
    first, second = (trials.make(told, {"model.latent_dim": dim, "model.hidden": "(20, 10)"}) for dim in (3, 5))
    leave(trials.folder(root, first), first)
    trials.record(root, second, trials.FAILED, "wrong", False)
    trials.record(root, first, trials.STOPPED, "behind", True)
    found = trials.begun(root, told)
    assert [each.values for each in found] == [first.values, second.values]
    assert found[0].values == {"model.latent_dim": 3, "model.hidden": [20, 10]}
    assert [each.given for each in found] == [first.given, second.given]  # as Optuna knows them
    assert trials.begun(root / "none", told) == []


def test_scores_are_read_where_runs_write_them(tmp_path):
    (trial,) = trials.known(sweep(grid={"seed": [0]}))
    folder = epath.Path(tmp_path / "run")
    told = {"split": "test", "nll": 23.5, "nll_stderr": 0.25, "elbo": -24.0, "bits_per_dim": None}
    leave(folder, trial, metrics=rows(-30.0, -28.0, -29.0), evaluation=told)
    assert metrics.score(folder, metrics.parse("test nll")) == (23.5, 0.25)
    assert metrics.score(folder, metrics.parse("validation elbo")) == (-29.0, None)
    assert metrics.score(folder, metrics.parse("test bits_per_dim")) is None
    # With early stopping the checkpoint that is best on validation was evaluated.
    (folder / "evaluation.json").write_text(json.dumps(told | {"checkpoint": "best", "step": 20}))
    assert metrics.score(folder, metrics.parse("validation elbo")) == (-28.0, None)


def test_a_search_that_drew_the_same_twice_is_done(tmp_path):
    choices = {"model.activation": Choice(["tanh", "relu"])}
    told = drawn("optuna", distributions=choices, budget=Budget(30, num_trials=5))
    (tmp_path / "mine.py").write_text(f"from launch.definition import *\ndef get_sweep():\n    return {told}\n")
    root = epath.Path(tmp_path / "root")
    assert (command.begin(str(tmp_path / "mine.py"), root).to_draw, root.exists()) == (5, False)
    for values in definition.expand(sweep(grid={"model.activation": ["tanh", "relu"]})):
        trial = trials.make(told, values)
        leave(trials.folder(root, trial), trial, summary={"status": "finished"})
    workdir.write_json(root / "sweep.json", command.said(told))
    assert command.begin(str(tmp_path / "mine.py"), root).to_draw == 3  # stopped after two of them
    workdir.write_json(root / "sweep.json", command.said(told) | {"drawn": 5})
    begun = command.begin(str(tmp_path / "mine.py"), root)
    assert (begun.to_draw, begun.num_trials, trials.to_do(begun.states())) == (0, 2, [])


def test_batches_that_do_not_divide_over_the_devices_of_a_trial():
    found = trials.known(sweep(grid={"train.batch_size": [100, 50]}))
    command.check_batches(found, tuning.Resources(4, 0.5, 0))
    command.check_batches(found, tuning.Resources(4, 2.0, 0))
    with pytest.raises(InputError, match=r"batch_size50: .* is 50, .* over 1 CPU core and 4 TPU chips: set .* of 4"):
        command.check_batches(found, tuning.Resources(1, 0.0, 4))


def plan_of(tmp_path, told, **changes):
    plan = watching.Plan(
        sweep=told, metric=metrics.parse(told.metric), root=str(tmp_path), jobs=[], command=[STAND_IN], cwd=str(ROOT),
        env={"PYTHONPATH": str(ROOT)}, cores=1, rows=False, steps_per_epoch={"": 2.0},
    )  # fmt: skip
    (tmp_path / "sweep.json").write_text("{}")
    return dataclasses.replace(plan, **changes)


def brought_to_its_end(plan, trial):
    watch = watching.Watch(plan, plan.single(trial))
    told = [watch.tell()]
    while "done" not in told[-1]:
        told.append(watch.tell())
    return told


def steps(tmp_path, trial):
    return list(map(int, (tmp_path / "trials" / f"{trial.name}.steps").read_text().split()))


def test_a_job_is_retried_where_it_can_help_and_then_marked(tmp_path):
    told = sweep(grid={"data.dir": ["fine", "crash_once", "non_finite", "wrong", "killed"]})
    outcomes, plan = {}, plan_of(tmp_path, told)
    for trial in trials.known(told):
        last = brought_to_its_end(plan, trial)[-1]
        outcomes[trial.values["data.dir"]] = (last["score"], *last["outcomes"][trial.name].values())
    log = (tmp_path / "trials" / "dirnon_finite.log").read_text()
    assert outcomes == {
        "fine": (pytest.approx(-28.2), "finished", "", True),
        "crash_once": (pytest.approx(-28.2), "finished", "", True),
        "non_finite": (None, "failed", "step 4 has loss nan: the run stops here", True),
        "wrong": (None, "failed", "config.data.dir is wrong: give another", False),
        "killed": (None, "failed", KILLED, False),
    }
    assert log.count("step 4 has loss nan") == 2  # once more, and no oftener
    assert (tmp_path / "trials" / "dirwrong.log").read_text().count("\n") == 1
    by_kind = {trial.values["data.dir"]: trial for trial in trials.known(told)}
    assert steps(tmp_path, by_kind["crash_once"]) == [1, 2, 3, 4, 4, 5, 6, 7, 8]  # from its checkpoint
    assert steps(tmp_path, by_kind["killed"]) == [1, 2, 3, 4, 4, 4, 4]


def test_a_stopped_job_saves_and_goes_on_and_tells_every_row_once_more_to_a_scheduler(tmp_path):
    told = sweep(grid={"data.dir": ["slow"]}, budget=Budget(4))
    (trial,), plan = trials.known(told), plan_of(tmp_path, told, rows=True)
    watch = watching.Watch(plan, plan.single(trial))
    try:
        first = next(told for told in iter(watch.tell, None) if "epoch" in told)
    finally:
        watch.stop()
    assert first == {"score": pytest.approx(-28.9), "epoch": 0.5}
    made = steps(tmp_path, trial)
    assert made[-1] < 8
    assert int((tmp_path / "trials" / trial.name / "saved").read_text()) == made[-1]
    told_again = brought_to_its_end(plan, trial)
    # Of the last step no epoch is told, by which a scheduler would stop it before it is evaluated.
    assert [row["epoch"] for row in told_again if "epoch" in row] == [step / 2 for step in range(1, 8)]
    assert steps(tmp_path, trial) == list(range(1, 9))
    # A node that does not have the sweep's folder says so, and trains nothing beside it.
    with pytest.raises(FileNotFoundError, match=r"does not see .*none: give a --workdir that all nodes share"):
        brought_to_its_end(dataclasses.replace(plan, root=str(tmp_path / "none")), trial)
    # It is done: told again without a process.
    again = brought_to_its_end(dataclasses.replace(plan, command=["no such file"]), trial)
    assert [row["score"] for row in again[:-2]] == [row["score"] for row in told_again if "epoch" in row]
    assert again[-1] == {"score": again[-2]["score"], "outcomes": {}, "done": True}


def test_one_that_is_at_its_last_step_is_left_to_evaluate(tmp_path):
    """A scheduler hears of rows later than they are written; by then its trial may be through."""
    told = sweep(grid={"data.dir": ["slow"]}, budget=Budget(4))
    (trial,), plan = trials.known(told), plan_of(tmp_path, told, rows=True)
    watch = watching.Watch(plan, plan.single(trial))
    while trials.state(plan.folder, trial).step < 8:
        watch.tell()
    watch.stop()
    assert trials.state(plan.folder, trial).status == trials.FINISHED
    assert steps(tmp_path, trial) == list(range(1, 9))


def test_a_folder_that_is_never_given_free_fails_its_trial_for_now(tmp_path, monkeypatch):
    told = sweep(grid={"data.dir": ["fine"]})
    (trial,), plan = trials.known(told), plan_of(tmp_path, told)
    folder = trials.folder(plan.folder, trial)
    folder.mkdir(parents=True)
    monkeypatch.setattr(watching, "HELD_SECONDS", 0.0)
    with workdir.claim(folder):
        last = brought_to_its_end(plan, trial)[-1]
    outcome = last["outcomes"][trial.name]
    assert (last["score"], outcome["status"], outcome["final"]) == (None, "failed", False)
    assert f"another process trains in {folder}" in outcome["reason"]


def test_a_folder_is_free_unless_a_process_holds_a_file_in_it(tmp_path):
    folder = epath.Path(tmp_path)
    assert watching.is_free(folder)
    assert watching.is_free(folder / "none")
    assert list(folder.iterdir()) == []
    with workdir.claim(folder):
        assert not watching.is_free(folder)
    assert watching.is_free(folder)
    with (tmp_path / workdir.LOCK).open("r+") as file:  # as a machine that shares it over NFS would
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not watching.is_free(folder)
    # A start that was killed leaves no more than that: another one may come.
    command._check_folder(folder, sweep())
    train.check_workdir(folder, types.SimpleNamespace(config=settings.load(CONFIG, [])))


def test_after_a_crash_a_folder_has_as_long_to_be_given_free_as_at_first(tmp_path, monkeypatch):
    told = sweep(grid={"data.dir": ["crash_once"]})
    (trial,), plan = trials.known(told), plan_of(tmp_path, told)
    answers = iter([True, False])
    monkeypatch.setattr(watching, "is_free", lambda folder: next(answers, True))
    watch = watching.Watch(plan, plan.single(trial))
    watch.free_since -= 2 * watching.HELD_SECONDS  # it has trained for as long
    while "done" not in (last := watch.tell()):
        pass
    assert last["outcomes"][trial.name]["status"] == "finished"


def test_cores_are_held_by_one_job_each():
    with watching.free_cores(1) as first, watching.free_cores(1) as second:
        assert len(first) == 1
        assert first != second
    with watching.free_cores(10_000) as none:
        assert none == []


def test_packs_differ_in_numbers_alone(tmp_path):
    told = sweep(grid={"model.latent_dim": [2, 4], LR: [1e-3, 1e-2], "seed": [0, 1]})
    found, plan = trials.known(told), plan_of(tmp_path, told)
    groups = packs.group(found, {"seed", LR})
    assert [[each.values["model.latent_dim"] for each in group] for group in groups] == [[2] * 4, [4] * 4]
    assert [len(group) for group in packs.group(found, {"seed"})] == [2] * 4
    job = packs.job(plan, groups[1])
    module, path = job.command[1:]
    contents = json.loads(pathlib.Path(path.removeprefix("--trials=")).read_text())
    assert module == "experiments.packed"
    assert contents["config"] == CONFIG
    assert contents["overrides"] == ["--config.train.num_epochs=30", "--config.model.latent_dim=4"]
    for trial, each in zip(groups[1], contents["trials"], strict=True):
        loaded = settings.load(CONFIG, contents["overrides"] + each["overrides"])
        assert settings.flatten(loaded.to_dict()) == trial.config
        assert each["workdir"] == str(tmp_path / "trials" / trial.name)
    assert packs.job(plan, groups[0][:1]).command[0] == STAND_IN  # one alone is an ordinary run
