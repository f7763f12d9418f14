"""Wake-sleep's two gradients, written out by hand in float64. `optax.sgd(1)` makes an update minus the gradient.

The model is `linear_gaussian`, both networks affine, so the sleep phase's gradient has a closed form in expectation
too: under p(x, z) everything is Gaussian, and a log variance that is affine in x only tilts that Gaussian.
"""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from scipy import special, stats

from aevb import bounds, models, training
from aevb.data import Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory
from aevb.learners import Batch, example_keys, first_state, wake_sleep
from aevb.networks import MLP

M, N = 4, 60
XS = np.random.default_rng(1).normal(size=(M, lg.SIZE))
PLACES = jnp.arange(M, dtype=jnp.int32)
BATCH = Batch(jnp.float32(XS), None, PLACES, PLACES)
STEP_KEY = jax.random.key(11)


def somewhere():
    """A decoder that is not the true one, and an encoder whose variance depends on x."""
    generator, params = np.random.default_rng(3), lg.params(0.4, 1.3)
    return jax.tree.map(lambda leaf: leaf + jnp.float32(0.2 * generator.normal(size=leaf.shape)), params)


@functools.cache
def make_update(model=lg.MODEL, **options):
    """`(params, batch, key) -> (what the step adds to the parameters, metrics)`; sgd(1) makes it minus the gradient."""
    learner = wake_sleep.learner(model, optax.sgd(1.0), **options)

    def update(params, batch, key):
        start = first_state(jax.random.key(0), lambda _: params, optax.sgd(1.0).init)
        state, metrics = learner.update(start, batch, key)
        return jax.tree.map(jnp.subtract, state.params, params), metrics

    return jax.jit(update)


def exact(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def layers(params):
    """Kernel and bias of encoder and decoder, float64."""
    params = exact(params)
    return [params[name]["output"][part] for name in ("encoder", "decoder") for part in ("kernel", "bias")]


def draws(keys, sample, num_samples):
    """`sample(key)` for each example and draw, `[M, num_samples, ...]`: one draw takes the key itself."""
    if num_samples == 1:
        return exact(jax.vmap(sample)(keys)[:, None])
    split = jax.vmap(lambda key: jax.random.split(key, num_samples))(keys)
    return exact(jax.vmap(jax.vmap(sample))(split))


def phase_keys(step_key=STEP_KEY):
    """The keys of each example's wake and sleep phases."""
    return jnp.moveaxis(jax.vmap(jax.random.split)(example_keys(step_key, PLACES)), 1, 0)


def wake_by_hand(params, num_samples=1):
    """z of the wake phase `[M, L, latent]`, mean log p(x, z), and its gradient in the decoder."""
    to_z, z_bias, to_x, x_bias = layers(params)
    noise = draws(phase_keys()[0], lambda key: jax.random.normal(key, (lg.LATENT,)), num_samples)
    mean, log_variance = np.split(XS @ to_z + z_bias, 2, axis=1)
    z = mean[:, None] + np.exp(0.5 * log_variance)[:, None] * noise
    residual = XS[:, None] - z @ to_x - x_bias
    log_joint = stats.norm.logpdf(residual, 0, lg.SCALE).sum(2) + stats.norm.logpdf(z).sum(2)
    score = residual / lg.SCALE**2
    kernel = np.einsum("mli,mlj->ij", z, score) / (M * num_samples)
    return z, log_joint.mean(), {"output": {"kernel": kernel, "bias": score.mean((0, 1))}}


def sleep_by_hand(params, num_samples=1):
    """Mean log q(z | x) of the dreams, and its gradient in the encoder."""
    to_z, z_bias, to_x, x_bias = layers(params)

    def noise(key):
        z_key, x_key = jax.random.split(key)
        return jnp.concatenate([jax.random.normal(z_key, (lg.LATENT,)), jax.random.normal(x_key, (lg.SIZE,))])

    z, noise_of_x = np.split(draws(phase_keys()[1], noise, num_samples), [lg.LATENT], axis=2)
    x = z @ to_x + x_bias + lg.SCALE * noise_of_x
    mean, log_variance = np.split(x @ to_z + z_bias, 2, axis=2)
    log_q = stats.norm.logpdf(z, mean, np.exp(0.5 * log_variance)).sum(2)
    away, variance = z - mean, np.exp(log_variance)
    score = np.concatenate([away / variance, 0.5 * (away**2 / variance - 1)], axis=2)
    kernel = np.einsum("mli,mlj->ij", x, score) / (M * num_samples)
    return log_q.mean(), {"output": {"kernel": kernel, "bias": score.mean((0, 1))}}


def assert_close(got, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), exact(got), expected)


@pytest.mark.parametrize("options", [{}, {"num_samples": 3, "weight_prior_examples": N}])
def test_wake_and_sleep_gradients_by_hand(options):
    params, num_samples = somewhere(), options.get("num_samples", 1)
    step, metrics = make_update(**options)(params, BATCH, STEP_KEY)
    _, log_joint, decoder = wake_by_hand(params, num_samples)
    log_q, encoder = sleep_by_hand(params, num_samples)
    if "weight_prior_examples" in options:  # theta is pulled by theta / N, phi is not
        theta = exact(params["decoder"])
        log_joint += sum(stats.norm.logpdf(leaf).sum() for leaf in jax.tree.leaves(theta)) / N
        decoder = jax.tree.map(lambda gradient, leaf: gradient - leaf / N, decoder, theta)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(theta)) / N > 0.01
    # Both phases at once: the decoder has the wake gradient and nothing else, the encoder the sleep gradient.
    assert_close(step, {"encoder": encoder, "decoder": decoder}, atol=2e-5)
    np.testing.assert_allclose(metrics["wake_loss"], -log_joint, rtol=1e-5)
    np.testing.assert_allclose(metrics["sleep_loss"], -log_q, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], -log_joint - log_q, rtol=1e-5)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves([encoder, decoder])))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)


def test_the_encoder_sees_no_datapoint_and_the_decoder_no_dream():
    params, update = somewhere(), make_update()
    step, _ = update(params, BATCH, STEP_KEY)
    elsewhere, _ = update(params, BATCH._replace(x=BATCH.x + 1.0), STEP_KEY)
    jax.tree.map(np.testing.assert_array_equal, step["encoder"], elsewhere["encoder"])
    assert np.abs(step["decoder"]["output"]["bias"] - elsewhere["decoder"]["output"]["bias"]).max() > 0.1
    # A decoder that fits exactly has no wake gradient, however wrong the encoder is about its dreams.
    blind = {"encoder": params["encoder"], "decoder": jax.tree.map(jnp.zeros_like, params["decoder"])}
    step, _ = update(blind, BATCH._replace(x=jnp.zeros_like(BATCH.x)), STEP_KEY)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(step["decoder"]))
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(step["encoder"]))


def expected_sleep_gradient(params):
    """E grad log q(z | x) under p(x, z): with d = z - m(x) and v = exp(a.x + c), moments of x, d and d^2 over v.

    Dividing by v tilts p(x) = N(b, C) to N(b - C a, C) and multiplies by exp(a C a / 2 - a b - c); p(z | x) stays.
    """
    to_z, z_bias, to_x, x_bias = layers(params)
    covariance = to_x.T @ to_x + lg.SCALE**2 * np.eye(lg.SIZE)
    precision = np.eye(lg.LATENT) + to_x @ to_x.T / lg.SCALE**2
    posterior = to_x.T @ np.linalg.inv(precision) / lg.SCALE**2  # E[z | x] = (x - b) @ posterior
    kernel, bias = np.zeros_like(to_z), np.zeros_like(z_bias)
    for j in range(lg.LATENT):
        a, c = to_z[:, lg.LATENT + j], z_bias[lg.LATENT + j]
        weight = np.exp(0.5 * a @ covariance @ a - a @ x_bias - c)
        x_mean = x_bias - covariance @ a
        slope = posterior[:, j] - to_z[:, j]
        d_mean = x_mean @ slope - x_bias @ posterior[:, j] - z_bias[j]
        d_variance = slope @ covariance @ slope + np.linalg.inv(precision)[j, j]
        d_and_x = covariance @ slope
        bias[j], kernel[:, j] = weight * d_mean, weight * (d_mean * x_mean + d_and_x)
        square, square_and_x = d_mean**2 + d_variance, (d_mean**2 + d_variance) * x_mean + 2 * d_mean * d_and_x
        bias[lg.LATENT + j] = 0.5 * (weight * square - 1)
        kernel[:, lg.LATENT + j] = 0.5 * (weight * square_and_x - x_bias)
    return {"output": {"kernel": kernel, "bias": bias}}


@functools.cache
def sleep_gradients():
    """`(params, keys) -> the sleep phase's gradients`, a row a key."""
    return jax.jit(jax.vmap(lambda params, key: make_update()(params, BATCH, key)[0]["encoder"], in_axes=(None, 0)))


@pytest.mark.parametrize(("params", "size"), [(somewhere(), 1.0), (lg.params(), 0.0)], ids=["somewhere", "exact"])
def test_the_expected_sleep_gradient_in_closed_form(params, size):
    num = 20_000
    gradients = exact(sleep_gradients()(params, jax.random.split(jax.random.key(2), num)))
    expected = expected_sleep_gradient(params)
    for sample, mean in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        stderr = sample.std(0, ddof=1) / np.sqrt(num)
        assert (np.abs(sample.mean(0) - mean) < 4 * stderr).all()
        assert (stderr < 0.1).all()
    # The exact posterior is where the sleep phase rests.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > size if size else largest < 1e-6


def test_the_metrics_are_the_bound_on_the_wake_phases_draws():
    params = somewhere()
    to_z, z_bias, to_x, x_bias = layers(params)
    z = wake_by_hand(params)[0][:, 0]
    mean, log_variance = np.split(XS @ to_z + z_bias, 2, axis=1)
    log_likelihood = stats.norm.logpdf(XS, z @ to_x + x_bias, lg.SCALE).sum(1).mean()
    kl_b = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(1).mean()
    kl_a = (stats.norm.logpdf(z, mean, np.exp(0.5 * log_variance)) - stats.norm.logpdf(z)).sum(1).mean()
    update_a = make_update(bound=bounds.sgvb_a)
    for update, kl in ((make_update(), kl_b), (update_a, kl_a)):
        _, metrics = update(params, BATCH, STEP_KEY)
        np.testing.assert_allclose(metrics["log_likelihood"], log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
        np.testing.assert_allclose(metrics["elbo"], log_likelihood - kl, rtol=1e-5)
    # At the exact posterior sgvb_a has no variance: it is log p(x).
    _, metrics = update_a(lg.params(), BATCH, STEP_KEY)
    np.testing.assert_allclose(metrics["elbo"], np.mean([lg.log_marginal(x) for x in XS]), rtol=1e-5)


def test_gradients_by_hand_with_bernoulli_pixels():
    model = models.vae((lg.SIZE,), lg.LATENT, network=functools.partial(MLP, hidden=()))
    params = somewhere()
    batch = BATCH._replace(x=jnp.float32(XS > 0))
    step, _ = make_update(model)(params, batch, STEP_KEY)
    to_z, z_bias, to_x, x_bias = layers(params)

    @jax.jit
    @jax.vmap
    def dream(key):
        z_key, x_key = jax.random.split(key)
        z = jax.random.normal(z_key, (lg.LATENT,))
        return z, model.bind({"params": params}).decode(z).sample(x_key)

    z, x = exact(dream(phase_keys()[1]))
    assert set(np.unique(x)) == {0, 1}
    mean, log_variance = np.split(x @ to_z + z_bias, 2, axis=1)
    away, variance = z - mean, np.exp(log_variance)
    score = np.concatenate([away / variance, 0.5 * (away**2 / variance - 1)], axis=1)
    assert_close(step["encoder"], {"output": {"kernel": x.T @ score / M, "bias": score.mean(0)}}, atol=2e-5)

    noise = draws(phase_keys()[0], lambda key: jax.random.normal(key, (lg.LATENT,)), 1)[:, 0]
    mean, log_variance = np.split((XS > 0) @ to_z + z_bias, 2, axis=1)
    z = mean + np.exp(0.5 * log_variance) * noise
    score = (XS > 0) - special.expit(z @ to_x + x_bias)
    assert_close(step["decoder"], {"output": {"kernel": z.T @ score / M, "bias": score.mean(0)}}, atol=2e-5)


class MovingPrior(nn.Module):
    """N(location, I)."""

    @nn.compact
    def __call__(self):
        location = self.param("location", nn.initializers.ones, (lg.LATENT,))
        return dist.Normal(location, jnp.ones(lg.LATENT)).to_event(1)


def test_a_prior_with_parameters_learns_in_the_wake_phase_alone():
    model = models.vae(
        (lg.SIZE,), lg.LATENT, network=functools.partial(MLP, hidden=()), likelihood=models.Gaussian(scale=lg.SCALE),
        prior=MovingPrior(),
    )  # fmt: skip
    location = np.array([0.5, -1.0])
    params = somewhere() | {"prior": {"location": jnp.float32(location)}}
    step, _ = make_update(model)(params, BATCH, STEP_KEY)
    z, _, decoder = wake_by_hand(params)
    assert_close(step["prior"], {"location": z.mean((0, 1)) - location}, atol=2e-5)
    assert_close(step["decoder"], decoder, atol=2e-5)


@functools.cache
def trained(devices):
    """The parameters after 20 steps on so many devices, and every step's metrics."""
    learner = wake_sleep.learner(lg.MODEL, optax.adam(0.02), weight_prior_examples=8)
    feed = InMemory(Split(np.float32(np.concatenate([XS, XS + 0.5])), None), 4, jax.random.key(1))
    ((state, metrics),) = training.train(
        learner, jax.jit(learner.init)(jax.random.key(0)), feed, make_preprocess("none"), num_steps=20,
        devices=jax.devices()[:devices],
    )  # fmt: skip
    return jax.device_get(training.unreplicate(state).params), metrics


def test_any_number_of_devices_trains_the_same_model():
    (one, metrics_one), (four, metrics_four) = trained(1), trained(4)
    for name in metrics_one:
        np.testing.assert_allclose(metrics_four[name], metrics_one[name], rtol=2e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, four)
    assert metrics_one["loss"][-5:].mean() < metrics_one["loss"][:5].mean() - 0.5
