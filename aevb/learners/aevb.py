"""Auto-Encoding Variational Bayes: stochastic gradient ascent on a reparameterized bound (Kingma & Welling, alg. 1)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aevb import bounds, models
from aevb.learners import Batch, Learner, TrainState, descend, example_keys, first_state, map_loss


def datapoint_bound(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int = 1
) -> Callable[[Any, jax.Array, jax.Array], bounds.Bound]:
    """`(params, x, key) -> Bound`: the bound of one datapoint x `[*event]` from `num_samples` draws of z."""

    def one(params: Any, x: jax.Array, key: jax.Array) -> bounds.Bound:
        vae = model.bind({"params": params})
        posterior, prior = vae.encode(x), vae.prior()
        samples = bounds.draw(
            key, x, posterior, prior, vae.decode, num_samples, reparameterized=bound is not bounds.score_function
        )
        return bound(samples, posterior, prior)

    return one


def learner(
    model: models.VAE,
    optimizer: optax.GradientTransformation,
    *,
    bound: bounds.BoundFn = bounds.sgvb_b,
    num_samples: int = 1,
    kl_weight: float = 1.0,
    kl_warmup: optax.Schedule | None = None,
    weight_prior_examples: int | None = None,
) -> Learner:
    """Maximise the bound over encoder and decoder together.

    `loss = -(1/N) [N/M sum_i (log_likelihood_i - beta_t kl_i) + log p(theta)]`, nats per datapoint, with
    `beta_t = kl_weight * kl_warmup(t)`. The metrics are of the bound itself, at beta = 1, whatever is trained.

    Args:
      model: a VAE.
      optimizer: any Optax transformation, for example `optax.adam(1e-3)`.
      bound: `bounds.sgvb_b`, `bounds.sgvb_a` or `bounds.score_function`.
      num_samples: L, draws of z a datapoint.
      kl_weight: beta, at least 0; carried in the state's hyperparameters.
      kl_warmup: from the step to a factor in [0, 1]; none is 1 always.
      weight_prior_examples: N, the size of the training set, to add the paper's prior p(theta) = N(0, I) (MAP);
        None leaves it out.

    Returns:
      A `Learner` whose metrics are `elbo`, `log_likelihood`, `kl` (nats per datapoint, beta = 1), `loss` (what was
      minimised), `kl_weight` and `grad_norm`.
    """

    one_bound = datapoint_bound(model, bound, num_samples)

    def init(key: jax.Array) -> TrainState:
        hyperparameters = {"kl_weight": kl_weight}
        return first_state(key, functools.partial(models.init, model), optimizer.init, hyperparameters)

    def loss_fn(params: dict, batch: Batch, keys: jax.Array, beta: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        per_datapoint = jax.vmap(one_bound, in_axes=(None, 0, 0))(params, batch.x, keys)
        objective = per_datapoint.log_likelihood - beta * per_datapoint.kl
        mean = jax.tree.map(jnp.mean, per_datapoint)
        metrics = {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl, "kl_weight": beta}
        return map_loss(objective, models.generative(params), weight_prior_examples), metrics

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        beta = state.hyperparameters["kl_weight"] * (1.0 if kl_warmup is None else kl_warmup(state.step))
        loss = functools.partial(loss_fn, batch=batch, keys=example_keys(step_key, batch.index), beta=beta)
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Learner(init, update, model.likelihood.support)
