"""The Gaussian posterior of full covariance against SciPy and matrix algebra in float64, and what its KL consists of.

Monte Carlo comparisons have fixed keys and allow 4 standard errors, each computed from the draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy_families as sf
from quick_jit import quick_jit
from scipy import stats

from aevb import bounds, models
from aevb.errors import InputError
from aevb.models.posteriors import FullGaussian
from aevb.networks import MLP

LATENT = 3
MEAN, LOG_DIAGONAL = np.array([0.5, -2.0, 0.1]), np.array([-0.5, 0.2, -1.0])
BELOW = np.array([0.7, -0.3, 0.4])  # rows: (1, 0), (2, 0), (2, 1)
L = np.diag(np.exp(LOG_DIAGONAL)) + np.array([[0, 0, 0], [BELOW[0], 0, 0], [*BELOW[1:], 0]])
COVARIANCE = L @ L.T
OUTPUTS = jnp.float32(np.concatenate([MEAN, BELOW, LOG_DIAGONAL]))
POSTERIOR = FullGaussian()(OUTPUTS)
PRIORS = {"standard": (np.zeros(3), np.ones(3)), "other": (np.array([1.0, -1.0, 0.3]), np.array([2.0, 0.7, 1.5]))}


def diagonal(mean, scale):
    return dist.Normal(jnp.float32(mean), jnp.float32(scale)).to_event(1)


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


@functools.cache
def draws():
    return np.asarray(quick_jit(jax.vmap(POSTERIOR.sample))(jax.random.split(jax.random.key(0), 20_000)), np.float64)


@pytest.mark.parametrize("latent_dim", [1, 20])
def test_outputs_of_zeros_are_the_standard_normal_of_any_size(latent_dim):
    shape = FullGaussian().output_shape(latent_dim)
    assert shape == (latent_dim + latent_dim * (latent_dim + 1) // 2,)
    q = quick_jit(FullGaussian())(jnp.zeros(shape))
    assert (q.event_shape, q.batch_shape) == ((latent_dim,), ())
    np.testing.assert_array_equal(q.loc, np.zeros(latent_dim))
    np.testing.assert_array_equal(q.scale_tril, np.eye(latent_dim))


def test_the_log_density_and_the_moments_are_scipys():
    z = draws()[:200]
    got = quick_jit(jax.vmap(POSTERIOR.log_prob))(jnp.float32(z))
    np.testing.assert_allclose(got, stats.multivariate_normal(MEAN, COVARIANCE).logpdf(z), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(POSTERIOR.mean, MEAN, rtol=1e-6)
    np.testing.assert_allclose(POSTERIOR.variance, np.diag(COVARIANCE), rtol=1e-5)


def test_draws_have_the_mean_and_the_covariance():
    deviations = draws() - MEAN
    for values, expected in (
        (deviations, np.zeros(3)),
        (np.einsum("ni,nj->nij", deviations, deviations), COVARIANCE),
    ):
        mean, error = mean_and_error(values)
        assert (np.abs(mean - expected) < 4 * error).all()
    assert stats.kstest(np.linalg.solve(L, deviations.T).ravel(), stats.norm.cdf).pvalue > 1e-3


def test_gradients_of_draws_are_unbiased_for_those_of_an_expectation():
    # E[(a . z)^2] = (a . mu)^2 + |L^T a|^2.
    a = np.array([1.0, -0.5, 2.0])

    def of_a_draw(outputs, key):
        return (jnp.float32(a) @ FullGaussian()(outputs).sample(key)) ** 2

    keys = jax.random.split(jax.random.key(1), 20_000)
    mean, error = mean_and_error(quick_jit(jax.vmap(jax.grad(of_a_draw), in_axes=(None, 0)))(OUTPUTS, keys))
    in_l = 2 * np.outer(a, L.T @ a)
    expected = np.concatenate([2 * (a @ MEAN) * a, in_l[[1, 2, 2], [0, 0, 1]], np.diag(in_l) * np.diag(L)])
    assert (np.abs(mean - expected) < 4 * error).all()
    assert (error < 0.05 * np.abs(expected).max()).all()


@pytest.mark.parametrize("name", PRIORS)
def test_the_kl_is_that_of_the_matrices_and_of_draws(name):
    mean, scale = PRIORS[name]
    precision = np.diag(scale**-2.0)
    moved = COVARIANCE + np.outer(MEAN - mean, MEAN - mean)
    expected = 0.5 * (np.trace(precision @ moved) - 3 - np.linalg.slogdet(precision @ COVARIANCE)[1])
    prior = diagonal(mean, scale)
    np.testing.assert_allclose(bounds.kl(POSTERIOR, prior), expected, rtol=1e-5)
    as_matrix = dist.MultivariateNormal(jnp.float32(mean), scale_tril=jnp.diag(jnp.float32(scale)))
    np.testing.assert_allclose(bounds.kl(POSTERIOR, as_matrix), expected, rtol=1e-5)  # NumPyro's own pair
    z = draws()
    log_ratios = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(z) - stats.norm.logpdf(z, mean, scale).sum(1)
    estimate, error = mean_and_error(log_ratios)
    assert abs(estimate - expected) < 4 * error < 0.12


@pytest.mark.parametrize("name", PRIORS)
def test_the_kl_of_the_marginals_misses_the_total_correlation(name):
    mean, scale = PRIORS[name]
    sd = np.sqrt(np.diag(COVARIANCE))
    each = np.log(scale / sd) + (sd**2 + (MEAN - mean) ** 2) / (2 * scale**2) - 0.5
    got = bounds.kl_per_dim(POSTERIOR, diagonal(mean, scale))
    np.testing.assert_allclose(got, each, rtol=1e-4)
    total_correlation = -0.5 * np.linalg.slogdet(COVARIANCE / np.outer(sd, sd))[1]
    assert total_correlation > 0.2
    np.testing.assert_allclose(bounds.kl(POSTERIOR, diagonal(mean, scale)) - got.sum(), total_correlation, rtol=1e-4)


def test_without_correlation_it_is_the_diagonal_gaussian():
    full = FullGaussian()(OUTPUTS.at[LATENT : 2 * LATENT].set(0.0))
    same = models.DiagonalGaussian()(jnp.float32([MEAN, 2 * LOG_DIAGONAL]))
    prior = diagonal(*PRIORS["other"])
    z = jnp.float32([0.3, -1.0, 0.4])
    np.testing.assert_allclose(full.log_prob(z), same.log_prob(z), rtol=1e-5)
    np.testing.assert_allclose(bounds.kl_per_dim(full, prior), bounds.kl_per_dim(same, prior), rtol=1e-5)
    np.testing.assert_allclose(bounds.kl(full, prior), bounds.kl(same, prior), rtol=1e-5)


def test_a_prior_without_a_closed_form_has_its_marginals_estimated():
    prior, z = models.FactorizedPrior("laplace", LATENT)(), draws()
    for kl in (bounds.kl, bounds.kl_per_dim):
        with pytest.raises(NotImplementedError):
            kl(POSTERIOR, prior)
    marginals = stats.norm(MEAN, np.sqrt(np.diag(COVARIANCE)))
    expected = sf.expectation(marginals, lambda z: marginals.logpdf(z) - stats.laplace.logpdf(z))
    _, error = mean_and_error(marginals.logpdf(z) - stats.laplace.logpdf(z))
    got = bounds.kl_per_dim(POSTERIOR, prior, jnp.float32(z))
    assert (np.abs(got - expected) < 4 * error + 1e-4).all()
    assert (error < 0.02).all()


def test_the_marginals_of_a_flow_are_not_those_of_its_base():
    flow = dist.TransformedDistribution(diagonal(MEAN, np.ones(3)), dist.transforms.ExpTransform())
    with pytest.raises(NotImplementedError, match="marginals of a TransformedDistribution"):
        bounds.kl_per_dim(flow, diagonal(*PRIORS["standard"]))


def test_which_priors_it_goes_with():
    posterior = FullGaussian()
    assert models.has_closed_form_kl(posterior, models.StandardNormal(LATENT), LATENT)
    assert not models.has_closed_form_kl(posterior, models.FactorizedPrior("laplace", LATENT), LATENT)
    models.check_pair(posterior, models.FactorizedPrior("laplace", LATENT), LATENT)
    with pytest.raises(InputError, match=r"MultivariateNormal.*so their KL is infinite"):
        models.check_pair(posterior, models.FactorizedPrior("gamma", LATENT), LATENT)


def test_as_the_exact_posterior_of_a_correlated_model_every_draw_of_sgvb_a_is_log_p_x():
    weights, scale = np.array([[1.0, 0.8, 0.0], [0.5, 0.9, -0.6], [-0.7, 0.2, 0.4], [0.1, 0.3, 0.9]]), 0.5
    bias, x = np.array([0.2, 0.0, -0.5, 0.1]), np.array([1.2, -0.4, 0.3, 0.8])
    precision = np.eye(LATENT) + weights.T @ weights / scale**2
    to_mean = weights @ np.linalg.inv(precision) / scale**2
    root = np.linalg.cholesky(np.linalg.inv(precision))
    spread = np.concatenate([root[np.tril_indices(LATENT, -1)], np.log(np.diag(root))])
    model = models.vae(
        (4,),
        LATENT,
        network=functools.partial(MLP, hidden=()),
        posterior=FullGaussian(),
        likelihood=models.Gaussian(scale=scale),
    )
    encoder = {
        "kernel": np.concatenate([to_mean, np.zeros((4, 6))], axis=1),
        "bias": np.concatenate([-bias @ to_mean, spread]),
    }
    params = {"encoder": {"output": encoder}, "decoder": {"output": {"kernel": weights.T, "bias": bias}}}
    params = jax.tree.map(jnp.float32, params)
    assert jax.tree.map(jnp.shape, models.init(model, jax.random.key(2))) == jax.tree.map(jnp.shape, params)
    vae = model.bind({"params": params})
    posterior = vae.encode(jnp.float32(x))
    samples = quick_jit(lambda key: bounds.draw(key, jnp.float32(x), posterior, vae.prior(), vae.decode, 100))(
        jax.random.key(3)
    )
    exact = stats.multivariate_normal(bias, weights @ weights.T + scale**2 * np.eye(4)).logpdf(x)
    np.testing.assert_allclose(samples.log_weights, exact, atol=5e-5)
    elbo, (_, error) = bounds.sgvb_b(samples, posterior, vae.prior()).elbo, mean_and_error(samples.log_likelihood)
    assert abs(elbo - exact) < 4 * error
