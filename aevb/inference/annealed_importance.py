"""Annealed importance sampling of the marginal likelihood, for latent spaces of any size."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from aevb import bounds
from aevb.errors import InputError
from aevb.inference import hmc
from aevb.inference.marginal_likelihood import log_mean_exp

SHARPNESS = 4.0  # of the sigmoid of the schedule, as in Wu et al.
PILOT_CHAINS = 4
NUM_TEMPERATURES = 500
MIN_CHAINS = 3  # of two the effective number is below 2 always, which `check_chains` refuses


class AISEstimate(NamedTuple):
    """What annealed chains say of one datapoint; scalars.

    Attributes:
      log_marginal: `log mean_c w_c`, nats: below log p(x) in expectation, rising to it with chains and temperatures.
      effective_sample_size: `(sum w)^2 / sum w^2`, from 1 to `num_chains`; near 1 the estimate rests on one chain.
      stderr: of `log_marginal` by the delta method, nats; too small where few chains are effective.
      acceptance: the mean acceptance probability of HMC along the path.
      divergent: the share of transitions that diverged.
    """

    log_marginal: jax.Array
    effective_sample_size: jax.Array
    stderr: jax.Array
    acceptance: jax.Array
    divergent: jax.Array


def annealed_importance_estimate(
    key: jax.Array,
    x: jax.Array,
    prior: dist.Distribution,
    decode: Callable[[jax.Array], dist.Distribution],
    *,
    num_chains: int = 16,
    num_temperatures: int = NUM_TEMPERATURES,
    num_leapfrog: int = 10,
    target_acceptance: float = 0.9,
) -> AISEstimate:
    """Estimate log p(x) of one datapoint by annealing from the prior (Neal 2001; Wu et al., 1611.04273).

    Along `p_t(z) = p(z) p(x | z)^beta_t`, `0 = beta_0 < ... < beta_T = 1`, each chain starts at a draw from the prior
    and makes one HMC transition at each temperature; `log w = sum_t (beta_t - beta_{t-1}) log p(x | z_{t-1})`. The
    betas are a sigmoid's, as in Wu et al.: small steps near prior and posterior.

    The step size of each temperature is tuned to the target acceptance by a pilot of 4 chains and then fixed. Were it
    tuned by the chains that are weighed, their transitions would depend on their past and w would be biased; like this
    the mean of w is p(x) exactly, whatever the tuning found.

    Args:
      key: consumed here.
      x: the datapoint, `[*event]`.
      prior: p(z), on any support that NumPyro has a bijection to.
      decode: from one z to p(x | z).
      num_chains: weighed chains, at least 3.
      num_temperatures: T, at least 1.
      num_leapfrog: steps of a transition.
      target_acceptance: in (0, 1).

    Raises:
      InputError: fewer than 3 chains or no temperature.
    """
    for name, value, least in (("num_chains", num_chains, MIN_CHAINS), ("num_temperatures", num_temperatures, 1)):
        if value < least:
            raise InputError(f"{name} is {value}: annealed importance sampling needs at least {least}")
    prior, transform = hmc.unconstrained(prior)

    def log_likelihood(u: jax.Array) -> jax.Array:
        return bounds.log_likelihood(decode(transform(u)), x)

    def anneal(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        u, log_weights = carry
        keys, last_beta, beta, step_size = inputs
        log_weights += (beta - last_beta) * jax.vmap(log_likelihood)(u)
        log_density = hmc.tempered(prior.log_prob, log_likelihood, beta)
        moved = jax.vmap(lambda key, u: hmc.transition(key, u, log_density, step_size, num_leapfrog))(keys, u)
        return (moved.z, log_weights), (moved.acceptance.mean(), moved.is_divergent.mean())

    def draw(key: jax.Array, num: int) -> jax.Array:
        return jax.vmap(prior.sample)(jax.random.split(key, num))

    pilot_key, tune_key, start_key, move_key = jax.random.split(key, 4)
    betas = sigmoid_schedule(num_temperatures)
    pilot = draw(pilot_key, PILOT_CHAINS)
    _, step_sizes = hmc.anneal(
        tune_key, pilot, prior.log_prob, log_likelihood, betas, num_leapfrog, target_acceptance, pilot.std()
    )
    start = (draw(start_key, num_chains), jnp.zeros(num_chains))
    steps = (jax.random.split(move_key, (num_temperatures, num_chains)), betas[:-1], betas[1:], step_sizes[:-1])
    (_, log_weights), (acceptance, divergent) = jax.lax.scan(anneal, start, steps)
    log_mean, stderr = log_mean_exp(log_weights[None], jnp.ones((1, num_chains), bool))
    return AISEstimate(
        log_marginal=log_mean,
        effective_sample_size=num_chains / jnp.square(jnp.exp(log_weights - log_mean)).mean(),
        stderr=stderr,
        acceptance=acceptance.mean(),
        divergent=divergent.mean(),
    )


def sigmoid_schedule(num_temperatures: int) -> jax.Array:
    """`beta_t = (s(4 (2 t / T - 1)) - s(-4)) / (s(4) - s(-4))` with s the logistic function, `[T + 1]`, from 0 to 1."""
    sigmoid = jax.nn.sigmoid(SHARPNESS * jnp.linspace(-1.0, 1.0, num_temperatures + 1))
    return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
