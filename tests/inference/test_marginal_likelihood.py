"""Appendix D against log p(x) that is known: in closed form, by quadrature, and by importance sampling.

Averages over many keys or datapoints are held to 4 of the standard errors that the estimates report.
"""

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
import small_bernoulli as sb
from quick_jit import quick_jit
from scipy import stats
from scipy.special import logsumexp

from aevb.errors import InputError, SamplingError
from aevb.inference.importance import importance_estimate
from aevb.inference.marginal_likelihood import (
    CORE_DRAWS,
    HMCEstimate,
    check_chains,
    fit_core,
    hmc_estimate,
    log_mean_exp,
)

X = jnp.asarray(lg.X, jnp.float32)


@quick_jit
def linear_gaussian_estimates(params):
    vae = lg.MODEL.bind({"params": params})
    return jax.vmap(lambda key: hmc_estimate(key, X, vae.prior(), vae.decode))(jax.random.split(jax.random.key(0), 300))


def check(estimates, exact, most_stderr):
    """Unbiased within the reported standard errors, which are of the right size."""
    error = np.asarray(estimates.log_marginal, np.float64) - exact
    stderr = np.asarray(estimates.stderr, np.float64)
    assert stderr.mean() < most_stderr
    assert abs(error.mean()) < 4 * np.sqrt((stderr**2).sum()) / stderr.size
    assert 0.75 < np.sqrt(np.mean((error / stderr) ** 2)) < 1.4
    check_chains(estimates)


def test_a_linear_gaussian_model():
    estimates = linear_gaussian_estimates(lg.params())
    check(estimates, lg.log_marginal(), 0.25)
    assert (abs(estimates.acceptance - 0.9) < 0.1).all()


def test_five_dimensions():
    x, exact, prior, decode = lg.of_size(5, 0.6)
    keys = jax.random.split(jax.random.key(4), 100)
    estimates = quick_jit(jax.vmap(lambda key, x: hmc_estimate(key, x, prior, decode)))(keys, jnp.float32(x))
    check(estimates, exact, 0.45)


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_a_bernoulli_decoder_by_quadrature_and_by_importance_sampling(latent_dim):
    decoder = sb.decoder(latent_dim)
    exact, mean, scale = sb.quadrature(decoder)

    def one(key, x, mean, scale):
        hmc_key, importance_key = jax.random.split(key)
        proposal = dist.Normal(mean, scale).to_event(1)
        return (
            hmc_estimate(hmc_key, x, decoder.prior, decoder.decode),
            importance_estimate(importance_key, x, proposal, decoder.prior, decoder.decode, 5000),
        )

    keys = jax.random.split(jax.random.key(1), len(decoder.x))
    estimates, importance = quick_jit(jax.vmap(one))(keys, decoder.x, mean, 1.3 * scale)
    check(estimates, exact, 0.35)
    stderr = np.sqrt(1 / np.asarray(importance.effective_sample_size) - 1 / 5000)
    assert stderr.max() < 0.06
    assert (np.abs(importance.log_marginal - exact) < 4 * stderr).all()


def test_a_positive_latent_with_two_modes():
    # x = (log z)^2 + noise: modes about log z = -0.9 and 0.9, with 0.14 and 0.86 of the mass. One Gaussian over both
    # has most of its mass in the gap and is 2 nats too high; without the Jacobian the answer would be 0.4 lower.
    prior = dist.LogNormal(jnp.ones(1), jnp.ones(1)).to_event(1)
    x = jnp.full(1, 0.8)

    def decode(z):
        return dist.Normal(jnp.log(z) ** 2, 0.1).to_event(1)

    u = np.linspace(-8, 8, 200001)
    log_joint = -0.5 * ((u - 1) ** 2 + ((0.8 - u**2) / 0.1) ** 2) - np.log(2 * np.pi * 0.1)
    exact = logsumexp(log_joint) + np.log(u[1] - u[0])
    keys = jax.random.split(jax.random.key(2), 300)
    error = quick_jit(jax.vmap(lambda key: hmc_estimate(key, x, prior, decode)))(keys).log_marginal - exact
    # How ten chains share out two modes is noise in all draws at once, so the bias is not quite gone.
    assert abs(error.mean()) < 0.15
    assert error.std() < 0.45


def test_chains_that_hardly_move_along_broad_axes():
    # One axis thirty times narrower than the others: no draw lies near the Gaussians of the other chains for 44 of 200.
    w = np.diag([30.0, 0.1, 0.1])
    prior = dist.Normal(jnp.zeros(3), jnp.ones(3)).to_event(1)
    x = np.random.default_rng(0).normal(size=(200, 3)) @ np.linalg.cholesky(w @ w.T + np.eye(3)).T
    exact = stats.multivariate_normal(np.zeros(3), w @ w.T + np.eye(3)).logpdf(x)

    @quick_jit
    @jax.vmap
    def estimate(key, x):
        return hmc_estimate(key, x, prior, lambda z: dist.Normal(jnp.float32(w) @ z, 1.0).to_event(1))

    estimates = estimate(jax.random.split(jax.random.key(6), 200), jnp.float32(x))
    check_chains(estimates)
    error = estimates.log_marginal - exact
    # Ten draws that have not spread are a little low, and their standard error says how far from sure they are.
    assert -0.4 < error.mean() < 0.2
    assert error.std() < 1.2
    assert 0.4 < np.mean(estimates.stderr) < 1.2


def test_a_fitted_core_is_a_density_on_half_of_its_mixture():
    # Three chains in one mode and two in another; of the last row, only three draws count, and of the last chain none.
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0]] * 3 + [[3.0, 1.0]] * 2 + [[0.5, 0.0]])
    z = centres + rng.normal(size=(6, 6, 2)) @ np.array([[0.5, 0.3], [0.0, 0.4]])
    counts = np.ones((6, 6), bool)
    counts[5, 3:] = counts[:, 5] = False
    axis = np.linspace(-6, 6, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)

    @quick_jit
    def density(z, grid):
        return jax.vmap(jax.vmap(fit_core(jax.random.key(3), z, jnp.asarray(counts))))(grid)

    log_q = np.asarray(density(jnp.float32(z), jnp.float32(grid)), np.float64)

    means = [z[counts[:, c], c].mean(0) for c in range(5)]
    deviations = np.concatenate([z[counts[:, c], c] - means[c] for c in range(5)])
    covariance = deviations.T @ deviations / 28
    mixture = sum(counts[:, c].sum() / 28 * stats.multivariate_normal(means[c], covariance).pdf(grid) for c in range(5))
    inside = np.isfinite(log_q)
    np.testing.assert_allclose(np.exp(log_q[inside]), 2 * mixture[inside], rtol=1e-3)
    assert mixture[inside].min() > 0.999 * mixture[~inside].max()  # a core: every density inside is above those outside
    assert abs(np.exp(log_q).sum() * (axis[1] - axis[0]) ** 2 - 1) < 4 / np.sqrt(CORE_DRAWS)
    assert not inside[np.abs(grid[..., 0] - 0.5) < 0.5].any()  # the gap, and the chain that does not count


def test_log_mean_exp_and_its_error():
    rng = np.random.default_rng(1)
    logs = rng.normal(size=(4, 5)) - 1000
    counts = np.arange(20).reshape(4, 5) < 20
    got, stderr = log_mean_exp(jnp.float32(logs), jnp.asarray(counts))
    np.testing.assert_allclose(got, logsumexp(logs) - np.log(20), rtol=1e-6)
    means = np.exp(logs + 1000).mean(0)
    np.testing.assert_allclose(stderr, means.std(ddof=1) / np.sqrt(5) / means.mean(), rtol=1e-3)
    counts = np.arange(20).reshape(4, 5) < 17
    got, _ = log_mean_exp(jnp.float32(np.where(counts, logs, -np.inf)), jnp.asarray(counts))
    np.testing.assert_allclose(got, logsumexp(logs[counts]) - np.log(17), rtol=1e-6)


def trace(latent_dim, **options):
    """What a caller is told before any work."""
    prior = dist.Normal(jnp.zeros(latent_dim), jnp.ones(latent_dim)).to_event(1)
    args = (jax.random.key(0), jnp.zeros(latent_dim), prior, lambda z: dist.Normal(z, 1.0).to_event(1))
    return jax.eval_shape(lambda key, x: hmc_estimate(key, x, *args[2:], **options), *args[:2])


def test_it_warns_above_five_dimensions():
    with pytest.warns(UserWarning, match="unreliable above 5 latent dimensions and has 6"):
        assert trace(6).log_marginal.shape == ()
    trace(5)


@pytest.mark.parametrize(
    ("latent_dim", "options", "message"),
    [
        (11, {}, "asked for 11 latent dimensions and fails above 10: use annealed importance sampling"),
        (2, {"num_chains": 1}, "num_chains is 1"),
        (3, {"num_samples": 7}, "num_samples is 7: .* at least 8"),
    ],
)
def test_it_refuses_what_it_cannot_do(latent_dim, options, message):
    with pytest.raises(InputError, match=message):
        trace(latent_dim, **options)


def test_chains_that_never_accept_are_an_error_with_the_numbers():
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, lg.params())
    with pytest.raises(
        SamplingError, match=r"of 300 datapoints 300 had at least 1% divergent transitions, 300 accepted less"
    ):
        check_chains(linear_gaussian_estimates(broken))


def test_check_chains_forgives_a_few():
    good = HMCEstimate(np.zeros(10), np.ones(10), np.full(10, 0.9), np.zeros(10))
    check_chains(good)
    check_chains(good._replace(divergent=np.full(10, 0.009)))
    check_chains(good._replace(divergent=np.array([0.3] * 5 + [0] * 5)))
    check_chains(good._replace(acceptance=np.array([0.0] * 5 + [0.9] * 5)))
    with pytest.raises(SamplingError, match="6 had at least 1% divergent"):
        check_chains(good._replace(divergent=np.array([0.01] * 6 + [0] * 4)))
    with pytest.raises(SamplingError, match=r"6 accepted less than 1% of their proposals \(mean acceptance 0.36\)"):
        check_chains(good._replace(acceptance=np.array([0.0] * 6 + [0.9] * 4)))
    with pytest.raises(SamplingError, match=r"1 have an estimate that is not finite \(number 0\)"):
        check_chains(good._replace(log_marginal=np.array([np.inf] + [0.0] * 9)))
