"""From a config to a run: its data, model and learner, and the keys that everything random derives from."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from aevb import bounds, data, learners, models
from aevb.data import binarization
from aevb.data.feeding import make_feed
from aevb.errors import InputError
from aevb.learners import aevb as aevb_learner
from aevb.training import Feed, map_examples
from experiments import choices, settings
from experiments.checks import check

SPLITS = ("train", "validation", "test")
# What runs of one program may differ in: the order of the examples comes from outside, the others are in the state.
NUMBERS = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "bound.kl_weight",
    "bound.log_likelihood_target",
    "learner.l1_weight",
)
# Keeps the keys of the data apart from those of training where both seeds are equal: split(key)[i] is fold_in(key, i).
DATA_STREAM = 2**31


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a config stands for.

    Attributes:
      config: the full config, with what depends on the data filled in.
      dataset: the three splits.
      model: encode, decode, prior.
      learner: init and update.
      elbo: the estimator of the elbo that is evaluated, whatever bound is trained.
      context: from a label to what the model is told; None for a model without.
      preprocess: from a stored example to a datapoint, for each split.
      learning_rate: a function of the step.
      num_steps: where training ends.
      init_key, shuffle_key, eval_key, draw_key: what parameters, order, evaluation and pictures derive from.
      programs: what `once` has made, for this run and its variants.
    """

    config: ConfigDict
    dataset: data.Dataset
    model: models.VAE
    learner: learners.Learner
    elbo: Callable[..., bounds.Bound]
    context: data.LabelContext | None
    preprocess: dict[str, binarization.Preprocess]
    learning_rate: optax.Schedule
    num_steps: int
    init_key: jax.Array
    shuffle_key: jax.Array
    eval_key: jax.Array
    draw_key: jax.Array
    programs: dict[Any, Callable] = dataclasses.field(default_factory=dict, init=False)

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
    def evaluation(self) -> dict[str, Any]:
        """How the test split is evaluated at the end."""
        keys = self.config.eval
        return {
            "estimator": keys.estimator,
            "num_samples": keys.num_samples or choices.ESTIMATORS[keys.estimator].usual,
            "max_examples": keys.max_examples or None,
        }

    @property
    def curve(self) -> tuple[str, str, int | None]:
        """What is measured during training, on which split, and on how many examples of it (None is all)."""
        keys = self.config.eval
        return keys.curve_measure, keys.curve_split, keys.curve_examples or None

    @property
    def corruption(self) -> tuple[str, float] | None:
        """The name and the level of what the encoder sees of training examples; None where it sees them."""
        return choices.corruption(self.config.data)

    @property
    def has_prior(self) -> bool:
        """Whether z has a prior to draw from; the code of an autoencoder has none."""
        return not isinstance(self.model.posterior, models.PointMass)

    @property
    def facts(self) -> dict[str, Any]:
        """What every number of the run is to be read with."""
        names = choices.names(self.config)
        return {
            "dataset": self.dataset.name,
            "splits": self.dataset.splits,
            "binarization": self.config.data.binarization,
            # Grey values under a Bernoulli have no density, so the bound is one on nothing.
            "density": self.config.data.binarization != "grey",
            "context": self.config.model.context,
            **names,
            "weights": names["weights"] + (", moving average" if self.ema_decay else ""),
            "seed": self.config.seed,
        }

    def once(self, make: Callable[..., Callable], *args: Any) -> Callable:
        """`make(self, *args)`, a function that is compiled, made once for this run and its variants.

        So it may read nothing of the run that variants differ in.
        """
        if (make, args) not in self.programs:
            self.programs[make, args] = make(self, *args)
        return self.programs[make, args]

    def init_state(self) -> learners.TrainState:
        """The state before the first step."""
        flat = settings.flatten(self.config.to_dict())
        state = self.once(_initialise, *(flat[key] for key in NUMBERS[1:]))(self.init_key)
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

    def map_split(self, fn: Callable[[Any, data.Datapoint, jax.Array], Any], name: str, batches: int = 1) -> Callable:
        """`map_examples` over a split of this run, `batches` times the config's batch at once; nothing is corrupted."""

        def clean(*stored: Any) -> data.Datapoint:
            return self.preprocess[name](*stored)._replace(corrupted=None)

        return map_examples(fn, clean, batches * self.eval_batch_size)

    @property
    def curve_bound(self) -> bounds.BoundFn:
        """What is measured of a split during training: the elbo, and what `iwae` has above it where that is trained."""
        return bounds.iwae if self.facts["bound"] == "iwae" else self.elbo

    @property
    def curve_samples(self) -> int:
        """Draws of z a datapoint for it."""
        return self.config.bound.num_samples if self.curve_bound is bounds.iwae else 1

    def bound_of_split(self, name: str) -> Callable:
        """`map_examples` of `curve_bound`, compiled once a split."""
        return self.once(_bound_of_split, name)

    @property
    def eval_batch_size(self) -> int:
        """Datapoints evaluated at once, over all devices."""
        return self.config.eval.batch_size


def build(config: ConfigDict, dataset: data.Dataset | None = None) -> Run:
    """Load the data, unless they are given, and make the model and the learner.

    Raises:
      InputError: a key has a value that cannot be used, or the data cannot be.
    """
    check(config)
    dataset = dataset or load_data(config)
    num_examples = len(dataset.train.examples)
    num_steps = math.ceil(config.train.num_epochs * num_examples / config.train.batch_size)
    config = choices.fill_in(config, num_steps)
    context = make_context(config, dataset)
    model = choices.make_model(config, dataset.event_shape, context.size if context else 0)
    choices.check_bound(config, model, num_steps)
    for name in SPLITS:
        binarization.check_values(
            getattr(dataset, name).examples,
            config.data.binarization,
            model.likelihood.support,
            f"the {name} split of {dataset.name}",
        )
    if config.train.patience and not len(dataset.validation.examples):
        raise InputError("config.train.patience needs a validation split: set config.data.validation_size above 0")
    corrupt = choices.make_corruption(config.data)
    static_keys = jax.random.split(jax.random.fold_in(jax.random.key(config.data.seed), DATA_STREAM), len(SPLITS))
    prepared = {
        name: binarization.prepare(
            getattr(dataset, name), config.data.binarization, key, context, corrupt if name == "train" else None
        )
        for name, key in zip(SPLITS, static_keys, strict=True)
    }
    return Run(
        config=config,
        dataset=dataclasses.replace(dataset, **{name: split for name, (split, _) in prepared.items()}),
        model=model,
        learner=choices.make_learner(config, model, num_examples),
        elbo=choices.elbo_function(config, model),
        context=context,
        preprocess={name: preprocess for name, (_, preprocess) in prepared.items()},
        learning_rate=choices.learning_rate(config.optimizer),
        num_steps=num_steps,
        **run_keys(config.seed),
    )


def variant(run: Run, config: ConfigDict) -> Run:
    """The run of a config that differs from that of another in `NUMBERS` alone; both share data, model and programs.

    Raises:
      InputError: a key has a value that cannot be used.
    """
    check(config)
    config = choices.fill_in(config, run.num_steps)
    choices.check_bound(config, run.model, run.num_steps)
    made = dataclasses.replace(
        run,
        config=config,
        learner=choices.make_learner(config, run.model, len(run.dataset.train.examples)),
        learning_rate=choices.learning_rate(config.optimizer),
        **run_keys(config.seed),
    )
    object.__setattr__(made, "programs", run.programs)  # of the same model; what is replaced elsewhere has its own
    return made


def run_keys(seed: int) -> dict[str, jax.Array]:
    """What the four keys of a run are, of its seed."""
    names = ("init_key", "shuffle_key", "eval_key", "draw_key")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def _initialise(run: Run, *numbers: float) -> Callable:
    """The first state of a key, with these numbers in it; compiled as one, operation by operation takes seconds."""
    del numbers
    return jax.jit(run.learner.init)


def _bound_of_split(run: Run, name: str) -> Callable:
    one = aevb_learner.datapoint_bound(run.model, run.curve_bound, run.curve_samples)
    return run.map_split(one, name, batches=10)


def make_context(config: ConfigDict, dataset: data.Dataset) -> data.LabelContext | None:
    """What the model is told of a datapoint, of `config.model.context`.

    Raises:
      InputError: labels are asked for that the data do not have.
    """
    if config.model.context == "none":
        return None
    return data.label_context(dataset)


def load_data(config: ConfigDict) -> data.Dataset:
    keys = config.data
    dataset = data.load(
        config.dataset,
        data_dir=keys.dir or os.environ.get("AEVB_DATA_DIR") or None,
        validation_size=keys.validation_size,
        test_size=keys.test_size,
        seed=keys.seed,
        memory_limit_mb=keys.memory_limit_mb,
    )
    if keys.held_out_class >= 0:
        dataset = data.without_class(dataset, keys.held_out_class)
    num, most = keys.train_size, len(dataset.train.examples)
    if not num:
        return dataset
    if num > most:
        raise InputError(f"config.data.train_size is {num}, but {config.dataset} has {most} training examples")
    splits = f"{dataset.splits}; trained on the first {num} of train"
    return dataclasses.replace(dataset, train=data.head(dataset.train, num), splits=splits)
