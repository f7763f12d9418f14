"""The gated MLP against the same products in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aevb.networks import GatedMLP


@pytest.mark.parametrize("hidden", [(), (7,), (7, 4)])
def test_each_hidden_layer_is_a_product_times_a_gate(hidden):
    network = GatedMLP((2, 3), hidden=hidden)
    x = np.random.default_rng(0).normal(size=(4, 5))
    params = network.init(jax.random.key(0), jnp.float32(x))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at 0, where leaving them out would not show

    def affine(name, h):
        return h @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"])

    h = x.ravel()
    for i, width in enumerate(hidden):
        h = affine(f"hidden_{i}", h) / (1 + np.exp(-affine(f"gate_{i}", h)))
        assert h.shape == (width,)
    assert len(params) == 2 * len(hidden) + 1
    expected = affine("output", h).reshape(2, 3)
    np.testing.assert_allclose(network.apply({"params": params}, jnp.float32(x)), expected, rtol=1e-4, atol=1e-5)


def test_gate_and_product_start_from_different_draws():
    params = GatedMLP((2,), hidden=(30,)).init(jax.random.key(0), jnp.zeros(40))["params"]
    product, gate = (np.asarray(params[name]["kernel"]).ravel() for name in ("hidden_0", "gate_0"))
    assert abs(np.corrcoef(product, gate)[0, 1]) < 4 / np.sqrt(product.size)  # its standard error is 1 / sqrt(n)
