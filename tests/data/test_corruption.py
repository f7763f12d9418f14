"""Corruptions by their statistics: shares and moments of many draws, each within 4 of its standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_jit import quick_jit

from aevb.data.binarization import make_preprocess
from aevb.data.corruption import CORRUPTIONS, gaussian, masking, salt_and_pepper
from aevb.errors import InputError

X = np.random.default_rng(0).uniform(0.2, 0.8, (5, 4, 2)).astype("float32")
NUM = 5000


def draws(corrupt):
    return np.asarray(quick_jit(jax.vmap(corrupt, (0, None)))(jax.random.split(jax.random.key(0), NUM), X))


def check_share(found, share):
    """Of each element over the draws."""
    error = np.sqrt(share * (1 - share) / NUM)
    assert np.abs(found.mean(axis=0) - share).max() < 4.5 * error  # the largest of 40 or 80


def test_masking_takes_the_share_it_says_and_leaves_the_rest():
    seen = draws(masking(0.3))
    check_share(seen == 0, 0.3)
    assert ((seen == 0) | (seen == X)).all()
    np.testing.assert_array_equal(draws(masking(0.0)), np.broadcast_to(X, (NUM, *X.shape)))


def test_salt_and_pepper_are_as_likely():
    seen = draws(salt_and_pepper(0.4))
    check_share(seen == 0, 0.2)
    check_share(seen == 1, 0.2)
    assert ((seen == 0) | (seen == 1) | (seen == X)).all()


def test_gaussian_noise_has_its_standard_deviation_and_no_correlation():
    noise = (draws(gaussian(0.5)) - X).reshape(NUM, -1)
    assert np.abs(noise.mean(axis=0)).max() < 4.5 * 0.5 / np.sqrt(NUM)
    np.testing.assert_allclose(noise.std(axis=0), 0.5, atol=4.5 * 0.5 / np.sqrt(2 * NUM))
    correlation = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(NUM)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf")])
def test_levels_that_are_none_are_refused(name, level):
    with pytest.raises(InputError, match="level of"):
        CORRUPTIONS[name](level)
    for refused in {"masking": [1.0], "salt_and_pepper": [1.0], "gaussian": [0.0]}[name]:
        with pytest.raises(InputError, match="must be"):
            CORRUPTIONS[name](refused)


def test_the_target_stays_clean_and_is_the_one_without_corruption():
    stored, key = np.uint8(np.round(255 * X)), jax.random.key(3)
    for binarization in ("dynamic", "none"):
        plain = make_preprocess(binarization)(stored, None, jnp.int32(0), jax.random.split(key)[0])
        assert plain.corrupted is None
        assert plain.seen is plain.x
        noisy = make_preprocess(binarization, corrupt=masking(0.5))(stored, None, jnp.int32(0), key)
        np.testing.assert_array_equal(noisy.x, plain.x)
        assert noisy.seen is noisy.corrupted
        kept = noisy.corrupted != 0
        np.testing.assert_array_equal(noisy.corrupted[kept], plain.x[kept])
        assert 0 < (noisy.corrupted == 0).mean() < 1
        other = make_preprocess(binarization, corrupt=masking(0.5))(stored, None, jnp.int32(0), jax.random.key(4))
        assert (other.corrupted != noisy.corrupted).any()


def test_the_mask_is_independent_of_the_dynamic_draw():
    """Of pixels of 1/2, whose draw and whose mask would be the same bits from the same key."""
    preprocess = make_preprocess("dynamic", corrupt=masking(0.5))
    stored = np.full((1000,), 0.5, np.float32)
    point = preprocess(stored, None, jnp.int32(0), jax.random.key(5))
    ones = np.asarray(point.x == 1)
    kept = np.asarray(point.corrupted == 1)[ones].mean()
    assert abs(kept - 0.5) < 4 * 0.5 / np.sqrt(ones.sum())
