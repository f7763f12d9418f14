"""Mapping a function over a split: each example once, in order, whatever the batch and the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aevb import training
from aevb.data import Datapoint, Split
from aevb.data.binarization import make_preprocess

PIXELS = np.random.default_rng(0).integers(0, 256, size=(20, 6), dtype=np.uint8)
RAW = make_preprocess("none")


class Shelf:
    """Examples that stay out of memory."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(1, 1), (3, 2), (4, 4), (10, 1), (16, 2), (20, 4), (7, 4), (64, 1)]
)
def test_map_examples_sees_each_example_once_in_order(batch_size, devices):
    def fn(params, point, key):
        return {"x": params * point.x, "key": jax.random.key_data(key), "noise": jax.random.normal(key)}

    split, key = Split(PIXELS, None), jax.random.key(5)
    mapped = training.map_examples(fn, RAW, batch_size, devices=jax.devices()[:devices])
    params = training.replicate(jnp.float32(255), jax.devices()[:devices])
    got = training.collect(mapped(params, split, key))
    np.testing.assert_allclose(got["x"], PIXELS, rtol=1e-5)
    assert len(np.unique(got["key"], axis=0)) == len(PIXELS)
    np.testing.assert_array_equal(got["key"], mapped_alone()["key"])
    np.testing.assert_allclose(got["noise"], mapped_alone()["noise"], rtol=1e-6)


@functools.cache
def mapped_alone():
    """One example at a time, each a split of its own prefix: nothing of batches or devices can show."""
    mapped = training.map_examples(
        lambda params, point, key: {"key": jax.random.key_data(key), "noise": jax.random.normal(key)},
        RAW,
        1,
        devices=jax.devices()[:1],
    )
    params = training.replicate(jnp.float32(1), jax.devices()[:1])
    return training.collect(mapped(params, Split(PIXELS, None), jax.random.key(5)))


def test_map_examples_gives_data_and_model_other_keys_and_reads_sources_out_of_memory():
    def preprocess(stored, label, example_id, key):
        return Datapoint(jnp.concatenate([jax.random.key_data(key), example_id[None].astype(jnp.uint32)]))

    mapped = training.map_examples(lambda params, point, key: (point.x, jax.random.key_data(key)), preprocess, 8)
    params = training.replicate(jnp.float32(0))
    data, model = training.collect(mapped(params, Split(Shelf(PIXELS), None), jax.random.key(5)))
    np.testing.assert_array_equal(data[:, 2], np.arange(len(PIXELS)))
    assert len(np.unique(np.concatenate([data[:, :2], model]), axis=0)) == 2 * len(PIXELS)


def test_replicating_and_back_is_the_identity_and_copies_to_every_device():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(1)}
    replicated = training.replicate(tree, jax.devices()[:3])
    assert replicated["a"].shape == (3, 2, 3)
    assert {shard.device for shard in replicated["a"].addressable_shards} == set(jax.devices()[:3])
    for d in range(3):
        np.testing.assert_array_equal(replicated["a"][d], tree["a"])
    back = training.unreplicate(replicated)
    np.testing.assert_array_equal(back["a"], tree["a"])
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))
