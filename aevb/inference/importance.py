"""Importance sampling of the marginal likelihood, a block of draws at a time, so that any number of them fits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from aevb import bounds


class ImportanceEstimate(NamedTuple):
    """What K draws from q(z | x) say of one datapoint; scalars.

    Attributes:
      log_marginal: `log mean_k w_k`, nats: the importance-weighted bound, below log p(x) in expectation and rising
        to it with K.
      effective_sample_size: `(sum w)^2 / sum w^2`, from 1 to K; near 1 the estimate rests on one draw.
      log_likelihood: `mean_k log p(x | z_k)`, nats.
      kl: `mean_k [log q(z_k | x) - log p(z_k)]`, nats, a Monte Carlo estimate.
    """

    log_marginal: jax.Array
    effective_sample_size: jax.Array
    log_likelihood: jax.Array
    kl: jax.Array


def importance_estimate(
    key: jax.Array,
    x: jax.Array,
    posterior: dist.Distribution,
    prior: dist.Distribution,
    decode: Callable[[jax.Array], dist.Distribution],
    num_samples: int,
    block: int = 50,
) -> ImportanceEstimate:
    """Estimate log p(x) of one datapoint with the posterior as proposal (Burda et al., 1509.00519).

    Args:
      key: consumed here.
      x: the datapoint, `[*event]`.
      posterior: the proposal q(z | x).
      prior: p(z).
      decode: from one z to p(x | z).
      num_samples: K, at least 1; exactly so many count, also where it is not a multiple of `block`.
      block: draws weighed at once; memory grows with it. Another block is another set of draws.
    """
    block = min(block, num_samples)
    num_blocks = -(-num_samples // block)

    def add_block(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
        log_sum, log_sum_squares, log_likelihood, kl = carry
        samples = bounds.draw(jax.random.fold_in(key, i), x, posterior, prior, decode, block)
        counts = i * block + jnp.arange(block) < num_samples
        log_weights = jnp.where(counts, samples.log_weights, -jnp.inf)
        carry = (
            jnp.logaddexp(log_sum, logsumexp(log_weights)),
            jnp.logaddexp(log_sum_squares, logsumexp(2 * log_weights)),
            log_likelihood + jnp.where(counts, samples.log_likelihood, 0).sum(),
            kl + jnp.where(counts, samples.log_posterior - samples.log_prior, 0).sum(),
        )
        return carry, None

    start = (jnp.float32(-jnp.inf), jnp.float32(-jnp.inf), jnp.float32(0), jnp.float32(0))
    sums, _ = jax.lax.scan(add_block, start, jnp.arange(num_blocks))
    log_sum, log_sum_squares, log_likelihood, kl = sums
    return ImportanceEstimate(
        log_marginal=log_sum - jnp.log(num_samples),
        effective_sample_size=jnp.exp(2 * log_sum - log_sum_squares),
        log_likelihood=log_likelihood / num_samples,
        kl=kl / num_samples,
    )
