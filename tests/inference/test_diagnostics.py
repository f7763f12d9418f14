"""Active units at a known variance; the information of a code by quadrature and closed forms; collapse built and not.

Monte Carlo comparisons have fixed keys and allow 4 standard errors, each computed from the draws.
"""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
from quick_jit import quick_jit
from scipy import stats
from scipy.special import logsumexp

from aevb import bounds, models
from aevb.errors import InputError
from aevb.inference.diagnostics import active_units, code_information, posterior_collapse
from aevb.models.posteriors import FullGaussian

PRIOR = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)


@functools.partial(quick_jit, static_argnames=("num_samples", "block"))
def information(key, outputs, **options):
    return code_information(key, models.DiagonalGaussian(), outputs, lambda _: PRIOR, **options)


def test_a_unit_is_active_when_its_mean_varies_by_more_than_a_hundredth():
    # Two values a +- d have variance d^2: 0.0081, 0.0121, 0, and one that varies between dimensions but not examples.
    means = np.array([[1.09, -0.11, 5.0, 0.3], [0.91, 0.11, 5.0, 0.3]])
    np.testing.assert_array_equal(active_units(means), [False, True, False, False])


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_five_codes_of_one_dimension_against_quadrature(family):
    means, scales = np.array([-2.0, -0.5, 0.0, 0.3, 1.5]), np.array([0.3, 0.5, 1.2, 0.2, 0.4])
    make, scipys = {
        "normal": (lambda mean, scale: dist.Normal(mean, scale), stats.norm),
        "laplace": (lambda mean, scale: dist.Laplace(mean, scale), stats.laplace),
    }[family]
    outputs = jnp.float32(np.stack([means, scales], axis=1))
    prior = dist.Normal(jnp.zeros(1), jnp.ones(1)).to_event(1)

    @quick_jit
    @jax.vmap
    def one(key):
        return code_information(
            key, lambda output: make(output[:1], output[1:]).to_event(1), outputs, lambda _: prior, num_samples=100
        )

    got = one(jax.random.split(jax.random.key(0), 100))
    z = np.linspace(-15, 15, 30_001)
    log_each = scipys.logpdf(z, means[:, None], scales[:, None])
    log_aggregate = logsumexp(log_each, axis=0) - np.log(5)

    def integral(log_ratio):
        return np.trapezoid(np.exp(log_each) * log_ratio, z).mean()

    expected = {
        "kl": integral(log_each - stats.norm.logpdf(z)),
        "mutual_information": integral(log_each - log_aggregate),
        "marginal_kl": integral(log_aggregate - stats.norm.logpdf(z)),
    }
    for name, value in expected.items():
        values = np.float64(getattr(got, name))
        error = values.std(ddof=1) / np.sqrt(100)
        assert abs(values.mean() - value) < 4 * error < 0.05, name
    np.testing.assert_allclose(got.kl, got.mutual_information + got.marginal_kl, atol=1e-5)


def test_of_a_linear_gaussian_model_it_is_the_closed_form_and_the_standard_errors_are_the_errors():
    # Exact posteriors of precisions t: means ~ N(0, 1 - 1 / t), I(x; z) = 1/2 sum_j log t_j, and q(z) of all x is the
    # prior. That of 100 varies about it: to first order this takes (E[q(z | x) / q(z)] - 1) / 2N from the information
    # and gives it to the marginal KL, where the mean over the joint of z and its mean is prod_j t_j.
    precision, num, repeats = np.array([1.4, 1.7]), 100, 400

    @quick_jit
    @jax.vmap
    def one(key):
        data_key, draw_key = jax.random.split(key)
        means = jnp.float32(np.sqrt(1 - 1 / precision))[None] * jax.random.normal(data_key, (num, 2))
        log_variances = jnp.broadcast_to(jnp.float32(-np.log(precision)), (num, 2))
        outputs = jnp.stack([means, log_variances], axis=1)
        return code_information(draw_key, models.DiagonalGaussian(), outputs, lambda _: PRIOR)

    got = one(jax.random.split(jax.random.key(1), repeats))  # a new data set for each
    exact, bias = 0.5 * np.log(precision).sum(), (precision.prod() - 1) / (2 * num)
    expected = {"kl": exact, "mutual_information": exact - bias, "marginal_kl": bias}
    for name, value in expected.items():
        values, stderrs = np.float64(getattr(got, name)), np.float64(getattr(got, f"{name}_stderr"))
        error = values.std(ddof=1) / np.sqrt(repeats)
        assert abs(values.mean() - value) < 4 * error < 0.02, name
        if name == "marginal_kl":
            assert error < bias / 8  # it is seen
        else:  # all datapoints share one q(z): their spread does not tell the error of a marginal KL that is all bias
            assert 0.85 < values.std(ddof=1) / stderrs.mean() < 1.15, name


def test_a_correlated_code_has_the_closed_form_too():
    # z = A x + noise with x ~ N(0, I), and q(z) = N(0, A A^T + C): I = 1/2 log det(A A^T + C) / det C.
    a, root = np.array([[1.0, -0.4], [0.3, 0.9]]), np.array([[0.5, 0.0], [0.6, 0.3]])
    aggregate, noise = a @ a.T + root @ root.T, root @ root.T
    x = np.random.default_rng(0).normal(size=(2000, 2))
    rest = np.broadcast_to([root[1, 0], np.log(root[0, 0]), np.log(root[1, 1])], (2000, 3))
    outputs = jnp.float32(np.concatenate([x @ a.T, rest], axis=1))
    options = {"to_posterior": FullGaussian(), "to_prior": lambda _: PRIOR, "block": 100}
    got = quick_jit(functools.partial(code_information, **options))(jax.random.key(2), outputs=outputs)
    expected = {
        "mutual_information": 0.5 * (np.linalg.slogdet(aggregate)[1] - np.linalg.slogdet(noise)[1]),
        "marginal_kl": 0.5 * (np.trace(aggregate) - 2 - np.linalg.slogdet(aggregate)[1]),
    }
    expected["kl"] = sum(expected.values())
    for name, value in expected.items():
        assert abs(getattr(got, name) - value) < 4 * getattr(got, f"{name}_stderr") < 0.2, name


def test_what_a_code_says_beside_its_context():
    """Of two classes, each with two codes far apart: log 4 nats in all, log 2 beside the class, which is known."""
    means = jnp.float32([[0, 0], [100, 0], [0, 100], [100, 100]])
    context = jnp.float32([[1, 0], [1, 0], [0, 1], [0, 1]])  # says the second number
    outputs = jnp.stack([means, jnp.zeros((4, 2))], axis=1)

    def prior(context):
        return dist.Normal(jnp.stack([50.0, 100 * context[1]]), jnp.float32([50, 1])).to_event(1)

    def run(outputs, context, to_prior):
        return code_information(jax.random.key(3), models.DiagonalGaussian(), outputs, to_prior, context, num_samples=9)

    inside = quick_jit(functools.partial(run, to_prior=prior))(outputs, context)
    np.testing.assert_allclose(inside.mutual_information, np.log(2), rtol=1e-6)
    # The second dimension costs nothing; the first is N(0 or 100, 1) against N(50, 50^2).
    expected = np.log(50) + (1 + 50**2) / (2 * 50**2) - 0.5
    assert abs(inside.kl - expected) < 4 * inside.kl_stderr + 1e-3
    np.testing.assert_allclose(inside.kl, inside.mutual_information + inside.marginal_kl, rtol=1e-5)
    whole = quick_jit(functools.partial(run, to_prior=lambda _: PRIOR))(outputs, None)
    np.testing.assert_allclose(whole.mutual_information, np.log(4), rtol=1e-6)
    np.testing.assert_array_equal(active_units(np.asarray(means), np.asarray(context)), [True, False])
    np.testing.assert_array_equal(active_units(np.asarray(means)), [True, True])


def test_codes_far_apart_have_log_n_nats_and_equal_ones_none():
    means = 100 * jnp.arange(8.0)[:, None] * jnp.ones(2)[None]
    apart = information(jax.random.key(3), jnp.stack([means, jnp.zeros((8, 2))], axis=1), num_samples=500)
    np.testing.assert_allclose(apart.mutual_information, np.log(8), rtol=1e-6)
    np.testing.assert_allclose(apart.mutual_information_stderr, 0, atol=1e-6)
    same = information(jax.random.key(4), jnp.full((8, 2, 2), 0.5), num_samples=500)
    np.testing.assert_allclose(same.mutual_information, 0, atol=1e-5)
    kl = bounds.kl(models.DiagonalGaussian()(jnp.full((2, 2), 0.5)), PRIOR)
    assert abs(same.marginal_kl - kl) < 4 * 1.0 / np.sqrt(8 * 500)  # log q / p has a standard deviation below 1 here


def test_the_block_changes_nothing():
    outputs = jax.random.normal(jax.random.key(5), (23, 2, 2))
    all_at_once, some = (information(jax.random.key(6), outputs, num_samples=3, block=block) for block in (100, 7))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), all_at_once, some)


def test_ten_thousand_datapoints_of_fifty_dimensions_fit_in_memory():
    prior = dist.Normal(jnp.zeros(50), jnp.ones(50)).to_event(1)
    outputs = jax.ShapeDtypeStruct((10_000, *FullGaussian().output_shape(50)), jnp.float32)
    program = quick_jit(functools.partial(code_information, to_posterior=FullGaussian(), to_prior=lambda _: prior))
    compiled = program.lower(jax.random.key(7), outputs=outputs).compile()
    # All pairs at once would be 20 GB; the posteriors themselves are 100 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 5e8


def test_one_datapoint_tells_nothing_apart():
    with pytest.raises(InputError, match="the number of datapoints is 1"):
        information(jax.random.key(8), jnp.zeros((1, 2, 2)))


def linear_gaussian_codes(key):
    """The encoder's outputs for 300 draws of x from the model, `[300, 2, 2]`."""
    vae = lg.MODEL.bind({"params": lg.params()})

    def one(key):
        z_key, x_key = jax.random.split(key)
        return vae.encoder(vae.decode(vae.prior().sample(z_key)).sample(x_key))

    return jax.vmap(one)(jax.random.split(key, 300))


def judged(outputs):
    """The verdict on a code, with the measures of the library."""
    posterior = models.DiagonalGaussian()
    each = jax.vmap(lambda output: (posterior(output).mean, bounds.kl_per_dim(posterior(output), PRIOR)))
    means, kls = (np.asarray(part) for part in quick_jit(each)(outputs))
    found = information(jax.random.key(9), outputs)
    return posterior_collapse(active_units(means), kls.mean(axis=0), float(found.mutual_information))


def test_a_constant_encoder_is_reported_and_an_exact_one_is_not():
    exact = quick_jit(linear_gaussian_codes)(jax.random.key(10))
    assert judged(exact)[:2] == (False, 0)
    for constant in (jnp.zeros((300, 2, 2)), jnp.full((300, 2, 2), 0.7)):  # the prior for all x; another for all x
        verdict = judged(constant)
        assert verdict[:2] == (True, 2)
        assert "2 of 2 latent dimensions are dead" in verdict.advice and "warm up" in verdict.advice
    half = exact.at[:, :, 1].set(0.0)
    verdict = judged(half)
    assert verdict[:2] == (False, 1)
    assert "1 of 2 latent dimensions are dead and cost 0 nats" in verdict.advice


def test_the_thresholds_of_collapse():
    active, kl = np.array([True, True, False]), np.array([0.011, 0.009, 1.0])
    assert posterior_collapse(active, kl, 0.11)[:2] == (False, 2)
    assert posterior_collapse(active, kl, 0.09)[:2] == (True, 2)
    assert posterior_collapse(active, np.array([0.0, 0.0, 1.0]), 0.5)[:2] == (True, 3)
    assert "cost 1 nats" in posterior_collapse(active, kl, 0.11).advice


@pytest.mark.parametrize(
    ("kl", "mutual_information", "message"),
    [
        (np.zeros(2), 1.0, r"active has shape \(3,\) and kl_per_dim \(2,\)"),
        (np.array([1.0, np.nan, 1.0]), 1.0, "judged by finite numbers"),
        (np.ones(3), np.inf, "mutual_information inf"),
    ],
)
def test_collapse_is_not_judged_by_numbers_that_are_none(kl, mutual_information, message):
    with pytest.raises(InputError, match=message):
        posterior_collapse(np.ones(3, bool), kl, mutual_information)
