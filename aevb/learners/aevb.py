"""Auto-Encoding Variational Bayes: stochastic gradient ascent on a reparameterized bound (Kingma & Welling, alg. 1)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

from aevb import bounds, models
from aevb.data import Datapoint
from aevb.errors import InputError
from aevb.learners import Batch, Learner, TrainState, descend, example_keys, first_state, kl_weights, map_loss


def datapoint_bound(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int = 1
) -> Callable[[Any, Datapoint, jax.Array], bounds.Bound]:
    """`(params, point, key) -> Bound`: the bound of one datapoint from `num_samples` draws of z."""

    def one(params: Any, point: Datapoint, key: jax.Array) -> bounds.Bound:
        posterior, prior, samples = _draw(model, bound, num_samples, params, point, key)
        return bound(samples, posterior, prior)

    return one


def datapoint_bound_and_kl(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int = 1
) -> Callable[[Any, Datapoint, jax.Array], tuple[bounds.Bound, jax.Array]]:
    """`(params, point, key) -> (Bound, kl)`: `datapoint_bound`, and the KL by dimension from the same draws, nats.

    The KL is of each dimension of z, `[latent]`; `[1]`, all in one, where the posterior's dimensions depend on each
    other.
    """

    def one(params: Any, point: Datapoint, key: jax.Array) -> tuple[bounds.Bound, jax.Array]:
        posterior, prior, samples = _draw(model, bound, num_samples, params, point, key)
        value = bound(samples, posterior, prior)
        factorizes = isinstance(posterior, dist.Independent)
        return value, bounds.kl_per_dim(posterior, prior, samples.z) if factorizes else value.kl[None]

    return one


def _draw(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int, params: Any, point: Datapoint, key: jax.Array
) -> tuple[dist.Distribution, dist.Distribution, bounds.Samples]:
    """q(z | x), p(z), and draws from the first as the bound wants them."""
    vae = model.bind({"params": params}).given(point.context)
    posterior, prior = vae.encode(point.seen), vae.prior()
    reparameterized = bound is not bounds.score_function
    draws = bounds.draw(key, point.x, posterior, prior, vae.decode, num_samples, reparameterized=reparameterized)
    return posterior, prior, draws


def _batch_bound(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int, free_bits: float
) -> Callable[[Any, Datapoint, jax.Array, str | None], tuple[bounds.Bound, jax.Array]]:
    """`(params, points, keys, axis_name) -> (Bound, kl)`: of each datapoint, and the KL that is weighed, `[M]`."""
    if not free_bits:
        whole = jax.vmap(datapoint_bound(model, bound, num_samples), in_axes=(None, 0, 0))
        return lambda params, points, keys, _: ((each := whole(params, points, keys)), each.kl)
    parts = jax.vmap(datapoint_bound_and_kl(model, bound, num_samples), in_axes=(None, 0, 0))

    def freed(params: Any, points: Datapoint, keys: jax.Array, axis_name: str | None) -> tuple[bounds.Bound, jax.Array]:
        each, kl = parts(params, points, keys)
        free = free_bits * model.latent_dim / kl.shape[1]  # dimensions whose KL is one have theirs together
        return each, kl_weights.freed(kl, free, axis_name)

    return freed


def _check_weighed(model: models.VAE, bound: bounds.BoundFn, weighed: bool, free_bits: float) -> None:
    """Refuse to weigh a KL where the bound has none, or free bits none with a gradient.

    Raises:
      InputError: the bound is `iwae`; or free bits go with `score_function` and a pair without a closed form.
    """
    if bound is bounds.iwae and weighed:
        raise InputError(
            "the bound iwae has no KL to weigh: leave kl_weight, schedule, free bits and target as they are"
        )
    # At fixed draws E[grad log q] = 0: without the score, a KL estimated from them would be free altogether.
    pair = model.posterior, model.prior, model.latent_dim, model.context_dim
    if free_bits and bound is bounds.score_function and not models.has_closed_form_kl(*pair):
        raise InputError(
            f"free_bits is {free_bits:g}, and with the score function the KL of each dimension needs a closed form, "
            "which this posterior and prior lack: use the bound sgvb_a, or no free bits"
        )


def learner(
    model: models.VAE,
    optimizer: optax.GradientTransformation,
    *,
    bound: bounds.BoundFn = bounds.sgvb_b,
    num_samples: int = 1,
    kl_weight: float = 1.0,
    kl_schedule: optax.Schedule | None = None,
    free_bits: float = 0.0,
    log_likelihood_target: float | None = None,
    adaptation_rate: float = 1e-3,
    weight_prior_examples: int | None = None,
) -> Learner:
    """Maximise the bound over encoder and decoder together.

    `loss = -(1/N) [N/M sum_i (log_likelihood_i - beta_t kl_i + excess_i) + log p(theta)]`, nats per datapoint, with
    `beta_t = kl_weight * kl_schedule(t)` and the excess of `bounds.iwae` over the elbo. With free bits,
    `kl_weights.freed` stands for the KL. The metrics are of the bound itself, at beta = 1, whatever is trained.
    Where the encoder sees a corrupted x~, log_likelihood is that of the clean x at z ~ q(z | x~): still a bound on its
    log p(x), for any q is (Im et al., 1511.06406).

    Args:
      model: a VAE.
      optimizer: any Optax transformation, for example `optax.adam(1e-3)`.
      bound: `bounds.sgvb_b`, `bounds.sgvb_a`, `bounds.score_function`, or `bounds.iwae`, whose KL cannot be weighed.
      num_samples: draws of z a datapoint.
      kl_weight: beta, at least 0; carried in the state's hyperparameters.
      kl_schedule: from the step to a factor in [0, 1]; none is 1 always.
      free_bits: nats a latent dimension that the KL may have for nothing, see `kl_weights.freed`; a posterior whose
        dimensions depend on each other has as many for them all together.
      log_likelihood_target: nats per datapoint to hold by moving beta, which starts at `kl_weight`, see
        `kl_weights.adapt`; None leaves beta alone.
      adaptation_rate: of log beta, a nat and step.
      weight_prior_examples: N, the size of the training set, to add the paper's prior p(theta) = N(0, I) (MAP);
        None leaves it out.

    Returns:
      A `Learner` whose metrics are `elbo`, `log_likelihood`, `kl` (nats per datapoint, beta = 1), `loss` (what was
      minimised), `kl_weight` and `grad_norm`; for `bounds.iwae` `iwae_bound`, too.

    Raises:
      InputError: the KL is weighed where the bound has none that could be.
    """
    adaptive = log_likelihood_target is not None
    weighed = kl_weight != 1 or kl_schedule is not None or free_bits != 0 or adaptive
    _check_weighed(model, bound, weighed, free_bits)
    batch_bound = _batch_bound(model, bound, num_samples, free_bits)

    def init(key: jax.Array) -> TrainState:
        hyperparameters = {"kl_weight": kl_weight}
        if adaptive:
            hyperparameters = kl_weights.first_adaptive(kl_weight, log_likelihood_target)
        return first_state(key, functools.partial(models.init, model), optimizer.init, hyperparameters)

    def loss_fn(
        params: dict, batch: Batch, keys: jax.Array, beta: jax.Array, axis_name: str | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        each, kl = batch_bound(params, batch.points, keys, axis_name)
        mean = jax.tree.map(jnp.mean, each)
        metrics = {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl, "kl_weight": beta}
        if bound is bounds.iwae:
            metrics["iwae_bound"] = mean.value
        objective = each.log_likelihood + each.excess - beta * kl
        return map_loss(objective, models.generative(params), weight_prior_examples), metrics

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        beta = state.hyperparameters["kl_weight"] * (1.0 if kl_schedule is None else kl_schedule(state.step))
        keys = example_keys(step_key, batch.index)
        loss = functools.partial(loss_fn, batch=batch, keys=keys, beta=beta, axis_name=axis_name)
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        if adaptive:
            hyperparameters = kl_weights.adapt(state.hyperparameters, metrics["log_likelihood"], adaptation_rate)
            state = state.replace(hyperparameters=hyperparameters)
        return state, metrics

    return Learner(init, update, model.likelihood.support)
