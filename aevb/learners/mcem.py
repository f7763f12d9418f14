"""Monte Carlo EM without an encoder: a chain a datapoint by HMC, then steps of the weights (the paper's appendix E)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aevb import bounds, models
from aevb.data import Datapoint
from aevb.inference import hmc
from aevb.learners import Batch, Learner, TrainState, descend, device_mean, example_keys, first_state, map_loss

FIRST_STEP_SIZE = 0.1  # of the leapfrog integrator, in the units of z; tuned from the first step on


def learner(
    model: models.VAE,
    optimizer: optax.GradientTransformation,
    *,
    num_examples: int,
    num_leapfrog: int = 10,
    target_acceptance: float = 0.9,
    weight_updates: int = 5,
    weight_prior_examples: int | None = None,
) -> Learner:
    """Alternate a draw from p(z | x) and ascent of `log p(x, z)` in theta.

    E-step: every datapoint of the training set has a chain of its own, which starts at a draw from the prior and makes
    one HMC transition each time its datapoint is seen (the paper does not say where its chains start). All chains share
    a step size, tuned to the target acceptance by a constant gain, for the weights move under the chains. M-step:
    `weight_updates` steps of the optimizer on the same draws. A datapoint counts as seen once a step.

    Args:
      model: a VAE, whose encoder is left out.
      optimizer: any Optax transformation.
      num_examples: N, the size of the training set; the loss of an example beyond it is not a number.
      num_leapfrog: leapfrog steps of a transition.
      target_acceptance: in (0, 1).
      weight_updates: steps of the optimizer after each transition.
      weight_prior_examples: N, to add the paper's prior p(theta) = N(0, I); None leaves it out.

    Returns:
      A `Learner` whose metrics are `log_joint` = log p(x, z) and `log_likelihood` = log p(x | z) (nats per datapoint
      at the draws; neither is a bound), `loss` and `grad_norm`, all before the last of the updates, `acceptance` (mean
      probability), `divergent` (share of transitions) and `step_size`.
    """

    def init_params(key: jax.Array) -> dict:
        return models.generative(models.init(model, key))

    def init_opt_state(params: dict, start_key: jax.Array) -> dict:
        # Of a prior that knows the context, which is not known here, the draws are those of context 0.
        context = jnp.zeros(model.context_dim) if model.context_dim else None
        prior, _ = hmc.unconstrained(model.bind({"params": params}).given(context).prior())
        chains = jax.vmap(prior.sample)(jax.random.split(start_key, num_examples))
        return {"optimizer": optimizer.init(params), "chains": chains, "log_step_size": jnp.log(FIRST_STEP_SIZE)}

    def maximise(params: dict, points: Datapoint, u: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        joint, log_likelihood = jax.vmap(functools.partial(log_joint, model, params))(points, u)
        metrics = {"log_joint": joint.mean(), "log_likelihood": log_likelihood.mean()}
        return map_loss(joint, params, weight_prior_examples), metrics

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        carried = state.opt_state
        step_size = jnp.exp(carried["log_step_size"])
        keys = example_keys(step_key, batch.index)
        u = carried["chains"].at[batch.example_id].get(mode="fill", fill_value=jnp.nan)
        expect = functools.partial(move, model, state.params, step_size=step_size, num_leapfrog=num_leapfrog)
        moved = jax.vmap(expect)(batch.points, u, keys)

        def m_step(params: dict, opt_state: Any) -> tuple[dict, Any, dict[str, jax.Array]]:
            loss = functools.partial(maximise, points=batch.points, u=moved.z)
            return descend(optimizer, loss, params, opt_state, axis_name)

        # Only the last update is measured: the others need gradients alone, and no logarithms.
        weights, _ = jax.lax.scan(
            lambda weights, _: (m_step(*weights)[:2], None),
            (state.params, carried["optimizer"]),
            None,
            weight_updates - 1,
        )
        params, opt_state, metrics = m_step(*weights)
        acceptance = device_mean(moved.acceptance.mean(), axis_name)
        metrics |= {
            "acceptance": acceptance,
            "divergent": device_mean(moved.is_divergent.mean(), axis_name),
            "step_size": step_size,
        }
        opt_state = {
            "optimizer": opt_state,
            "chains": put_back(carried["chains"], batch.example_id, moved.z, axis_name),
            "log_step_size": hmc.adapt(carried["log_step_size"], acceptance, target_acceptance),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def init(key: jax.Array) -> TrainState:
        key, start_key = jax.random.split(key)
        return first_state(key, init_params, functools.partial(init_opt_state, start_key=start_key))

    return Learner(init, update, model.likelihood.support, has_encoder=False, has_bound=False)


def move(
    model: models.VAE,
    params: dict,
    point: Datapoint,
    u: jax.Array,
    key: jax.Array,
    step_size: jax.Array,
    num_leapfrog: int,
) -> hmc.Transition:
    """One HMC transition of the chain of a datapoint, which is at u `[latent]`, unconstrained."""
    vae = model.bind({"params": params}).given(point.context)
    log_density, _ = hmc.joint_log_density(point.x, vae.prior(), vae.decode)
    return hmc.transition(key, u, log_density, step_size, num_leapfrog)


def log_joint(model: models.VAE, params: dict, point: Datapoint, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p(x, z) and log p(x | z) in nats, at the z that u `[latent]` stands for."""
    vae = model.bind({"params": params}).given(point.context)
    prior = vae.prior()
    z = hmc.unconstrained(prior)[1](u)
    log_likelihood = bounds.log_likelihood(vae.decode(z), point.x)
    return log_likelihood + prior.log_prob(z), log_likelihood


def put_back(chains: jax.Array, ids: jax.Array, moved: jax.Array, axis_name: str | None) -> jax.Array:
    """All chains `[N, latent]` with those of the whole batch where they moved to, the same on each device."""
    if axis_name is not None:
        ids, moved = (jax.lax.all_gather(leaf, axis_name, tiled=True) for leaf in (ids, moved))
    # A batch across two epochs may hold an example twice, and a scatter leaves open which row wins.
    first = (ids[:, None] == ids[None, :]).argmax(axis=1)
    return chains.at[ids].set(moved[first])
