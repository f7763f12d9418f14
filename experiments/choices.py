"""What a config can name: dictionaries from names to builders, and the model, learner and optimizer made of them.

Adding a network, a likelihood, a bound, a learner or an optimizer is one line in a dictionary here, beside its file.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax
from flax import linen as nn
from ml_collections import ConfigDict

from aevb import bounds, learners, models, networks
from aevb.data.corruption import CORRUPTIONS
from aevb.errors import InputError
from aevb.inference.annealed_importance import MIN_CHAINS
from aevb.learners import aevb as aevb_learner
from aevb.learners import autoencoding, full_vb, kl_weights, masked, mcem, wake_sleep

# Of the encoder and of the decoder, and the keys of config.model that both read.
NETWORKS: Mapping[str, tuple[Callable, Callable, tuple[str, ...]]] = {
    "mlp": (networks.MLP, networks.MLP, ("hidden", "activation", "init_scale")),
    "gated_mlp": (networks.GatedMLP, networks.GatedMLP, ("hidden", "init_scale")),
    "conv": (networks.ConvEncoder, networks.ConvDecoder, ("channels", "hidden", "activation", "init_scale")),
    "residual": (
        networks.ResidualEncoder,
        networks.ResidualDecoder,
        ("channels", "num_blocks", "hidden", "activation", "init_scale"),
    ),
}
ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "gelu": nn.gelu, "elu": nn.elu, "softplus": nn.softplus}
# Of a deterministic code, from the encoder's output.
CODES: Mapping[str, Callable[[ConfigDict], Callable | None]] = {
    "linear": lambda model: None,
    "relu": lambda model: nn.relu,
    "sigmoid": lambda model: nn.sigmoid,
    "top_k": lambda model: models.top_k(model.code_k),
}
# With the keys of config.model that each reads.
POSTERIORS: Mapping[str, tuple[Callable[[ConfigDict], nn.Module], tuple[str, ...]]] = {
    "diagonal_gaussian": (lambda model: models.DiagonalGaussian(), ()),
    "full_gaussian": (lambda model: models.FullGaussian(), ()),
    "point_mass": (lambda model: models.PointMass(CODES[model.code](model)), ("code", "code_k")),
    **{family: (lambda model, family=family: models.FactorizedPosterior(family), ()) for family in models.FAMILIES},
}
PRIORS: Mapping[str, Callable[[int], nn.Module]] = {
    "standard_normal": models.StandardNormal,
    "conditional_gaussian": models.ConditionalGaussian,
    **{family: functools.partial(models.FactorizedPrior, family) for family in models.FAMILIES},
}
_LOCATION_SCALE = ("scale", "fixed_scale", "min_scale", "sigmoid_mean")
# With the keys of config.model that each reads.
LIKELIHOODS: Mapping[str, tuple[Callable[[ConfigDict], nn.Module], tuple[str, ...]]] = {
    "bernoulli": (lambda model: models.Bernoulli(), ()),
    "continuous_bernoulli": (lambda model: models.ContinuousBernoulli(), ()),
    "gaussian": (lambda model: models.Gaussian(**location_scale(model)), _LOCATION_SCALE),
    "laplace": (lambda model: models.Laplace(**location_scale(model)), _LOCATION_SCALE),
    "categorical": (lambda model: models.Categorical(), ()),
    "logistic_mixture": (lambda model: models.DiscretizedLogisticMixture(model.num_components), ("num_components",)),
    "poisson": (lambda model: models.Poisson(), ()),
    "negative_binomial": (lambda model: models.NegativeBinomial(model.scale == "shared"), ("scale",)),
    "zero_inflated_negative_binomial": (
        lambda model: models.ZeroInflatedNegativeBinomial(model.scale == "shared"),
        ("scale",),
    ),
}
BOUNDS = {
    "sgvb_a": bounds.sgvb_a,
    "sgvb_b": bounds.sgvb_b,
    "score_function": bounds.score_function,
    "iwae": bounds.iwae,
}
# From the bound's keys to a factor of beta, a function of the step; and which of the keys each reads.
KL_SCHEDULES: Mapping[str, tuple[Callable[[ConfigDict], optax.Schedule | None], tuple[str, ...]]] = {
    "constant": (lambda keys: None, ()),
    "linear": (lambda keys: optax.linear_schedule(0.0, 1.0, keys.kl_warmup_steps), ("kl_warmup_steps",)),
    "cosine": (lambda keys: kl_weights.cosine_schedule(keys.kl_warmup_steps), ("kl_warmup_steps",)),
    "cyclical": (
        lambda keys: kl_weights.cyclical_schedule(keys.kl_warmup_steps, keys.kl_cycle_steps),
        ("kl_warmup_steps", "kl_cycle_steps"),
    ),
    "adaptive": (lambda keys: None, ("log_likelihood_target", "adaptation_rate")),
}
# Each with the keys of the config that it reads.
OPTIMIZERS: Mapping[str, tuple[Callable[..., optax.GradientTransformation], dict[str, str]]] = {
    "adam": (optax.adam, {}),
    "adamw": (optax.adamw, {"weight_decay": "weight_decay"}),
    "adagrad": (optax.adagrad, {"initial_accumulator_value": "initial_accumulator"}),
    "sgd": (optax.sgd, {}),
}
# From the optimizer's keys to a factor of the learning rate, a function of the step.
SCHEDULES: Mapping[str, Callable[[ConfigDict], optax.Schedule]] = {
    "constant": lambda keys: optax.constant_schedule(1.0),
    "cosine": lambda keys: optax.cosine_decay_schedule(1.0, keys.decay_steps),
    "piecewise": lambda keys: optax.piecewise_constant_schedule(
        1.0, dict(zip(keys.boundaries, keys.scales, strict=True))
    ),
}
# From the config, the size of the training set, and what every learner takes.
LEARNERS: Mapping[str, Callable[..., learners.Learner]] = {
    "aevb": lambda config, num_examples, **common: aevb_learner.learner(
        **common, **bound_of(config.bound), **kl_options(config.bound)
    ),
    "wake_sleep": lambda config, num_examples, **common: wake_sleep.learner(**common, **bound_of(config.bound)),
    "full_vb": lambda config, num_examples, weight_prior_examples, **common: full_vb.learner(
        **common, num_examples=num_examples, **bound_of(config.bound)
    ),
    "mcem": lambda config, num_examples, **common: mcem.learner(
        **common,
        num_examples=num_examples,
        num_leapfrog=config.learner.num_leapfrog,
        target_acceptance=config.learner.target_acceptance,
        weight_updates=config.learner.weight_updates,
    ),
    "autoencoding": lambda config, num_examples, weight_prior_examples, **common: autoencoding.learner(
        **common, l1_weight=config.learner.l1_weight
    ),
    "masked": lambda config, num_examples, weight_prior_examples, **common: masked.learner(**common),
}
AUTOENCODING = ("autoencoding", "masked")  # those that learn a code without a density
_CORRUPTED = ("data.corruption", "data.corruption_level")  # what the encoder sees in the place of x
# The keys of config.bound, config.learner and config.data that each of them reads; one that reads no bound's name has
# none.
LEARNER_KEYS: Mapping[str, tuple[str, ...]] = {
    "aevb": (
        "bound.name",
        "bound.num_samples",
        "bound.kl_weight",
        "bound.kl_schedule",
        "bound.kl_warmup_steps",
        "bound.kl_cycle_steps",
        "bound.log_likelihood_target",
        "bound.adaptation_rate",
        "bound.free_bits",
        "bound.weight_prior",
        *_CORRUPTED,
    ),
    "wake_sleep": ("bound.name", "bound.num_samples", "bound.weight_prior"),
    "full_vb": ("bound.name", "bound.num_samples"),
    "mcem": (
        "bound.weight_prior",
        "learner.num_leapfrog",
        "learner.target_acceptance",
        "learner.weight_updates",
    ),
    "autoencoding": ("learner.l1_weight", *_CORRUPTED),
    "masked": (),
}


class Estimator(NamedTuple):
    """Of log p(x): its usual number of samples at the end of a run, and the least for so many latent dimensions."""

    usual: int
    least: Callable[[int], int]


ESTIMATORS = {
    "importance": Estimator(1000, lambda latent_dim: 1),
    "hmc": Estimator(50, lambda latent_dim: 2 * (latent_dim + 1)),
    "ais": Estimator(16, lambda latent_dim: MIN_CHAINS),
    "none": Estimator(0, lambda latent_dim: 0),
}


def make_model(
    config: ConfigDict, event_shape: tuple[int, ...], context_dim: int
) -> models.VAE | models.MaskedAutoencoder:
    if config.model.network == "vit":
        return models.masked_autoencoder(event_shape, **config.vit)
    keys = config.model
    encoder, decoder, reads = NETWORKS[keys.network]
    options = {
        "hidden": tuple(keys.hidden),
        "activation": ACTIVATIONS[keys.activation],
        "init_scale": keys.init_scale or None,
        "channels": tuple(keys.channels),
        "num_blocks": keys.num_blocks,
    }
    options = {name: option for name, option in options.items() if name in reads}
    mirrored = options | {"hidden": options["hidden"][::-1]}
    return models.vae(
        event_shape,
        keys.latent_dim,
        network=functools.partial(encoder, **options),
        decoder_network=functools.partial(decoder, **mirrored),
        posterior=POSTERIORS[keys.posterior][0](keys),
        likelihood=LIKELIHOODS[keys.likelihood][0](keys),
        prior=PRIORS[keys.prior](keys.latent_dim),
        context_dim=context_dim,
    )


def location_scale(keys: ConfigDict) -> dict[str, Any]:
    """The options of a Gaussian or Laplace likelihood."""
    scale = {"fixed": keys.fixed_scale, "learned": None, "shared": "shared"}[keys.scale]
    return {"scale": scale, "min_scale": keys.min_scale, "sigmoid_mean": keys.sigmoid_mean}


def make_corruption(keys: ConfigDict) -> Callable | None:
    """What the encoder sees of a training example in its place; None where it sees the example."""
    told = corruption(keys)
    return None if told is None else CORRUPTIONS[told[0]](told[1])


def corruption(keys: ConfigDict) -> tuple[str, float] | None:
    """The name and the level of what training examples are corrupted by; None where they are not."""
    return None if keys.corruption == "none" else (keys.corruption, keys.corruption_level)


def make_learner(config: ConfigDict, model: models.VAE, num_examples: int) -> learners.Learner:
    several = "learner.weight_updates" in LEARNER_KEYS[config.learner.name]
    updates_per_step = config.learner.weight_updates if several else 1
    return LEARNERS[config.learner.name](
        config,
        num_examples,
        model=model,
        optimizer=make_optimizer(config.optimizer, updates_per_step),
        weight_prior_examples=num_examples if config.bound.weight_prior else None,
    )


def fill_in(config: ConfigDict, num_steps: int) -> ConfigDict:
    """The config with what depends on the data written out, so that config.json says all there is to know."""
    config = ConfigDict(config)
    if config.optimizer.schedule == "cosine" and not config.optimizer.decay_steps:
        config.optimizer.decay_steps = max(num_steps - config.optimizer.hold_steps - config.optimizer.warmup_steps, 1)
    return config


def names(config: ConfigDict) -> dict[str, str | None]:
    """What a run's numbers are to be read with; a learner without an encoder has no bound."""
    learner = config.learner.name
    bound = config.bound.name if has_bound(learner) else None
    weights = "mean of q(theta)" if learner == "full_vb" else "point estimate"
    return {"likelihood": config.model.likelihood, "learner": learner, "bound": bound, "weights": weights}


def has_bound(learner: str) -> bool:
    """Whether a learner trains an encoder and climbs, or can be judged by, a bound."""
    return "bound.name" in LEARNER_KEYS[learner]


def elbo_function(config: ConfigDict, model: models.VAE) -> bounds.BoundFn | None:
    """The elbo that evaluation computes, whatever is trained: with its KL in closed form, where there is one.

    A code without a density has none.
    """
    if config.learner.name in AUTOENCODING:
        return None
    pair = model.posterior, model.prior, model.latent_dim, model.context_dim
    return bounds.sgvb_b if models.has_closed_form_kl(*pair) else bounds.sgvb_a


def check_bound(config: ConfigDict, model: models.VAE, num_steps: int) -> None:
    """Refuse a bound in closed form where there is none, and a beta that cannot get to where it should.

    Raises:
      InputError: NumPyro knows no KL of this posterior from this prior; beta rises for longer than the run; or its
        target is a log-likelihood that no mass has.
    """
    rise, target = config.bound.kl_warmup_steps, config.bound.log_likelihood_target
    if rise > num_steps:
        raise InputError(
            f"config.bound.kl_warmup_steps is {rise}, but the run has {num_steps} steps, so beta would never get to "
            f"its weight: use --config.bound.kl_warmup_steps={max(1, num_steps // 2)} or more config.train.num_epochs"
        )
    if target > 0 and model.likelihood.support in ("binary", "levels", "counts"):
        raise InputError(
            f"config.bound.log_likelihood_target is {target:g}, but the log-likelihood of a mass is below 0: give the "
            "nats per datapoint to hold, below 0"
        )
    if names(config)["bound"] == "sgvb_b" and not models.has_closed_form_kl(
        model.posterior, model.prior, model.latent_dim, model.context_dim
    ):
        raise InputError(
            f"config.bound.name is sgvb_b, whose KL has no closed form for the posterior {config.model.posterior} and "
            f"the prior {config.model.prior}: use --config.bound.name=sgvb_a"
        )


def bound_of(keys: ConfigDict) -> dict[str, Any]:
    return {"bound": BOUNDS[keys.name], "num_samples": keys.num_samples}


def kl_options(keys: ConfigDict) -> dict[str, Any]:
    schedule, _ = KL_SCHEDULES[keys.kl_schedule]
    return {
        "kl_weight": keys.kl_weight,
        "kl_schedule": schedule(keys),
        "free_bits": keys.free_bits,
        "log_likelihood_target": keys.log_likelihood_target if keys.kl_schedule == "adaptive" else None,
        "adaptation_rate": keys.adaptation_rate,
    }


def make_optimizer(keys: ConfigDict, updates_per_step: int = 1) -> optax.GradientTransformation:
    """Clip, then the optimizer at the peak learning rate, then the schedule's factor, which counts training steps.

    Learning rate and weight decay are arrays in the state (`inject_hyperparams`), so that runs that differ in them are
    one program.
    """
    parts = [optax.clip_by_global_norm(keys.clip_norm)] if keys.clip_norm else []
    make, reads = OPTIMIZERS[keys.name]
    options = {option: keys[key] for option, key in reads.items()}
    parts.append(optax.inject_hyperparams(make)(learning_rate=keys.learning_rate, **options))
    if keys.schedule != "constant" or keys.hold_steps or keys.warmup_steps:
        factor = learning_rate_factor(keys)
        parts.append(optax.scale_by_schedule(lambda count: factor(count // updates_per_step)))
    return optax.chain(*parts)


def learning_rate_factor(keys: ConfigDict) -> optax.Schedule:
    """The factor of the learning rate at a step: held at 0, a linear warm-up, then the schedule from its start."""
    parts, ends = [], []
    if keys.hold_steps:
        parts, ends = [optax.constant_schedule(0.0)], [keys.hold_steps]
    if keys.warmup_steps:
        parts.append(optax.linear_schedule(0.0, 1.0, keys.warmup_steps))
        ends.append(keys.hold_steps + keys.warmup_steps)
    return optax.join_schedules([*parts, SCHEDULES[keys.schedule](keys)], ends)


def learning_rate(keys: ConfigDict) -> optax.Schedule:
    """The learning rate at a step."""
    factor = learning_rate_factor(keys)
    return lambda step: keys.learning_rate * float(factor(step))
