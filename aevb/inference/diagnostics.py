"""Diagnostics of the latent code: which dimensions carry information, how much there is, and whether it collapsed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from aevb.errors import InputError

ACTIVE_VARIANCE = 0.01
# Nats. The KL of a dimension, a mean over datapoints, is the most that z_j can say of x: a hundredth is nothing, and
# about what a mean whose variance is at the threshold of an active unit costs, 0.005.
DEAD_KL = 0.01
# Nats. E_q log p(x | z) <= -H(x) + I_q(x; z) for any decoder, so that one without z could be as good up to these.
COLLAPSED_INFORMATION = 0.1


def active_units(posterior_means: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """Which latent dimensions are active: `Var_x(E_q[z_j]) > 0.01`, bool `[latent]` (Burda et al., 1509.00519).

    In a conditional model the variance is within a context, for the decoder knows the context without z.

    Args:
      posterior_means: E_q[z] of each datapoint of a split, `[N, latent]`.
      context: what each was told, `[N, context]`, of few values, such as classes; None in a model without.
    """
    if context is not None:
        _, group = np.unique(context, axis=0, return_inverse=True)
        sums = np.zeros((group.max() + 1, posterior_means.shape[1]))
        np.add.at(sums, group.ravel(), posterior_means)
        posterior_means = posterior_means - (sums / np.bincount(group.ravel())[:, None])[group.ravel()]
    return posterior_means.var(axis=0) > ACTIVE_VARIANCE


class CodeInformation(NamedTuple):
    """What the codes of N datapoints say of them; scalars, nats: `kl = mutual_information + marginal_kl`.

    Attributes:
      kl: the mean over datapoints of KL(q(z | x) || p(z)), a Monte Carlo estimate.
      mutual_information: I_q(x; z), at most log N.
      marginal_kl: KL(q(z) || p(z)), how far the codes of all datapoints together are from the prior.
      kl_stderr, mutual_information_stderr, marginal_kl_stderr: their standard errors, `sd / sqrt(N)` over datapoints;
        the bias of the last two is not in them.
    """

    kl: jax.Array
    mutual_information: jax.Array
    marginal_kl: jax.Array
    kl_stderr: jax.Array
    mutual_information_stderr: jax.Array
    marginal_kl_stderr: jax.Array


def code_information(
    key: jax.Array,
    to_posterior: Callable[[Any], dist.Distribution],
    outputs: Any,
    to_prior: Callable[[jax.Array | None], dist.Distribution],
    context: jax.Array | None = None,
    *,
    num_samples: int = 1,
    block: int = 10,
) -> CodeInformation:
    """Split the KL of N datapoints into what the code says of them and its distance from the prior.

    `1/N sum_n KL(q(z | x_n) || p(z)) = I_q(x; z) + KL(q(z) || p(z))` with the aggregate posterior
    `q(z) = 1/N sum_n q(z | x_n)` (Hoffman & Johnson, 2016). For z ~ q(z | x_n), the mean of `log q(z | x_n) - log q(z)`
    is I_q(x; z), and that of `log q(z) - log p(z)` the second term.

    Every draw is weighed under all N posteriors, that of x_n among them. So this is unbiased where x is one of these N
    datapoints, and then I_q(x; z) is at most log N. For the distribution they come from, I_q(x; z) is too low in
    expectation and the marginal KL too high by as much, less so the more datapoints there are (Poole et al.,
    1905.06922): by `(E[q(z | x) / q(z)] - 1) / 2N` to first order, which for a Gaussian z and x of one dimension is
    `(e^(2 I) - 1) / 2N`. An estimate near log N is a lower bound and no more.

    In a conditional model all of it is given the context c: I_q(x; z | c), from the aggregate of the datapoints with
    the same c, so N is their number, and KL(q(z | c) || p(z | c)).

    Args:
      key: consumed here.
      to_posterior: from the encoder's outputs of one datapoint to q(z | x), for example `vae.posterior`.
      outputs: of the encoder, each leaf `[N, ...]`, N at least 2.
      to_prior: from a context `[context]`, or None, to the prior, `vae.given(context).prior()`.
      context: what each datapoint was told, `[N, context]`, of few values, such as classes; None in a model without.
      num_samples: draws of z a datapoint; one is enough where N is large.
      block: datapoints at once; memory grows with `block * N * latent`, and the draws are the same for each block.

    Raises:
      InputError: there are fewer than 2 datapoints.
    """
    num = len(jax.tree.leaves(outputs)[0])
    if num < 2:
        raise InputError(f"the number of datapoints is {num}, and a code tells datapoints apart: give at least 2")

    def one(inputs: tuple[jax.Array, Any, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        index, own, own_context = inputs
        keys = jax.random.split(jax.random.fold_in(key, index), num_samples)
        alike = jnp.ones(num, bool) if context is None else (context == own_context[None]).all(axis=-1)
        parts = jax.lax.map(lambda key: draw(key, to_posterior(own), to_prior(own_context), alike), keys)
        return jax.tree.map(jnp.mean, parts)

    def draw(
        key: jax.Array, posterior: dist.Distribution, prior: dist.Distribution, alike: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        z = posterior.sample(key)
        log_each = jax.vmap(lambda other: to_posterior(other).log_prob(z))(outputs)
        log_aggregate = logsumexp(log_each, where=alike) - jnp.log(alike.sum())
        return posterior.log_prob(z) - log_aggregate, log_aggregate - prior.log_prob(z)

    information, marginal_kl = jax.lax.map(one, (jnp.arange(num), outputs, context), batch_size=min(block, num))
    parts = (information + marginal_kl, information, marginal_kl)
    return CodeInformation(*(part.mean() for part in parts), *(part.std(ddof=1) / jnp.sqrt(num) for part in parts))


class Collapse(NamedTuple):
    """Whether the posterior collapsed onto one distribution for all x.

    Attributes:
      collapsed: the code as a whole says next to nothing of x.
      num_dead: latent dimensions that say nothing of x.
      advice: one sentence, what to try.
    """

    collapsed: bool
    num_dead: int
    advice: str


def posterior_collapse(active: np.ndarray, kl_per_dim: np.ndarray, mutual_information: float) -> Collapse:
    """Judge a code by three measures of it, all of the same datapoints.

    A dimension is dead where it is not active, or where its KL, `E_x KL(q(z_j | x) || p(z_j)) >= I_q(x; z_j)`, is below
    0.01 nats. A dead one with a larger KL pays for being the same for all x, yet not the prior. The code collapsed
    where every dimension is dead or I_q(x; z) is below 0.1 nats: up to those, a decoder without z could do as well.

    Args:
      active: `active_units`, bool `[latent]`.
      kl_per_dim: `bounds.kl_per_dim`, its mean over datapoints, nats, `[latent]`.
      mutual_information: of `code_information`, nats.

    Raises:
      InputError: the shapes differ, or a number is not finite.
    """
    active, kl_per_dim = np.asarray(active, bool), np.asarray(kl_per_dim)
    if active.shape != kl_per_dim.shape:
        raise InputError(
            f"active has shape {active.shape} and kl_per_dim {kl_per_dim.shape}: give both for each latent dimension"
        )
    if not (np.isfinite(kl_per_dim).all() and np.isfinite(mutual_information)):
        raise InputError(
            f"kl_per_dim is {kl_per_dim.tolist()} and mutual_information {float(mutual_information)}: collapse is "
            "judged by finite numbers, so look at what made them"
        )
    dead = ~active | (kl_per_dim < DEAD_KL)
    num_dead = int(dead.sum())
    collapsed = num_dead == dead.size or mutual_information < COLLAPSED_INFORMATION
    return Collapse(bool(collapsed), num_dead, _advice(collapsed, dead, kl_per_dim, float(mutual_information)))


def _advice(collapsed: bool, dead: np.ndarray, kl_per_dim: np.ndarray, mutual_information: float) -> str:
    information = f"{max(mutual_information, 0):.2g}"  # of what is at least 0, an estimate may lie below
    which = f"{dead.sum()} of {dead.size} latent dimensions are dead and cost {kl_per_dim[dead].sum():.2g} nats"
    if collapsed:
        return (
            f"the code says {information} nats of x, and {which}: warm up the weight of the KL from 0, use "
            "free bits, or make the decoder weaker or its noise smaller"
        )
    if dead.any():
        return f"{which}: make the latent space smaller, or warm up the weight of the KL from 0 so that more are used"
    return f"all {dead.size} latent dimensions carry information"
