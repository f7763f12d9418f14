"""What no run could use, refused before any work."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from aevb.data import binarization
from aevb.data.corruption import CORRUPTIONS
from aevb.errors import InputError
from aevb.inference.marginal_likelihood import LARGEST_DIM
from experiments import choices
from experiments.configs import base
from experiments.settings import flatten

CHOICES: Mapping[str, Iterable[str]] = {
    "data.binarization": binarization.BINARIZATIONS,
    "model.network": (*choices.NETWORKS, "vit"),
    "model.activation": choices.ACTIVATIONS,
    "model.posterior": choices.POSTERIORS,
    "model.code": choices.CODES,
    "data.corruption": ("none", *CORRUPTIONS),
    "model.context": ("none", "label"),
    "model.prior": choices.PRIORS,
    "model.likelihood": choices.LIKELIHOODS,
    "model.scale": ("learned", "shared", "fixed"),
    "bound.name": choices.BOUNDS,
    "bound.kl_schedule": choices.KL_SCHEDULES,
    "learner.name": choices.LEARNERS,
    "optimizer.name": choices.OPTIMIZERS,
    "optimizer.schedule": choices.SCHEDULES,
    "eval.curve_measure": ("bound", "marginal", "reconstruction", "none"),
    "eval.curve_split": ("validation", "test"),
    "eval.estimator": choices.ESTIMATORS,
}
_POSITIVE = (
    "model.latent_dim",
    "model.num_blocks",
    "model.num_components",
    "bound.num_samples",
    "bound.adaptation_rate",
    "optimizer.learning_rate",
    "model.fixed_scale",
    "model.code_k",
    *(f"vit.{key}" for key in ("patch_size", "width", "depth", "num_heads", "decoder_width", "decoder_depth")),
    "model.min_scale",
    "train.num_epochs",
    "train.batch_size",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "learner.num_leapfrog",
    "learner.weight_updates",
    "eval.batch_size",
)
_NOT_NEGATIVE = (
    "bound.kl_weight",
    "bound.kl_warmup_steps",
    "bound.kl_cycle_steps",
    "bound.free_bits",
    "learner.l1_weight",
    "optimizer.hold_steps",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.initial_accumulator",
    "model.init_scale",
    "eval.curve_examples",
    "eval.num_samples",
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
    if flat["data.held_out_class"] < -1:
        raise InputError(f"config.data.held_out_class is {flat['data.held_out_class']}: give a class, or -1 for none")
    for key in ("seed", "data.seed"):
        if not 0 <= flat[key] < 2**32:
            raise InputError(f"config.{key} is {flat[key]}: it must be a whole number from 0 to 2**32 - 1")
    if not flat["model.channels"]:
        raise InputError("config.model.channels is (): give at least one number of channels")
    for key, least in (("model.hidden", 1), ("model.channels", 1), ("optimizer.boundaries", 0)):
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
    if flat["model.prior"] == "conditional_gaussian" and flat["model.context"] == "none":
        raise InputError(
            "config.model.prior is conditional_gaussian, but config.model.context is none: set "
            "--config.model.context=label, or --config.model.prior=standard_normal"
        )
    reads = {name: tuple(f"model.{key}" for key in keys) for name, (_, _, keys) in choices.NETWORKS.items()}
    reads["vit"] = tuple(f"vit.{key}" for key in base.vit())
    _refuse_unread(flat, reads, flat["model.network"], "the network")
    reads = {name: tuple(f"model.{key}" for key in keys) for name, (_, keys) in choices.LIKELIHOODS.items()}
    _refuse_unread(flat, reads, flat["model.likelihood"], "the likelihood")
    if flat["model.likelihood"] in ("gaussian", "laplace"):
        reads = {"fixed": ("model.fixed_scale",), "learned": ("model.min_scale",), "shared": ("model.min_scale",)}
        _refuse_unread(flat, reads, flat["model.scale"], "the scale")
    if "negative_binomial" in flat["model.likelihood"] and flat["model.scale"] == "fixed":
        raise InputError(
            f"config.model.scale is fixed, but {flat['model.likelihood']} learns its dispersion: set it to learned or "
            "shared"
        )
    reads = {name: tuple(f"model.{key}" for key in keys) for name, (_, keys) in choices.POSTERIORS.items()}
    _refuse_unread(flat, reads, flat["model.posterior"], "the posterior")
    _refuse_unread(flat, {"top_k": ("model.code_k",)}, flat["model.code"], "the code")
    noise = flat["data.corruption"]
    _refuse_unread(flat, {each: ("data.corruption_level",) for each in CORRUPTIONS}, noise, "the corruption")
    _check_autoencoder(flat)
    _check_learner(flat)
    _check_kl(flat)
    _check_estimator(flat)
    if flat["train.patience"] and (flat["eval.curve_split"] == "test" or flat["eval.curve_measure"] == "none"):
        raise InputError(
            "config.train.patience chooses the model by what is measured on the validation split: set "
            "--config.eval.curve_split=validation and --config.eval.curve_measure=bound, marginal or reconstruction"
        )
    boundaries, scales = flat["optimizer.boundaries"], flat["optimizer.scales"]
    if len(boundaries) != len(scales):
        raise InputError(
            f"config.optimizer.boundaries is {boundaries} and scales is {scales}: give one scale a boundary"
        )


def _refuse_unread(flat: dict[str, Any], reads: Mapping[str, tuple[str, ...]], chosen: str, what: str) -> None:
    """Refuse keys that others of a kind read, and the chosen one does not, where they are not as they come."""
    default = flatten(base.get_config().to_dict())
    for key in sorted({key for keys in reads.values() for key in keys} - set(reads.get(chosen, ()))):
        if flat[key] != default[key]:
            raise InputError(
                f"config.{key} is {flat[key]}, but {what} {chosen} does not read it: leave it {default[key]}"
            )


def _check_learner(flat: dict[str, Any]) -> None:
    """Refuse keys that the learner does not read, and a bound of one that has none."""
    name = flat["learner.name"]
    _refuse_unread(flat, choices.LEARNER_KEYS, name, "the learner")
    if choices.has_bound(name) or name in choices.AUTOENCODING:
        return
    if flat["eval.curve_measure"] == "bound" or flat["eval.estimator"] == "importance":
        raise InputError(
            f"config.learner.name is {name}, which trains no encoder and so has no bound: set "
            f"--config.eval.curve_measure=marginal and --config.eval.estimator=hmc, or none and ais above {LARGEST_DIM}"
            f" latent dimensions, or start from experiments/configs/paper.py:mnist,{name}"
        )


def _check_autoencoder(flat: dict[str, Any]) -> None:
    """Refuse a deterministic code where a bound is asked for, and the other way round."""
    measures = ("reconstruction", "none")
    is_code = flat["model.posterior"] == "point_mass"
    for key, of_code, ours in (
        ("learner.name", flat["learner.name"] in choices.AUTOENCODING, "autoencoding"),
        ("eval.estimator", flat["eval.estimator"] == "none", "none"),
        ("eval.curve_measure", flat["eval.curve_measure"] in measures, "reconstruction"),
    ):
        if is_code and not of_code:
            raise InputError(
                f"config.{key} is {flat[key]}, but config.model.posterior is point_mass, a code without a density, "
                f"which has no bound: use --config.{key}={ours}, or start from experiments/configs/deep.py"
            )
        if not is_code and of_code and (key, flat[key]) != ("eval.curve_measure", "none"):
            raise InputError(
                f"config.{key} is {flat[key]}, which is for autoencoders: set --config.model.posterior=point_mass, or "
                "start from experiments/configs/deep.py"
            )
    if (flat["model.network"] == "vit") != (flat["learner.name"] == "masked"):
        raise InputError(
            f"config.model.network is {flat['model.network']} and config.learner.name {flat['learner.name']}: vit and "
            "masked go with each other, so start from experiments/configs/mae.py"
        )
    default, reader = flatten(base.get_config().to_dict()), "an autoencoder"
    unread = {"model.prior": default["model.prior"]} if is_code else {}
    if flat["model.network"] == "vit":  # the model of experiments/configs/mae.py, which the section vit describes
        unread, reader = {key: value for key, value in default.items() if key.startswith("model.")}, "the network vit"
        unread |= {"model.network": "vit", "model.posterior": "point_mass"}
        unread |= {"model.likelihood": "gaussian", "model.scale": "fixed"}
    for key, value in unread.items():
        if flat[key] != value:
            raise InputError(f"config.{key} is {flat[key]}, but {reader} does not read it: leave it {value}")
    if not 0 <= flat["vit.mask_ratio"] < 1:
        raise InputError(f"config.vit.mask_ratio is {flat['vit.mask_ratio']}: it must be in [0, 1)")
    if flat["model.code_k"] > flat["model.latent_dim"] and flat["model.code"] == "top_k":
        raise InputError(
            f"config.model.code_k is {flat['model.code_k']}, but the code has {flat['model.latent_dim']} elements: "
            "keep at most as many"
        )


def _check_kl(flat: dict[str, Any]) -> None:
    """Refuse keys that beta's schedule does not read, or needs, and a KL that is weighed where the bound has none."""
    default, schedule = flatten(base.get_config().to_dict()), flat["bound.kl_schedule"]
    reads = {name: tuple(f"bound.{key}" for key in keys) for name, (_, keys) in choices.KL_SCHEDULES.items()}
    _refuse_unread(flat, reads, schedule, "beta's schedule")
    for key in reads[schedule]:
        if key.endswith("_steps") and not flat[key]:
            raise InputError(f"config.{key} is 0, but beta's schedule {schedule} needs it: set it above 0")
    if schedule == "cyclical" and flat["bound.kl_cycle_steps"] < flat["bound.kl_warmup_steps"]:
        raise InputError(
            f"config.bound.kl_cycle_steps is {flat['bound.kl_cycle_steps']}, shorter than the rise in it, "
            f"config.bound.kl_warmup_steps, which is {flat['bound.kl_warmup_steps']}: make it at least as long"
        )
    if schedule == "adaptive" and not flat["bound.kl_weight"] > 0:
        raise InputError("config.bound.kl_weight is 0, where no adaptive beta can start: set it above 0")
    if schedule == "adaptive" and not flat["bound.log_likelihood_target"]:
        raise InputError(
            "config.bound.log_likelihood_target is not set, and an adaptive beta needs it: give the nats per datapoint "
            "to hold, such as the log_likelihood in summary.json of a run at a constant beta"
        )
    for name in ("bound.kl_weight", "bound.kl_schedule", "bound.free_bits"):
        if flat["bound.name"] == "iwae" and flat[name] != default[name]:
            raise InputError(
                f"config.{name} is {flat[name]}, but the bound iwae has no KL to weigh: leave it {default[name]}, or "
                "use --config.bound.name=sgvb_b"
            )
    if flat["bound.name"] == "iwae" and flat["learner.name"] != "aevb":
        raise InputError(
            f"config.bound.name is iwae, which only the learner aevb climbs: use --config.bound.name=sgvb_b with "
            f"{flat['learner.name']}"
        )


def _check_estimator(flat: dict[str, Any]) -> None:
    """Refuse estimators of log p(x) that cannot give a number."""
    dim, num, estimator = flat["model.latent_dim"], flat["eval.num_samples"], flat["eval.estimator"]
    if (flat["eval.curve_measure"] == "marginal" or estimator == "hmc") and dim > LARGEST_DIM:
        with_bound = choices.has_bound(flat["learner.name"])
        others, measure = ("ais or importance", "bound") if with_bound else ("ais", "none")
        raise InputError(
            f"the estimator of appendix D fails above {LARGEST_DIM} latent dimensions, and config.model.latent_dim is "
            f"{dim}: use --config.eval.estimator={others}, and --config.eval.curve_measure={measure}"
        )
    least = choices.ESTIMATORS[estimator].least(dim)
    if 0 < num < least:
        raise InputError(
            f"config.eval.num_samples is {num}: {estimator} needs at least {least} for {dim} latent dimensions, and 0 "
            f"stands for its usual {choices.ESTIMATORS[estimator].usual}"
        )
