"""Bounds against the linear-Gaussian model, whose log p(x) is known, and against quadrature.

Monte Carlo comparisons have fixed keys and allow 4 standard errors, each computed from the draws.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import expit, logsumexp

from aevb import bounds, models
from aevb.data import Datapoint
from aevb.learners.aevb import datapoint_bound
from aevb.networks import MLP

X = jnp.asarray(lg.X, jnp.float32)
BOUNDS = {"sgvb_a": bounds.sgvb_a, "sgvb_b": bounds.sgvb_b}


def samples_of(params, key, num_samples):
    vae = lg.MODEL.bind({"params": params})
    posterior, prior = vae.encode(X), vae.prior()
    return bounds.draw(key, X, posterior, prior, vae.decode, num_samples), posterior, prior


@functools.partial(jax.jit, static_argnums=(0, 3))
def elbos(name, params, keys, num_samples=1):
    return jax.vmap(lambda key: BOUNDS[name](*samples_of(params, key, num_samples)).elbo)(keys)


@functools.partial(jax.jit, static_argnums=2)
def iwae(params, keys, num_samples):
    return jax.vmap(lambda key: bounds.iwae_bound(samples_of(params, key, num_samples)[0]))(keys)


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def test_with_the_exact_posterior_every_draw_of_sgvb_a_is_log_p_x():
    values = elbos("sgvb_a", lg.params(), jax.random.split(jax.random.key(0), 500))
    np.testing.assert_allclose(values, lg.log_marginal(), atol=2e-5)


def test_with_the_exact_posterior_sgvb_b_is_log_p_x_in_expectation_only():
    values = elbos("sgvb_b", lg.params(), jax.random.split(jax.random.key(1), 20_000))
    mean, error = mean_and_error(values)
    assert error < 0.01
    assert abs(mean - lg.log_marginal()) < 4 * error
    assert values.std() > 0.1


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize(("shift", "stretch"), [(0.7, 1.0), (0.0, 1.5), (-0.5, 0.6)])
def test_the_gap_to_log_p_x_is_the_kl_to_the_exact_posterior(name, shift, stretch):
    mean, error = mean_and_error(elbos(name, lg.params(shift, stretch), jax.random.split(jax.random.key(2), 20_000)))
    assert lg.gap(shift, stretch) > 0.15 > 8 * error
    assert abs(lg.log_marginal() - mean - lg.gap(shift, stretch)) < 4 * error


def test_the_importance_weighted_bound_rises_to_log_p_x():
    # E[w^2] / E[w]^2 - 1 of a Gaussian proposal, per latent dimension, by quadrature; the gap of the bound tends to
    # half of it over K.
    shift, stretch = 0.6, 1.3
    grid = np.linspace(-12, 12, 20_001)
    ratio = np.exp(2 * stats.norm.logpdf(grid) - stats.norm.logpdf(grid, shift, stretch))
    chi_squared = np.trapezoid(ratio, grid) ** lg.LATENT - 1
    params, keys = lg.params(shift, stretch), jax.random.split(jax.random.key(3), 10_000)
    means, errors = zip(
        mean_and_error(elbos("sgvb_a", params, keys)),
        *(mean_and_error(iwae(params, keys, k)) for k in (5, 50)),
        strict=True,
    )
    levels = [*means, lg.log_marginal()]
    assert all(low < high for low, high in itertools.pairwise(levels))
    for low, high, error in zip(levels[:3], levels[1:], errors, strict=True):
        assert high - low > 4 * error
    expected_gap = chi_squared / (2 * 50)
    assert abs(lg.log_marginal() - means[2] - expected_gap) < 4 * errors[2] + 0.1 * expected_gap


def test_the_importance_weighted_bound_of_one_draw_is_sgvb_a():
    params, keys = lg.params(0.6, 1.3), jax.random.split(jax.random.key(4), 50)
    np.testing.assert_allclose(iwae(params, keys, 1), elbos("sgvb_a", params, keys), rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, -1e4, 300.0])
def test_the_importance_weighted_bound_is_a_log_mean_of_exponentials(offset):
    parts = np.random.default_rng(0).normal(size=(3, 9)) * 3
    parts[0] += offset
    samples = bounds.Samples(jnp.zeros((9, 1)), *(jnp.asarray(part, jnp.float32) for part in parts))
    expected = logsumexp(parts[0] + parts[1] - parts[2]) - np.log(9)
    np.testing.assert_allclose(bounds.iwae_bound(samples), expected, rtol=1e-5)


def nonlinear_model():
    """A Bernoulli VAE with one latent dimension, and NumPy's own account of its densities on a grid of z."""
    model = models.vae((6,), 1, network=functools.partial(MLP, hidden=(5,)))
    params = jax.tree.map(lambda leaf: 2 * leaf, models.init(model, jax.random.key(5)))
    x = np.array([1.0, 0, 1, 1, 0, 1])
    encoder, decoder = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[part]) for part in ("encoder", "decoder")
    )

    def affine(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    mean, log_variance = affine(encoder["output"], np.tanh(affine(encoder["hidden_0"], x)))
    z = np.linspace(-10, 10, 8001)
    probs = expit(affine(decoder["output"], np.tanh(affine(decoder["hidden_0"], z[:, None]))))
    log_joint = stats.bernoulli.logpmf(x, probs).sum(-1) + stats.norm.logpdf(z)
    log_q = stats.norm.logpdf(z, mean, np.exp(log_variance / 2))
    return model, params, jnp.asarray(x, jnp.float32), z, log_joint, log_q


def test_bounds_of_a_nonlinear_model_against_quadrature():
    model, params, x, z, log_joint, log_q = nonlinear_model()
    log_marginal = np.log(np.trapezoid(np.exp(log_joint), z))
    elbo = np.trapezoid(np.exp(log_q) * (log_joint - log_q), z)
    assert log_marginal - elbo > 0.05  # the posterior is not exact, or the two could not be told apart
    vae = model.bind({"params": params})
    draw = jax.jit(lambda key: bounds.draw(key, x, vae.encode(x), vae.prior(), vae.decode, 100_000))
    samples = draw(jax.random.key(6))
    mean, error = mean_and_error(samples.log_weights)
    assert error < 0.01
    assert abs(mean - elbo) < 4 * error
    assert abs(bounds.sgvb_a(samples, None, None).elbo - elbo) < 4 * error + 1e-3
    assert abs(bounds.sgvb_b(samples, vae.encode(x), vae.prior()).elbo - elbo) < 4 * error + 1e-3
    weights = np.exp(np.asarray(samples.log_weights, np.float64) - log_marginal)
    assert abs(bounds.iwae_bound(samples) - log_marginal) < 4 * weights.std() / np.sqrt(100_000) + 1e-4


def test_both_estimators_have_the_gradient_of_the_closed_form():
    params, keys = lg.params(0.4, 1.2), jax.random.split(jax.random.key(7), 20_000)
    expected = jax.grad(lg.elbo)(params, X)
    np.testing.assert_allclose(lg.elbo(params, X), lg.log_marginal() - lg.gap(0.4, 1.2), rtol=1e-5)
    for bound in BOUNDS.values():

        def elbo(params, key, bound=bound):
            return bound(*samples_of(params, key, 1)).elbo

        grads = jax.jit(jax.vmap(jax.grad(elbo), in_axes=(None, 0)))(params, keys)
        for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(grads), strict=True):
            error = got.std(axis=0, ddof=1) / np.sqrt(len(keys))
            np.testing.assert_array_less(np.abs(got.mean(axis=0) - want), 4.5 * error + 1e-5)
            assert np.abs(want).max() > 10 * error.mean()


def test_the_mean_over_draws_is_the_mean_of_the_parts():
    params = lg.params(0.4, 1.2)
    samples, posterior, prior = samples_of(params, jax.random.key(8), 7)
    z = np.asarray(samples.z, np.float64)
    log_likelihood = stats.norm.logpdf(lg.X, z @ lg.W.T + lg.B, lg.SCALE).sum(-1)
    log_prior = stats.norm.logpdf(z).sum(-1)
    mean = lg.posterior_mean() + 0.4 * lg.POSTERIOR_SCALE
    log_posterior = stats.norm.logpdf(z, mean, 1.2 * lg.POSTERIOR_SCALE).sum(-1)
    assert len(np.unique(z)) == z.size == 14
    np.testing.assert_allclose(samples.log_likelihood, log_likelihood, rtol=1e-4)
    np.testing.assert_allclose(samples.log_prior, log_prior, rtol=1e-4)
    np.testing.assert_allclose(samples.log_posterior, log_posterior, rtol=1e-4)
    a, b = bounds.sgvb_a(samples, posterior, prior), bounds.sgvb_b(samples, posterior, prior)
    np.testing.assert_allclose([a.log_likelihood, b.log_likelihood], log_likelihood.mean(), rtol=1e-4)
    np.testing.assert_allclose(a.kl, (log_posterior - log_prior).mean(), rtol=1e-4)
    np.testing.assert_allclose(a.elbo, (log_likelihood + log_prior - log_posterior).mean(), rtol=1e-4)


MEANS, SCALES = np.array([0.5, -2.0, 0.0]), np.array([0.3, 1.0, 2.5])


def test_kl_is_appendix_b_for_a_standard_normal_prior():
    posterior = dist.Normal(jnp.float32(MEANS), jnp.float32(SCALES)).to_event(1)
    prior = dist.Normal(jnp.zeros(3), jnp.ones(3)).to_event(1)
    each = -0.5 * (1 + np.log(SCALES**2) - MEANS**2 - SCALES**2)
    np.testing.assert_allclose(bounds.kl_per_dim(posterior, prior), each, rtol=1e-5)
    np.testing.assert_allclose(bounds.kl(posterior, prior), each.sum(), rtol=1e-5)
    assert bounds.kl(posterior, prior).shape == ()


def test_kl_against_monte_carlo_for_another_prior():
    posterior = dist.Normal(jnp.float32(MEANS), jnp.float32(SCALES)).to_event(1)
    prior = dist.Normal(jnp.float32([1.0, -1.0, 0.3]), jnp.float32([2.0, 0.7, 2.0])).to_event(1)
    z = np.random.default_rng(0).normal(MEANS, SCALES, size=(400_000, 3))
    draws = stats.norm.logpdf(z, MEANS, SCALES) - stats.norm.logpdf(z, [1.0, -1.0, 0.3], [2.0, 0.7, 2.0])
    for got, values in zip(bounds.kl_per_dim(posterior, prior), draws.T, strict=True):
        mean, error = mean_and_error(values)
        assert abs(got - mean) < 4 * error < 0.03
    np.testing.assert_allclose(bounds.kl_per_dim(posterior, prior).sum(), bounds.kl(posterior, prior), rtol=1e-6)


def test_a_posterior_without_a_closed_form_kl_has_sgvb_a_only():
    # exp of a Gaussian: its log density needs the draw before the exponential.
    posterior = dist.TransformedDistribution(
        dist.Normal(jnp.array([0.2, -0.4]), jnp.array([0.5, 0.3])).to_event(1),
        dist.transforms.ExpTransform(),
    )
    prior = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)

    def decode(z):
        return dist.Normal(z, 1.0).to_event(1)

    samples = bounds.draw(jax.random.key(9), jnp.zeros(2), posterior, prior, decode, 5)
    expected = stats.lognorm.logpdf(samples.z, s=[0.5, 0.3], scale=np.exp([0.2, -0.4])).sum(-1)
    np.testing.assert_allclose(samples.log_posterior, expected, rtol=1e-4, atol=1e-5)
    expected_kl = (expected - stats.norm.logpdf(samples.z).sum(-1)).mean()
    np.testing.assert_allclose(bounds.sgvb_a(samples, posterior, prior).kl, expected_kl, rtol=1e-4)
    with pytest.raises(NotImplementedError):
        bounds.sgvb_b(samples, posterior, prior)


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [
        (lambda: dist.BernoulliLogits(jnp.zeros((12, 1))).to_event(2), (12,)),
        (lambda: dist.BernoulliLogits(jnp.zeros(1)).to_event(1), (12,)),
        (lambda: dist.BernoulliLogits(jnp.zeros((12, 1))).to_event(1), (1,)),  # a batch of twelve
        (lambda: dist.BernoulliLogits(jnp.zeros(12)), (12,)),  # not an event at all
        (lambda: dist.BernoulliLogits(jnp.zeros(12)).to_event(1), (3, 12)),
    ],
)
def test_broadcasting_is_refused_while_tracing(likelihood, shape):
    with pytest.raises(ValueError, match="one datapoint at a time"):
        jax.eval_shape(lambda x: bounds.log_likelihood(likelihood(), x), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_a_decoder_of_another_shape_is_refused_by_draw():
    prior = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)

    def decode(z):
        return dist.BernoulliLogits(jnp.zeros((12, 1)) + z[0]).to_event(2)

    with pytest.raises(ValueError, match=r"event shape \(12, 1\).*shape \(12,\)"):
        bounds.draw(jax.random.key(0), jnp.zeros(12), prior, prior, decode)


def test_minibatch_estimate_is_unbiased_for_the_sum_over_the_data_set():
    each = np.random.default_rng(0).normal(size=12)
    batches = [bounds.minibatch_estimate(jnp.float32(each[i : i + 3]), 12) for i in range(0, 12, 3)]
    np.testing.assert_allclose(np.mean(batches), each.sum(), rtol=1e-5)
    np.testing.assert_allclose(batches[0], 12 / 3 * each[:3].sum(), rtol=1e-5)


def test_log_weight_prior_is_a_standard_normal_over_every_number():
    tree = {"a": np.linspace(-1, 2, 6).reshape(2, 3), "b": {"c": np.array([0.5]), "d": np.array(3.0)}}
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    np.testing.assert_allclose(
        bounds.log_weight_prior(jax.tree.map(jnp.float32, tree)), stats.norm.logpdf(flat).sum(), rtol=1e-5
    )


GRADIENTS = BOUNDS | {"score_function": bounds.score_function}


@functools.partial(jax.jit, static_argnums=(0, 3))
def bounds_and_grads(name, params, keys, num_samples=1, kl_weight=1.0, x=X):
    """The bound of each key, and the gradient of log_likelihood - kl_weight kl."""

    def objective(params, key):
        bound = datapoint_bound(lg.MODEL, GRADIENTS[name], num_samples)(params, Datapoint(x), key)
        return bound.log_likelihood - kl_weight * bound.kl, bound

    grads, values = jax.vmap(jax.grad(objective, has_aux=True), in_axes=(None, 0))(params, keys)
    return values, grads


def test_the_score_function_has_the_value_of_sgvb_a_and_its_decoder_gradient():
    params, keys = lg.params(0.4, 1.2), jax.random.split(jax.random.key(10), 20)
    values, grads = bounds_and_grads("score_function", params, keys, 7)
    expected, expected_grads = bounds_and_grads("sgvb_a", params, keys, 7)
    np.testing.assert_allclose(values.log_likelihood, expected.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(values.kl, expected.kl, rtol=1e-6)
    for got, want in zip(jax.tree.leaves(grads["decoder"]), jax.tree.leaves(expected_grads["decoder"]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # Encoder gradients of one draw are those of another estimator.
    assert np.abs(grads["encoder"]["output"]["bias"] - expected_grads["encoder"]["output"]["bias"]).min() > 1e-3


def check_mean_gradient(expected, grads):
    """Every parameter's mean over keys within 4 standard errors."""
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(grads), strict=True):
        got = np.asarray(got, np.float64)
        error = got.std(axis=0, ddof=1) / np.sqrt(len(got))
        np.testing.assert_array_less(np.abs(got.mean(axis=0) - want), 4 * error + 1e-5)
        assert np.abs(want).max() > 5 * error.mean()  # a gradient of zero would not pass


@pytest.mark.parametrize("kl_weight", [1.0, 3.0])
def test_the_score_function_gradient_is_unbiased_at_any_weight_of_the_kl(kl_weight):
    params, keys = lg.params(0.4, 1.2), jax.random.split(jax.random.key(11), 50_000)

    def objective(params):
        vae = lg.MODEL.bind({"params": params})
        return lg.elbo(params, X) - (kl_weight - 1) * bounds.kl(vae.encode(X), vae.prior())

    check_mean_gradient(jax.grad(objective)(params), bounds_and_grads("score_function", params, keys, 1, kl_weight)[1])


@pytest.mark.parametrize("stretch", [1.0, 1.4])
def test_encoder_gradients_of_the_score_function_vary_most(stretch):
    params, keys = lg.params(0.3, stretch), jax.random.split(jax.random.key(12), 5000)
    variances = {
        name: np.var(bounds_and_grads(name, params, keys)[1]["encoder"]["output"]["bias"], axis=0) for name in GRADIENTS
    }
    for name in BOUNDS:
        np.testing.assert_array_less(3 * variances[name], variances["score_function"])


FAR = lg.B + lg.W @ np.array([4.0, 0.0])


@pytest.mark.parametrize("x", [lg.X, FAR], ids=["near the prior", "far from it"])
def test_the_variances_at_the_exact_posterior_are_those_of_the_algebra(x):
    # With q = N(m, s^2) exact, z = m + s e and f = log p(x, z) - log q(z) = log p(x) whatever e is. SGVB-A has the
    # gradient -e / s in m and (1 - e^2) / 2 in log s^2, and the score function 1 - f times those. The likelihood has
    # d/dz log p(x | z) = m - a s e with a = 1 / s^2 - 1, so SGVB-B has -a s e in m and, up to a constant,
    # (m s e - a s^2 e^2) / 2 in log s^2.
    m, s = lg.posterior_mean(x), lg.POSTERIOR_SCALE
    a = 1 / s**2 - 1
    sgvb_a = np.concatenate([1 / s**2, np.full(lg.LATENT, 0.5)])
    expected = {
        "sgvb_a": sgvb_a,
        "sgvb_b": np.concatenate([a**2 * s**2, m**2 * s**2 / 4 + a**2 * s**4 / 2]),
        "score_function": (lg.log_marginal(x) - 1) ** 2 * sgvb_a,
    }
    variances, keys = {}, jax.random.split(jax.random.key(13), 50_000)
    for name, want in expected.items():
        grads = bounds_and_grads(name, lg.params(), keys, 1, 1.0, jnp.float32(x))[1]
        got = np.asarray(grads["encoder"]["output"]["bias"], np.float64)
        squares = (got - got.mean(axis=0)) ** 2
        variances[name], error = squares.mean(axis=0), squares.std(axis=0) / np.sqrt(len(got))
        np.testing.assert_array_less(np.abs(variances[name] - want), 4 * error)
        np.testing.assert_array_less(error, 0.02 * want)
    # SGVB-B varies less, but for the log-variance where the posterior's mean is far from the prior's.
    far = np.concatenate([np.zeros(lg.LATENT, bool), m**2 > 4 - 2 * s**2])
    np.testing.assert_array_equal(variances["sgvb_a"] < variances["sgvb_b"], far)
    assert far.any() == (x is FAR)


def test_no_gradient_flows_through_draws_that_are_not_reparameterized():
    # The same Gaussian twice: once with a sampler that NumPyro writes as an affine map of N(0, 1), whose intermediate
    # (the draw before the map) moves with the parameters at a fixed z.
    def normal(loc, scale):
        return dist.Normal(loc, scale).to_event(1)

    def transformed(loc, scale):
        base = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
        return dist.TransformedDistribution(base, dist.transforms.AffineTransform(loc, scale))

    def elbo(params, make):
        posterior, prior = make(*params), normal(jnp.zeros(2), jnp.ones(2))
        samples = bounds.draw(jax.random.key(14), jnp.zeros(2), posterior, prior, decode, 3, reparameterized=False)
        return bounds.score_function(samples, posterior, prior).elbo, samples.z

    def decode(z):
        return normal(z, jnp.ones(2))

    params = (jnp.array([0.2, -0.4]), jnp.array([0.5, 0.3]))
    grad = jax.jit(jax.grad(elbo, has_aux=True), static_argnums=1)
    grads, z = zip(*(grad(params, make) for make in (normal, transformed)), strict=True)
    np.testing.assert_allclose(z[0], z[1], rtol=1e-6)
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-4)
    z = np.asarray(z[0], np.float64)
    loc, scale = (np.asarray(part, np.float64) for part in params)
    weights = stats.norm.logpdf(0, z).sum(-1) + stats.norm.logpdf(z).sum(-1) - stats.norm.logpdf(z, loc, scale).sum(-1)
    by_hand = ((weights - 1)[:, None] * (z - loc) / scale**2).mean(axis=0)
    np.testing.assert_allclose(grads[0][0], by_hand, rtol=1e-4)
