"""Hamiltonian Monte Carlo over z, with BlackJAX's kernel and the identity as mass matrix.

HMC wants a density on the whole of R^latent; `unconstrained` gives it for a prior on any NumPyro support.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions.transforms import IdentityTransform, IndependentTransform, Transform

from aevb import bounds

LogDensity = Callable[[jax.Array], jax.Array]

DIVERGENCE_THRESHOLD = 1000.0  # nats of energy error, as BlackJAX and Stan have it
# Each transition's steps are the step size times one draw from [1 - JITTER, 1 + JITTER]. Were they the same always,
# chains would not move along a direction of the scale whose trajectories end where they began, at an acceptance of 1.
JITTER = 0.25


class Transition(NamedTuple):
    """Where one HMC transition of one chain leads.

    Attributes:
      z: the next state, `[latent]`; the old one where the proposal was rejected.
      acceptance: the probability with which the proposal was accepted, in [0, 1], scalar; 0 where its energy is not
        a number.
      is_divergent: whether the energy error was above 1000 nats or not a number, bool scalar.
    """

    z: jax.Array
    acceptance: jax.Array
    is_divergent: jax.Array


class Chain(NamedTuple):
    """The states of chains after burn-in.

    Attributes:
      z: `[num_samples, chains, latent]`.
      log_density: of each, nats, `[num_samples, chains]`.
      acceptance: the mean acceptance probability, scalar.
      step_size: the one that burn-in ended with, used ever after, scalar.
      divergent: the share of transitions that diverged, scalar.
    """

    z: jax.Array
    log_density: jax.Array
    acceptance: jax.Array
    step_size: jax.Array
    divergent: jax.Array


def unconstrained(prior: dist.Distribution) -> tuple[dist.Distribution, Transform]:
    """A prior as a density of u in all of R^latent, and the map back to its support, `z = transform(u)`.

    `log p(u) = log p(z) + log |dz/du|`, with NumPyro's `biject_to(prior.support)`. A prior over the reals comes back
    as it is, with the identity, and costs nothing.
    """
    transform = dist.biject_to(prior.support)
    if isinstance(transform, IndependentTransform) and isinstance(transform.base_transform, IdentityTransform):
        return prior, transform
    return dist.TransformedDistribution(prior, transform.inv), transform


def joint_log_density(
    x: jax.Array, prior: dist.Distribution, decode: Callable[[jax.Array], dist.Distribution]
) -> tuple[LogDensity, Transform]:
    """`u -> log p(u) + log p(x | z)`, nats, with `z = transform(u)`: the posterior up to a constant; and `transform`.

    Args:
      x: the datapoint, `[*event]`.
      prior: p(z), on any support that NumPyro has a bijection to.
      decode: from one z to p(x | z).
    """
    prior, transform = unconstrained(prior)

    def log_density(u: jax.Array) -> jax.Array:
        return prior.log_prob(u) + bounds.log_likelihood(decode(transform(u)), x)

    return log_density, transform


def transition(
    key: jax.Array, z: jax.Array, log_density: LogDensity, step_size: ArrayLike, num_leapfrog: int
) -> Transition:
    """One HMC transition of one chain: a momentum from N(0, I), `num_leapfrog` steps, then accept or stay.

    The steps are of one length, drawn around `step_size` for this transition alone (`JITTER`). It leaves the density
    invariant and takes `1 + num_leapfrog` gradients. Map it over datapoints with `jax.vmap`.

    Args:
      key: consumed here.
      z: where the chain is, `[latent]`; it must have a finite log density, or the chain may never move.
      log_density: from z to a scalar in nats, up to a constant, on all of R^latent.
      step_size: of the leapfrog integrator, above 0.
      num_leapfrog: at least 1; the steps are unrolled in the compiled program.
    """
    from blackjax.mcmc import hmc

    state, acceptance, is_divergent = _step(key, hmc.init(z, log_density), log_density, step_size, num_leapfrog)
    return Transition(state.position, acceptance, is_divergent)


def _step(key: jax.Array, state: tuple, log_density: LogDensity, step_size: ArrayLike, num_leapfrog: int) -> tuple:
    """A transition from a BlackJAX state, which holds the gradient at its position, so that `num_leapfrog` are left."""
    from blackjax.mcmc import hmc, integrators

    def leapfrog(log_density: LogDensity, kinetic_energy: Callable) -> Callable:
        one = integrators.velocity_verlet(log_density, kinetic_energy)

        # Unrolled, XLA leaves out the log densities along the way: only the gradients there are used.
        def steps(state: tuple, step_size: ArrayLike) -> tuple:
            for _ in range(num_leapfrog):
                state = one(state, step_size)
            return state

        return steps

    kernel = hmc.build_kernel(leapfrog, DIVERGENCE_THRESHOLD)
    key, jitter_key = jax.random.split(key)
    step_size *= jax.random.uniform(jitter_key, minval=1 - JITTER, maxval=1 + JITTER)
    state, info = kernel(key, state, log_density, step_size, jnp.ones_like(state.position), 1)
    return state, info.acceptance_rate, info.is_divergent


def adapt(log_step_size: jax.Array, acceptance: jax.Array, target: float = 0.9, gain: ArrayLike = 0.1) -> jax.Array:
    """The next logarithm of a step size, `log_step_size + gain (mean(acceptance) - target)` (Robbins and Monro).

    A constant gain follows a density that moves, as where the weights change under the chains or the temperature
    does, and leaves a jitter of the order of the gain. For a density that stays, a gain that decays settles.

    Args:
      log_step_size: scalar.
      acceptance: acceptance probabilities at this step size, any shape.
      target: the mean acceptance probability to reach, in (0, 1); the paper's appendix E has 0.9.
      gain: above 0.
    """
    return log_step_size + gain * (acceptance.mean() - target)


def sample(
    key: jax.Array,
    z0: jax.Array,
    log_density: LogDensity,
    num_samples: int,
    num_burn_in: int,
    num_leapfrog: int,
    target_acceptance: float = 0.9,
    step_size: ArrayLike = 0.1,
) -> Chain:
    """Run chains of one density side by side, with one step size, tuned to their mean acceptance in burn-in only.

    After burn-in the step size stays, so that every transition leaves the density invariant.

    Args:
      key: consumed here.
      z0: where the chains start, `[chains, latent]`.
      log_density: from one z `[latent]` to a scalar in nats, up to a constant, on all of R^latent.
      num_samples: states kept of each chain, one a transition.
      num_burn_in: transitions before them; the gain of the t-th is `t^-0.6`.
      num_leapfrog: steps of a transition.
      target_acceptance: the acceptance probability that burn-in tunes to, in (0, 1).
      step_size: the first, above 0.
    """
    from blackjax.mcmc import hmc

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
        states, log_step_size = carry
        keys, gain = inputs
        states, acceptance, is_divergent = jax.vmap(
            lambda key, state: _step(key, state, log_density, jnp.exp(log_step_size), num_leapfrog)
        )(keys, states)
        log_step_size = adapt(log_step_size, acceptance, target_acceptance, gain)
        return (states, log_step_size), (states.position, states.logdensity, acceptance, is_divergent)

    start = (jax.vmap(lambda z: hmc.init(z, log_density))(z0), jnp.log(step_size))
    time = jnp.arange(1, num_burn_in + num_samples + 1)
    gains = jnp.where(time <= num_burn_in, time**-0.6, 0.0)
    keys = jax.random.split(key, (num_burn_in + num_samples, len(z0)))
    (_, log_step_size), made = jax.lax.scan(step, start, (keys, gains))
    z, log_densities, acceptance, is_divergent = jax.tree.map(lambda leaf: leaf[num_burn_in:], made)
    return Chain(z, log_densities, acceptance.mean(), jnp.exp(log_step_size), is_divergent.mean())


def anneal(
    key: jax.Array,
    u: jax.Array,
    log_base: LogDensity,
    log_ratio: LogDensity,
    betas: jax.Array,
    num_leapfrog: int,
    target_acceptance: float,
    step_size: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Carry chains along `log_base + beta log_ratio`: at each beta resample them by their weights, then move by HMC.

    The resampling (systematic) takes chains out of modes that lose their mass as beta rises, which HMC alone never
    leaves. The step size follows the mean acceptance, so this starts and tunes chains, and measures nothing.

    Args:
      key: consumed here.
      u: chains at `betas[0]`, `[chains, latent]`.
      log_base: from one u to the log density at beta = 0, nats.
      log_ratio: from one u to what beta = 1 adds to it, nats.
      betas: rising inverse temperatures, `[T + 1]`.
      num_leapfrog: steps of a transition.
      target_acceptance: in (0, 1).
      step_size: the first, above 0.

    Returns:
      The chains at `betas[-1]`, `[chains, latent]`, and the step sizes used at `betas[1:]` and after, `[T + 1]`.
    """
    from blackjax.smc.resampling import systematic

    def one(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        u, log_step_size = carry
        keys, last_beta, beta = inputs
        weights = jax.nn.softmax((beta - last_beta) * jax.vmap(log_ratio)(u))
        u = u[systematic(keys[0], weights, len(u))]
        log_density = tempered(log_base, log_ratio, beta)
        moved = jax.vmap(lambda key, u: transition(key, u, log_density, jnp.exp(log_step_size), num_leapfrog))(
            keys[1:], u
        )
        return (moved.z, adapt(log_step_size, moved.acceptance, target_acceptance, gain=1.0)), log_step_size

    keys = jax.random.split(key, (len(betas) - 1, 1 + len(u)))
    start = (u, jnp.log(step_size))
    (u, last), log_step_sizes = jax.lax.scan(one, start, (keys, betas[:-1], betas[1:]))
    return u, jnp.exp(jnp.append(log_step_sizes, last))


def tempered(log_base: LogDensity, log_ratio: LogDensity, beta: ArrayLike) -> LogDensity:
    """`u -> log_base(u) + beta log_ratio(u)`: a density on the geometric path between two."""
    return lambda u: log_base(u) + beta * log_ratio(u)
