"""Likelihoods with a density against SciPy, numeric integrals, and finite differences in float64 written here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_jit import quick_jit
from scipy import integrate, optimize, stats

from aevb import bounds, models
from aevb.errors import InputError
from aevb.models import Bernoulli, ContinuousBernoulli, Gaussian, Laplace, floored
from aevb.models.likelihoods import ContinuousBernoulliLogits

LOGITS = [-50.0, -5.0, -0.21, -0.2, -0.19, -1e-4, 0.0, 1e-4, 0.1, 0.19, 0.2, 0.21, 1.0, 12.0, 50.0]


def continuous_bernoulli_log_prob(logit, x):
    """float64, from the definition: log of exp(l x) over its integral on [0, 1]."""
    if abs(logit) < 1e-6:
        return logit * (x - 0.5)
    # (e^l - 1) / l, by its size only, so that nothing overflows.
    return abs(logit) * (x if logit > 0 else 1 - x) - abs(logit) - np.log(-np.expm1(-abs(logit)) / abs(logit))


@pytest.mark.parametrize(("make", "oracle"), [(Gaussian, stats.norm), (Laplace, stats.laplace)])
def test_a_fixed_scale_is_scipys(make, oracle):
    mean, x = np.random.default_rng(0).normal(size=(2, 6))
    likelihood = make(scale=0.3)
    assert likelihood.output_shape((6,)) == (6, 1)
    distribution = likelihood(jnp.float32(mean)[:, None])
    got = bounds.log_likelihood(distribution, jnp.float32(x))
    np.testing.assert_allclose(got, oracle.logpdf(x, mean, 0.3).sum(), rtol=1e-5)
    assert not floored(distribution, likelihood).any()


@pytest.mark.parametrize(("make", "oracle"), [(Gaussian, stats.norm), (Laplace, stats.laplace)])
@pytest.mark.parametrize("min_scale", [0.01, 0.5])
def test_the_floor_of_a_learned_scale(make, oracle, min_scale):
    mean, x = np.random.default_rng(0).normal(size=(2, 6))
    log_floor = 2 * np.log(min_scale)
    log_squared_scale = np.array([-40.0, -1e4, log_floor - 0.1, log_floor + 0.1, 0.0, 3.0])
    likelihood = make(min_scale=min_scale)
    assert likelihood.output_shape((6,)) == (6, 2)
    distribution = likelihood(jnp.asarray(np.stack([mean, log_squared_scale], axis=-1), jnp.float32))
    scale = np.sqrt(np.exp(log_squared_scale) + min_scale**2)
    np.testing.assert_allclose(distribution.log_prob(x), oracle.logpdf(x, mean, scale).sum(), rtol=1e-5)
    np.testing.assert_allclose(distribution.variance, oracle.var(scale=scale), rtol=1e-5)
    assert distribution.base_dist.scale[0] == pytest.approx(min_scale)
    np.testing.assert_array_equal(floored(distribution, likelihood), [True] * 3 + [False] * 3)


# Of 40 datapoints, with heavy tails, so that the two means over them differ.
ERRORS = np.random.default_rng(0).standard_t(3, size=(40, 2, 3)) * 0.2
MEAN = np.random.default_rng(1).normal(size=(2, 3))


@pytest.mark.parametrize(
    ("make", "closed_form"),
    [(Gaussian, np.sqrt(np.mean(ERRORS**2))), (Laplace, np.mean(np.abs(ERRORS)))],
    ids=["root mean square", "mean absolute"],
)
@pytest.mark.parametrize("min_scale", [0.01, 0.1])
def test_the_best_shared_scale_is_the_error_over_the_data(make, closed_form, min_scale):
    likelihood = make(scale="shared", min_scale=min_scale)
    assert likelihood.output_shape((2, 3)) == (2, 3, 1)

    def distribution(log_squared_scale):
        bound = likelihood.bind({"params": {"log_squared_scale": log_squared_scale}})
        return bound(jnp.float32(MEAN)[..., None])

    @quick_jit
    @jax.grad
    def slope(log_squared_scale):
        p = distribution(log_squared_scale)
        return jax.vmap(lambda x: bounds.log_likelihood(p, x))(jnp.float32(MEAN + ERRORS)).mean()

    assert slope(-4.0) > 0 > slope(0.0)  # so the root is a maximum
    best = optimize.brentq(slope, -4.0, 0.0, xtol=1e-6)
    np.testing.assert_allclose(distribution(best).base_dist.scale, np.full((2, 3), closed_form), rtol=1e-4)
    assert not floored(distribution(best), likelihood).any()


@pytest.mark.parametrize("make", [Gaussian, Laplace])
def test_a_shared_scale_falls_to_its_floor_where_the_errors_are_smaller(make):
    likelihood = make(scale="shared", min_scale=1.0)  # the errors are about 0.3

    def log_density(log_squared_scale):
        bound = likelihood.bind({"params": {"log_squared_scale": log_squared_scale}})
        distribution = bound(jnp.float32(MEAN)[..., None])
        return bounds.log_likelihood(distribution, jnp.float32(MEAN + ERRORS[0])), floored(distribution, likelihood)

    (_, at_floor), slope = quick_jit(jax.vmap(jax.value_and_grad(log_density, has_aux=True)))(jnp.float32([-3, 0.5, 3]))
    assert (slope < 0).all()
    np.testing.assert_array_equal(at_floor, np.array([True, False, False])[:, None, None] | np.zeros((3, 2, 3), bool))


def test_a_shared_scale_is_one_generative_parameter_and_starts_at_one():
    model = models.vae((2, 3), 2, likelihood=Gaussian(scale="shared", min_scale=1e-6))
    params = quick_jit(lambda key: models.init(model, key))(jax.random.key(0))
    assert models.generative(params)["likelihood"] == {"log_squared_scale": jnp.zeros(())}
    distribution = model.bind({"params": params}).decode(jnp.zeros(2))
    np.testing.assert_array_equal(distribution.base_dist.scale, np.ones((2, 3)))


@pytest.mark.parametrize("make", [models.Gaussian, models.Laplace])
@pytest.mark.parametrize("scale", [None, "shared"])
def test_a_learned_scale_without_a_floor_is_refused(make, scale):
    with pytest.raises(InputError, match=r"min_scale is 0\.0: a learned scale needs a floor"):
        make(scale=scale, min_scale=0.0).output_shape((3,))
    make(scale=0.5, min_scale=0.0).output_shape((3,))


def test_another_word_than_shared_is_refused():
    with pytest.raises(InputError, match="scale is 'learned': give a number, 'shared', or None"):
        models.vae((4,), 2, likelihood=Laplace(scale="learned"))


@pytest.mark.parametrize("make", [Gaussian, Laplace])
def test_extreme_outputs_of_a_learned_scale_have_finite_values_and_gradients(make):
    outputs = np.stack(np.meshgrid([-1e4, 0, 1e4], [-1e4, 0, 1e4]), axis=-1).reshape(9, 1, 2)

    def log_prob(outputs):
        return bounds.log_likelihood(make()(outputs), jnp.array([0.3]))

    value, gradient = quick_jit(jax.vmap(jax.value_and_grad(log_prob)))(jnp.float32(outputs))
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


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
