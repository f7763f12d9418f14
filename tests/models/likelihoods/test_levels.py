"""Likelihoods of 2 and of 256 levels against SciPy and against the mixture's definition, written here in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_jit import quick_jit
from scipy import stats
from scipy.special import log_softmax, softmax

from aevb import bounds
from aevb.errors import InputError
from aevb.models import Bernoulli, Categorical, DiscretizedLogisticMixture

X = np.arange(256, dtype=np.uint8) / np.float32(255)  # the datapoints that stored bytes become


def as_levels(draws):
    """k of each x, all of which have to be k / 255 up to rounding."""
    k = np.rint(draws * 255).astype(int)
    np.testing.assert_allclose(draws, X[k], rtol=2e-7)
    return k


@quick_jit
def log_masses(outputs):
    """Of one element, all its 256 levels: `[256]`."""
    likelihood = Categorical()(outputs[None])
    return jax.vmap(lambda x: bounds.log_likelihood(likelihood, x[None]))(X)


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


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_a_categorical_is_the_softmax_over_its_levels(size):
    logits = np.random.default_rng(0).normal(size=256) * size
    got = log_masses(jnp.float32(logits))
    np.testing.assert_allclose(got, log_softmax(np.float64(np.float32(logits))), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(np.float64(got)).sum(), 1, atol=1e-5)


def test_a_categorical_sums_over_elements_and_draws_its_levels():
    shape, num = (2, 3), 5000
    logits = np.random.default_rng(0).normal(size=(*shape, 256)) * 2
    assert Categorical().output_shape(shape) == logits.shape
    probs, k = softmax(logits, axis=-1), np.random.default_rng(1).integers(0, 256, shape)

    @quick_jit
    def look(outputs, x):
        distribution = Categorical()(outputs)
        draws = jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), num))
        return bounds.log_likelihood(distribution, x), distribution.mean, draws

    log_likelihood, mean, draws = map(np.asarray, look(jnp.float32(logits), X[k]))
    np.testing.assert_allclose(log_likelihood, np.log(np.take_along_axis(probs, k[..., None], -1)).sum(), rtol=1e-5)
    np.testing.assert_allclose(mean, (probs * np.arange(256)).sum(-1) / 255, rtol=1e-5)
    assert draws.dtype == np.float32
    levels, sixteenths = as_levels(draws), probs.reshape(*shape, 16, 16).sum(-1)
    for place in np.ndindex(shape):
        observed = np.bincount(levels[(slice(None), *place)] // 16, minlength=16)
        assert stats.chisquare(observed, num * sixteenths[place]).pvalue > 0.001  # of six, so one in 170 by chance


def test_what_is_no_level_has_no_mass():
    log_prob = quick_jit(jax.vmap(lambda x: Categorical()(jnp.zeros((1, 256))).log_prob(x[None])))
    assert (log_prob(jnp.float32([0.5, 1e-4, -1 / 255, 256 / 255, jnp.nan])) == -jnp.inf).all()
    np.testing.assert_allclose(log_prob(X), -np.log(256), rtol=1e-6)


# One pixel of a mixture, from its definition.


def parts(outputs, channels):
    """Weights `[K]`, locations and scales `[channels, K]`, coefficients `[3 or 0, K]` from a pixel's outputs."""
    rows = np.float64(outputs).reshape(1 + 2 * channels + 3 * (channels == 3), -1)
    logits, location, log_scale, coefficients = np.split(rows, [1, 1 + channels, 1 + 2 * channels])
    return softmax(logits[0]), location, np.exp(np.clip(log_scale, -7, 7)), np.tanh(coefficients)


def logistic_masses(location, scale):
    """Of all 256 levels under a logistic cut at the edges between them: `[..., 256]`."""
    edges = (2 * np.arange(255) + 1) / 255 - 1
    below = stats.logistic.cdf((edges - location[..., None]) / scale[..., None])
    above = stats.logistic.sf((edges - location[..., None]) / scale[..., None])
    ends = np.zeros((*location.shape, 1))
    below, above = np.concatenate([ends, below, ends + 1], -1), np.concatenate([ends + 1, above, ends], -1)
    return np.where(below[..., 1:] < 0.5, np.diff(below), -np.diff(above))  # the difference of the smaller two


def conditional_masses(outputs, k):
    """P(level of a channel given k of the earlier ones), all levels: `[N, channels, 256]`, with k `[N, channels]`."""
    channels = k.shape[1]
    weight, location, scale, coefficients = parts(outputs, channels)
    weight, y, masses = np.tile(weight, (len(k), 1)), 2 * k / 255 - 1, []
    for c in range(channels):
        m = np.tile(location[c], (len(k), 1))
        for earlier in range(c):
            m = m + coefficients[c * (c - 1) // 2 + earlier] * y[:, earlier, None]
        mass = logistic_masses(m, np.tile(scale[c], (len(k), 1)))
        masses.append((weight[..., None] * mass).sum(1) / weight.sum(1)[:, None])
        weight = weight * np.take_along_axis(mass, k[:, c, None, None], -1)[..., 0]
    return np.stack(masses, 1)


def mixture(outputs):
    likelihood = DiscretizedLogisticMixture(num_components=3)
    return likelihood(outputs.reshape(1, 1, 1, -1))


@quick_jit
def mixture_log_prob(outputs, x):
    """Of one pixel at each x `[N, channels]`, through the check of shapes: `[N]`."""
    return jax.vmap(lambda x: bounds.log_likelihood(mixture(outputs), x[None, None]))(x)


# Random pixels: moderate, sharp logistics as an image has them, wide ones that lie mostly on 0 and 255.
SHIFTS = {"moderate": (-1.0, 1.0), "sharp": (-5.0, 1.5), "wide": (1.0, 2.0)}


def pixel(channels, kind):
    shift, size = SHIFTS[kind]
    generator, count = np.random.default_rng(0), {1: 1, 3: 3}[channels]
    logits, location = generator.normal(size=(1, 3)), generator.uniform(-1.1, 1.1, size=(count, 3))
    log_scale = shift + size * generator.normal(size=(count, 3))
    coefficients = generator.normal(size=(3 * (channels == 3), 3))
    return np.float32(np.concatenate([logits, location, log_scale, coefficients]).ravel())


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_grey_mixture_is_its_definition_and_sums_to_one(kind):
    outputs = pixel(1, kind)
    assert DiscretizedLogisticMixture(num_components=3).output_shape((1, 1, 1)) == (1, 1, 1, outputs.size)
    got = np.float64(mixture_log_prob(outputs, X[:, None]))
    expected = conditional_masses(outputs, np.zeros((1, 1), int))[0, 0]
    # An edge in units of the scale is known to 2^-24 of e^7: 7e-5 nats.
    np.testing.assert_allclose(got, np.log(expected), rtol=1e-5, atol=3e-4)
    np.testing.assert_allclose(np.exp(got).sum(), 1, atol=1e-4)
    mean = quick_jit(lambda outputs: mixture(outputs).mean)(outputs)
    np.testing.assert_allclose(mean, (expected @ np.arange(256) / 255).reshape(1, 1, 1), atol=2e-5)


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_colour_mixture_is_its_definition_and_sums_to_one_given_the_earlier_channels(kind):
    outputs, generator = pixel(3, kind), np.random.default_rng(1)
    assert DiscretizedLogisticMixture(num_components=3).output_shape((1, 1, 3)) == (1, 1, 1, outputs.size)
    num = 6
    k = np.concatenate([[[0, 0, 0], [255, 255, 255], [255, 0, 255]], generator.integers(0, 256, (num - 3, 3))])
    masses = conditional_masses(outputs, k)
    every_blue = np.stack([np.tile(k[:, 0, None], 256), np.tile(k[:, 1, None], 256), np.tile(np.arange(256), (num, 1))])
    got = np.float64(mixture_log_prob(outputs, X[every_blue.reshape(3, -1).T])).reshape(num, 256)
    log_earlier = np.log(np.take_along_axis(masses[:, :2], k[:, :2, None], -1)).sum((1, 2))
    np.testing.assert_allclose(got, log_earlier[:, None] + np.log(masses[:, 2]), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(np.log(np.exp(got - log_earlier[:, None]).sum(1)), 0, atol=1e-3)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_a_mixture_of_extreme_outputs_sums_to_one_and_has_finite_gradients(size):
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (20, 9))

    def log_prob(outputs, x):
        return bounds.log_likelihood(mixture(outputs), x[None, None])

    of_all = jax.vmap(jax.vmap(jax.value_and_grad(log_prob), in_axes=(None, 0)), in_axes=(0, None))
    value, gradient = quick_jit(of_all)(jnp.float32(signs * size), X[:, None])
    np.testing.assert_allclose(np.exp(np.float64(value)).sum(1), 1, atol=1e-5)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("channels", "kind"), [(1, "wide"), (1, "sharp"), (3, "moderate"), (3, "sharp")])
def test_draws_of_a_mixture_follow_its_masses_channel_by_channel(channels, kind):
    outputs, num = pixel(channels, kind), 2000
    keys = jax.random.split(jax.random.key(0), num)
    draws = np.asarray(quick_jit(lambda outputs: jax.vmap(mixture(outputs).sample)(keys))(outputs))
    assert draws.shape == (num, 1, 1, channels)
    k = as_levels(draws.reshape(num, channels))
    masses = conditional_masses(outputs, k)
    # A level's place in its conditional distribution, spread over the level's own mass, is uniform.
    inside = np.random.default_rng(0).uniform(size=(num, channels))
    upper, own = (np.take_along_axis(a, k[..., None], -1)[..., 0] for a in (masses.cumsum(-1), masses))
    places = upper - inside * own
    assert all(stats.kstest(places[:, c], "uniform").pvalue > 0.01 for c in range(channels))
    correlations = np.corrcoef(places.T) if channels > 1 else np.eye(1)
    np.testing.assert_array_less(np.abs(correlations - np.eye(channels)), 4 / np.sqrt(num) + np.eye(channels))


def test_the_mean_of_a_colour_mixture_clear_of_the_ends():
    outputs, num = pixel(3, "sharp").reshape(-1, 3), 5000
    outputs[1:4] *= 0.3
    outputs[7:] *= 0.5
    outputs = outputs.ravel()
    mean, draws = quick_jit(
        lambda outputs: (mixture(outputs).mean, mixture(outputs).sample(jax.random.key(0), (num,)))
    )(outputs)
    red = conditional_masses(outputs, np.zeros((1, 3), int))[0, 0]
    np.testing.assert_allclose(mean[0, 0, 0], red @ np.arange(256) / 255, rtol=1e-4)
    assert draws.shape == (num, 1, 1, 3)
    assert ((draws > 0) & (draws < 1)).mean() > 0.999
    error = np.asarray(draws).std(axis=0) / np.sqrt(num)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean), 4 * error)


def test_the_pixels_of_an_image_are_independent_and_in_their_places():
    likelihood, generator = DiscretizedLogisticMixture(num_components=3), np.random.default_rng(0)
    for channels in (1, 3):
        shape = (2, 3, channels)
        outputs = np.float32(generator.normal(size=likelihood.output_shape(shape)))
        k = generator.integers(0, 256, shape)

        @quick_jit
        def look(outputs, x):
            distribution = likelihood(outputs)
            return bounds.log_likelihood(distribution, x), distribution.mean

        log_likelihood, mean = look(outputs, X[k])
        masses = [conditional_masses(outputs[i, j], k[i, j][None])[0] for i in range(2) for j in range(3)]
        of_x = np.take_along_axis(np.stack(masses), k.reshape(6, channels, 1), -1)
        np.testing.assert_allclose(log_likelihood, np.log(of_x).sum(), rtol=1e-5)
        red = np.stack(masses)[:, 0] @ np.arange(256) / 255
        np.testing.assert_allclose(mean[..., 0], red.reshape(2, 3), rtol=1e-4)


@pytest.mark.parametrize("event_shape", [(784,), (28, 28), (28, 28, 2), (28, 28, 4), (1, 28, 28, 3)])
def test_a_mixture_refuses_what_is_no_grey_or_colour_image(event_shape):
    with pytest.raises(InputError, match=r"1 or 3 channels: reshape") as refusal:
        DiscretizedLogisticMixture().output_shape(event_shape)
    assert str(event_shape) in str(refusal.value)
