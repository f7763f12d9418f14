"""The marginal likelihood of one datapoint from posterior samples by HMC (Kingma & Welling, appendix D)."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammainc, logsumexp

from aevb import bounds
from aevb.errors import InputError, SamplingError
from aevb.inference import hmc

RELIABLE_DIM, LARGEST_DIM = 5, 10  # the paper trusts the estimator below 5 dimensions
CORE = 0.5  # the share of the posterior's samples that the fitted density covers
# Where chains start: so many prior draws, tempered until so many a chain are effective, then so many temperatures.
POOL, POOL_PER_CHAIN, NUM_TEMPERATURES = 1000, 3, 10
NEVER_ACCEPTS = 0.01


class HMCEstimate(NamedTuple):
    """What posterior samples say of one datapoint; scalars.

    Attributes:
      log_marginal: the estimate of log p(x), nats.
      stderr: its standard error, nats, by the delta method from the spread between the chains.
      acceptance: the mean acceptance probability of HMC after burn-in.
      num_divergent: divergent transitions after burn-in, int32.
    """

    log_marginal: jax.Array
    stderr: jax.Array
    acceptance: jax.Array
    num_divergent: jax.Array


def hmc_estimate(
    key: jax.Array,
    x: jax.Array,
    prior: dist.Distribution,
    decode: Callable[[jax.Array], dist.Distribution],
    *,
    num_samples: int = 50,
    num_leapfrog: int = 4,
    num_burn_in: int = 5,
    num_chains: int = 10,
    target_acceptance: float = 0.9,
) -> HMCEstimate:
    """Estimate log p(x) of one datapoint; no encoder is needed.

    `1 / p(x) = E_{p(z|x)}[q(z) / (p(z) p(x | z))]` for any density q. (1) draw `num_samples` z from p(z | x) by HMC;
    (2) fit q to them; (3) draw as many again and average the ratio, in log space.

    The paper does not name the family of q. Here it is a Gaussian with their mean and full covariance, cut off at the
    ellipsoid that holds half of them. Cut off, the ratio is bounded, so its variance is finite whatever the tails, and
    draws in the tails, where short chains are least to be trusted, count for nothing. On 1000 MNIST test images and a
    trained 3-100-784 decoder the whole Gaussian was off by -0.09 nats on average and the cut one by -0.02, with
    0.3 nats of scatter an image. Several modes: chains start by annealing from the prior with resampling, so that they
    find the modes and share them out by mass; a mode that no chain found with share f of the mass costs log(1 - f),
    and a q that covers the gap between modes may overestimate by a nat or two.

    Args:
      key: consumed here.
      x: the datapoint, `[*event]`.
      prior: p(z), on any support that NumPyro has a bijection to.
      decode: from one z to p(x | z).
      num_samples: of the fit, and again of the average; exactly so many count, also where the chains do not divide it.
      num_leapfrog: steps of a transition; the paper has 4.
      num_burn_in: transitions at the posterior itself before the first draw.
      num_chains: at least 2; they run side by side.
      target_acceptance: what the step size is tuned to before the first draw.

    Raises:
      InputError: more than 10 latent dimensions, fewer than 2 chains, or too few samples to fit a Gaussian to.

    Warns:
      UserWarning: above 5 latent dimensions.
    """
    prior, transform = hmc.unconstrained(prior)
    _check(prior.event_shape[0], num_samples, num_chains)
    num_chains = min(num_chains, num_samples)

    def log_likelihood(u: jax.Array) -> jax.Array:
        return bounds.log_likelihood(decode(transform(u)), x)

    start_key, sample_key = jax.random.split(key)
    u, step_size = _start(start_key, prior, log_likelihood, num_chains, num_leapfrog, target_acceptance)
    log_joint = hmc.tempered(prior.log_prob, log_likelihood, 1.0)
    per_chain = -(-num_samples // num_chains)
    chain = hmc.sample(sample_key, u, log_joint, 2 * per_chain, num_burn_in, num_leapfrog, target_acceptance, step_size)
    fitted = chain.z[:per_chain].reshape(num_chains * per_chain, -1)[:num_samples]
    log_q = fit_core(fitted)
    counts = (jnp.arange(per_chain * num_chains) < num_samples).reshape(per_chain, num_chains)
    log_ratio = jax.vmap(jax.vmap(log_q))(chain.z[per_chain:]) - chain.log_density[per_chain:]
    log_mean, stderr = log_mean_exp(jnp.where(counts, log_ratio, -jnp.inf), counts)
    return HMCEstimate(-log_mean, stderr, chain.acceptance, chain.num_divergent)


def _check(latent_dim: int, num_samples: int, num_chains: int) -> None:
    if latent_dim > LARGEST_DIM:
        raise InputError(
            f"the estimator of appendix D was asked for {latent_dim} latent dimensions and fails above {LARGEST_DIM}: "
            "use annealed importance sampling"
        )
    if num_chains < 2:
        raise InputError(f"num_chains is {num_chains}: the standard error needs at least 2")
    if num_samples < 2 * (latent_dim + 1):
        raise InputError(
            f"num_samples is {num_samples}: to fit a Gaussian over {latent_dim} dimensions takes at least "
            f"{2 * (latent_dim + 1)}"
        )
    if latent_dim > RELIABLE_DIM:
        warnings.warn(
            f"the estimator of appendix D is unreliable above {RELIABLE_DIM} latent dimensions and has {latent_dim} "
            "here: annealed importance sampling is not",
            stacklevel=3,
        )


def _start(
    key: jax.Array,
    prior: dist.Distribution,
    log_likelihood: hmc.LogDensity,
    num_chains: int,
    num_leapfrog: int,
    target_acceptance: float,
) -> tuple[jax.Array, jax.Array]:
    """Chains near the posterior, `[chains, latent]`, and a step size: from a pool of prior draws, by annealing."""
    from blackjax.smc import ess, resampling, solver

    pool_key, anneal_key = jax.random.split(key)
    # The same draws for every datapoint, so that a batch decodes them once: where chains start is forgotten.
    pool = jax.vmap(prior.sample)(jax.random.split(jax.random.key(0), POOL))
    log_likelihoods = jax.lax.map(log_likelihood, pool, batch_size=10)
    share = min(POOL_PER_CHAIN * num_chains / POOL, 0.5)
    beta = ess.ess_solver(lambda _: log_likelihoods, pool, share, 1.0, solver.dichotomy)
    weights = jax.nn.softmax(beta * log_likelihoods)
    mean = weights @ pool
    scale = jnp.sqrt(weights @ jnp.square(pool - mean[None]))
    u = pool[resampling.systematic(pool_key, weights, num_chains)]
    betas = beta ** jnp.linspace(1.0, 0.0, NUM_TEMPERATURES + 1)
    u, step_sizes = hmc.anneal(
        anneal_key, u, prior.log_prob, log_likelihood, betas, num_leapfrog, target_acceptance, scale.min()
    )
    return u, step_sizes[-1]


def fit_core(z: jax.Array) -> hmc.LogDensity:
    """The log density of a Gaussian with the mean and covariance of z `[N, latent]`, cut off around its core.

    It is `-inf` outside the ellipsoid that holds half of z, and the Gaussian over its mass in there,
    `P(chi^2_latent < r^2)`, inside.
    """
    dim = z.shape[1]
    mean = z.mean(axis=0)
    covariance = jnp.cov(z, rowvar=False).reshape(dim, dim)
    # Chains that never moved have no covariance; what they lead to is a number all the same, and `check_chains` tells.
    ridge = 1e-6 * jnp.trace(covariance) / dim + 1e-12
    gaussian = dist.MultivariateNormal(mean, covariance + ridge * jnp.eye(dim))
    precision_root = gaussian.scale_tril

    def square_distance(z: jax.Array) -> jax.Array:
        return jnp.square(jax.scipy.linalg.solve_triangular(precision_root, z - mean, lower=True)).sum()

    square_radius = jnp.quantile(jax.vmap(square_distance)(z), CORE)
    log_mass = jnp.log(gammainc(dim / 2, square_radius / 2))

    def log_prob(z: jax.Array) -> jax.Array:
        return jnp.where(square_distance(z) <= square_radius, gaussian.log_prob(z) - log_mass, -jnp.inf)

    return log_prob


def log_mean_exp(logs: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`log mean exp` over what counts, and its standard error by the delta method from independent columns, nats.

    Args:
      logs: `[draws, chains]`, `-inf` where `counts` is not.
      counts: which of them there are, bool `[draws, chains]`.
    """
    num = counts.sum()
    log_mean = logsumexp(logs) - jnp.log(num)
    relative = jnp.exp(logs - log_mean)  # each over their mean
    num_chains = logs.shape[1]
    excess = relative.sum(axis=0) - counts.sum(axis=0)  # autocorrelation within a chain is all in here
    return log_mean, jnp.sqrt(num_chains / (num_chains - 1) * jnp.square(excess).sum()) / num


def check_chains(estimates: NamedTuple) -> None:
    """Halt where the chains of a split do not sample, on the host.

    Args:
      estimates: `HMCEstimate` or `AISEstimate` with leaves `[N]`.

    Raises:
      SamplingError: most datapoints had a divergent transition or a mean acceptance below 1 %, or any has an estimate
        that is not finite.
    """
    num = np.size(estimates.acceptance)
    diverged = int((np.asarray(estimates.num_divergent) > 0).sum())
    stuck = int((~(np.asarray(estimates.acceptance) >= NEVER_ACCEPTS)).sum())
    infinite = int((~np.isfinite(estimates.log_marginal)).sum())
    if max(diverged, stuck) > num / 2 or infinite:
        raise SamplingError(
            f"HMC failed: of {num} datapoints {diverged} had divergent transitions, {stuck} accepted less than "
            f"{NEVER_ACCEPTS:.0%} of their proposals (mean acceptance {float(np.mean(estimates.acceptance)):.3g}), and "
            f"{infinite} have an estimate that is not finite: look at the model's weights, or lengthen the burn-in"
        )
