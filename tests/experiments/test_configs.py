"""Configs: every key is explained and read in one place; every choice builds a model that takes a step."""

import ast
import dataclasses
import inspect
import json
import math
import pathlib
import sys

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from aevb import training
from aevb.data import Dataset, Split
from aevb.errors import InputError
from experiments import build, checks, evaluate, settings, train, workdir
from experiments.configs import base, vae

CONFIG = "experiments/configs/vae.py"
MCEM = ("learner.name=mcem", "eval.curve_measure=marginal", "eval.estimator=hmc")
K_SPARSE = ("model.code=top_k", "model.code_k=3", "learner.l1_weight=0.0")
AUTOENCODERS = (("linear", ()), ("deep", ()), ("sparse", ()), ("sparse", K_SPARSE), ("denoising", ()), ("mae", ()))
KEYS = settings.flatten(base.get_config().to_dict())


def load(*overrides: str, dataset: str = "digits", file: str = "vae") -> ConfigDict:
    path = pathlib.Path(build.__file__).parent / f"configs/{file}.py"
    return settings.load(f"{path}:{dataset}", [f"--config.{override}" for override in overrides])


def tiny(name: str) -> Dataset:
    """Twelve examples of the shape of a data set, uint8, of three classes; binary or counts where the set is."""
    shapes = {"digits": (8, 8, 1), "frey_face": (28, 20, 1), "folder": (5, 7, 3), "arrays": (6,), "counts": (6,)}
    shape = shapes.get(name, (28, 28, 1))
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    if name == "binarized_mnist":
        images = (images > 127) * np.uint8(255)
    if name == "counts":
        images = np.random.default_rng(0).poisson(3, (12, 6)).astype("float32")
    labels = np.arange(12) % 3
    splits = [Split(images[rows], labels[rows]) for rows in (slice(0, 8), slice(8, 10), slice(10, 12))]
    return Dataset(name, shape, *splits, splits="made up")


def test_every_key_has_a_comment():
    lines = inspect.getsource(base).splitlines()
    leaves = [
        (key.value, lines[key.lineno - 1])
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if not isinstance(value, ast.Call)
    ]
    assert len(leaves) == len(KEYS)
    assert [key for key, line in leaves if len(line.partition("#")[2].split()) < 2] == []


def test_every_key_is_read_by_one_module(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    sections = {frozenset(keys): name for name, keys in base.get_config().to_dict().items() if isinstance(keys, dict)}
    readers: dict[str, set[str]] = {key: set() for key in KEYS}
    get = ConfigDict.__getitem__

    def recording(self: ConfigDict, name: str):
        section = sections.get(frozenset(self.keys()))
        key = f"{section}.{name}" if section else name
        frame, copied = sys._getframe(1), False
        while frame.f_globals["__name__"].startswith("ml_collections"):
            copied |= frame.f_code.co_name in ("to_dict", "__init__", "keys", "iteritems", "items")
            frame = frame.f_back
        if key in readers and not copied:
            readers[key].add(frame.f_globals["__name__"])
        return get(self, name)

    short = ("model.hidden=4", "train.num_epochs=0.1", "train.log_every_steps=1", "train.ema_decay=0.9")
    config = load(*short, "train.eval_every_steps=1", "train.checkpoint_every_steps=1", "optimizer.schedule=cosine")
    others = [
        load("optimizer.schedule=piecewise", "model.likelihood=gaussian"),
        load("bound.kl_schedule=cyclical", "bound.kl_warmup_steps=2", "bound.kl_cycle_steps=3"),
        load(
            "bound.kl_schedule=adaptive",
            "bound.log_likelihood_target=-90",
            "model.likelihood=logistic_mixture",
            "data.binarization=none",
        ),
        load("optimizer.name=adagrad", *MCEM),
        load("optimizer.name=adamw"),
        *(load(*overrides, file=name) for name, overrides in AUTOENCODERS),
    ]
    monkeypatch.setattr(ConfigDict, "__getitem__", recording)
    run = build.build(config)
    train.train(run, epath.Path(tmp_path))
    evaluate.bits_per_dim(run, run.split("test"), 1.0)
    assert run.facts["seed"] == 0
    assert run.evaluation == {"estimator": "importance", "num_samples": 1000, "max_examples": None}
    for other in others:
        build.build(other)
    monkeypatch.undo()
    assert {key: modules for key, modules in readers.items() if len(modules) != 1} == {}


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("model.latent_dimm=3", "model.latent_dim?"),
        ("latent_dim=3", "model.latent_dim?"),
        ("train.epochs=3", "train.num_epochs"),
        ("zzzz=3", "known are bound.*, data.*, "),
        ("model=3", "known are bound.*, data.*, "),
        ("model.latent_dim", "write --config.model.latent_dim=VALUE"),
        ("model.latent_dim=2.0", "a whole number"),
        ("model.latent_dim=True", "a whole number"),
        ("bound.weight_prior=1", "True or False"),
        ("train.num_epochs=many", "a number"),
        ("train.num_epochs=1e999", "a number"),
        ("model.hidden=wide", "a list of numbers"),
    ],
)
def test_override_is_refused(override: str, hint: str):
    with pytest.raises(InputError, match=f"^--config.{override.split('=')[0]}") as refused:
        load(override)
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.hidden=(3,4)", (3, 4)),
        ("model.hidden=3,4", (3, 4)),
        ("model.hidden=[3]", (3,)),
        ("model.hidden=3", (3,)),
        ("model.hidden=()", ()),
        ("bound.weight_prior=true", True),
        ("train.num_epochs=3", 3.0),
        ("optimizer.learning_rate=1e-2", 0.01),
        ("dataset=5", "5"),
    ],
)
def test_override_is_typed(override: str, value: object):
    name = override.split("=")[0]
    section, _, leaf = name.rpartition(".")
    config = load(override)
    found = (config[section] if section else config)[leaf]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("source", ["get_config = 3", "def get_config(: pass", "1 / 0", "import nosuch", "", "x = 1"])
def test_config_file_that_is_none(source: str, tmp_path: pathlib.Path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(InputError, match=f"{path}.* cannot be read as a config"):
        settings.load(str(path), [])


def test_a_run_from_before_a_key_was_there_has_its_default(tmp_path: pathlib.Path):
    config = load("data.seed=3")
    values = config.to_dict()
    del values["data"]["corruption"], values["vit"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert workdir.read_config(epath.Path(tmp_path)) == config
    path.write_text(json.dumps(values | {"vat": {}, "note": 1}))
    with pytest.raises(InputError, match="has the unknown key note"):
        workdir.read_config(epath.Path(tmp_path))


def test_config_file_with_other_keys(tmp_path: pathlib.Path):
    path = tmp_path / "mine.py"
    start = "from experiments.configs import base\ndef get_config():\n    c = base.get_config()\n"
    path.write_text(start + "    c.model.latentdim = 3\n    return c\n")
    with pytest.raises(InputError, match=r"unknown key model.latentdim: do you mean model.latent_dim\?"):
        settings.load(str(path), [])
    path.write_text(start + "    del c.model.latent_dim\n    return c\n")
    with pytest.raises(InputError, match=r"lacks the key model\.latent_dim"):
        settings.load(str(path), [])


CHOICES = {
    **{f"data set {name}": (name, []) for name in [*vae.DATASETS, "tfds:cifar10"]},
    "sgvb_a, Gaussian of a fixed scale, adamw, cosine": (
        "folder",
        ["bound.name=sgvb_a", "model.scale=fixed", "optimizer.name=adamw", "optimizer.weight_decay=0.1"]
        + ["optimizer.schedule=cosine", "optimizer.warmup_steps=1", "model.activation=gelu"],
    ),
    "continuous Bernoulli, adagrad, piecewise, clipping": (
        "digits",
        ["model.likelihood=continuous_bernoulli", "data.binarization=none", "optimizer.name=adagrad"]
        + ["optimizer.schedule=piecewise", "optimizer.boundaries=(1,)", "optimizer.scales=(0.5,)"]
        + ["optimizer.clip_norm=0.1", "model.activation=relu"],
    ),
    "static, sgd, average of the weights, prior on the weights": (
        "digits",
        ["data.binarization=static", "optimizer.name=sgd", "train.ema_decay=0.9", "bound.weight_prior=True"]
        + ["model.activation=elu"],
    ),
    "threshold, KL warm-up, several draws": (
        "digits",
        ["data.binarization=threshold", "bound.num_samples=3", "bound.kl_weight=0.5"]
        + ["bound.kl_schedule=linear", "bound.kl_warmup_steps=2", "model.activation=softplus", "model.hidden=(4,3)"],
    ),
    "iwae, gated network": ("digits", ["bound.name=iwae", "bound.num_samples=3", "model.network=gated_mlp"]),
    "convolution, full covariance, free bits, cosine": (
        "frey_face",
        ["model.network=conv", "model.channels=(2,3)", "model.posterior=full_gaussian", "bound.free_bits=0.1"]
        + ["bound.kl_schedule=cosine", "bound.kl_warmup_steps=2"],
    ),
    "residual convolution, mixture of colours, adaptive": (
        "folder",
        [
            "model.network=residual",
            "model.channels=(2,)",
            "model.likelihood=logistic_mixture",
            "model.sigmoid_mean=False",
        ]
        + ["bound.kl_schedule=adaptive", "bound.log_likelihood_target=-3", "model.num_components=2"],
    ),
    "shared Laplace, cyclical": (
        "arrays",
        ["model.likelihood=laplace", "model.scale=shared", "bound.kl_schedule=cyclical", "bound.kl_warmup_steps=1"]
        + ["bound.kl_cycle_steps=2"],
    ),
    "label, convolution, conditional prior": (
        "digits",
        ["model.context=label", "model.prior=conditional_gaussian", "model.network=conv", "model.channels=(2,)"],
    ),
    "label, wake-sleep, gated network": (
        "digits",
        ["model.context=label", "learner.name=wake_sleep", "model.network=gated_mlp"],
    ),
    "label, Monte Carlo EM": ("digits", ["model.context=label", *MCEM]),
    "label, full variational Bayes, residual": (
        "frey_face",
        ["model.context=label", "learner.name=full_vb", "model.network=residual", "model.channels=(2,)"],
    ),
    "label, iwae, full covariance, conditional prior": (
        "digits",
        ["model.context=label", "bound.name=iwae", "bound.num_samples=2", "model.posterior=full_gaussian"]
        + ["model.prior=conditional_gaussian"],
    ),
    "Poisson": ("counts", ["model.likelihood=poisson"]),
    "negative binomial": ("counts", ["model.likelihood=negative_binomial", "model.scale=shared"]),
    "zero-inflated negative binomial": ("counts", ["model.likelihood=zero_inflated_negative_binomial"]),
    "256 levels": ("digits", ["model.likelihood=categorical", "data.binarization=none"]),
    "grey": ("digits", ["data.binarization=grey"]),
    "wake-sleep, paper's first weights, train size": (
        "digits",
        ["learner.name=wake_sleep", "model.init_scale=0.1", "data.train_size=5", "optimizer.name=adagrad"],
    ),
    "Monte Carlo EM, logistic prior": ("digits", [*MCEM, "model.prior=logistic", "bound.weight_prior=True"]),
    "full variational Bayes": ("digits", ["learner.name=full_vb"]),
    "score function, gamma posterior and prior": (
        "digits",
        ["bound.name=score_function", "model.posterior=gamma", "model.prior=gamma"],
    ),
    "Kumaraswamy posterior, beta prior": (
        "digits",
        ["bound.name=sgvb_a", "model.posterior=kumaraswamy", "model.prior=beta"],
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_takes_a_step(choice: str, monkeypatch: pytest.MonkeyPatch):
    name, overrides = CHOICES[choice]
    monkeypatch.setattr(build, "load_data", lambda config: tiny(config.dataset))
    small = [] if any(item.startswith("model.hidden") for item in overrides) else ["model.hidden=4"]
    run = build.build(load(*overrides, *small, "train.batch_size=4", dataset=name))
    state = run.init_state()
    ema_decay = run.ema_decay
    steps = training.train(
        run.learner,
        state,
        run.feed,
        run.preprocess["train"],
        num_steps=2,
        ema_decay=ema_decay,
        devices=jax.local_devices()[:1],
    )
    ended, metrics = next(steps)
    assert all(np.isfinite(values).all() for values in metrics.values())
    ended = training.unreplicate(ended)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, ended.params)
    assert any(jax.tree.leaves(moved))
    assert (ended.ema_params is not None) == bool(ema_decay)
    assert run.facts["density"] == (choice != "grey")
    assert math.isfinite(run.learning_rate(1))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.num_epochs=0", "above 0"),
        ("train.num_epochs=-1", "above 0"),
        ("train.batch_size=0", "above 0"),
        ("model.latent_dim=0", "above 0"),
        ("model.hidden=(0,)", "whole numbers, each at least 1"),
        ("model.hidden=2.5", "whole numbers, each at least 1"),
        ("seed=-1", "from 0 to"),
        ("seed=4294967296", "from 0 to"),
        ("data.seed=-1", "from 0 to"),
        ("train.ema_decay=1", r"in \[0, 1\)"),
        ("train.patience=-1", "not be negative"),
        ("train.eval_every_steps=7", "multiple of config.train.log_every_steps"),
        ("optimizer.weight_decay=0.1", "use --config.optimizer.name=adamw"),
        ("optimizer.boundaries=3", "one scale a boundary"),
        ("train.eval_growth=0.5", "0 or above 1"),
        ("learner.target_acceptance=1", r"in \(0, 1\)"),
        ("learner.num_leapfrog=0", "above 0"),
        ("learner.name=mcem", "no encoder and so has no bound"),
        *((f"{key}=nosuch", "choose one of") for key in checks.CHOICES),
    ],
)
def test_value_is_refused(override: str, words: str):
    name, _, value = override.partition("=")
    with pytest.raises(InputError, match=words) as refused:
        checks.check(load(override))
    assert name in str(refused.value)
    assert value.strip("(),") in str(refused.value)


GAUSSIAN = ("model.likelihood=gaussian", "data.binarization=none")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.name=wake_sleep", "bound.kl_weight=2"], "wake_sleep does not read it: leave it 1.0"),
        (["learner.name=full_vb", "bound.weight_prior=True"], "full_vb does not read it: leave it False"),
        (["eval.curve_split=test", "train.patience=3"], "by what is measured on the validation split"),
        (["model.posterior=laplace"], "no closed form for the posterior laplace and the prior standard_normal"),
        (["model.prior=gamma"], "their KL is infinite"),
        (["data.train_size=2000"], "has 1258 training examples"),
        ([*MCEM, "model.latent_dim=11"], "fails above 10 .*estimator=ais, and --config.eval.curve_measure=none"),
        ([*MCEM, "bound.num_samples=2"], "mcem does not read it: leave it 1"),
        (["eval.estimator=ais", "eval.num_samples=2"], "ais needs at least 3"),
        (["model.sigmoid_mean=True"], "the likelihood bernoulli does not read it: leave it False"),
        ([*GAUSSIAN, "model.fixed_scale=0.5"], "the scale learned does not read it: leave it 0.1"),
        ([*GAUSSIAN, "model.scale=fixed", "model.min_scale=0.5"], "the scale fixed does not read it: leave it 0.01"),
        (["bound.kl_schedule=adaptive"], "log_likelihood_target is not set, and an adaptive beta needs it"),
        (["bound.kl_schedule=adaptive", "bound.log_likelihood_target=9"], "the log-likelihood of a mass is below 0"),
        (["bound.kl_schedule=linear", "bound.kl_warmup_steps=9999"], "is 9999, but the run has 3774 steps"),
        (
            ["bound.name=score_function", "bound.free_bits=0.1", "model.posterior=laplace", "model.prior=laplace"],
            "with the score function the KL of each dimension needs a closed form",
        ),
    ],
)
def test_pair_is_refused(overrides: list[str], words: str):
    with pytest.raises(InputError, match=words):
        build.build(load(*overrides))


def test_a_class_is_held_out_by_its_number():
    assert 3 not in build.build(load("data.held_out_class=3")).dataset.train.labels
    with pytest.raises(InputError, match="held_out_class is -2: give a class, or -1 for none"):
        build.build(load("data.held_out_class=-2"))


def test_train_size_takes_the_first():
    whole, some = (build.build(load(*overrides)).dataset.train for overrides in ([], ["data.train_size=7"]))
    np.testing.assert_array_equal(some.examples, whole.examples[:7])
    np.testing.assert_array_equal(some.labels, whole.labels[:7])


def test_patience_needs_validation():
    with pytest.raises(InputError, match="needs a validation split"):
        build.build(load("train.patience=2", "data.validation_size=0"))


def test_run_is_frozen():
    run = build.build(load())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.num_steps = 3
