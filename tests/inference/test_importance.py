"""Importance sampling against a direct log-sum-exp in float64, and against a known log p(x)."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp

from aevb import bounds
from aevb.inference.importance import importance_estimate

X = jnp.asarray(lg.X, jnp.float32)
PRIOR = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def estimate(params, key, num_samples, block=50):
    vae = lg.MODEL.bind({"params": params})
    return importance_estimate(key, X, vae.encode(X), vae.prior(), vae.decode, num_samples, block)


def draws(params, key, num_samples, block=50):
    """The first K of the draws that the blocks consist of."""
    vae = lg.MODEL.bind({"params": params})
    block = min(block, num_samples)
    blocks = [
        bounds.draw(jax.random.fold_in(key, i), X, vae.encode(X), vae.prior(), vae.decode, block)
        for i in range(-(-num_samples // block))
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_samples].astype(np.float64), *blocks)


@pytest.mark.parametrize("num_samples", [1, 7, 50, 53])
def test_exactly_so_many_draws_count(num_samples):
    key, params = jax.random.key(0), lg.params(0.8, 1.4)
    got, samples = estimate(params, key, num_samples), draws(params, key, num_samples)
    weights = np.exp(samples.log_weights - samples.log_weights.max())
    np.testing.assert_allclose(got.log_marginal, logsumexp(samples.log_weights) - np.log(num_samples), rtol=1e-5)
    np.testing.assert_allclose(got.effective_sample_size, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(got.log_likelihood, samples.log_likelihood.mean(), rtol=1e-5)
    np.testing.assert_allclose(got.kl, (samples.log_posterior - samples.log_prior).mean(), rtol=1e-4)
    assert len(np.unique(samples.z)) == 2 * num_samples  # no draw twice


@pytest.mark.parametrize("num_samples", [1, 7, 50, 53])
@pytest.mark.parametrize("block", [1, 10, 50])
def test_equal_weights_are_all_effective(num_samples, block):
    def decode(z):
        return dist.Normal(jnp.zeros(3), 1.0).to_event(1)

    got = importance_estimate(jax.random.key(1), jnp.ones(3), PRIOR, PRIOR, decode, num_samples, block)
    log_likelihood = -1.5 * np.log(2 * np.pi) - 1.5
    np.testing.assert_allclose(got.effective_sample_size, num_samples, rtol=1e-4)
    np.testing.assert_allclose(got.log_marginal, log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(got.log_likelihood, log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(got.kl, 0, atol=1e-6)


def test_one_dominant_weight_leaves_one_effective_draw():
    def decode(z):
        return dist.Normal(z, 1e-3).to_event(1)

    got = importance_estimate(jax.random.key(1), jnp.array([3.0, -3.0]), PRIOR, PRIOR, decode, 120)
    np.testing.assert_allclose(got.effective_sample_size, 1, rtol=1e-5)
    assert got.log_marginal < -1e5  # far below the smallest float32: only logarithms carry it


def test_it_estimates_log_p_x():
    keys = jax.random.split(jax.random.key(2), 400)
    got = jax.jit(jax.vmap(lambda key: estimate(lg.params(0.6, 1.3), key, 200)))(keys)
    weights = np.exp(np.asarray(got.log_marginal, np.float64) - lg.log_marginal())
    error = weights.std(ddof=1) / np.sqrt(400)
    assert error < 0.005
    assert abs(weights.mean() - 1) < 4 * error  # the mean of weights is unbiased, its logarithm is not
    elbo = got.log_likelihood - got.kl
    assert abs(elbo.mean() - lg.log_marginal() + lg.gap(0.6, 1.3)) < 4 * elbo.std() / np.sqrt(400)


def test_with_the_exact_posterior_one_draw_is_enough():
    got = estimate(lg.params(), jax.random.key(3), 60)
    np.testing.assert_allclose(got.log_marginal, lg.log_marginal(), atol=2e-5)
    np.testing.assert_allclose(got.effective_sample_size, 60, rtol=1e-4)
