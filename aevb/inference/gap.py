"""What log p(x) has above the bound of ONE datapoint, taken apart; and which draws estimate log p(x) with how many."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax.scipy.special import logsumexp

from aevb import bounds
from aevb.errors import InputError

ToPosterior = Callable[[Any], dist.Distribution]
Decode = Callable[[jax.Array], dist.Distribution]


class InferenceGap(NamedTuple):
    """The gap between log p(x) and the encoder's bound, and its two parts; scalars, nats.

    Attributes:
      elbo: L[q] of the encoder's q(z | x).
      optimal_elbo: L[q*] of the best member q* of the same family for this x.
      log_marginal: log p(x), the importance-weighted bound with q* as the proposal: below it in expectation.
      approximation_gap: `log p(x) - L[q*] = KL(q* || p(z | x))`, what the family costs.
      amortization_gap: `L[q*] - L[q]`, what it costs that one encoder serves all x; below 0 where `optimal_posterior`
        was given too few steps, or within its standard error.
      elbo_stderr, ...: their standard errors, by the delta method where a logarithm of a mean is in them; too small
        where few draws are effective.
      effective_sample_size: of the weights behind log_marginal, from 1 to their number.
    """

    elbo: jax.Array
    optimal_elbo: jax.Array
    log_marginal: jax.Array
    approximation_gap: jax.Array
    amortization_gap: jax.Array
    elbo_stderr: jax.Array
    optimal_elbo_stderr: jax.Array
    log_marginal_stderr: jax.Array
    approximation_gap_stderr: jax.Array
    amortization_gap_stderr: jax.Array
    effective_sample_size: jax.Array


def optimal_posterior(
    key: jax.Array,
    x: jax.Array,
    to_posterior: ToPosterior,
    outputs: Any,
    prior: dist.Distribution,
    decode: Decode,
    *,
    num_steps: int = 1000,
    num_samples: int = 20,
    learning_rate: float = 0.1,
) -> tuple[Any, jax.Array]:
    """The best member of a family for one datapoint: `argmax_o L[q(z; o)]` over the encoder's outputs o, by Adam.

    The decoder stays as it is. The learning rate falls to 0 along a cosine, so that the last steps average over the
    noise of the draws. The gradient is that of z alone, without the score of q (Roeder et al., 1703.09194): it has the
    same mean, and no variance where q is the exact posterior. On linear decoders with posterior standard deviations of
    0.02 to 0.1, from means off by one of them and scales by 1.3, the elbo came within 0.02 nats of the best in 20
    latent dimensions and 0.001 in 2. From N(0, I), far from a narrow posterior, a thousand steps do not arrive.

    Args:
      key: consumed here.
      x: the datapoint, `[*event]`.
      to_posterior: from outputs to q(z | x) with a reparameterized sampler, for example `vae.posterior`.
      outputs: where the search starts, those of the encoder for x.
      prior: p(z).
      decode: from one z to p(x | z).
      num_steps: of Adam.
      num_samples: draws of z a step.
      learning_rate: the first step's; an output moves by up to half of `num_steps * learning_rate`.

    Returns:
      The best outputs, and the elbo of each step's draws before the step, nats, `[num_steps]`.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def loss(outputs: Any, key: jax.Array) -> jax.Array:
        samples = bounds.draw(key, x, to_posterior(outputs), prior, decode, num_samples)
        fixed = to_posterior(jax.lax.stop_gradient(outputs))
        return -samples._replace(log_posterior=jax.vmap(fixed.log_prob)(samples.z)).log_weights.mean()

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        outputs, opt_state = carry
        value, grads = jax.value_and_grad(loss)(outputs, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(outputs, updates), opt_state), -value

    keys = jax.random.split(key, num_steps)
    (outputs, _), elbos = jax.lax.scan(step, (outputs, optimizer.init(outputs)), keys)
    return outputs, elbos


def inference_gap(
    key: jax.Array,
    x: jax.Array,
    to_posterior: ToPosterior,
    outputs: Any,
    optimal: Any,
    prior: dist.Distribution,
    decode: Decode,
    *,
    num_samples: int = 5000,
    block: int = 50,
) -> InferenceGap:
    """Split what log p(x) has above the encoder's bound (Cremer et al., 1801.03558).

    `log p(x) - L[q] = (log p(x) - L[q*]) + (L[q*] - L[q])`: the approximation gap and the amortization gap.

    Args:
      key: consumed here.
      x: the datapoint, `[*event]`.
      to_posterior: from outputs to q(z | x), for example `vae.posterior`.
      outputs: those of the encoder for x.
      optimal: those of q*, from `optimal_posterior` with another key.
      prior: p(z).
      decode: from one z to p(x | z).
      num_samples: draws from q and as many from q*, at least 2.
      block: draws weighed at once; memory grows with it, and the draws are the same for each block.

    Raises:
      InputError: there are fewer than 2 samples.
    """
    if num_samples < 2:
        raise InputError(f"num_samples is {num_samples}: a standard error needs at least 2")
    # The same noise for both: they differ by less than two independent sets would, not at all where q is q*.
    keys = jax.random.split(key, num_samples)
    encoders, best = (log_weights(keys, x, to_posterior(each), prior, decode, block) for each in (outputs, optimal))
    log_marginal = _log_mean_exp(best)
    relative = jnp.exp(best - log_marginal)  # weights over their mean
    amortization, approximation = (best - encoders).mean(), (log_marginal - best).mean()

    def stderr(values: jax.Array) -> jax.Array:
        return values.std(ddof=1) / jnp.sqrt(num_samples)

    return InferenceGap(
        elbo=log_marginal - approximation - amortization,
        optimal_elbo=log_marginal - approximation,
        log_marginal=log_marginal,
        approximation_gap=approximation,
        amortization_gap=amortization,
        elbo_stderr=stderr(encoders),
        optimal_elbo_stderr=stderr(best),
        log_marginal_stderr=stderr(relative),
        approximation_gap_stderr=stderr(relative - best),  # to first order, log of a mean moves as the mean does
        amortization_gap_stderr=stderr(best - encoders),
        effective_sample_size=num_samples / jnp.square(relative).mean(),
    )


class ProposalComparison(NamedTuple):
    """`E[log mean_k w_k]` of K draws from two proposals, nats, each `[numbers of samples]`: both below log p(x).

    Attributes:
      from_posterior: with `w = p(x | z) p(z) / q(z | x)` and z from q(z | x).
      from_prior: with `w = p(x | z)` and z from p(z).
      from_posterior_stderr, from_prior_stderr: their standard errors, from the spread of the repetitions. What an
        estimate is below log p(x) in expectation is not in it.
    """

    from_posterior: jax.Array
    from_prior: jax.Array
    from_posterior_stderr: jax.Array
    from_prior_stderr: jax.Array


def compare_proposals(
    key: jax.Array,
    x: jax.Array,
    posterior: dist.Distribution,
    prior: dist.Distribution,
    decode: Decode,
    num_samples: Sequence[int] = (1, 10, 100, 1000),
    *,
    num_repeats: int = 10,
    block: int = 50,
) -> ProposalComparison:
    """Estimate log p(x) by K draws from the posterior and by K from the prior, for several K.

    `log p(x) = log E_q(z|x)[p(x | z) p(z) / q(z | x)] = log E_p(z)[p(x | z)]`: draws from the prior need no encoder,
    and rarely meet the z that explain x.

    Args:
      key: consumed here.
      x: the datapoint, `[*event]`.
      posterior: q(z | x).
      prior: p(z).
      decode: from one z to p(x | z).
      num_samples: the numbers K, each at least 1.
      num_repeats: estimates for each K, at least 2, whose mean is returned. A standard error from the weights of one
        estimate would be at most 1 nat, however far off: K draws that all miss do not show it.
      block: draws weighed at once; memory grows with it, and the draws are the same for each block.

    Raises:
      InputError: there are fewer than 2 repetitions, or a number of samples is below 1.
    """
    if num_repeats < 2 or min(num_samples) < 1:
        raise InputError(
            f"num_repeats is {num_repeats} and num_samples {tuple(num_samples)}: give at least 2 repetitions of at "
            "least 1 sample each"
        )

    def estimates(key: jax.Array, proposal: dist.Distribution) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, num_repeats * max(num_samples))
        each = log_weights(keys, x, proposal, prior, decode, block).reshape(num_repeats, -1)
        logs = jnp.stack([_log_mean_exp(each[:, :num]) for num in num_samples])
        return logs.mean(axis=1), logs.std(axis=1, ddof=1) / jnp.sqrt(num_repeats)

    posterior_key, prior_key = jax.random.split(key)
    (q, q_stderr), (p, p_stderr) = estimates(posterior_key, posterior), estimates(prior_key, prior)
    return ProposalComparison(q, p, q_stderr, p_stderr)


def log_weights(
    keys: jax.Array, x: jax.Array, proposal: dist.Distribution, prior: dist.Distribution, decode: Decode, block: int
) -> jax.Array:
    """`log p(x, z) - log q(z)` in nats of one draw a key, `[K]`, from a proposal q, `block` at once."""

    def one(key: jax.Array) -> jax.Array:
        return bounds.draw(key, x, proposal, prior, decode).log_weights[0]

    return jax.lax.map(one, keys, batch_size=min(block, len(keys)))


def _log_mean_exp(logs: jax.Array) -> jax.Array:
    """`log mean exp` over the last axis."""
    return logsumexp(logs, axis=-1) - jnp.log(logs.shape[-1])
