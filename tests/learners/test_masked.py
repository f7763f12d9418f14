"""Masked autoencoders: the objective by hand, what the encoder cannot see, and an image that can be told in full."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_jit import quick_jit

from aevb import models
from aevb.errors import InputError
from aevb.learners import Batch, masked
from aevb.networks import vit

SHAPE = (8, 12, 1)
RNG = np.random.default_rng(0)
XS = jnp.float32(RNG.uniform(size=(6, *SHAPE)))
SMALL = {"patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "decoder_width": 8, "decoder_depth": 1}


def batch_of(xs):
    places = jnp.arange(len(xs), dtype=jnp.int32)
    return Batch(xs, None, places, places)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_the_squared_error_of_the_masked_patches(normalise):
    model = models.masked_autoencoder(SHAPE, mask_ratio=0.5, normalise=normalise, **SMALL)
    learner = masked.learner(model, optax.sgd(0.0))
    state = learner.init(jax.random.key(0))
    key = jax.random.key(1)
    _, metrics = jax.jit(learner.update)(state, batch_of(XS), key)
    total = 0.0
    for i, x in enumerate(XS):
        visible = np.asarray(vit.sample_mask(jax.random.fold_in(key, i), 6, 0.5))
        hidden = np.setdiff1d(np.arange(6), visible)
        assert len(hidden) == 3
        restored = model.bind({"params": state.params}).restore(x, jnp.asarray(visible))
        cut = np.stack([np.asarray(x)[r : r + 4, c : c + 4, 0].ravel() for r in (0, 4) for c in (0, 4, 8)])
        if normalise:
            cut = (cut - cut.mean(1, keepdims=True)) / np.sqrt(cut.var(1, keepdims=True) + 1e-6)
        total += ((np.asarray(restored.predicted) - cut)[hidden] ** 2).mean()
    np.testing.assert_allclose(metrics["loss"], total / len(XS), rtol=1e-5)
    assert metrics["masked_error"] == metrics["loss"]


def test_what_is_masked_changes_the_target_alone():
    model = models.masked_autoencoder(SHAPE, **SMALL)
    params = model.init(jax.random.key(0), XS[0], jax.random.key(1))
    visible = jnp.array([1, 4])
    restore = quick_jit(lambda x: model.apply(params, x, visible, method="restore"))
    other = XS[0].at[:4, :4].set(0.9)  # patch 0
    before, after = restore(XS[0]), restore(other)
    np.testing.assert_array_equal(before.predicted, after.predicted)
    assert (np.asarray(before.target) != np.asarray(after.target)).any(axis=1).tolist() == [True] + [False] * 5
    assert np.asarray(before.masked).tolist() == [True, False, True, True, False, True]


def test_the_image_of_the_patches_is_the_image():
    model = models.masked_autoencoder((7, 5, 3), patch_size=4, pad=True, width=8, depth=1, num_heads=2)
    x = jnp.float32(RNG.uniform(size=(7, 5, 3)))
    np.testing.assert_array_equal(model.image(model.patches(x)), x)
    with pytest.raises(InputError, match="7 x 5 pixels are no multiples of the patch size 4"):
        models.masked_autoencoder((7, 5, 3), patch_size=4)


def test_hidden_patches_that_follow_from_the_visible_ones_are_learned():
    """Images of one grey: each visible patch tells all others, and their variance is what a blind decoder leaves."""
    model = models.masked_autoencoder(SHAPE, **SMALL)
    learner = masked.learner(model, optax.adam(optax.cosine_decay_schedule(3e-3, 600)))

    @jax.jit
    def run(state):
        def step(state, key):
            x_key, step_key = jax.random.split(key)
            xs = jnp.broadcast_to(jax.random.uniform(x_key, (50, 1, 1, 1)), (50, *SHAPE))
            return learner.update(state, batch_of(xs), step_key)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(5), 600))

    _, metrics = run(learner.init(jax.random.key(2)))
    blind = 1 / 12  # the variance of a uniform grey
    assert metrics["loss"][-20:].mean() < 0.02 * blind


def test_the_code_of_an_image_is_the_mean_of_its_patch_codes():
    model = models.masked_autoencoder(SHAPE, **SMALL)
    params = model.init(jax.random.key(0), XS[0], jax.random.key(1))
    bound = model.bind(params)
    tokens = bound.encoder(bound.patches(XS[0]))
    np.testing.assert_allclose(bound.encode(XS[0]).mean, np.asarray(tokens)[1:].mean(axis=0), rtol=1e-5)
    assert bound.encode(XS[0]).event_shape == (model.latent_dim,)
