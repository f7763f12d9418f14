"""From a config to objects: the one module that reads config keys of data, model, bound and optimizer.

Adding a network, a likelihood, a bound or an optimizer is one line in a dictionary here, beside its own file.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from aevb import bounds, data, learners, models, networks
from aevb.data import binarization
from aevb.data.feeding import make_feed
from aevb.errors import InputError
from aevb.learners import aevb as aevb_learner
from aevb.training import Feed, map_examples
from experiments.settings import flatten

NETWORKS: Mapping[str, Callable] = {"mlp": networks.MLP}
ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "gelu": nn.gelu, "elu": nn.elu, "softplus": nn.softplus}
POSTERIORS: Mapping[str, Callable] = {"diagonal_gaussian": models.DiagonalGaussian}
LIKELIHOODS: Mapping[str, Callable[[ConfigDict], nn.Module]] = {
    "bernoulli": lambda model: models.Bernoulli(),
    "continuous_bernoulli": lambda model: models.ContinuousBernoulli(),
    "gaussian": lambda model: models.Gaussian(
        scale={"fixed": model.fixed_scale, "learned": None}[model.scale],
        min_scale=model.min_scale,
        sigmoid_mean=model.sigmoid_mean,
    ),
}
BOUNDS = {"sgvb_a": bounds.sgvb_a, "sgvb_b": bounds.sgvb_b}
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adam": lambda learning_rate, weight_decay: optax.adam(learning_rate),
    "adamw": lambda learning_rate, weight_decay: optax.adamw(learning_rate, weight_decay=weight_decay),
    "adagrad": lambda learning_rate, weight_decay: optax.adagrad(learning_rate),
    "sgd": lambda learning_rate, weight_decay: optax.sgd(learning_rate),
}
# From the optimizer's keys to a factor of the learning rate, a function of the step.
SCHEDULES: Mapping[str, Callable[[ConfigDict], optax.Schedule]] = {
    "constant": lambda keys: optax.constant_schedule(1.0),
    "cosine": lambda keys: optax.cosine_decay_schedule(1.0, keys.decay_steps),
    "piecewise": lambda keys: optax.piecewise_constant_schedule(
        1.0, dict(zip(keys.boundaries, keys.scales, strict=True))
    ),
}
SPLITS = ("train", "validation", "test")
# Keeps the keys of the data apart from those of training where both seeds are equal: split(key)[i] is fold_in(key, i).
DATA_STREAM = 2**31

_CHOICES: Mapping[str, Iterable[str]] = {
    "data.binarization": binarization.BINARIZATIONS,
    "model.network": NETWORKS,
    "model.activation": ACTIVATIONS,
    "model.posterior": POSTERIORS,
    "model.likelihood": LIKELIHOODS,
    "model.scale": ("learned", "fixed"),
    "bound.name": BOUNDS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
}
_POSITIVE = (
    "model.latent_dim",
    "bound.num_samples",
    "optimizer.learning_rate",
    "model.fixed_scale",
    "train.num_epochs",
    "train.batch_size",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.num_samples",
    "eval.batch_size",
)
_NOT_NEGATIVE = (
    "bound.kl_weight",
    "bound.kl_warmup_steps",
    "model.min_scale",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "data.validation_size",
    "data.test_size",
    "data.memory_limit_mb",
    "data.workers",
    "train.patience",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a config stands for.

    Attributes:
      config: the full config, with what depends on the data filled in.
      dataset: the three splits.
      model: encode, decode, prior.
      learner: init and update.
      bound: the bound that is trained and evaluated.
      preprocess: from a stored example to a datapoint, for each split.
      learning_rate: a function of the step.
      num_steps: where training ends.
      init_key, shuffle_key, eval_key, draw_key: what parameters, order, evaluation and pictures derive from.
    """

    config: ConfigDict
    dataset: data.Dataset
    model: models.VAE
    learner: learners.Learner
    bound: Callable[..., bounds.Bound]
    preprocess: dict[str, binarization.Preprocess]
    learning_rate: optax.Schedule
    num_steps: int
    init_key: jax.Array
    shuffle_key: jax.Array
    eval_key: jax.Array
    draw_key: jax.Array

    @property
    def feed(self) -> Feed:
        """The training split on its way to the devices."""
        return make_feed(self.dataset.train, self.batch_size, self.shuffle_key, self.config.data.workers)

    @property
    def batch_size(self) -> int:
        """Examples in a step, over all devices."""
        return self.config.train.batch_size

    @property
    def ema_decay(self) -> float:
        """Of the average of the weights; 0 where none is kept."""
        return self.config.train.ema_decay

    @property
    def patience(self) -> int:
        """Validation bounds without a better one before stopping early; 0 never stops."""
        return self.config.train.patience

    @property
    def num_importance_samples(self) -> int:
        """Of the test evaluation at the end."""
        return self.config.eval.num_samples

    @property
    def facts(self) -> dict[str, Any]:
        """What every number of the run is to be read with."""
        return {
            "dataset": self.dataset.name,
            "splits": self.dataset.splits,
            "binarization": self.config.data.binarization,
            "likelihood": self.config.model.likelihood,
            # Grey values under a Bernoulli have no density, so the bound is one on nothing.
            "density": self.config.data.binarization != "grey",
            "bound": self.config.bound.name,
            "seed": self.config.seed,
        }

    def init_state(self) -> learners.TrainState:
        """The state before the first step."""
        state = jax.jit(self.learner.init)(self.init_key)  # compiled as one: operation by operation takes seconds
        return state.replace(ema_params=state.params) if self.ema_decay else state

    def split(self, name: str) -> data.Split:
        """One of the three splits, with at least one example in it."""
        split = getattr(self.dataset, name)
        if not len(split.examples):
            raise InputError(f"the {name} split of {self.dataset.name} is empty: choose another --split")
        return split

    def split_key(self, name: str) -> jax.Array:
        """What the evaluation of a split derives from, with the index of the example."""
        return jax.random.fold_in(self.eval_key, SPLITS.index(name))

    def map_split(self, fn: Callable[[Any, jax.Array, jax.Array], Any], name: str, batches: int = 1) -> Callable:
        """`map_examples` over a split of this run, `batches` times the config's batch at once."""
        return map_examples(fn, self.preprocess[name], batches * self.eval_batch_size)

    @functools.cache  # noqa: B019, a run lives as long as its process
    def bound_of_split(self, name: str) -> Callable:
        """`map_examples` of the trained bound, compiled once a split."""
        return self.map_split(aevb_learner.datapoint_bound(self.model, self.bound), name, batches=10)

    @property
    def eval_batch_size(self) -> int:
        """Datapoints evaluated at once, over all devices."""
        return self.config.eval.batch_size


def build(config: ConfigDict) -> Run:
    """Load the data and make the model and the learner.

    Raises:
      InputError: a key has a value that cannot be used, or the data cannot be.
    """
    check(config)
    dataset = load_data(config)
    num_examples = len(dataset.train.examples)
    num_steps = math.ceil(config.train.num_epochs * num_examples / config.train.batch_size)
    config = fill_in(config, num_steps)
    model = make_model(config.model, dataset.event_shape)
    for name in SPLITS:
        binarization.check_values(
            getattr(dataset, name).examples,
            config.data.binarization,
            model.likelihood.support,
            f"the {name} split of {dataset.name}",
        )
    if config.train.patience and not len(dataset.validation.examples):
        raise InputError("config.train.patience needs a validation split: set config.data.validation_size above 0")
    static_keys = jax.random.split(jax.random.fold_in(jax.random.key(config.data.seed), DATA_STREAM), len(SPLITS))
    init_key, shuffle_key, eval_key, draw_key = jax.random.split(jax.random.key(config.seed), 4)
    return Run(
        config=config,
        dataset=dataset,
        model=model,
        learner=make_learner(config, model, num_examples),
        bound=BOUNDS[config.bound.name],
        preprocess={
            name: binarization.make_preprocess(config.data.binarization, key)
            for name, key in zip(SPLITS, static_keys, strict=True)
        },
        learning_rate=learning_rate(config.optimizer),
        num_steps=num_steps,
        init_key=init_key,
        shuffle_key=shuffle_key,
        eval_key=eval_key,
        draw_key=draw_key,
    )


def check(config: ConfigDict) -> None:
    """Refuse values that no run could use, before any work.

    Raises:
      InputError: for the first of them.
    """
    flat = flatten(config.to_dict())
    for key, choices in _CHOICES.items():
        if flat[key] not in choices:
            raise InputError(f"config.{key} is {flat[key]!r}: choose one of {', '.join(choices)}")
    for key in _POSITIVE:
        if not flat[key] > 0:
            raise InputError(f"config.{key} is {flat[key]}: it must be above 0")
    for key in _NOT_NEGATIVE:
        if not flat[key] >= 0:
            raise InputError(f"config.{key} is {flat[key]}: it must not be negative")
    for key in ("seed", "data.seed"):
        if not 0 <= flat[key] < 2**32:
            raise InputError(f"config.{key} is {flat[key]}: it must be a whole number from 0 to 2**32 - 1")
    for key, least in (("model.hidden", 1), ("optimizer.boundaries", 0)):
        if not all(isinstance(item, int) and item >= least for item in flat[key]):
            raise InputError(f"config.{key} is {flat[key]}: it must be a list of whole numbers, each at least {least}")
    if not 0 <= flat["train.ema_decay"] < 1:
        raise InputError(f"config.train.ema_decay is {flat['train.ema_decay']}: it must be in [0, 1)")
    _check_pairs(flat)


def _check_pairs(flat: dict[str, Any]) -> None:
    """Refuse values that do not go together."""
    for key in ("train.eval_every_steps", "train.checkpoint_every_steps"):
        if flat[key] % flat["train.log_every_steps"]:
            raise InputError(
                f"config.{key} is {flat[key]}, not a multiple of config.train.log_every_steps, "
                f"which is {flat['train.log_every_steps']}: change one of them"
            )
    if flat["optimizer.weight_decay"] and flat["optimizer.name"] != "adamw":
        raise InputError(
            f"config.optimizer.weight_decay is {flat['optimizer.weight_decay']}, but {flat['optimizer.name']} has "
            "none: use --config.optimizer.name=adamw, or --config.bound.weight_prior=True for the paper's prior"
        )
    boundaries, scales = flat["optimizer.boundaries"], flat["optimizer.scales"]
    if len(boundaries) != len(scales):
        raise InputError(
            f"config.optimizer.boundaries is {boundaries} and scales is {scales}: give one scale a boundary"
        )


def fill_in(config: ConfigDict, num_steps: int) -> ConfigDict:
    """The config with what depends on the data written out, so that config.json says all there is to know."""
    config = ConfigDict(config)
    if config.optimizer.schedule == "cosine" and not config.optimizer.decay_steps:
        config.optimizer.decay_steps = max(num_steps - config.optimizer.warmup_steps, 1)
    return config


def load_data(config: ConfigDict) -> data.Dataset:
    keys = config.data
    return data.load(
        config.dataset,
        data_dir=keys.dir or os.environ.get("AEVB_DATA_DIR") or None,
        validation_size=keys.validation_size,
        test_size=keys.test_size,
        seed=keys.seed,
        memory_limit_mb=keys.memory_limit_mb,
    )


def make_model(keys: ConfigDict, event_shape: tuple[int, ...]) -> models.VAE:
    network = functools.partial(
        NETWORKS[keys.network],
        hidden=tuple(keys.hidden),
        activation=ACTIVATIONS[keys.activation],
    )
    return models.vae(
        event_shape,
        keys.latent_dim,
        network=network,
        posterior=POSTERIORS[keys.posterior](),
        likelihood=LIKELIHOODS[keys.likelihood](keys),
    )


def make_learner(config: ConfigDict, model: models.VAE, num_examples: int) -> learners.Learner:
    keys = config.bound
    warmup = optax.linear_schedule(0.0, 1.0, keys.kl_warmup_steps) if keys.kl_warmup_steps else None
    return aevb_learner.learner(
        model,
        make_optimizer(config.optimizer),
        bound=BOUNDS[keys.name],
        num_samples=keys.num_samples,
        kl_weight=keys.kl_weight,
        kl_warmup=warmup,
        weight_prior_examples=num_examples if keys.weight_prior else None,
    )


def make_optimizer(keys: ConfigDict) -> optax.GradientTransformation:
    """Clip, then the optimizer at the peak learning rate, then the schedule's factor.

    Learning rate and weight decay are arrays in the state (`inject_hyperparams`), so that runs that differ in them are
    one program.
    """
    parts = [optax.clip_by_global_norm(keys.clip_norm)] if keys.clip_norm else []
    optimizer = optax.inject_hyperparams(OPTIMIZERS[keys.name])
    parts.append(optimizer(learning_rate=keys.learning_rate, weight_decay=keys.weight_decay))
    if keys.schedule != "constant" or keys.warmup_steps:
        parts.append(optax.scale_by_schedule(learning_rate_factor(keys)))
    return optax.chain(*parts)


def learning_rate_factor(keys: ConfigDict) -> optax.Schedule:
    """The factor of the learning rate at a step: a linear warm-up from 0, then the schedule from its start."""
    schedule = SCHEDULES[keys.schedule](keys)
    if not keys.warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, 1.0, keys.warmup_steps)
    return optax.join_schedules([warmup, schedule], [keys.warmup_steps])


def learning_rate(keys: ConfigDict) -> optax.Schedule:
    """The learning rate at a step."""
    factor = learning_rate_factor(keys)
    return lambda step: keys.learning_rate * float(factor(step))
