"""Bounds on log p(x) of ONE datapoint, in nats; they go up. A batch is a `jax.vmap` around them.

A bound reads `Samples`: what K draws of z from the posterior weigh under posterior, prior and likelihood. Drawing is
apart from bounding, so that several bounds can be computed on the same draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp


class Samples(NamedTuple):
    """K draws of z for one x, with the three log densities of each, in nats.

    Attributes:
      z: `[K, latent]`, differentiable in the posterior's parameters where `draw` was asked for reparameterized ones.
      log_likelihood: log p(x | z), `[K]`.
      log_prior: log p(z), `[K]`.
      log_posterior: log q(z | x), `[K]`.
    """

    z: jax.Array
    log_likelihood: jax.Array
    log_prior: jax.Array
    log_posterior: jax.Array

    @property
    def log_weights(self) -> jax.Array:
        """log p(x, z) - log q(z | x), `[K]`: the logarithms of the importance weights."""
        return self.log_likelihood + self.log_prior - self.log_posterior


class Bound(NamedTuple):
    """A lower bound on log p(x), the evidence lower bound that it contains, and that one's parts; scalars in nats.

    Attributes:
      log_likelihood: E_q log p(x | z).
      kl: KL(q(z | x) || p(z)).
      excess: what the bound has above the elbo, from the same draws; 0 where it is the elbo.
    """

    log_likelihood: jax.Array
    kl: jax.Array
    excess: jax.Array | float = 0.0

    @property
    def elbo(self) -> jax.Array:
        """`log_likelihood - kl`."""
        return self.log_likelihood - self.kl

    @property
    def value(self) -> jax.Array:
        """The bound itself."""
        return self.elbo + self.excess


BoundFn = Callable[[Samples, dist.Distribution, dist.Distribution], Bound]


def log_likelihood(likelihood: dist.Distribution, x: jax.Array) -> jax.Array:
    """log p(x) in nats of one datapoint, a scalar.

    Raises:
      ValueError: at trace time, when the distribution is not over exactly the shape of x. Broadcasting logits
        [12, 1] against a datapoint [12] would silently sum 144 terms.
    """
    if likelihood.batch_shape != () or likelihood.event_shape != jnp.shape(x):
        raise ValueError(
            f"the likelihood has event shape {likelihood.event_shape} and batch shape {likelihood.batch_shape}, "
            f"but the datapoint has shape {jnp.shape(x)}: give the decoder one datapoint at a time, and its shape"
        )
    return likelihood.log_prob(x)


def draw(
    key: jax.Array,
    x: jax.Array,
    posterior: dist.Distribution,
    prior: dist.Distribution,
    decode: Callable[[jax.Array], dist.Distribution],
    num_samples: int = 1,
    *,
    reparameterized: bool = True,
) -> Samples:
    """Draw `num_samples` z from q(z | x) and weigh them for one datapoint.

    Args:
      key: consumed here.
      x: the datapoint that the likelihood is asked about, `[*event]`.
      posterior: q(z | x), with a reparameterized sampler unless `reparameterized` is False.
      prior: p(z).
      decode: from one z to p(x | z).
      num_samples: K, at least 1.
      reparameterized: whether gradients flow through z into the posterior's parameters; `score_function` needs draws
        through which none does.
    """

    def one(key: jax.Array) -> Samples:
        z, intermediates = posterior.sample_with_intermediates(key)
        if not reparameterized:  # the intermediates depend on the posterior's parameters at a fixed z too
            z, intermediates = jax.lax.stop_gradient(z), []
        return Samples(
            z=z,
            log_likelihood=log_likelihood(decode(z), x),
            log_prior=prior.log_prob(z),
            log_posterior=posterior.log_prob(z, intermediates) if intermediates else posterior.log_prob(z),
        )

    if num_samples == 1:  # not a vmap over one: XLA would copy the transposed gradient of each decoder layer
        return jax.tree.map(lambda leaf: leaf[None], one(key))
    return jax.vmap(one)(jax.random.split(key, num_samples))


def sgvb_a(samples: Samples, posterior: dist.Distribution, prior: dist.Distribution) -> Bound:
    """The estimator L^A of the evidence lower bound (Kingma & Welling, eq. 6): no density needs a closed form.

    `elbo = mean_k [log p(x, z_k) - log q(z_k | x)]`; here `kl` is the Monte Carlo estimate `mean_k [log q - log p(z)]`.
    """
    del posterior, prior
    return Bound(log_likelihood=samples.log_likelihood.mean(), kl=(samples.log_posterior - samples.log_prior).mean())


def sgvb_b(samples: Samples, posterior: dist.Distribution, prior: dist.Distribution) -> Bound:
    """The estimator L^B of the evidence lower bound (Kingma & Welling, eq. 7), with the KL in closed form.

    `elbo = mean_k log p(x | z_k) - KL(q(z | x) || p(z))`.

    Raises:
      NotImplementedError: when NumPyro knows no closed form for this pair; `sgvb_a` needs none.
    """
    return Bound(log_likelihood=samples.log_likelihood.mean(), kl=kl(posterior, prior))


def score_function(samples: Samples, posterior: dist.Distribution, prior: dist.Distribution) -> Bound:
    """The value of `sgvb_a` with the score-function gradient, also called REINFORCE or the likelihood ratio.

    `grad E_q[f] = E_q[grad f + f grad log q(z | x)]` at fixed z (Kingma & Welling, section 2.2), for each part f of the
    bound: the gradient of `f + stop(f) (log q - stop(log q))`. It asks no gradient of f in z, and its variance grows
    with f^2. This is the plain estimator, without a baseline or control variate.

    Args:
      samples: drawn with `reparameterized=False`; from others the gradient would count the posterior twice.
    """
    del posterior, prior
    score = samples.log_posterior - jax.lax.stop_gradient(samples.log_posterior)

    def surrogate(f: jax.Array) -> jax.Array:
        return (f + jax.lax.stop_gradient(f) * score).mean()

    return Bound(surrogate(samples.log_likelihood), surrogate(samples.log_posterior - samples.log_prior))


def iwae_bound(samples: Samples) -> jax.Array:
    """The importance-weighted bound `log mean_k w_k` (Burda et al., 1509.00519, eq. 8); the elbo at K = 1."""
    return logsumexp(samples.log_weights) - jnp.log(samples.log_weights.shape[0])


def iwae(samples: Samples, posterior: dist.Distribution, prior: dist.Distribution) -> Bound:
    """The importance-weighted bound of K draws as what is climbed, beside the elbo of the same draws.

    Its gradient is that of `log mean_k w_k` through the draws, `sum_k w_k / sum_j w_j grad log w_k` (Burda et al., eq.
    14). It rises to log p(x) with K, while the encoder's gradient falls below its own noise (Rainforth et al., 2018).
    """
    elbo = sgvb_a(samples, posterior, prior)
    return elbo._replace(excess=iwae_bound(samples) - elbo.elbo)


def kl(posterior: dist.Distribution, prior: dist.Distribution) -> jax.Array:
    """KL(q || p) in nats, in closed form (appendix B for Gaussians), a scalar.

    NumPyro's of a Kumaraswamy from a beta distribution is a cut-off series, and not taken. It lacks that of
    N(mu, L L^T) from a p that factorizes: `sum_j [KL(q_j || p_j) + log(sigma_j / L_jj)]`, with
    `sigma_j^2 = (L L^T)_jj`; the logarithms sum to KL(q || prod_j q_j), the total correlation.

    Raises:
      NotImplementedError: when there is no closed form for this pair.
    """
    if isinstance(posterior, dist.MultivariateNormal) and isinstance(prior, dist.Independent):
        ratios = jnp.sqrt(posterior.variance) / jnp.diagonal(posterior.scale_tril)
        return kl_per_dim(posterior, prior).sum() + jnp.log(ratios).sum()
    if isinstance(posterior, dist.Independent) and isinstance(prior, dist.Independent):
        return kl_per_dim(posterior, prior).sum()
    return dist.kl_divergence(posterior, prior)


def kl_per_dim(posterior: dist.Distribution, prior: dist.Distribution, z: jax.Array | None = None) -> jax.Array:
    """KL(q_j || p_j) in nats between the marginals of each latent dimension, `[latent]`.

    For a prior that factorizes, `KL(q || p) = sum_j KL(q_j || p_j) + KL(q || prod_j q_j)`. So they sum to the KL where
    the posterior factorizes too; where it is correlated they sum to less, by its total correlation.

    In closed form where NumPyro knows one, else the Monte Carlo estimate `mean_k [log q_j(z_kj) - log p_j(z_kj)]`.

    Args:
      z: K draws from the posterior, `[K, latent]`, for pairs without a closed form; others do not read them.

    Raises:
      NotImplementedError: when there is neither a closed form nor z, or no closed form of the marginals, as of a flow.
    """
    q, p = _marginals(posterior), _marginals(prior)
    try:
        if isinstance(q, dist.Kumaraswamy) and isinstance(p, dist.Beta):
            raise NotImplementedError("NumPyro's KL of a Kumaraswamy from a beta distribution is a cut-off series")
        return dist.kl_divergence(q, p)
    except NotImplementedError:
        if z is None:
            raise
        return jax.vmap(lambda z: q.log_prob(z) - p.log_prob(z))(z).mean(axis=0)


def _marginals(distribution: dist.Distribution) -> dist.Distribution:
    """The distributions of each z_j, of batch shape `[latent]`."""
    if isinstance(distribution, dist.Independent):
        return distribution.base_dist
    if isinstance(distribution, dist.MultivariateNormal):
        return dist.Normal(distribution.mean, jnp.sqrt(distribution.variance))
    raise NotImplementedError(f"the marginals of a {type(distribution).__name__} have no closed form")


def minibatch_estimate(bounds: jax.Array, num_examples: int) -> jax.Array:
    """The bound of a whole data set from a minibatch, `N/M sum_i bound_i`, in nats (Kingma & Welling, eq. 8).

    Args:
      bounds: the bound of each datapoint of the minibatch, `[M]`.
      num_examples: N.
    """
    return num_examples * bounds.mean()


def log_weight_prior(params: Any) -> jax.Array:
    """log N(params; 0, I) in nats, a scalar: the paper's prior p(theta), added to the data set's bound for MAP."""
    return sum(dist.Normal().log_prob(leaf).sum() for leaf in jax.tree.leaves(params))
