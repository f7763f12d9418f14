"""Fine-tuning: which weights it starts from, what it learns with which labels, what it writes and what it refuses."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL
from etils import epath
from sklearn.linear_model import LogisticRegression
from test_wrong_calls import refused, snapshot

from aevb import data
from aevb.checkpoints import Checkpoints
from aevb.data.binarization import make_preprocess
from aevb.data.corruption import gaussian
from aevb.errors import InputError
from experiments import build, finetune, reconstruct, settings, workdir
from experiments.finetune import LabelledSplit

LINEAR = ("model.latent_dim=10", "train.ema_decay=0")


def run_of(name: str, *overrides: str, dataset: data.Dataset | None = None) -> build.Run:
    config = settings.load(f"experiments/configs/{name}.py", [f"--config.{override}" for override in overrides])
    return build.build(config, dataset)


@functools.cache
def linear() -> build.Run:
    return run_of("linear", *LINEAR)


def flat(split):
    return reconstruct.values(split.examples).reshape(len(split.examples), -1)


@functools.cache
def regression() -> LogisticRegression:
    """Of the classes of the training digits: some 95 % of the test digits are right."""
    train = linear().dataset.train
    return LogisticRegression(C=1.0, max_iter=2000).fit(flat(train), train.labels)


def trained_params() -> dict:
    """The linear autoencoder's weights, but for an encoder whose code is the logits of the regression."""
    encoder = {"kernel": jnp.float32(regression().coef_.T), "bias": jnp.float32(regression().intercept_)}
    return linear().init_state().params | {"encoder": {"output": encoder}}


def with_labels(dataset: data.Dataset, **labels) -> data.Dataset:
    changed = {name: dataclasses.replace(getattr(dataset, name), labels=each) for name, each in labels.items()}
    return dataclasses.replace(dataset, **changed)


def test_pretrained_starts_from_the_checkpoint_and_scratch_from_the_first_weights(command, tmp_path: pathlib.Path):
    """A few small steps of the head tell the logits of a regression from random projections; and the file is whole."""
    run, folder = linear(), epath.Path(tmp_path)
    workdir.write_json(folder / "config.json", run.config.to_dict())
    with contextlib.closing(Checkpoints(folder / "checkpoints" / "last")) as checkpoints:
        checkpoints.save(7, run.init_state().replace(params=trained_params()))
    before = snapshot(tmp_path)
    ended = command.ok("finetune", f"--workdir={tmp_path}", "--num_epochs=2", "--learning_rate=1e-4")
    ours = ("finetuning.json", "report.html")
    assert {name: now for name, now in snapshot(tmp_path).items() if name not in ours} == before
    assert "are classified correctly" in (tmp_path / "report.html").read_text()
    told = json.loads((tmp_path / "finetuning.json").read_text())
    pretrained, scratch = told["starts"].pop("pretrained"), told["starts"].pop("from scratch")
    assert told.pop("starts") == {}
    assert pretrained["accuracy"] > scratch["accuracy"] + 0.1
    # The same here, but for rounding on four devices, from the weights that were saved and from the run's first ones.
    how = {"num_steps": told["num_steps"], "learning_rate": 1e-4, "seed": 0}
    for start, params in ((pretrained, trained_params()), (scratch, run.init_state().params)):
        right = finetune.finetune(run, LabelledSplit.draw(run, None, 0), params, **how)
        assert abs(right.mean() - start["accuracy"]) < 0.02
    for start in (pretrained, scratch):
        share = start["accuracy"]
        assert round(share * 359, 6) == round(share * 359)
        np.testing.assert_allclose(start["accuracy_stderr"], np.sqrt(share * (1 - share) / 359), rtol=1e-9)
        assert start["seconds"] > 0
    np.testing.assert_allclose(told["gain"], pretrained["accuracy"] - scratch["accuracy"], rtol=1e-9)
    assert 0 < told["gain_stderr"] < np.hypot(*(start["accuracy_stderr"] for start in (pretrained, scratch))) * 1.2
    num = len(run.dataset.train.examples)
    assert (told["num_labels"], told["num_examples"], told["split"]) == (num, 359, "test")
    assert told["num_steps"] == -(-2 * num // 100)
    np.testing.assert_allclose(told["epochs"], told["num_steps"] * 100 / num)
    assert (told["learning_rate"], told["seed"], told["checkpoint"], told["step"]) == (1e-4, 0, "last", 7)
    assert told["hardware"]["platform"] == "cpu"
    assert ended.out.count("\n") == 1
    for words in (f"{pretrained['accuracy']:.2%}", f"{scratch['accuracy']:.2%} ±", f"{num:,} labels", "359 test"):
        assert words in ended.out


def test_labels_are_learned_whole_and_random_ones_are_not(monkeypatch):
    """A linear encoder and head reach the regression's accuracy; labels by lot leave the test digits to chance."""
    run = linear()
    how = {"num_steps": 400, "learning_rate": 1e-2, "seed": 0}
    labelled, start = LabelledSplit.draw(run, None, 0), run.init_state().params
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    one = finetune.finetune(run, labelled, start, **how)
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:2])
    two = finetune.finetune(run, labelled, start, **how)
    assert (one == two).mean() > 0.99
    of_regression = regression().score(flat(run.dataset.test), run.dataset.test.labels)
    assert abs(one.mean() - of_regression) < 0.03
    rng = np.random.default_rng(1)
    names = ("train", "test")
    shuffled = {name: rng.permutation(getattr(run.dataset, name).labels) for name in names}
    lot = run_of("linear", *LINEAR, dataset=with_labels(run.dataset, **shuffled))
    by_lot = finetune.finetune(lot, LabelledSplit.draw(lot, None, 0), start, **how)
    assert abs(by_lot.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(by_lot))


def test_labelled_examples_are_a_balanced_draw():
    run = linear()
    train = run.dataset.train
    everything = LabelledSplit.draw(run, None, 0)
    assert everything.split is train
    np.testing.assert_array_equal(everything.places, np.arange(len(train.examples)))
    few, again, other = (LabelledSplit.draw(run, 25, seed) for seed in (0, 0, 1))
    assert sorted(np.bincount(few.split.labels)) == [2] * 5 + [3] * 5
    assert len(np.unique(few.places)) == 25
    np.testing.assert_array_equal(few.split.examples, train.examples[few.places])
    np.testing.assert_array_equal(few.split.labels, train.labels[few.places])
    np.testing.assert_array_equal(few.places, again.places)
    assert set(few.places) != set(other.places)
    with pytest.raises(InputError, match="take 1000 of each"):
        LabelledSplit.draw(run, 10_000, 0)


def test_an_example_is_the_runs_own_but_clean_and_with_its_class():
    """Of a static binarization, which knows examples by their place in the whole split, and a corruption."""
    stored = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    context = data.LabelContext(3, classes=True)
    whole = make_preprocess("static", jax.random.key(0), corrupt=gaussian(0.5))
    labelled = LabelledSplit(data.Split(stored[[1, 4]], np.array([2, 0])), np.array([1, 4]), context)
    for i, place in enumerate(labelled.places):
        key = jax.random.key(i)
        own = whole(jnp.asarray(stored[place]), None, jnp.int32(place), key)
        label = labelled.split.labels[i]
        got = finetune.with_class(whole, labelled)(jnp.asarray(stored[place]), label, jnp.int32(i), key)
        np.testing.assert_array_equal(got.x, own.x)
        assert own.corrupted is not None and got.corrupted is None
        np.testing.assert_array_equal(got.context, np.eye(3)[label])


def test_a_vae_alone_with_few_labels(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    """Without the comparison there is one start; unless told otherwise, few labels are seen for 1000 steps."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    ended = command.ok("finetune", f"--workdir={tmp_path}", "--num_labels=30", "--nofrom_scratch", "--seed=3")
    told = json.loads((tmp_path / "finetuning.json").read_text())
    assert set(told["starts"]) == {"pretrained"} and "gain" not in told
    assert (told["num_labels"], told["num_steps"], told["seed"], told["binarization"]) == (30, 1000, 3, "dynamic")
    assert told["starts"]["pretrained"]["accuracy"] > 0.1 + 4 * np.sqrt(0.1 * 0.9 / 359)
    assert "scratch" not in ended.out


def test_what_stops_it_leaves_no_file(command, finished: pathlib.Path):
    before = snapshot(finished)
    refused(command, "finetune", f"--workdir={finished}", "--learning_rate=1e30", words=["step", "loss"], code=3)
    started = time.monotonic()
    ended = command(
        "finetune",
        f"--workdir={finished}",
        "--num_epochs=1e6",
        sigterm_when=lambda: time.monotonic() > started + 5,
    )
    assert ended.code in (75, -15)  # the second while it still imports
    assert "Traceback" not in ended.err
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--num_labels=5"], ["5 labels were asked of 10 classes"]),
        (["--num_labels=5000"], ["take 500 of each", "ask for fewer labels"]),
        (["--num_labels=0"], ["num_labels"]),
        (["--num_epochs=0"], ["--num_epochs is 0.0", "above 0"]),
        (["--learning_rate=nan"], ["--learning_rate is nan"]),
        (["--num_label=5"], ["'--num_label=5'", "--num_labels?"]),
    ],
)
def test_wrong_calls(command, finished: pathlib.Path, args: list[str], words: list[str]):
    refused(command, "finetune", f"--workdir={finished}", *args, words=words)


def test_no_checkpoint_and_no_run(command, tmp_path: pathlib.Path):
    refused(command, "finetune", f"--workdir={tmp_path}", words=["config.json is not there"])
    workdir.write_json(epath.Path(tmp_path) / "config.json", linear().config.to_dict())
    refused(command, "finetune", f"--workdir={tmp_path}", words=["has no checkpoint yet"])


def test_what_has_no_encoder_or_no_classes_is_refused():
    small = [override.removeprefix("--config.") for override in SMALL if not override.startswith("--config=")]
    mcem = ("learner.name=mcem", "eval.curve_measure=marginal", "eval.estimator=hmc", "eval.num_samples=50")
    for overrides, words in ((mcem, "mcem trains no encoder"), (("model.context=label",), "told the label")):
        with pytest.raises(InputError, match=words):
            finetune.class_context(run_of("vae", *small, *overrides))
    held_out = run_of("linear", "data.held_out_class=3")
    with pytest.raises(InputError, match="held_out_class is 3, so no example of it is there to learn from"):
        finetune.class_context(held_out)
    run = linear()
    num_train, num_test = (len(split.examples) for split in (run.dataset.train, run.dataset.test))
    ones = {"train": np.zeros(num_train, np.int32), "test": np.zeros(num_test, np.int32)}
    vectors = {name: np.zeros((len(each), 3), np.float32) for name, each in ones.items()}
    for labels, words in (
        ({"train": None}, "train split of digits has no labels"),
        ({"test": None}, "test split of digits has no labels"),
        (ones | {"validation": None}, "of 1 class: a classifier"),
        (vectors | {"validation": None}, "vectors of 3: a classifier"),
    ):
        with pytest.raises(InputError, match=words):
            finetune.class_context(dataclasses.replace(run, dataset=with_labels(run.dataset, **labels)))
    unread = dataclasses.replace(run, dataset=with_labels(run.dataset, validation=None))
    assert finetune.class_context(unread).size == 10
