"""The inference gap and its parts where log p(x), the exact posterior and the best member of a family are known.

The decoder is linear, its columns not orthogonal: the exact posterior N(m, P^-1) is correlated. The best diagonal
Gaussian has its mean and variances 1 / P_jj, and is (sum_j log P_jj - log det P) / 2 nats away from it.
"""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
import small_bernoulli as sb
from quick_jit import quick_jit
from scipy import optimize, stats

from aevb import models
from aevb.errors import InputError
from aevb.inference.gap import compare_proposals, inference_gap, optimal_posterior
from aevb.models.posteriors import FullGaussian

SCALE = 0.7
W = np.array([[0.6, 0.4], [-0.5, 0.2], [0.3, 0.2], [0.2, 0.4]])
B, X = np.array([0.3, -0.2, 0.1, 0.0]), np.array([0.9, -1.1, 0.4, 0.7])
PRECISION = np.eye(2) + W.T @ W / SCALE**2
MEAN = np.linalg.solve(PRECISION, W.T @ (X - B)) / SCALE**2
LOG_MARGINAL = stats.multivariate_normal(B, W @ W.T + SCALE**2 * np.eye(4)).logpdf(X)
DIAGONAL_GAP = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
PRIOR = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
FAMILIES = {"diagonal": models.DiagonalGaussian(), "full": FullGaussian()}
# Of a wrong encoder: N(START_MEAN, 1.3^2 I) in both families.
START_MEAN, START_SCALE = np.array([0.7, -0.5]), 1.3
STARTS = {
    "diagonal": jnp.float32([START_MEAN, np.full(2, 2 * np.log(START_SCALE))]),
    "full": jnp.float32([*START_MEAN, 0.0, *np.full(2, np.log(START_SCALE))]),
}
# Near the best, and wide enough for the weights to have the moments that the error of a standard error asks for.
WIDE_VARIANCE = 1.4 / np.diag(PRECISION)
WIDE_DIAGONAL = jnp.float32([MEAN, np.log(WIDE_VARIANCE)])


def decode(z):
    return dist.Normal(jnp.float32(W) @ z + jnp.float32(B), SCALE).to_event(1)


def kl_to_exact(mean, covariance):
    product, off = PRECISION @ covariance, mean - MEAN
    return 0.5 * (np.trace(product) - 2 - np.linalg.slogdet(product)[1] + off @ PRECISION @ off)


def moments(name, outputs):
    """Mean and covariance in float64."""
    q = FAMILIES[name](outputs)
    root = np.float64(q.scale_tril) if name == "full" else np.diag(np.sqrt(np.float64(q.variance)))
    return np.float64(q.mean), root @ root.T


@functools.cache
def computed(name):
    """The best outputs, the elbo of each step, and the gap, each for 4 keys."""

    @quick_jit
    @jax.vmap
    def one(key):
        search_key, gap_key = jax.random.split(key)
        problem = jnp.float32(X), FAMILIES[name], STARTS[name]
        best, elbos = optimal_posterior(search_key, *problem, PRIOR, decode, num_steps=500, num_samples=20)
        return best, elbos, inference_gap(gap_key, *problem, best, PRIOR, decode)

    return jax.tree.map(np.asarray, one(jax.random.split(jax.random.key(0), 4)))


def check(value, stderr, expected):
    """Each of 4 keys within 4 standard errors; 1e-4 for float32 and for a search that ends."""
    np.testing.assert_array_less(np.abs(np.float64(value) - expected), 4 * np.float64(stderr) + 1e-4)


def test_the_best_of_all_gaussians_is_the_exact_posterior():
    outputs, elbos, _ = computed("full")
    for each in outputs:
        mean, covariance = moments("full", each)
        np.testing.assert_allclose(mean, MEAN, atol=1e-3)
        np.testing.assert_allclose(covariance, np.linalg.inv(PRECISION), atol=1e-3)
    assert elbos.shape == (4, 500)
    np.testing.assert_allclose(elbos[:, -1], LOG_MARGINAL, atol=1e-3)  # there every draw weighs the same


def test_the_best_diagonal_gaussian_has_the_precisions_of_the_exact_one():
    for each in computed("diagonal")[0]:
        mean, covariance = moments("diagonal", each)
        np.testing.assert_allclose(mean, MEAN, atol=0.02)
        np.testing.assert_allclose(np.diag(covariance), 1 / np.diag(PRECISION), rtol=0.05)
        assert -1e-6 < kl_to_exact(mean, covariance) - DIAGONAL_GAP < 5e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gaps_are_those_of_the_closed_form(name):
    approximation = {"diagonal": DIAGONAL_GAP, "full": 0.0}[name]
    gap = computed(name)[2]
    total = kl_to_exact(START_MEAN, START_SCALE**2 * np.eye(2))
    check(gap.log_marginal, gap.log_marginal_stderr, LOG_MARGINAL)
    check(gap.elbo, gap.elbo_stderr, LOG_MARGINAL - total)
    check(gap.optimal_elbo, gap.optimal_elbo_stderr, LOG_MARGINAL - approximation)
    check(gap.approximation_gap, gap.approximation_gap_stderr, approximation)
    check(gap.amortization_gap, gap.amortization_gap_stderr + 2e-4, total - approximation)
    # What is measured is large beside the errors it is measured with.
    assert DIAGONAL_GAP > 0.03 and total > 1
    assert (gap.approximation_gap_stderr < 0.005).all() and (gap.amortization_gap_stderr < 0.05).all()
    parts = gap.log_marginal - gap.elbo
    np.testing.assert_allclose(parts, gap.approximation_gap + gap.amortization_gap, atol=1e-5)


def test_the_search_in_twenty_dimensions():
    """From an encoder one standard deviation off, whose elbo lacks 13 nats: within the 0.02 nats that are stated."""
    rng, scale = np.random.default_rng(1), 0.5
    weights = rng.normal(size=(30, 20))
    x = weights @ rng.normal(size=20) + scale * rng.normal(size=30)
    precision = np.eye(20) + weights.T @ weights / scale**2
    mean, sd = np.linalg.solve(precision, weights.T @ x) / scale**2, np.diag(precision) ** -0.5

    def above(outputs):
        """KL(q || exact posterior) minus that of the best diagonal Gaussian, nats."""
        away, variance = np.float64(outputs[0]) - mean, np.exp(np.float64(outputs[1]))
        ratio = variance / sd**2
        return 0.5 * (ratio.sum() - 20 - np.log(ratio).sum() + away @ precision @ away)

    def decode(z):
        return models.Gaussian(scale=scale)((jnp.float32(weights) @ z)[:, None])

    start = np.stack([mean + sd * rng.choice([-1, 1], 20), 2 * np.log(1.3 * sd)])
    problem = jnp.float32(x), models.DiagonalGaussian(), jnp.float32(start), models.StandardNormal(20)()
    best, _ = quick_jit(lambda key: optimal_posterior(key, *problem, decode))(jax.random.key(3))
    assert above(start) > 10
    assert -1e-4 < above(best) < 0.03


def test_the_amortization_gap_of_a_wrong_encoder_of_a_vae():
    # The family holds the exact posterior: all of the gap is the encoder's.
    shift, stretch = 0.8, 1.4
    vae, x = lg.MODEL.bind({"params": lg.params(shift, stretch)}), jnp.asarray(lg.X, jnp.float32)

    @quick_jit
    def run(key):
        search_key, gap_key = jax.random.split(key)
        problem = x, vae.posterior, vae.encoder(x)
        best, _ = optimal_posterior(search_key, *problem, vae.prior(), vae.decode, num_steps=300, num_samples=20)
        return best, inference_gap(gap_key, *problem, best, vae.prior(), vae.decode)

    best, gap = run(jax.random.key(1))
    np.testing.assert_allclose(best[0], lg.posterior_mean(), atol=1e-3)
    np.testing.assert_allclose(best[1], 2 * np.log(lg.POSTERIOR_SCALE), atol=1e-3)
    check(gap.amortization_gap, gap.amortization_gap_stderr, lg.gap(shift, stretch))
    np.testing.assert_allclose(gap.approximation_gap, 0, atol=1e-4)
    np.testing.assert_allclose(gap.log_marginal, lg.log_marginal(), atol=1e-4)
    np.testing.assert_allclose(gap.effective_sample_size, 5000, rtol=1e-3)


@functools.partial(quick_jit, static_argnums=(2, 3))
def wide_gap(key, outputs, num_samples, block=50):
    problem = jnp.float32(X), FAMILIES["diagonal"], outputs, WIDE_DIAGONAL, PRIOR, decode
    return inference_gap(key, *problem, num_samples=num_samples, block=block)


def test_the_standard_errors_are_those_of_the_estimates():
    # Independent repetitions: the errors over the standard errors have a mean square of 1, up to sqrt(2 / 400).
    keys = jax.random.split(jax.random.key(2), 400)
    gap = jax.vmap(lambda key: wide_gap(key, STARTS["diagonal"], 1000))(keys)
    total, wide = kl_to_exact(START_MEAN, START_SCALE**2 * np.eye(2)), kl_to_exact(MEAN, np.diag(WIDE_VARIANCE))
    expected = {
        "elbo": LOG_MARGINAL - total,
        "optimal_elbo": LOG_MARGINAL - wide,
        "log_marginal": LOG_MARGINAL,
        "approximation_gap": wide,
        "amortization_gap": total - wide,
    }
    for name, value in expected.items():
        ratio = (np.float64(getattr(gap, name)) - value) / np.float64(getattr(gap, f"{name}_stderr"))
        assert 0.8 < np.mean(ratio**2) < 1.25, name
        assert abs(ratio.mean()) < 4 / np.sqrt(400), name


def test_with_the_best_encoder_there_is_no_amortization_gap_and_no_error():
    gap = wide_gap(jax.random.key(3), WIDE_DIAGONAL, 200)
    np.testing.assert_allclose([gap.amortization_gap, gap.amortization_gap_stderr], 0, atol=1e-6)
    assert gap.optimal_elbo_stderr > 0.01


def test_the_block_changes_nothing():
    got, expected = (wide_gap(jax.random.key(4), STARTS["diagonal"], 200, block) for block in (64, 50))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, expected)


def test_of_a_nonlinear_decoder_against_quadrature():
    model = sb.decoder(2)
    x, exact = model.x[0], sb.quadrature(model)[0][0]
    axis = np.linspace(-4.5, 4.5, 181)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    logits = np.tanh(z @ model.hidden) @ model.output
    log_joint = stats.norm.logpdf(z).sum(1) + logits @ np.float64(x) - np.logaddexp(0, logits).sum(1)

    def minus_elbo(outputs):
        log_q = stats.norm.logpdf(z, outputs[:2], np.exp(outputs[2:] / 2)).sum(1)
        return -(np.exp(log_q) * (log_joint - log_q)).sum() * (axis[1] - axis[0]) ** 2

    start = np.concatenate([z[log_joint.argmax()], [-1.0, -1.0]])
    found = optimize.minimize(minus_elbo, start, method="BFGS")
    assert exact + found.fun > 0.02  # the posterior is no Gaussian

    @quick_jit
    def run(key):
        search_key, gap_key = jax.random.split(key)
        problem = x, FAMILIES["diagonal"], jnp.float32(start.reshape(2, 2))
        best, _ = optimal_posterior(search_key, *problem, PRIOR, model.decode, num_steps=300, num_samples=20)
        return best, inference_gap(gap_key, *problem, best, PRIOR, model.decode)

    best, gap = run(jax.random.key(5))
    assert 0 < minus_elbo(np.float64(best).ravel()) - found.fun < 2e-3
    check(gap.log_marginal, gap.log_marginal_stderr, exact)
    check(gap.approximation_gap, gap.approximation_gap_stderr, exact + minus_elbo(np.float64(best).ravel()))
    check(gap.elbo, gap.elbo_stderr, -minus_elbo(start))


EXACT = dist.MultivariateNormal(jnp.float32(MEAN), precision_matrix=jnp.float32(PRECISION))


def test_draws_from_the_exact_posterior_need_no_number():
    compare = quick_jit(lambda key: compare_proposals(key, jnp.float32(X), EXACT, PRIOR, decode, (1, 3, 40)))
    got = compare(jax.random.key(6))
    np.testing.assert_allclose(got.from_posterior, LOG_MARGINAL, atol=2e-5)
    np.testing.assert_allclose(got.from_posterior_stderr, 0, atol=2e-5)


def test_draws_from_the_prior_rise_to_log_p_x():
    got = quick_jit(
        lambda key: compare_proposals(key, jnp.float32(X), EXACT, PRIOR, decode, (1, 300), num_repeats=200)
    )(jax.random.key(7))
    # K = 1 is E_p(z) log p(x | z); K = 300 is lower than log p(x) by Var[w] / E[w]^2 over 2 K, to first order.
    one = stats.norm.logpdf(X, B, SCALE).sum() - 0.5 * (W**2).sum() / SCALE**2
    square = stats.multivariate_normal(B, W @ W.T + SCALE**2 / 2 * np.eye(4)).logpdf(X) - 2 * np.log(
        4 * np.pi * SCALE**2
    )
    many = LOG_MARGINAL - np.expm1(square - 2 * LOG_MARGINAL) / 600
    error, stderr = np.abs(got.from_prior - np.array([one, many])), np.asarray(got.from_prior_stderr)
    np.testing.assert_array_less(error, 4 * stderr + 1e-3)
    np.testing.assert_array_less(stderr, [0.25, 0.01])
    assert LOG_MARGINAL - one > 1
    # K = 1 has a standard error of its own: of a quadratic form of z, whose variance is 2 tr(A^2) + |gradient|^2.
    quadratic, gradient = W.T @ W / SCALE**2, W.T @ (X - B) / SCALE**2
    variance = 0.5 * (quadratic**2).sum() + gradient @ gradient
    np.testing.assert_allclose(stderr[0], np.sqrt(variance / 200), rtol=0.25)


def test_it_refuses_too_few_draws():
    x = jnp.float32(X)
    with pytest.raises(InputError, match="num_samples is 1: a standard error needs at least 2"):
        wide_gap(jax.random.key(8), WIDE_DIAGONAL, 1)
    for options in ({"num_repeats": 1}, {"num_samples": (10, 0)}):
        with pytest.raises(InputError, match="give at least 2 repetitions of at least 1 sample each"):
            compare_proposals(jax.random.key(9), x, EXACT, PRIOR, decode, **options)
