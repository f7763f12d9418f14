"""Full variational Bayes (Kingma & Welling, appendix F): a Gaussian over the generative weights as well as over z."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree

from aevb import bounds, models
from aevb.errors import InputError
from aevb.learners import Batch, Learner, TrainState, descend, example_keys, first_state
from aevb.learners.aevb import datapoint_bound

# The subtree of the parameters, shaped like theta, with log sigma^2; the model itself looks past it.
LOG_VARIANCE = "weights_log_variance"


def weight_posterior(params: Mapping[str, Any]) -> dist.Distribution:
    """q(theta) = N(mu, diag(sigma^2)) over the generative weights, flattened, `[weights]`."""
    mean, _ = ravel_pytree(models.generative(params))
    log_variance, _ = ravel_pytree(params[LOG_VARIANCE])
    return dist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1)


def weight_kl(params: Mapping[str, Any]) -> jax.Array:
    """KL(q(theta) || p(theta)) in nats, of all weights together, with p(theta) = N(0, I); a scalar."""
    posterior = weight_posterior(params)
    zeros = jnp.zeros(posterior.event_shape)
    return bounds.kl(posterior, dist.Normal(zeros, jnp.ones_like(zeros)).to_event(1))


def sample_weights(params: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """Parameters of the model whose generative weights are one draw from q(theta), differentiable in `params`.

    Args:
      params: of this learner: the means where the model has its weights, and their log variances beside them.
      key: consumed here.
    """
    _, unravel = ravel_pytree(models.generative(params))
    weights = unravel(weight_posterior(params).rsample(key))
    return {name: subtree for name, subtree in params.items() if name != LOG_VARIANCE} | weights


def learner(
    model: models.VAE,
    optimizer: optax.GradientTransformation,
    *,
    num_examples: int,
    bound: bounds.BoundFn = bounds.sgvb_b,
    num_samples: int = 1,
    init_weight_scale: float = 0.03,
) -> Learner:
    """Maximise a lower bound on the marginal likelihood of the whole data set, log p(X), over q(z | x) and q(theta).

    `loss = -(1/N) [N/M sum_i elbo_i(theta) - KL(q(theta) || p(theta))]`, nats per datapoint, with
    `theta = mu + sigma * noise` and p(theta) = N(0, I). Its expectation is at least `-log p(X) / N`. The encoder's
    weights stay points: they are variational parameters, like mu and sigma.

    One theta is drawn a step, for the whole minibatch and all devices. A theta for each datapoint would cost a decoder
    a datapoint; shared, its noise does not average out over the minibatch, so the gradient's variance has a part that
    falls with neither M nor L.

    The parameters are the model's own, with mu where it has its weights, and `params["weights_log_variance"]` beside
    them. The model bound to them is therefore the one at the mean of q(theta); `sample_weights` draws others.

    Args:
      model: a VAE.
      optimizer: any Optax transformation.
      num_examples: N, the size of the training set.
      bound: `bounds.sgvb_b` or `bounds.sgvb_a`, of each datapoint given theta.
      num_samples: L, draws of z a datapoint.
      init_weight_scale: sigma of every weight at the start, above 0. The prior's 1 would drown the signal, and from far
        below its place sigma rises slowly, for its gradient is of the order 1/N.

    Returns:
      A `Learner` whose metrics are `elbo`, `log_likelihood`, `kl` (nats per datapoint, at the drawn weights),
      `weight_kl` (nats, of all weights), `dataset_bound` (the bound on log p(X), nats per datapoint:
      `elbo - weight_kl / N`), `loss` and `grad_norm`.

    Raises:
      InputError: `init_weight_scale` is not above 0, or the bound is `iwae`.
    """
    if bound is bounds.iwae:
        raise InputError("the bound iwae is climbed by the learner aevb only: use sgvb_b or sgvb_a")
    if not init_weight_scale > 0:
        raise InputError(f"init_weight_scale is {init_weight_scale}: a standard deviation must be above 0")
    one_bound = datapoint_bound(model, bound, num_samples)

    def init_params(key: jax.Array) -> dict[str, Any]:
        params, log_variance = models.init(model, key), 2 * math.log(init_weight_scale)
        filled = jax.tree.map(lambda weight: jnp.full_like(weight, log_variance), models.generative(params))
        return params | {LOG_VARIANCE: filled}

    def loss_fn(params: dict, batch: Batch, step_key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        weights_key, examples_key = jax.random.split(step_key)
        drawn, keys = sample_weights(params, weights_key), example_keys(examples_key, batch.index)
        per_datapoint = jax.vmap(one_bound, in_axes=(None, 0, 0))(drawn, batch.points, keys)
        mean, all_weights = jax.tree.map(jnp.mean, per_datapoint), weight_kl(params)
        dataset_bound = mean.elbo - all_weights / num_examples
        metrics = {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl}
        return -dataset_bound, metrics | {"weight_kl": all_weights, "dataset_bound": dataset_bound}

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss = functools.partial(loss_fn, batch=batch, step_key=step_key)
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Learner(
        lambda key: first_state(key, init_params, optimizer.init),
        update,
        model.likelihood.support,
    )
