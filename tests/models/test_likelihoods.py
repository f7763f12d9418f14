"""Likelihoods against SciPy, numeric integrals, and finite differences in float64 written here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from aevb import bounds
from aevb.models import Bernoulli, ContinuousBernoulli, Gaussian
from aevb.models.likelihoods import ContinuousBernoulliLogits

LOGITS = [-50.0, -5.0, -0.21, -0.2, -0.19, -1e-4, 0.0, 1e-4, 0.1, 0.19, 0.2, 0.21, 1.0, 12.0, 50.0]


def continuous_bernoulli_log_prob(logit, x):
    """float64, from the definition: log of exp(l x) over its integral on [0, 1]."""
    if abs(logit) < 1e-6:
        return logit * (x - 0.5)
    # (e^l - 1) / l, by its size only, so that nothing overflows.
    return abs(logit) * (x if logit > 0 else 1 - x) - abs(logit) - np.log(-np.expm1(-abs(logit)) / abs(logit))


def test_bernoulli_is_the_sum_over_pixels_of_scipys():
    logits = np.random.default_rng(0).normal(size=(3, 2, 1)) * 4
    x = np.array([[1, 0], [0, 0], [1, 1]])[..., None]
    likelihood = Bernoulli()
    outputs = jnp.asarray(logits, jnp.float32)[..., None]
    assert likelihood.output_shape((3, 2, 1)) == outputs.shape
    got = bounds.log_likelihood(likelihood(outputs), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(), rtol=1e-5)


def test_grey_values_under_a_bernoulli_are_the_cross_entropy():
    logits, x = np.array([-3.0, 0.2, 4.0]), np.array([0.1, 0.5, 0.75])
    probs = 1 / (1 + np.exp(-logits))
    log_likelihood = jax.jit(lambda outputs, x: bounds.log_likelihood(Bernoulli()(outputs), x))
    got = log_likelihood(jnp.float32(logits)[:, None], jnp.float32(x))
    np.testing.assert_allclose(got, (x * np.log(probs) + (1 - x) * np.log(1 - probs)).sum(), rtol=1e-5)


def test_a_fixed_scale_gaussian_is_scipys():
    mean, x = np.random.default_rng(0).normal(size=(2, 6))
    likelihood = Gaussian(scale=0.3)
    assert likelihood.output_shape((6,)) == (6, 1)
    got = bounds.log_likelihood(likelihood(jnp.float32(mean)[:, None]), jnp.float32(x))
    np.testing.assert_allclose(got, stats.norm.logpdf(x, mean, 0.3).sum(), rtol=1e-5)


@pytest.mark.parametrize("min_scale", [0.01, 0.5])
def test_the_floor_of_a_learned_scale(min_scale):
    mean, x = np.random.default_rng(0).normal(size=(2, 4))
    log_variance = np.array([-40.0, -6.0, 0.0, 3.0])
    likelihood = Gaussian(min_scale=min_scale)
    assert likelihood.output_shape((4,)) == (4, 2)
    distribution = likelihood(jnp.asarray(np.stack([mean, log_variance], axis=-1), jnp.float32))
    scale = np.sqrt(np.exp(log_variance) + min_scale**2)
    np.testing.assert_allclose(distribution.log_prob(x), stats.norm.logpdf(x, mean, scale).sum(), rtol=1e-5)
    np.testing.assert_allclose(distribution.variance**0.5, scale, rtol=1e-5)
    assert distribution.variance[0] ** 0.5 == pytest.approx(min_scale)


def test_a_sigmoid_mean():
    outputs = np.array([[-2.0, 0.1], [0.0, -1.0], [3.0, 0.4]])
    distribution = Gaussian(sigmoid_mean=True)(jnp.asarray(outputs, jnp.float32))
    np.testing.assert_allclose(distribution.mean, 1 / (1 + np.exp(-outputs[:, 0])), rtol=1e-5)


@jax.jit
def density_at(logit, x):
    return jnp.exp(ContinuousBernoulliLogits(logit).log_prob(x))


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_integrates_to_one_and_has_its_mean(logit):
    distribution = ContinuousBernoulliLogits(jnp.float32(logit))

    def density(x):
        return density_at(logit, x)

    # Breakpoints where the density of a large logit lies, or the adaptive rule would never look there.
    points = [1 / (1 + abs(logit)), abs(logit) / (1 + abs(logit))]
    total, _ = integrate.quad(density, 0, 1, points=points, epsabs=1e-6, epsrel=1e-6)
    mean, _ = integrate.quad(lambda x: x * float(density(x)), 0, 1, points=points, epsabs=1e-6, epsrel=1e-6)
    np.testing.assert_allclose(total, 1, atol=2e-5)
    np.testing.assert_allclose(distribution.mean, mean, atol=2e-5)


@jax.jit
def at_logit(logit, x):
    """log p(x) and its gradient at each x, and the gradient of the mean."""
    log_prob = jax.value_and_grad(lambda logit, x: ContinuousBernoulliLogits(logit).log_prob(x))
    slope = jax.grad(lambda logit: ContinuousBernoulliLogits(logit).mean)(logit)
    return *jax.vmap(log_prob, in_axes=(None, 0))(logit, x), slope


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_and_its_gradient_at_the_seams(logit):
    x = jnp.linspace(0, 1, 5)
    value, gradient, slope = at_logit(jnp.float32(logit), x)
    np.testing.assert_allclose(value, [continuous_bernoulli_log_prob(logit, xi) for xi in x], rtol=1e-5, atol=2e-6)
    step = 1e-3
    finite = [
        (continuous_bernoulli_log_prob(logit + step, xi) - continuous_bernoulli_log_prob(logit - step, xi)) / (2 * step)
        for xi in np.asarray(x, np.float64)
    ]
    np.testing.assert_allclose(gradient, finite, atol=1e-5)
    variance = 1 / 12 if abs(logit) < 0.01 else 1 / logit**2 - 0.25 / np.sinh(logit / 2) ** 2
    np.testing.assert_allclose(slope, variance, rtol=1e-3)  # of an exponential family: d mean / d l = Var(x)


@pytest.mark.parametrize("logit", [-30.0, -2.0, -1e-3, 0.0, 5e-5, 0.3, 8.0])
def test_samples_of_the_continuous_bernoulli_follow_its_cdf(logit):
    draws = ContinuousBernoulliLogits(jnp.float32(logit)).sample(jax.random.key(0), (20_000,))

    def cdf(x):
        return x if abs(logit) < 1e-3 else np.expm1(logit * x) / np.expm1(logit)

    assert draws.min() >= 0
    assert draws.max() <= 1
    assert stats.kstest(np.asarray(draws, np.float64), cdf).pvalue > 0.01


def test_samples_of_the_continuous_bernoulli_have_the_shape_asked_for():
    distribution = ContinuousBernoulli()(jnp.array([[-3.0], [4.0]]))
    draws = distribution.sample(jax.random.key(0), (5000,))
    assert draws.shape == (5000, 2)
    error = np.asarray(draws).std(axis=0) / np.sqrt(5000)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - distribution.mean), 4 * error)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / np.sqrt(5000)


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli()])
@pytest.mark.parametrize("logit", [-1000.0, -105.0, 105.0, 1000.0])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_extreme_logits_have_finite_values_and_gradients(likelihood, logit, x):
    def log_prob(outputs):
        return bounds.log_likelihood(likelihood(outputs), jnp.array([x]))

    value, gradient = jax.value_and_grad(log_prob)(jnp.array([[logit]]))
    wrong_by = abs(logit) if (x == 1) != (logit > 0) else 0.0
    slope = 0.0 if not wrong_by else -np.sign(logit)
    log_density = 0.0 if isinstance(likelihood, Bernoulli) else np.log(abs(logit))
    slope += 0.0 if isinstance(likelihood, Bernoulli) else 1 / logit
    np.testing.assert_allclose(value, log_density - wrong_by, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, [[slope]], rtol=1e-5, atol=1e-6)
    if isinstance(likelihood, ContinuousBernoulli):
        assert np.isfinite(jax.grad(lambda outputs: likelihood(outputs).mean.sum())(jnp.array([[logit]]))).all()


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(), Gaussian(), Gaussian(scale=1.0)])
def test_another_shape_than_the_datapoints_is_refused_while_tracing(likelihood):
    outputs = jnp.zeros(likelihood.output_shape((12, 1)))
    with pytest.raises(ValueError, match=r"event shape \(12, 1\)"):
        jax.eval_shape(lambda x: bounds.log_likelihood(likelihood(outputs), x), jnp.zeros(12))
