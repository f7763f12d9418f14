"""The marginal likelihood of one datapoint from posterior samples by HMC (Kingma & Welling, appendix D)."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from aevb import bounds
from aevb.errors import InputError, SamplingError
from aevb.inference import hmc

RELIABLE_DIM, LARGEST_DIM = 5, 10  # the paper trusts the estimator below 5 dimensions
CORE_DRAWS = 200  # from q itself, to find the level that half of its mass lies above
# Where chains start: draws from a wider prior, tempered until so many a chain are effective, then so many temperatures.
POOL, POOL_WIDTH, POOL_PER_CHAIN, NUM_TEMPERATURES = 1000, 1.5, 3, 10
MIN_ACCEPTANCE, MAX_DIVERGENT = 0.01, 0.01  # of a datapoint's transitions; beyond these its chains do not sample
MIN_EFFECTIVE = 2.0  # annealed chains; below, an estimate rests on one
POOL_SEED = 1312_6114  # of nothing else


class HMCEstimate(NamedTuple):
    """What posterior samples say of one datapoint; scalars.

    Attributes:
      log_marginal: the estimate of log p(x), nats.
      stderr: its standard error, nats, by the delta method from the spread between the chains; too small for a
        posterior of several modes, which chains share out by one resampling.
      acceptance: the mean acceptance probability of HMC after burn-in.
      divergent: the share of transitions after burn-in that diverged.
    """

    log_marginal: jax.Array
    stderr: jax.Array
    acceptance: jax.Array
    divergent: jax.Array


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

    The paper does not name the family of q. Here it is a Gaussian a chain, which together have the mean and full
    covariance of the draws, cut off around their core (`fit_core`). Cut off, the ratio is bounded, so that its variance
    is finite whatever the tails; and the tails, where short chains are least to be trusted, count for nothing. One
    Gaussian for all chains would put mass between the modes of a posterior: it was up to 3 nats too high there. The q
    of a chain is fitted to the others, as one that follows the chain itself is too high where the chain is.

    Chains start by annealing with resampling, so that they share out the modes by mass. Where none finds a mode, its
    share f of the mass is missing, and the estimate lower by -log(1 - f).

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
    num_chains = min(num_chains, num_samples // 2)

    def log_likelihood(u: jax.Array) -> jax.Array:
        return bounds.log_likelihood(decode(transform(u)), x)

    start_key, sample_key, fit_key = jax.random.split(key, 3)
    log_joint = hmc.tempered(prior.log_prob, log_likelihood, 1.0)
    u, step_size = start_chains(start_key, prior, log_joint, num_chains, num_leapfrog, target_acceptance)
    each = -(-num_samples // num_chains)
    chain = hmc.sample(sample_key, u, log_joint, 2 * each, num_burn_in, num_leapfrog, target_acceptance, step_size)
    counts = (jnp.arange(each * num_chains) < num_samples).reshape(each, num_chains)

    def log_ratios_of(num_parts: int) -> jax.Array:
        """log q(z) - log p(x, z) of the fresh draws, `[draws, chains]`, with q of so many Gaussians."""

        def one_chain(key: jax.Array, c: jax.Array, fresh: jax.Array, log_density: jax.Array) -> jax.Array:
            # Of the other chains: one close to the draws it is asked about has too high a mean ratio.
            others = counts & (jnp.arange(num_chains) != c)[None]
            fitted = chain.z[:each].reshape(-1, num_parts, chain.z.shape[-1])
            return jax.vmap(fit_core(key, fitted, others.reshape(-1, num_parts)))(fresh) - log_density

        fresh = (chain.z[each:], chain.log_density[each:])
        keys = jax.random.split(jax.random.fold_in(fit_key, num_parts), num_chains)
        return jax.vmap(one_chain, in_axes=(0, 0, 1, 1), out_axes=1)(keys, jnp.arange(num_chains), *fresh)

    # Chains that hardly move, as along the broad axes of a posterior that is narrow in others, make Gaussians that none
    # of the other chains' draws lie near; of these chains one Gaussian for all has room for them.
    log_ratios = log_ratios_of(num_chains)
    log_ratios = jnp.where(jnp.isfinite(jnp.where(counts, log_ratios, -jnp.inf)).any(), log_ratios, log_ratios_of(1))
    log_mean, stderr = log_mean_exp(jnp.where(counts, log_ratios, -jnp.inf), counts)
    # The logarithm of a mean is biased by minus half its relative variance, to first order.
    return HMCEstimate(-log_mean - 0.5 * stderr**2, stderr, chain.acceptance, chain.divergent)


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


def start_chains(
    key: jax.Array,
    prior: dist.Distribution,
    log_joint: hmc.LogDensity,
    num_chains: int,
    num_leapfrog: int = 4,
    target_acceptance: float = 0.9,
) -> tuple[jax.Array, jax.Array]:
    """Chains near the posterior, `[chains, latent]`, and a step size: from a pool of draws, by annealing.

    The pool is of a prior stretched about its mean. From the prior itself the chains missed, for 3 in 1000 MNIST
    images, a posterior that lies in the prior's tail, and the estimate was 15 to 50 nats too low.

    Args:
      key: consumed here.
      prior: p(u), on all of R^latent.
      log_joint: from one u to log p(x, u), nats.
      num_chains: to start.
      num_leapfrog: steps of a transition.
      target_acceptance: what the step size follows.
    """
    from blackjax.smc import ess, resampling, solver

    pool_key, anneal_key = jax.random.split(key)
    # The same draws for every datapoint, so that a batch decodes them once: where chains start is forgotten.
    draws = jax.vmap(prior.sample)(jax.random.split(jax.random.key(POOL_SEED), POOL))
    centre = draws.mean(axis=0)

    def log_wide(u: jax.Array) -> jax.Array:
        return prior.log_prob(centre + (u - centre) / POOL_WIDTH) - u.size * math.log(POOL_WIDTH)

    def log_ratio(u: jax.Array) -> jax.Array:
        return log_joint(u) - log_wide(u)

    pool = centre[None] + POOL_WIDTH * (draws - centre[None])
    log_ratios = jax.lax.map(log_ratio, pool, batch_size=10)
    share = min(POOL_PER_CHAIN * num_chains / POOL, 0.5)
    beta = ess.ess_solver(lambda _: log_ratios, pool, share, 1.0, solver.dichotomy)
    weights = jax.nn.softmax(beta * log_ratios)
    scale = jnp.sqrt(weights @ jnp.square(pool - (weights @ pool)[None]))
    u = pool[resampling.systematic(pool_key, weights, num_chains)]
    betas = beta ** jnp.linspace(1.0, 0.0, NUM_TEMPERATURES + 1)
    u, step_sizes = hmc.anneal(anneal_key, u, log_wide, log_ratio, betas, num_leapfrog, target_acceptance, scale.min())
    return u, step_sizes[-1]


def fit_core(key: jax.Array, z: jax.Array, counts: jax.Array) -> hmc.LogDensity:
    """A log density fitted to draws of several chains, `-inf` outside its own core.

    A Gaussian at the mean of each chain, all with the covariance of draws about the mean of their chain: together they
    have the mean and full covariance of the draws, and yet no mass between modes that no chain crosses. Cut off where
    this density is lower than on half of its own mass, and doubled.

    Args:
      key: of the draws from the mixture itself that find this level; consumed here.
      z: `[draws, chains, latent]`.
      counts: which of them there are, bool `[draws, chains]`; a chain may have none.
    """
    dim = z.shape[-1]
    weights = counts / counts.sum()
    share = weights.sum(axis=0)
    means = jnp.einsum("tc,tci->ci", weights, z) / jnp.maximum(share, 1e-6)[:, None]
    deviations = z - means[None]
    covariance = jnp.einsum("tc,tci,tcj->ij", weights, deviations, deviations)
    # Chains that never moved have no covariance; what comes of them is a number all the same, and `check_chains` tells.
    root = jnp.linalg.cholesky(covariance + (1e-6 * jnp.trace(covariance) / dim + 1e-12) * jnp.eye(dim))
    # The inverse once, not a triangular solve a draw: many small solves are slow.
    whiten = jax.scipy.linalg.solve_triangular(root, jnp.eye(dim), lower=True)
    log_scale = jnp.log(share) - jnp.log(jnp.diagonal(root)).sum() - 0.5 * dim * math.log(2 * math.pi)
    white_means = means @ whiten.T

    def log_mixture(z: jax.Array) -> jax.Array:
        return logsumexp(log_scale - 0.5 * jnp.square(white_means - (whiten @ z)[None]).sum(axis=1))

    component_key, noise_key = jax.random.split(key)
    component = jax.random.choice(component_key, len(share), (CORE_DRAWS,), p=share)
    draws = means[component] + jax.random.normal(noise_key, (CORE_DRAWS, dim)) @ root.T
    level = jnp.median(jax.vmap(log_mixture)(draws))

    def log_q(z: jax.Array) -> jax.Array:
        log_prob = log_mixture(z)
        return jnp.where(log_prob >= level, log_prob + math.log(2.0), -jnp.inf)

    return log_q


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
      SamplingError: in most datapoints 1 % of the transitions diverged, or fewer were accepted, or annealed chains have
        an effective sample size below 2; or one has an estimate that is not finite.
    """
    num = np.size(estimates.acceptance)
    diverged = int((~(np.asarray(estimates.divergent) < MAX_DIVERGENT)).sum())
    stuck = int((~(np.asarray(estimates.acceptance) >= MIN_ACCEPTANCE)).sum())
    effective = np.asarray(getattr(estimates, "effective_sample_size", np.inf))
    lonely = int((~(effective >= MIN_EFFECTIVE)).sum())
    infinite = np.flatnonzero(~np.isfinite(estimates.log_marginal))
    if max(diverged, stuck, lonely) > num / 2 or len(infinite):
        which = f" (number {infinite[0]})" if len(infinite) else ""
        raise SamplingError(
            f"HMC failed: of {num} datapoints {diverged} had at least {MAX_DIVERGENT:.0%} divergent transitions, "
            f"{stuck} accepted less than {MIN_ACCEPTANCE:.0%} of their proposals (mean acceptance "
            f"{float(np.mean(estimates.acceptance)):.3g}), {lonely} rest on fewer than {MIN_EFFECTIVE:g} annealed "
            f"chains, and {len(infinite)} have an estimate that is not finite{which}: look at the model's weights, ask "
            "for more samples, or use another estimator"
        )
