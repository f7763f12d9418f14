"""Sweeps without Ray: what they expand to, what is left to do, means of seeds, the page, and wrong calls."""

import csv
import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from etils import epath
from scipy import stats

from aevb.errors import InputError
from experiments import settings
from launch import definition, metrics, packs, page, results, trials, tuning, watching
from launch.definition import Budget, Choice, LogUniform, Sweep, Uniform

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = str(pathlib.Path(__file__).with_name("stand_in_train.py"))
CONFIG = "experiments/configs/vae.py:digits"
LR = "optimizer.learning_rate"
KILLED = "killed by SIGKILL (out of memory?), 4 times; its last words: it said nothing"


def sweep(**changes):
    given = {"config": CONFIG, "metric": "validation elbo", "budget": Budget(num_epochs=30)}
    return Sweep(**given | changes)


def drawn(search="random", num=200, **changes):
    distributions = {LR: LogUniform(1e-4, 1e-1), "model.latent_dim": Uniform(2, 5)}
    distributions |= {"model.activation": Choice(["tanh", "relu"]), "bound.kl_weight": Uniform(0.5, 1.5)}
    given = {"distributions": distributions, "search": search, "budget": Budget(30, num_trials=num)}
    return sweep(**given | changes)


# --- What a sweep expands to ---


def test_grid_is_every_combination_in_order():
    found = trials.known(sweep(grid={"model.latent_dim": [2, 4], "seed": [0, 1, 2]}))
    assert [each.name for each in found] == [f"latent_dim{dim}_seed{seed}" for dim in (2, 4) for seed in (0, 1, 2)]
    assert found[4].values == {"model.latent_dim": 4, "seed": 1}
    assert [each.setting for each in found[:4]] == [(("model.latent_dim", "2"),)] * 3 + [(("model.latent_dim", "4"),)]


def test_list_times_grid_and_what_a_trial_does_not_name_is_the_configs():
    listed = [{LR: 1e-3}, {LR: 1, "optimizer.clip_norm": 5}]
    found = trials.known(sweep(trials=listed, grid={"seed": [0, 1]}))
    names = ["learning_rate0.001_clip_norm0", "learning_rate1_clip_norm5"]
    assert [each.name for each in found] == [f"{name}_seed{seed}" for name in names for seed in (0, 1)]
    assert found[0].values == {LR: 0.001, "optimizer.clip_norm": 0.0, "seed": 0}
    assert found[0].given == {LR: 0.001, "seed": 0}


def test_a_trials_arguments_make_its_config():
    given = {"model.hidden": (30, 20), LR: 1e-05, "model.activation": "relu", "seed": 7}
    plan = sweep(trials=[given], overrides={"data.binarization": "threshold"})
    (trial,) = trials.known(plan)
    path, *overrides = trials.arguments(plan, trial)
    flat = settings.flatten(settings.load(path.removeprefix("--config="), overrides).to_dict())
    assert flat == trial.config
    assert flat | {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()} == flat
    assert (flat["data.binarization"], flat["train.num_epochs"]) == ("threshold", 30.0)
    assert trial.name == "hidden30x20_learning_rate1e-05_activationrelu_seed7"


def test_names_are_of_folders_and_tell_trials_apart():
    values = [0.1, 0.1 + 1e-12, 1 / 3, 0.333333, 1e300, -0.0]
    names = [trials.name({LR: value}) for value in values]
    assert len(set(names)) == len(values)
    assert trials.name({"seed": 1, "data.seed": 2}) == "seed1_data.seed2"
    assert trials.name({"learner.name": "wake_sleep", "data.dir": "/a b/ü"}) == "wake_sleep_dir-a-b-"


def test_random_search_draws_the_same_again_and_from_its_distributions():
    found = definition.expand(drawn())
    assert found == definition.expand(drawn())
    assert found[:50] == definition.expand(drawn(num=50))
    # Against the distributions themselves, by Kolmogorov and Smirnov; the keys are fixed, so this passes or does not.
    rates = np.log([each[LR] for each in found])
    assert stats.kstest(rates, stats.uniform(math.log(1e-4), math.log(1e3)).cdf).pvalue > 0.01
    assert stats.kstest([each["bound.kl_weight"] for each in found], stats.uniform(0.5, 1).cdf).pvalue > 0.01
    counts = np.unique([each["model.latent_dim"] for each in found], return_counts=True)
    assert list(counts[0]) == [2, 3, 4, 5]
    assert stats.chisquare(counts[1]).pvalue > 0.01
    assert {type(each["model.latent_dim"]) for each in found} == {int}
    assert stats.binomtest(sum(each["model.activation"] == "relu" for each in found), 200).pvalue > 0.01


@pytest.mark.parametrize("path", sorted((ROOT / "launch/sweeps").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_sweep_that_comes_with_it_is_one(path):
    told = definition.read(str(path))
    metric = metrics.parse(told.metric)
    found = trials.known(told) if not told.drawn_later else [trials.make(told, definition.first(told))]
    for trial in found[:1]:
        metrics.check(metric, trial.config, early=bool(told.budget.grace_epochs))
    if path.stem == "latent_dim":
        assert len(found) == 18
        assert len(results.settings([result_of(trial) for trial in found])) == 6


# --- Means of seeds, the best ---


def result_of(trial, score=None, status=trials.FINISHED, reason="", **changes):
    empty = results.Result(trial, trials.State(status, 8, reason, True), score, None, [], {}, {})
    return dataclasses.replace(empty, **changes)


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [-24.5, -24.1], list(np.random.default_rng(0).normal(size=9))])
def test_interval_is_scipys(values):
    told = results.mean(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert told.value == pytest.approx(np.mean(values), rel=1e-12)
    assert (told.value - told.half, told.value + told.half) == pytest.approx((low, high), rel=1e-9)
    assert told.num == len(values)


def test_interval_covers_the_mean_19_times_in_20():
    draws = np.random.default_rng(1).normal(3.0, 2.0, (2000, 3))
    told = [results.mean(list(row)) for row in draws]
    covered = sum(abs(each.value - 3.0) <= each.half for each in told)
    assert abs(covered / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)  # 3 standard errors
    assert results.mean([5.0]) == (5.0, None, 1)


def test_the_best_is_not_the_one_whose_bad_seeds_are_missing():
    found = trials.known(sweep(grid={"model.latent_dim": [2, 4, 8], "seed": [0, 1]}))
    scores = [-30.0, -28.0, -20.0, None, -27.0, -27.5]
    told = [result_of(*pair, status=trials.FAILED if pair[1] is None else trials.FINISHED)
            for pair in zip(found, scores, strict=True)]  # fmt: skip
    settings_ = results.settings(told)
    assert [each.score.value for each in settings_] == [-29.0, -20.0, -27.25]
    higher, lower = metrics.Metric("validation", "elbo", 1), metrics.Metric("test", "nll", -1)
    assert results.best(settings_, higher).values == {"model.latent_dim": 8}
    assert results.best(settings_, lower).values == {"model.latent_dim": 2}
    assert results.best(settings_[1:2], higher).values == {"model.latent_dim": 4}
    assert results.best(results.settings([result_of(found[0], None, trials.WAITING)]), higher) is None


# --- What is left to do ---


def leave(folder, trial, **files):
    """What a run leaves: a JSON file a keyword, and its config."""
    folder.mkdir(parents=True)
    config = settings.conform(trial.config, "--config").to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    for name, value in files.items():
        if name == "metrics":
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in value))
        else:
            (folder / f"{name}.json").write_text(json.dumps(value))


def rows(*values):
    return [{"step": 10 * (i + 1), "split": "validation", "examples_seen": 1000 * (i + 1), "elbo": value}
            for i, value in enumerate(values)]  # fmt: skip


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
    config = json.loads((folder / "config.json").read_text())
    config["train"]["patience"] = 2  # then the run is judged by its best checkpoint
    (folder / "config.json").write_text(json.dumps(config))
    assert metrics.score(folder, metrics.parse("validation elbo")) == (-28.0, None)


# --- One job ---


def plan_of(tmp_path, told, **changes):
    plan = watching.Plan(
        sweep=told, metric=metrics.parse(told.metric), root=str(tmp_path), jobs=[], command=[STAND_IN], cwd=str(ROOT),
        env={"PYTHONPATH": str(ROOT)}, cores=1, rows=False, steps_per_epoch={"": 2.0},
    )  # fmt: skip
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
    told = sweep(grid={"data.dir": ["slow"]})
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
    assert [row["epoch"] for row in told_again if "epoch" in row] == [step / 2 for step in range(1, 9)]
    assert steps(tmp_path, trial) == list(range(1, 9))
    # It is done: told again without a process.
    again = brought_to_its_end(dataclasses.replace(plan, command=["no such file"]), trial)
    assert [row["score"] for row in again[:-1]] == [row["score"] for row in told_again if "epoch" in row]
    assert again[-1] == {"score": again[-2]["score"], "outcomes": {}, "done": True}


def test_cores_are_held_by_one_job_each():
    with watching.free_cores(1) as first, watching.free_cores(1) as second:
        assert len(first) == 1
        assert first != second
    with watching.free_cores(10_000) as none:
        assert none == []


# --- Packs ---


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


# --- The page ---


def write_page(tmp_path, found, told, scores, **changes):
    for trial, value in zip(found, scores, strict=True):
        if value is None:
            continue
        evaluation = {"split": "test", "num_examples": 359, "binarization": "dynamic", "estimator": "1,000 samples",
                      "nll": -value - 0.5, "elbo": value, "density": True}  # fmt: skip
        summary = {"status": "finished", "train_seconds": 61.0, "total_seconds": 70.0,
                   "command": f"python -m experiments.train --workdir={trial.name}"}  # fmt: skip
        leave(trials.folder(epath.Path(tmp_path), trial), trial, metrics=rows(value - 1, value),
              evaluation=evaluation, summary=summary)  # fmt: skip
    metric = metrics.parse(told.metric)
    path = page.write(told, metric, epath.Path(tmp_path), found, len(found), "python -m launch.sweep --again")
    with open(tmp_path / "results.csv") as file:
        return path.read_text(), list(csv.DictReader(file))


def test_page_and_table_tell_what_there_is(tmp_path):
    told = sweep(grid={"model.latent_dim": [2, 4, 8], "seed": [0, 1]})
    found = trials.known(told)
    trials.record(epath.Path(tmp_path), found[4], trials.FAILED, "step 4 has loss <nan>", True)
    scores = [-30.0, -29.0, -25.0, -25.5, None, None]
    text, table = write_page(tmp_path, found, told, scores)
    half = results.mean([-25.0, -25.5]).half
    assert "4 finished, 1 failed, 1 to do" in text
    assert "−25.25" in text
    assert f"± {half:.2f}" in text
    assert "--workdir=latent_dim4_seed0" in text
    assert "step 4 has loss &lt;nan&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text.replace("http-equiv", "")
    assert [row["trial"] for row in table] == [each.name for each in found]
    assert [row["validation elbo"] for row in table] == ["-30.0", "-29.0", "-25.0", "-25.5", "", ""]
    assert [row["test nll"] for row in table[:4]] == ["29.5", "28.5", "24.5", "25.0"]
    assert [row["status"] for row in table] == ["finished"] * 4 + ["failed", "waiting"]
    assert (table[2]["model.latent_dim"], table[4]["reason"]) == ("4", "step 4 has loss <nan>")


def test_page_of_a_search_with_many_and_of_nothing_yet(tmp_path):
    told = drawn(num=12)
    found = trials.known(told)
    text, table = write_page(tmp_path / "many", found, told, [-30.0 + i for i in range(11)] + [-1e6])
    assert text.count("data:image/png;base64,") == 2
    assert len(table) == 12
    assert text.index(">−20.00<") < text.index(">−21.00<")  # the best on top
    (tmp_path / "none").mkdir()
    text, table = write_page(tmp_path / "none", found, told, [None] * 12)
    assert "12 to do" in text
    assert "data:image" not in text


# --- Wrong calls ---

WRONG = {
    "nothing varies": (sweep(), "nothing varies"),
    "empty grid": (sweep(grid={"seed": []}), "grid has .* for seed: give a list"),
    "a text as grid": (sweep(grid={"model.activation": "tanh"}), "give a list"),
    "unknown key": (sweep(grid={"model.latent_dims": [2]}), "latent_dims is unknown: do you mean model.latent_dim"),
    "unknown override": (sweep(grid={"seed": [0]}, overrides={"sed": 1}), "sed is unknown"),
    "wrong type": (sweep(grid={LR: [1e-3, "high"]}), "learning_rate=high has the wrong type"),
    "wrong type in a list": (sweep(trials=[{"seed": 0}, {"seed": 0.5}]), "seed=0.5 has the wrong type"),
    "in both": (sweep(grid={"seed": [0]}, trials=[{"seed": 1}]), "seed is in the grid and in the list"),
    "shared and varied": (sweep(grid={"seed": [0]}, overrides={"seed": 1}), "seed is in overrides and varies"),
    "epochs": (sweep(grid={"seed": [0]}, overrides={"train.num_epochs": 3}), "it is the budget's"),
    "no epochs": (sweep(grid={"seed": [0]}, budget=Budget(0)), "num_epochs is 0"),
    "grace": (sweep(grid={"seed": [0]}, budget=Budget(10, grace_epochs=10)), "grace_epochs is 10"),
    "reduction": (sweep(grid={"seed": [0]}, budget=Budget(10, reduction=1)), "reduction is 1"),
    "trials of a grid": (sweep(grid={"seed": [0]}, budget=Budget(10, num_trials=3)), "num_trials is of distributions"),
    "no trials": (drawn(num=0), "num_trials is 0"),
    "search": (drawn("grid"), "search is 'grid': choose one of random, optuna"),
    "grid of a search": (drawn(grid={"seed": [0]}), "neither a grid nor a list"),
    "upside down": (drawn(distributions={LR: LogUniform(1e-1, 1e-4)}), "low must be below high"),
    "log of zero": (drawn(distributions={LR: LogUniform(0, 1)}), "above 0 for LogUniform"),
    "no choice": (drawn(distributions={LR: Choice([])}), "is empty"),
    "no distribution": (drawn(distributions={LR: [1e-3]}), "give a Uniform"),
    "unseen data": (drawn("optuna", distributions={"data.train_size": Uniform(10, 100)}), "changes them"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sweeps_are_one_sentence(name):
    told, words = WRONG[name]
    with pytest.raises(InputError, match=words) as error:
        definition.check(told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("x = 1", "has no get_sweep"),
        ("def get_sweep(:", "SyntaxError"),
        ("def get_sweep():\n    return {}['a']", "cannot be read as a sweep"),
        ("def get_sweep():\n    return 3", "returns a int"),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path, text, words):
    if text:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=words):
        definition.read(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("metric", "early", "changes", "words"),
    [
        ("elbo", False, {}, "give validation or test"),
        ("test kl", False, {}, "give validation or test"),
        ("test nll", True, {}, "does not measure while it trains.*validation elbo"),
        ("validation nll", False, {}, "never writes: choose one of .*test nll"),
        ("validation elbo", False, {"eval.curve_measure": "none"}, "never writes"),
        ("validation iwae_bound", False, {}, "never writes"),
        ("test elbo", False, {"learner.name": "mcem", "eval.estimator": "hmc"}, "never writes"),
    ],
)
def test_metrics_that_nobody_writes_are_refused(metric, early, changes, words):
    (trial,) = trials.known(sweep(grid={"seed": [0]}))
    with pytest.raises(InputError, match=words):
        metrics.check(metrics.parse(metric), trial.config | changes, early)
    metrics.check(metrics.parse("test nll"), trial.config, False)
    metrics.check(metrics.parse("validation elbo"), trial.config, True)


def test_twice_the_same_trial_and_packs_that_cannot_be():
    with pytest.raises(InputError, match=r"learning_rate0\.1 is in the sweep twice"):
        trials.known(sweep(grid={LR: [0.1, 1e-1]}))
    with pytest.raises(InputError, match="grace_epochs stops some"):
        packs.check(sweep(grid={"seed": [0]}, budget=Budget(10, grace_epochs=1)))
    with pytest.raises(InputError, match="optuna draws one after another"):
        packs.check(drawn("optuna"))


NODES = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ((9, 0.0, 0), "--cpus_per_trial is 9, and no node has more than 8"),
        ((1, 4.0, 0), "--gpus_per_trial is 4, and no node has more than 2"),
        ((1, 0.0, 1), "--tpus_per_trial is 1, and no node has more than 0"),
    ],
)
def test_more_than_any_node_has(needs, words):
    with pytest.raises(InputError, match=words):
        tuning.check_fits(NODES, tuning.Resources(*needs))


def test_what_fits_side_by_side():
    assert [tuning.slots(NODES, tuning.Resources(*needs)) for needs in ((1, 0.0, 0), (3, 0.0, 0), (2, 0.5, 0))] == [
        12, 3, 4,
    ]  # fmt: skip
    tuning.check_fits(NODES, tuning.Resources(8, 2.0, 0))
    with pytest.raises(InputError, match="no node has 6 CPU cores and 1 GPU together"):
        tuning.check_fits([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], tuning.Resources(6, 1.0, 0))


def test_addresses_that_nobody_listens_at(unused_port):
    for address, words in ((f"127.0.0.1:{unused_port}", "cannot be reached"), ("ray://a:1", "no address")):
        with pytest.raises(InputError, match=words):
            tuning._check_answers(address)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
