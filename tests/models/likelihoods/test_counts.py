"""Likelihoods of counts against SciPy, in float64, and its masses summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_jit import quick_jit
from scipy import stats
from scipy.special import expit

from aevb import bounds
from aevb.models import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

LIKELIHOODS = [Poisson(), NegativeBinomial(), ZeroInflatedNegativeBinomial()]
# One element a row: log mean, gate logit, log dispersion.
OUTPUTS = np.array([[-4.0, 0.3, 1.0], [0.0, -2.0, 0.0], [1.5, 5.0, -1.0], [3.0, -40.0, -8.0], [5.0, 0.0, -3.0]])


def bounded(output, limit):
    return limit * np.tanh(np.asarray(output) / limit)


def scipys(likelihood, outputs):
    """Mass function, mean and variance of each element, with SciPy's parameters."""
    mean, gate = np.exp(bounded(outputs[:, 0], 16)), 0.0
    if isinstance(likelihood, Poisson):
        base = stats.poisson(mean)
    else:
        dispersion = np.exp(bounded(outputs[:, -1], 9))
        base = stats.nbinom(1 / dispersion, 1 / (1 + mean * dispersion))
    if isinstance(likelihood, ZeroInflatedNegativeBinomial):
        gate = expit(bounded(outputs[:, 1], 16))
    return (
        lambda x: gate * (x == 0) + (1 - gate) * base.pmf(x),
        (1 - gate) * base.mean(),
        (1 - gate) * (base.var() + gate * base.mean() ** 2),
    )


def columns(likelihood):
    """The outputs that this likelihood has a use for, float32."""
    keep = {Poisson: [0], NegativeBinomial: [0, 2], ZeroInflatedNegativeBinomial: [0, 1, 2]}[type(likelihood)]
    outputs = jnp.float32(OUTPUTS[:, keep])
    assert likelihood.output_shape((len(OUTPUTS),)) == outputs.shape
    return outputs


def log_mass(likelihood, outputs, x):
    """Of each element at each x: `[x, elements]`."""
    of_one = jax.vmap(lambda outputs, x: bounds.log_likelihood(likelihood(outputs[None]), x[None]), in_axes=(0, None))
    return quick_jit(jax.vmap(of_one, in_axes=(None, 0)))(outputs, jnp.float32(x))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_masses_are_scipys_and_sum_to_one(likelihood):
    mass, _, _ = scipys(likelihood, OUTPUTS)
    x = np.arange(6000)
    expected = np.stack([mass(count) for count in x])
    assert (1 - expected.sum(axis=0) < 1e-6).all()  # so little is beyond
    got = np.exp(np.asarray(log_mass(likelihood, columns(likelihood), x), np.float64))
    np.testing.assert_allclose(got.sum(axis=0), 1, atol=2e-4)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-12)
    np.testing.assert_allclose(got[:100], expected[:100], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(), ZeroInflatedNegativeBinomial()])
def test_draws_have_the_mean_of_the_mass_and_its_zeros(likelihood):
    num, (mass, mean, variance) = 2000, scipys(likelihood, OUTPUTS)

    @quick_jit
    def mean_and_draws(outputs):
        distribution = likelihood(outputs)
        return distribution.mean, jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), num))

    said, draws = mean_and_draws(columns(likelihood))
    np.testing.assert_allclose(said, mean, rtol=1e-5)
    assert draws.shape == (num, len(OUTPUTS))
    np.testing.assert_array_less(np.abs(np.mean(draws, axis=0) - mean), 4 * np.sqrt(variance / num))
    error = np.sqrt(mass(0) * (1 - mass(0)) / num)
    np.testing.assert_array_less(np.abs(np.mean(draws == 0, axis=0) - mass(0)), 4 * error + 1e-12)


def test_the_error_at_large_counts_is_the_one_stated():
    counts = np.array([1e2, 1e3, 1e4, 1e5, 1e6])
    outputs = 16 * np.arctanh(np.log(counts) / 16)
    got = np.diag(log_mass(Poisson(), jnp.float32(outputs)[:, None], counts))
    # Against the mass at the rate as float32 has it, which is another by up to 1e-5 of itself.
    rate = np.asarray(Poisson()(jnp.float32(outputs)[:, None]).mean, np.float64)
    np.testing.assert_array_less(np.abs(got - stats.poisson.logpmf(counts, rate)), 2e-7 * counts * np.log(counts))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_finite_output_has_finite_masses_and_gradients(likelihood):
    shape = likelihood.output_shape((1,))
    signs = np.stack(np.meshgrid(*[[-1, 0, 1]] * shape[-1]), axis=-1).reshape(-1, *shape)
    outputs = jnp.float32(np.concatenate([signs * 10, signs * 1e4, signs * 3e38]))

    def log_prob(outputs, x):
        return bounds.log_likelihood(likelihood(outputs), x[None])

    of_all = jax.vmap(jax.vmap(jax.value_and_grad(log_prob), in_axes=(None, 0)), in_axes=(0, None))
    value, gradient = quick_jit(of_all)(outputs, jnp.float32([0, 1, 1e3, 2**24]))
    assert (value <= 1e-5).all()
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_is_no_count_has_no_mass(likelihood):
    outputs = jnp.zeros((1, likelihood.output_shape((1,))[-1]))
    assert (log_mass(likelihood, outputs, [0.5, -1.0, jnp.nan, jnp.inf]) == -jnp.inf).all()


@pytest.mark.parametrize("make", [NegativeBinomial, ZeroInflatedNegativeBinomial])
def test_one_dispersion_for_all_elements_is_that_for_each(make):
    event_shape, log_dispersion = (2, 3), 0.7
    shared, x = make(shared_dispersion=True), jnp.float32([[0, 1, 2], [3, 0, 9]])
    outputs = np.random.default_rng(0).normal(size=shared.output_shape(event_shape))
    with_its_own = np.concatenate([outputs, np.full((*event_shape, 1), log_dispersion)], axis=-1)
    assert make().output_shape(event_shape) == with_its_own.shape

    @quick_jit
    def both(log_dispersion, outputs, with_its_own):
        bound = shared.bind({"params": {"log_dispersion": log_dispersion}})
        return bounds.log_likelihood(bound(outputs), x), bounds.log_likelihood(make()(with_its_own), x)

    np.testing.assert_allclose(
        *both(jnp.float32(log_dispersion), *map(jnp.float32, (outputs, with_its_own))), rtol=1e-6
    )
