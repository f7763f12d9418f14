"""What no run could use, refused before any work."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from aevb.data import binarization
from aevb.errors import InputError
from aevb.inference.marginal_likelihood import LARGEST_DIM
from experiments import choices
from experiments.settings import flatten

CHOICES: Mapping[str, Iterable[str]] = {
    "data.binarization": binarization.BINARIZATIONS,
    "model.network": choices.NETWORKS,
    "model.activation": choices.ACTIVATIONS,
    "model.posterior": choices.POSTERIORS,
    "model.prior": choices.PRIORS,
    "model.likelihood": choices.LIKELIHOODS,
    "model.scale": ("learned", "fixed"),
    "bound.name": choices.BOUNDS,
    "learner.name": choices.LEARNERS,
    "optimizer.name": choices.OPTIMIZERS,
    "optimizer.schedule": choices.SCHEDULES,
    "eval.curve_measure": ("bound", "marginal"),
    "eval.curve_split": ("validation", "test"),
    "eval.estimator": ("importance", "hmc", "ais"),
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
    "learner.num_leapfrog",
    "learner.weight_updates",
    "eval.num_samples",
    "eval.batch_size",
)
_NOT_NEGATIVE = (
    "bound.kl_weight",
    "bound.kl_warmup_steps",
    "model.min_scale",
    "optimizer.hold_steps",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.initial_accumulator",
    "model.init_scale",
    "eval.curve_examples",
    "eval.max_examples",
    "data.train_size",
    "data.validation_size",
    "data.test_size",
    "data.memory_limit_mb",
    "data.workers",
    "train.patience",
)


def check(config: ConfigDict) -> None:
    """Refuse values that no run could use, before any work.

    Raises:
      InputError: for the first of them.
    """
    flat = flatten(config.to_dict())
    for key, names in CHOICES.items():
        if flat[key] not in names:
            raise InputError(f"config.{key} is {flat[key]!r}: choose one of {', '.join(names)}")
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
    for key, allowed, values in (
        ("train.ema_decay", "in [0, 1)", 0 <= flat["train.ema_decay"] < 1),
        ("train.eval_growth", "0 or above 1", flat["train.eval_growth"] == 0 or flat["train.eval_growth"] > 1),
        ("learner.target_acceptance", "in (0, 1)", 0 < flat["learner.target_acceptance"] < 1),
    ):
        if not values:
            raise InputError(f"config.{key} is {flat[key]}: it must be {allowed}")
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
    for key, default in (("bound.kl_weight", 1), ("bound.kl_warmup_steps", 0)):
        if flat[key] != default and flat["learner.name"] != "aevb":
            raise InputError(
                f"config.{key} is {flat[key]}, but {flat['learner.name']} weighs no KL: leave it {default}"
            )
    if flat["bound.weight_prior"] and flat["learner.name"] == "full_vb":
        raise InputError(
            "config.bound.weight_prior is True, but full_vb has the prior on weights in its own bound: leave it False"
        )
    if flat["learner.name"] in choices.WITHOUT_ENCODER and (
        flat["eval.curve_measure"] == "bound" or flat["eval.estimator"] == "importance"
    ):
        raise InputError(
            f"config.learner.name is {flat['learner.name']}, which trains no encoder and so has no bound: set "
            "--config.eval.curve_measure=marginal and --config.eval.estimator=hmc, or start from "
            f"experiments/configs/paper.py:mnist,{flat['learner.name']}"
        )
    by_hmc = flat["eval.curve_measure"] == "marginal" or flat["eval.estimator"] == "hmc"
    if by_hmc and flat["model.latent_dim"] > LARGEST_DIM:
        raise InputError(
            f"the estimator of appendix D fails above {LARGEST_DIM} latent dimensions, and config.model.latent_dim is "
            f"{flat['model.latent_dim']}: use --config.eval.estimator=ais or importance, and curve_measure=bound"
        )
    if flat["eval.curve_split"] == "test" and flat["train.patience"]:
        raise InputError(
            "config.train.patience would choose the model by the test split, which config.eval.curve_split names: set "
            "--config.eval.curve_split=validation"
        )
    boundaries, scales = flat["optimizer.boundaries"], flat["optimizer.scales"]
    if len(boundaries) != len(scales):
        raise InputError(
            f"config.optimizer.boundaries is {boundaries} and scales is {scales}: give one scale a boundary"
        )
