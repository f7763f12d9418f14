"""What sweeps expand to, and wrong calls."""

import math
import re

import numpy as np
import pytest
from scipy import stats
from sweep_world import CONFIG, LR, ROOT, drawn, result_of, sweep

from aevb.errors import InputError
from experiments import settings
from launch import definition, metrics, packs, results, trials, tuning
from launch.definition import Budget, Choice, LogUniform, Uniform


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
    long = [trials.name({"data.dir": "long" * 100 + end}) for end in "ab"]
    assert (len(set(long)), [len(each) for each in long]) == (2, [150, 150])
    assert trials.name({"seed": 1, "data.seed": 2}) == "seed1_data.seed2"
    assert trials.name({"learner.name": "wake_sleep", "seed": 3}) == "wake_sleep_seed3"
    texts = [trials.name({"data.dir": text}) for text in ("/a b/ü", "/a/b/ü", "/a-b-ü")]
    assert len(set(texts)) == 3
    assert all(re.fullmatch("dir-a-b--+[0-9a-f]{8}", text) for text in texts)


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
    # Rounding leaves no narrow range, and hardly makes two draws one.
    narrow = definition.expand(drawn(distributions={"train.ema_decay": Uniform(0.999, 0.99999)}))
    narrow = [each["train.ema_decay"] for each in narrow]
    assert 0.999 <= min(narrow) < max(narrow) <= 0.99999
    assert len(set(narrow)) > 190


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


MINE = (
    "from launch.definition import *\ndef get_sweep():\n"
    f"    return Sweep(config='{CONFIG}', metric='test nll', budget=Budget(3),"
)
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
        (f"{MINE} grid=[3])", "cannot be read as a sweep"),
        (f"{MINE} trials=[3])", "cannot be read as a sweep"),
        (f"{MINE} trials=3)", "cannot be read as a sweep"),
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
