"""Binarization: probabilities by enumeration and by counting, and what a likelihood refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aevb.data import Split, binarization
from aevb.data.binarization import check_values, make_preprocess, prepare
from aevb.errors import InputError

LEVELS = np.arange(256, dtype=np.uint8)
STATIC_KEY = jax.random.key(3)


def seen(name, stored=LEVELS, example_id=0, key=0):
    return np.asarray(make_preprocess(name, STATIC_KEY)(jnp.asarray(stored), None, example_id, jax.random.key(key)).x)


@pytest.mark.parametrize("stored", [LEVELS, np.float32([0, 1e-7, 1e-5, 0.1, 1 / 3, 0.5, 0.7777, 1 - 1e-5, 1])])
def test_the_probability_of_a_pixel_by_enumeration_of_all_16_bit_draws(stored, monkeypatch):
    # Every 16-bit number once a pixel: the fraction of ones is the probability itself.
    ones = np.zeros(stored.size)
    every = np.arange(2**16, dtype=np.uint32)
    draw = jax.jit(jax.vmap(lambda key: binarization.bernoulli_pixels(key, jnp.asarray(stored))))

    def bits(key, shape, dtype):
        word = jax.random.key_data(key)[1]  # jax.random.key(n) holds n here
        return jnp.full(shape, word | (word << 16), dtype)

    monkeypatch.setattr(jax.random, "bits", bits)
    for part in np.split(every, 16):
        keys = jax.random.wrap_key_data(jnp.stack([jnp.zeros(len(part), jnp.uint32), jnp.asarray(part)], axis=1))
        ones += np.asarray(draw(keys)).sum(axis=0)
    value = stored / 255 if stored.dtype == np.uint8 else stored.astype(np.float64)
    assert np.abs(ones / 2**16 - value).max() <= 2**-17
    assert (ones[0], ones[-1]) == (0, 2**16)  # exact at 0 and at 1


def test_dynamic_draws_have_the_pixels_value_as_their_mean():
    repeats = 20_000
    stored = jnp.asarray(np.arange(0, 256, 5, dtype=np.uint8))
    preprocess = make_preprocess("dynamic")
    keys = jax.random.split(jax.random.key(0), repeats)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: preprocess(stored, None, 0, key).x))(keys))
    assert set(np.unique(draws)) == {0.0, 1.0}
    p = np.asarray(stored) / 255
    error = np.sqrt(p * (1 - p) / repeats)
    assert (np.abs(draws.mean(axis=0) - p) <= 4 * error).all()  # so exactly 0 and 1 at the ends
    # Neighbours are halves of one random word: they must be independent all the same.
    correlation = np.corrcoef(draws[:, 1:-1].T)
    np.testing.assert_array_less(np.abs(correlation[~np.eye(len(correlation), dtype=bool)]), 5 / np.sqrt(repeats))


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 1), (2, 2)])
def test_draws_keep_an_odd_shape(shape):
    stored = np.full(shape, 128, np.uint8)
    draw = seen("dynamic", stored)
    assert draw.shape == shape
    assert draw.dtype == np.float32


def test_dynamic_is_drawn_afresh_and_static_is_not():
    grey = np.full(400, 128, np.uint8)
    assert not np.array_equal(seen("dynamic", grey, key=1), seen("dynamic", grey, key=2))
    np.testing.assert_array_equal(seen("static", grey, key=1), seen("static", grey, key=2))
    # Two independent fair draws agree in half the pixels, give or take 4 standard errors of 0.025.
    for other in (seen("static", grey, example_id=1), seen("dynamic", grey, key=3)):
        assert abs((other == seen("static", grey)).mean() - 0.5) < 0.1
    other_seed = make_preprocess("static", jax.random.key(4))(jnp.asarray(grey), None, 0, jax.random.key(0)).x
    assert abs((np.asarray(other_seed) == seen("static", grey)).mean() - 0.5) < 0.1


def test_static_draws_are_the_same_in_any_batch_and_have_the_pixels_mean():
    stored = np.tile(np.uint8([0, 51, 204, 255]), (5000, 1))
    preprocess = make_preprocess("static", STATIC_KEY)

    def batch(ids, key):
        keys = jax.random.split(jax.random.key(key), len(ids))
        return np.asarray(jax.vmap(preprocess)(jnp.asarray(stored[ids]), None, jnp.asarray(ids), keys).x)

    draws = batch(np.arange(5000), 0)
    some = np.array([4999, 3, 77])
    np.testing.assert_array_equal(batch(some, 1), draws[some])
    p = np.array([0, 0.2, 0.8, 1])
    assert (np.abs(draws.mean(axis=0) - p) <= 4 * np.sqrt(p * (1 - p) / 5000)).all()


def test_the_threshold_is_above_one_half():
    np.testing.assert_array_equal(seen("threshold"), [0.0] * 128 + [1.0] * 128)
    np.testing.assert_array_equal(seen("threshold", np.float32([0, 0.5, 0.50001, 1])), [0, 0, 1, 1])


@pytest.mark.parametrize("name", ["grey", "none"])
def test_grey_and_none_pass_values_through(name):
    np.testing.assert_allclose(seen(name), np.arange(256) / 255, rtol=1e-6)
    np.testing.assert_array_equal(seen(name, np.float32([-3, 0.25, 7])), np.float32([-3, 0.25, 7]))


def test_an_unknown_binarization_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="'dinamic' is unknown: choose one of none, static, dynamic, threshold, grey"):
        make_preprocess("dinamic")


class Shelf:
    """Examples that stay out of memory: a length and an index, nothing else."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


OUTSIDE = np.float32([[0.5, 0.2], [-0.25, 3.5]])
GREY_BYTES = np.uint8([[0, 255], [128, 0]])


@pytest.mark.parametrize("wrap", [np.asarray, Shelf], ids=["array", "on_disk"])
@pytest.mark.parametrize(
    ("examples", "name", "support", "message"),
    [
        (OUTSIDE, "dynamic", "binary", r"mine has values from -0\.25 to 3\.5, but binarization 'dynamic' .*'binary'"),
        (OUTSIDE, "static", "real", r"values from -0\.25 to 3\.5, but binarization 'static'"),
        (GREY_BYTES, "grey", "real", r"binarization 'grey' gives grey values to a Bernoulli likelihood"),
        (GREY_BYTES, "grey", "unit", r"use --config\.data\.binarization=none"),
        (OUTSIDE, "threshold", "binary", r"values from -0\.25 to 3\.5"),
        (OUTSIDE, "grey", "binary", r"values from -0\.25 to 3\.5"),
        (OUTSIDE, "none", "unit", r"values from -0\.25 to 3\.5, but binarization 'none' .*'unit'"),
        (np.float32([[0.1, 1.01]]), "none", "unit", r"values from 0\.1 to 1\.01"),
        (np.float32([[0.1, np.nan]]), "none", "unit", r"values from nan to nan"),
        (GREY_BYTES, "none", "binary", r"mine has grey values, .*choose --config\.data\.binarization"),
        (np.uint8([[0, 1]]), "none", "binary", r"grey values"),  # a byte of 1 stands for 1/255
        (np.float32([[0, 0.5]]), "none", "binary", r"grey values"),
        (np.float32([[3, 3.0005]]), "none", "counts", r"mine holds 3\.0005, and the likelihood has a mass for counts"),
        (np.float32([[0.2, 0.201]]), "none", "levels", r"mine holds 0\.201, and the likelihood has a mass for levels"),
    ],
)
def test_values_without_a_density_are_refused(wrap, examples, name, support, message):
    with pytest.raises(InputError, match=message):
        check_values(wrap(examples), name, support, "mine")


@pytest.mark.parametrize("wrap", [np.asarray, Shelf], ids=["array", "on_disk"])
@pytest.mark.parametrize(
    ("examples", "name", "support"),
    [
        (OUTSIDE, "none", "real"),
        (GREY_BYTES, "dynamic", "binary"),
        (GREY_BYTES, "grey", "binary"),
        (GREY_BYTES, "none", "unit"),
        (np.uint8([[0, 255]]), "none", "binary"),
        (np.float32([[0, 1]]), "none", "binary"),
        (np.zeros((0, 3), np.float32), "none", "binary"),
        (np.float32([[0, 3, 2**24]]), "none", "counts"),
        (np.arange(256, dtype="float32")[None] / 255, "none", "levels"),
    ],
)
def test_values_with_a_density_are_taken(wrap, examples, name, support):
    assert check_values(wrap(examples), name, support, "mine") is None


def test_a_whole_array_is_looked_at():
    examples = np.zeros((1000, 2), np.uint8)
    examples[501, 1] = 7
    with pytest.raises(InputError, match="grey values"):
        check_values(examples, "none", "binary", "mine")


def test_the_static_draw_is_made_once_and_is_the_one_of_every_sighting():
    images = np.random.default_rng(5).integers(0, 256, (30, 5, 7, 1), dtype=np.uint8)
    key, labels = jax.random.key(3), np.arange(30, dtype=np.int32)
    preprocess = make_preprocess("static", key)
    each = np.stack([preprocess(jnp.asarray(image), None, i, jax.random.key(i)).x for i, image in enumerate(images)])
    split, prepared = prepare(Split(images, labels), "static", key)
    assert split.examples.dtype == np.uint8
    np.testing.assert_array_equal(jax.vmap(lambda stored: prepared(stored, None, 0, key).x)(split.examples), each)
    np.testing.assert_array_equal(split.labels, labels)
    assert 0 < each.mean() < 1


@pytest.mark.parametrize("binarization", ["dynamic", "none"])
def test_other_splits_are_left_as_they_are(binarization):
    split = Split(np.zeros((3, 2, 2, 1), np.uint8), None)
    assert prepare(split, binarization, jax.random.key(0))[0] is split
    assert len(prepare(Split(split.examples[:0], None), "static", jax.random.key(0))[0].examples) == 0
