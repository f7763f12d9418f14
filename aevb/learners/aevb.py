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
from aevb.learners import Batch, Learner, TrainState, descend, example_keys, first_state, kl_weights, map_loss


def datapoint_bound(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int = 1
) -> Callable[[Any, Datapoint, jax.Array], bounds.Bound]:
    """`(params, point, key) -> Bound`: the bound of one datapoint from `num_samples` draws of z."""

    def one(params: Any, point: Datapoint, key: jax.Array) -> bounds.Bound:
        posterior, prior, samples = _draw(model, bound, num_samples, params, point, key)
        return bound(samples, posterior, prior)

    return one


def datapoint_kl_per_dim(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int = 1
) -> Callable[[Any, Datapoint, jax.Array], jax.Array]:
    """`(params, point, key) -> kl`: the KL of one datapoint, nats, on the draws that `datapoint_bound` makes.

    Of each dimension of z, `[latent]`; `[1]`, all in one, where the posterior's dimensions depend on each other.
    """

    def one(params: Any, point: Datapoint, key: jax.Array) -> jax.Array:
        posterior, prior, samples = _draw(model, bound, num_samples, params, point, key)
        if isinstance(posterior, dist.Independent):
            return bounds.kl_per_dim(posterior, prior, samples.z)
        return bound(samples, posterior, prior).kl[None]

    return one


def _draw(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int, params: Any, point: Datapoint, key: jax.Array
) -> tuple[dist.Distribution, dist.Distribution, bounds.Samples]:
    """q(z | x), p(z), and draws from the first as the bound wants them."""
    vae = model.bind({"params": params}).given(point.context)
    posterior, prior = vae.encode(point.x), vae.prior()
    reparameterized = bound is not bounds.score_function
    draws = bounds.draw(key, point.x, posterior, prior, vae.decode, num_samples, reparameterized=reparameterized)
    return posterior, prior, draws


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

    `loss = -(1/N) [N/M sum_i (log_likelihood_i - beta_t kl_i) + log p(theta)]`, nats per datapoint, with
    `beta_t = kl_weight * kl_schedule(t)`. The metrics are of the bound itself, at beta = 1, whatever is trained.

    Args:
      model: a VAE.
      optimizer: any Optax transformation, for example `optax.adam(1e-3)`.
      bound: `bounds.sgvb_b`, `bounds.sgvb_a`, `bounds.score_function`, or `bounds.iwae`, whose KL cannot be weighed.
      num_samples: draws of z a datapoint.
      kl_weight: beta, at least 0; carried in the state's hyperparameters.
      kl_schedule: from the step to a factor in [0, 1]; none is 1 always.
      free_bits: nats a latent dimension that the KL may have for nothing, see `kl_weights.freed`.
      log_likelihood_target: nats per datapoint to hold by moving beta, which starts at `kl_weight`, see
        `kl_weights.adapt`; None leaves beta alone.
      adaptation_rate: of log beta, a nat and step.
      weight_prior_examples: N, the size of the training set, to add the paper's prior p(theta) = N(0, I) (MAP);
        None leaves it out.

    Returns:
      A `Learner` whose metrics are `elbo`, `log_likelihood`, `kl` (nats per datapoint, beta = 1), `loss` (what was
      minimised), `kl_weight` and `grad_norm`; for `bounds.iwae` `iwae_bound`, too.
    """
    adaptive = log_likelihood_target is not None
    batch_bound = jax.vmap(datapoint_bound(model, bound, num_samples), in_axes=(None, 0, 0))
    batch_kl = jax.vmap(datapoint_kl_per_dim(model, bound, num_samples), in_axes=(None, 0, 0))

    def init(key: jax.Array) -> TrainState:
        hyperparameters = {"kl_weight": kl_weight}
        if adaptive:
            hyperparameters = kl_weights.first_adaptive(kl_weight, log_likelihood_target)
        return first_state(key, functools.partial(models.init, model), optimizer.init, hyperparameters)

    def loss_fn(
        params: dict, batch: Batch, keys: jax.Array, beta: jax.Array, axis_name: str | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        each = batch_bound(params, batch.points, keys)
        weighed = each.kl
        if free_bits:  # the draws are those of the bound, and XLA makes them once
            weighed = kl_weights.freed(batch_kl(params, batch.points, keys), free_bits, axis_name)
        objective = each.log_likelihood + each.excess - beta * weighed
        mean = jax.tree.map(jnp.mean, each)
        metrics = {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl, "kl_weight": beta}
        if bound is bounds.iwae:
            metrics["iwae_bound"] = mean.value
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
