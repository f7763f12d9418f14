"""Autoencoders against what is known of them: PCA, subgradients by hand, and the score of a known density."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from quick_jit import quick_jit
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from aevb import models
from aevb.data import Datapoint
from aevb.data.corruption import gaussian
from aevb.errors import InputError
from aevb.learners import Batch, autoencoding
from aevb.networks import MLP

SCALE = 0.5
RNG = np.random.default_rng(0)
SIZE, CODE, NUM = 6, 2, 200
XS = RNG.normal(size=(NUM, SIZE)) @ np.diag([3, 2, 1, 0.5, 0.4, 0.3]) @ np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0]
XS += RNG.normal(size=SIZE)


def autoencoder(size=SIZE, code=CODE, hidden=(), activation=None, **likelihood):
    return models.vae(
        (size,),
        code,
        network=functools.partial(MLP, hidden=hidden),
        posterior=models.PointMass(activation),
        likelihood=models.Gaussian(**{"scale": SCALE} | likelihood),
    )


def batch_of(xs, corrupted=None):
    places = jnp.arange(len(xs), dtype=jnp.int32)
    return Batch(jnp.float32(xs), None, places, places, corrupted)


def trained(model, batch_at, num_steps, learning_rate, **options):
    """The parameters after so many steps of Adam, its rate falling to 0; `batch_at(key)` is a step's batch."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    learner = autoencoding.learner(model, optimizer, **options)

    @jax.jit
    def run(state):
        def step(state, key):
            return learner.update(state, batch_at(key), key)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(7), num_steps))

    state, metrics = run(learner.init(jax.random.key(1)))
    return state.params, metrics


def test_the_gaussian_likelihood_is_the_squared_error_but_for_constants():
    model = autoencoder(hidden=(5,))
    params = models.init(model, jax.random.key(0))
    got = autoencoding.reconstruction(model)(params, Datapoint(jnp.float32(XS[0])))
    kernels = params["encoder"], params["decoder"]
    h = XS[0]
    for part in kernels:
        for layer, bend in (("hidden_0", np.tanh), ("output", lambda h: h)):
            h = bend(h @ np.asarray(part[layer]["kernel"]) + np.asarray(part[layer]["bias"]))
    error = ((h - XS[0]) ** 2).sum()
    np.testing.assert_allclose(got.squared_error, error, rtol=1e-5)
    expected = -error / (2 * SCALE**2) - SIZE * np.log(SCALE * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(got.log_likelihood, expected, rtol=1e-5)


@pytest.mark.parametrize("activation", [None, nn.sigmoid], ids=["linear", "one nonlinear hidden layer"])
def test_a_linear_autoencoder_is_pca(activation):
    """The loss is the tail of the eigenvalues and the subspace PCA's (Baldi & Hornik, 1989).

    Sigmoids on the code do no better, and come as near as they are linear (Bourlard & Kamp, 1988).
    """
    model = models.vae(
        (SIZE,),
        CODE,
        network=functools.partial(MLP, hidden=()),
        posterior=models.PointMass(activation),
        likelihood=models.Gaussian(scale=SCALE),
    )
    params, metrics = trained(model, lambda key: batch_of(XS), 4000, 0.03)
    pca = PCA(CODE).fit(XS)
    tail = ((XS - pca.inverse_transform(pca.transform(XS))) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(tail, np.linalg.eigvalsh(np.cov(XS.T, ddof=0))[:-CODE].sum(), rtol=1e-6)
    error = float(metrics["squared_error"][-1])
    assert error > tail * (1 - 1e-5)
    assert error < tail * (1 + (1e-4 if activation is None else 0.05))
    if activation is None:
        kernel = np.asarray(params["decoder"]["output"]["kernel"])
        assert np.degrees(subspace_angles(kernel.T, pca.components_.T)).max() < 0.5


def test_the_gradient_of_the_l1_term_is_the_subgradient():
    """Of a linear encoder z = W x + b: d |z_j| / d W = sign(z_j) x, and 0 where a ReLU is closed."""
    model = autoencoder(code=4, activation=nn.relu)
    params = models.init(model, jax.random.key(2))
    weight = 0.7
    grads = []
    for l1_weight in (0.0, weight):
        learner = autoencoding.learner(model, optax.sgd(1.0), l1_weight=l1_weight)
        state = learner.init(jax.random.key(0)).replace(params=params)
        state, metrics = jax.jit(learner.update)(state, batch_of(XS), jax.random.key(1))
        grads.append(jax.tree.map(lambda before, after: np.asarray(before - after), params, state.params))
    layer = jax.tree.map(np.asarray, params["encoder"]["output"])
    open_ = (XS @ layer["kernel"] + layer["bias"]) > 0
    assert 0.1 < open_.mean() < 0.9
    got = jax.tree.map(lambda with_it, without: with_it - without, grads[1], grads[0])
    np.testing.assert_allclose(got["encoder"]["output"]["kernel"], weight * XS.T @ open_ / NUM, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got["encoder"]["output"]["bias"], weight * open_.mean(axis=0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got["decoder"]["output"]["kernel"], 0, atol=1e-3)
    np.testing.assert_allclose(metrics["active"], open_.mean(), rtol=1e-6)
    expected = metrics["log_likelihood"] - weight * metrics["l1"]
    np.testing.assert_allclose(metrics["loss"], -expected, rtol=1e-6)


def test_a_k_sparse_code_keeps_the_k_largest():
    outputs = jnp.float32([0.3, -5.0, 2.0, 0.3, 1.0])
    np.testing.assert_allclose(models.top_k(2)(outputs), [0, 0, 2, 0, 1])
    np.testing.assert_allclose(models.top_k(3)(outputs), [0.3, 0, 2, 0, 1])  # of equals the first
    gradient = jax.grad(lambda o: (models.top_k(2)(o) * jnp.arange(5.0)).sum())(outputs)
    np.testing.assert_allclose(gradient, [0, 0, 2, 0, 4])
    for k, words in ((0, "k is 0"), (6, "k is 6, but the code has 5")):
        with pytest.raises(InputError, match=words):
            models.top_k(k)(outputs)


def test_a_denoising_autoencoder_learns_the_score_of_a_gaussian():
    """(reconstruction - input) / s^2 is the score of the density with noise, -(C + s^2 I)^-1 (x - m): Vincent, 2011."""
    noise, covariance = 0.5, np.cov(XS[:, :3].T)
    root, mean = np.linalg.cholesky(covariance), XS[:, :3].mean(axis=0)
    model = autoencoder(size=3, code=3)

    def batch_at(key):
        x_key, noise_key = jax.random.split(key)
        x = jnp.float32(mean)[None] + jax.random.normal(x_key, (500, 3)) @ jnp.float32(root.T)
        return batch_of(x, jax.vmap(gaussian(noise))(jax.random.split(noise_key, 500), x))

    params, _ = trained(model, batch_at, 3000, 0.03)
    bound = model.bind({"params": params})
    seen = RNG.normal(size=(50, 3)) * 2
    denoised = quick_jit(jax.vmap(lambda x: bound.decode(bound.encode(x).mean).mean))(jnp.float32(seen))
    expected = -np.linalg.solve(covariance + noise**2 * np.eye(3), (seen - mean).T).T
    np.testing.assert_allclose((np.asarray(denoised) - seen) / noise**2, expected, atol=0.12)


def test_a_denoising_autoencoder_learns_the_score_of_a_mixture():
    """Of two narrow Gaussians in one dimension, whose score is far from linear."""
    centre, width, noise = 1.5, 0.2, 0.5
    model = autoencoder(size=1, code=1, hidden=(64, 64))

    def batch_at(key):
        sign_key, x_key, noise_key = jax.random.split(key, 3)
        sign = jax.random.rademacher(sign_key, (500, 1), jnp.float32)
        x = centre * sign + width * jax.random.normal(x_key, (500, 1))
        return batch_of(x, jax.vmap(gaussian(noise))(jax.random.split(noise_key, 500), x))

    params, _ = trained(model, batch_at, 3000, 0.01)
    bound = model.bind({"params": params})
    seen = np.linspace(-2.2, 2.2, 45)[:, None]
    denoised = quick_jit(jax.vmap(lambda x: bound.decode(bound.encode(x).mean).mean))(jnp.float32(seen))
    variance = width**2 + noise**2
    responsibility = np.tanh(centre * seen / variance)  # of the two centres, as a number in (-1, 1)
    expected = (centre * responsibility - seen) / variance
    assert np.ptp(expected) > 5
    np.testing.assert_allclose((np.asarray(denoised) - seen) / noise**2, expected, atol=0.35)
