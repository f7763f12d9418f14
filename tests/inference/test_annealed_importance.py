"""Annealed importance sampling against log p(x) that is known, in 1 to 20 dimensions."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
import small_bernoulli as sb
from quick_jit import quick_jit
from scipy import stats

from aevb.errors import InputError, SamplingError
from aevb.inference.annealed_importance import AISEstimate, annealed_importance_estimate, sigmoid_schedule
from aevb.inference.marginal_likelihood import check_chains


def check(estimates, exact, most_stderr):
    """The mean weight is p(x), and the reported standard error is the error's, both within 4 standard errors."""
    error = np.asarray(estimates.log_marginal, np.float64) - exact
    stderr = np.asarray(estimates.stderr, np.float64)
    assert stderr.mean() < most_stderr
    weights = np.exp(error)
    assert abs(weights.mean() - 1) < 4 * weights.std(ddof=1) / np.sqrt(weights.size)
    assert 0.75 < np.sqrt(np.mean((error / stderr) ** 2)) < 1.4
    np.testing.assert_allclose(estimates.acceptance.mean(), 0.9, atol=0.03)  # tuned without a hand
    check_chains(estimates)


def test_a_linear_gaussian_model():
    vae, x = lg.MODEL.bind({"params": lg.params()}), jnp.asarray(lg.X, jnp.float32)

    @quick_jit
    @jax.vmap
    def one(key):
        return annealed_importance_estimate(
            key, x, vae.prior(), vae.decode, num_chains=16, num_temperatures=30, num_leapfrog=4
        )

    estimates = one(jax.random.split(jax.random.key(0), 300))
    check(estimates, lg.log_marginal(), 0.2)
    # The chains are independent: with relative variance v of a weight, v / 16 is the square of the standard error and
    # 16 / (1 + v) the effective sample size.
    np.testing.assert_allclose(estimates.effective_sample_size, 16 / (1 + 15 * estimates.stderr**2), rtol=1e-4)


def test_twenty_dimensions():
    x, exact, prior, decode = lg.of_size(20, 0.4)

    @quick_jit
    @jax.vmap
    def one(key, x):
        return annealed_importance_estimate(key, x, prior, decode, num_chains=16, num_temperatures=400, num_leapfrog=5)

    estimates = one(jax.random.split(jax.random.key(1), 100), jnp.float32(x))
    error = np.asarray(estimates.log_marginal, np.float64) - exact
    # Four chains of 16 are effective: the weights are unbiased, their logarithm is below.
    assert abs(np.exp(error).mean() - 1) < 4 * np.exp(error).std(ddof=1) / np.sqrt(100)
    assert -0.4 < error.mean() < 0.1
    assert 3 < estimates.effective_sample_size.mean() < 8
    np.testing.assert_allclose(estimates.acceptance.mean(), 0.9, atol=0.03)


def test_a_bernoulli_decoder_by_quadrature():
    decoder = sb.decoder(3)
    exact, _, _ = sb.quadrature(decoder)
    estimate = functools.partial(annealed_importance_estimate, num_chains=16, num_temperatures=100, num_leapfrog=4)
    keys = jax.random.split(jax.random.key(2), len(decoder.x))
    one = quick_jit(jax.vmap(lambda key, x: estimate(key, x, decoder.prior, decoder.decode)))
    check(one(keys, decoder.x), exact, 0.3)


def test_a_positive_latent_has_its_jacobian():
    # Gamma(a, b) prior and Poisson counts: p(x) = b^a G(a + s) / (G(a) (b + n)^(a + s) prod x!), s the sum of counts.
    counts = jnp.array([1.0, 0.0, 2.0, 1.0])
    prior = dist.Gamma(jnp.full(1, 2.0), jnp.full(1, 1.5)).to_event(1)

    def decode(z):
        return dist.Poisson(jnp.broadcast_to(z, (4,))).to_event(1)

    exact = stats.nbinom(2, 1.5 / 5.5).logpmf(4) + stats.multinomial(4, [0.25] * 4).logpmf([1, 0, 2, 1])
    estimate = functools.partial(annealed_importance_estimate, num_chains=16, num_temperatures=20, num_leapfrog=4)
    keys = jax.random.split(jax.random.key(3), 200)
    check(quick_jit(jax.vmap(lambda key: estimate(key, counts, prior, decode)))(keys), exact, 0.2)


def test_the_schedule_is_a_sigmoid_from_prior_to_posterior():
    betas = np.asarray(sigmoid_schedule(10), np.float64)
    np.testing.assert_allclose(betas[[0, 5, 10]], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(betas, (np.tanh(np.linspace(-2, 2, 11)) / np.tanh(2) + 1) / 2, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("num_chains", 1), ("num_temperatures", 0)])
def test_it_refuses_what_it_cannot_do(name, value):
    prior = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
    with pytest.raises(InputError, match=f"{name} is {value}"):
        annealed_importance_estimate(
            jax.random.key(0), jnp.zeros(2), prior, lambda z: dist.Normal(z, 1.0).to_event(1), **{name: value}
        )


def test_estimates_that_rest_on_one_chain_are_an_error_with_the_numbers():
    good = AISEstimate(np.zeros(10), np.full(10, 5.0), np.ones(10), np.full(10, 0.9), np.zeros(10))
    check_chains(good)
    check_chains(good._replace(effective_sample_size=np.array([1.0] * 5 + [5.0] * 5)))
    with pytest.raises(SamplingError, match="6 rest on fewer than 2 annealed chains"):
        check_chains(good._replace(effective_sample_size=np.array([1.9] * 6 + [5.0] * 4)))
