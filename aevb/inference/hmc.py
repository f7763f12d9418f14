"""Hamiltonian Monte Carlo over z, with BlackJAX's kernel and the identity as mass matrix.

HMC wants a density on the whole of R^latent. `unconstrained` gives the prior of any NumPyro support there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions.transforms import ComposeTransform, IdentityTransform, IndependentTransform, Transform

from aevb import bounds

LogDensity = Callable[[jax.Array], jax.Array]

DIVERGENCE_THRESHOLD = 1000.0  # nats of energy error; BlackJAX's and Stan's


class Transition(NamedTuple):
    """Where one HMC transition of one chain leads.

    Attributes:
      z: the next state, `[latent]`; the old one where the proposal was rejected.
      acceptance: the probability with which the proposal was accepted, in [0, 1], scalar; 0 where the energy at its
        end is not finite.
      is_divergent: whether the energy error was above 1000 nats or not a number, bool, scalar.
    """

    z: jax.Array
    acceptance: jax.Array
    is_divergent: jax.Array


class Chain(NamedTuple):
    """What `sample` returns.

    Attributes:
      z: the states after burn-in, `[num_samples, chains, latent]`.
      acceptance: the mean acceptance probability after burn-in, scalar.
      step_size: the one that burn-in ended with, used ever after, scalar.
      num_divergent: divergent transitions after burn-in, of all chains together, int32 scalar.
    """

    z: jax.Array
    acceptance: jax.Array
    step_size: jax.Array
    num_divergent: jax.Array


def unconstrained(prior: dist.Distribution) -> tuple[dist.Distribution, Transform]:
    """A prior as a density over u in all of R^latent, and the map `z = transform(u)` back to its support.

    `log p(u) = log p(z) + log |dz/du|`, with NumPyro's `biject_to(prior.support)`. A prior over the reals comes back
    as it is, with the identity, so there it costs nothing.
    """
    transform = dist.biject_to(prior.support)
    if _is_identity(transform):
        return prior, IdentityTransform()
    return dist.TransformedDistribution(prior, transform.inv), transform


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, IdentityTransform) or (
        isinstance(transform, ComposeTransform) and all(_is_identity(part) for part in transform.parts)
    )


def joint_log_density(
    x: jax.Array, prior: dist.Distribution, decode: Callable[[jax.Array], dist.Distribution]
) -> tuple[LogDensity, Transform]:
    """`u -> log p(u) + log p(x | z = transform(u))` in nats, the posterior of x up to a constant, and `transform`.

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
    """One HMC transition of one chain: a momentum from N(0, I), `num_leapfrog` steps, accept or stay.

    It evaluates the gradient `1 + num_leapfrog` times, and leaves `log_density` invariant. Map it over datapoints with
    `jax.vmap`.

    Args:
      key: consumed here.
      z: where the chain is, `[latent]`, with a finite log density: a chain that starts at a NaN stays there.
      log_density: from z `[latent]` to a scalar in nats, up to a constant, over all of R^latent.
      step_size: of the leapfrog integrator, above 0, scalar.
      num_leapfrog: steps, at least 1.
    """
    from blackjax.mcmc import hmc

    state, acceptance, is_divergent = _step(key, hmc.init(z, log_density), log_density, step_size, num_leapfrog)
    return Transition(state.position, acceptance, is_divergent)


def _step(key: jax.Array, state: tuple, log_density: LogDensity, step_size: ArrayLike, num_leapfrog: int) -> tuple:
    """One transition from a BlackJAX state, which holds the gradient at its position; `num_leapfrog` gradients."""
    from blackjax.mcmc import hmc

    kernel = hmc.build_kernel(divergence_threshold=DIVERGENCE_THRESHOLD)
    inverse_mass_matrix = jnp.ones_like(state.position)
    state, info = kernel(key, state, log_density, step_size, inverse_mass_matrix, num_leapfrog)
    return state, info.acceptance_rate, info.is_divergent


def adapt(
    log_step_size: jax.Array, acceptance: jax.Array, target: float = 0.9, gain: ArrayLike = 0.1
) -> jax.Array:
    """The next logarithm of the step size: `log_step_size + gain (mean(acceptance) - target)` (Robbins and Monro).

    A constant gain follows a target density that moves, as in Monte Carlo EM, where the weights change under the
    chains, and keeps a jitter of the order of the gain. A gain that decays, as `t^-0.6`, settles; burn-in uses that.

    Args:
      log_step_size: scalar.
      acceptance: acceptance probabilities at this step size, any shape; what is not finite counts as 0, so that a
        divergence makes the step smaller.
      target: the mean acceptance probability to reach, in (0, 1); 0.9 in the paper's appendix E.
      gain: above 0.
    """
    acceptance = jnp.where(jnp.isfinite(acceptance), acceptance, 0.0)
    return log_step_size + gain * (acceptance.mean() - target)


def sample(
    key: jax.Array,
    z0: jax.Array,
    log_density: LogDensity,
    num_samples: int,
    num_burn_in: int,
    num_leapfrog: int,
    target_acceptance: float = 0.9,
    initial_step_size: ArrayLike = 0.1,
) -> Chain:
    """Run chains of one density side by side; they share a step size, tuned to their mean acceptance in burn-in only.

    After burn-in the step size is fixed, so that every transition leaves the density invariant.

    Args:
      key: consumed here.
      z0: where the chains start, `[chains, latent]`.
      log_density: from z `[latent]` to a scalar in nats, up to a constant, over all of R^latent.
      num_samples: states kept of each chain, one a transition.
      num_burn_in: transitions before them, in which the step size is tuned.
      num_leapfrog: steps of a transition.
      target_acceptance: the acceptance probability that burn-in tunes to, in (0, 1).
      initial_step_size: above 0.
    """
    from blackjax.mcmc import hmc

    def step_all(key: jax.Array, states: tuple, step_size: ArrayLike) -> tuple:
        keys = jax.random.split(key, z0.shape[0])
        one = lambda key, state: _step(key, state, log_density, step_size, num_leapfrog)  # noqa: E731
        return jax.vmap(one)(keys, states)

    def burn_in(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        states, log_step_size = carry
        key, i = inputs
        states, acceptance, _ = step_all(key, states, jnp.exp(log_step_size))
        return (states, adapt(log_step_size, acceptance, target_acceptance, (1.0 + i) ** -0.6)), None

    def keep(states: tuple, key: jax.Array) -> tuple:
        states, acceptance, is_divergent = step_all(key, states, step_size)
        return states, (states.position, acceptance.mean(), is_divergent.sum())

    burn_in_key, sample_key = jax.random.split(key)
    states = jax.vmap(lambda z: hmc.init(z, log_density))(z0)
    burn_in_keys = jax.random.split(burn_in_key, num_burn_in)
    start = (states, jnp.log(initial_step_size))
    (states, log_step_size), _ = jax.lax.scan(burn_in, start, (burn_in_keys, jnp.arange(num_burn_in)))
    step_size = jnp.exp(log_step_size)
    _, (z, acceptance, is_divergent) = jax.lax.scan(keep, states, jax.random.split(sample_key, num_samples))
    return Chain(z, acceptance.mean(), step_size, is_divergent.sum())
