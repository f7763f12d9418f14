"""The MLP against the same products in NumPy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from aevb.networks import MLP


@pytest.mark.parametrize(
    ("hidden", "activation"), [((), np.tanh), ((7,), np.tanh), ((7, 4), lambda h: np.maximum(h, 0))]
)
def test_layers_are_affine_maps_with_the_activation_between_them_only(hidden, activation):
    network = MLP((2, 3), hidden=hidden, activation=nn.tanh if activation is np.tanh else nn.relu)
    x = np.random.default_rng(0).normal(size=(4, 5))
    params = network.init(jax.random.key(0), jnp.float32(x))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at 0, where leaving them out would not show
    h = x.ravel()
    for i, width in enumerate(hidden):
        layer = params[f"hidden_{i}"]
        h = activation(h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"]))
        assert h.shape == (width,)
    expected = (h @ np.asarray(params["output"]["kernel"], np.float64) + np.asarray(params["output"]["bias"])).reshape(
        2, 3
    )
    np.testing.assert_allclose(network.apply({"params": params}, jnp.float32(x)), expected, rtol=1e-4, atol=1e-5)


class WithoutContext(nn.Module):
    """The layers under the names they had before a context, which checkpoints know them by."""

    kernel_init: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x):
        h = x.reshape(-1)
        for i, width in enumerate((7, 4)):
            h = nn.tanh(nn.Dense(width, name=f"hidden_{i}", kernel_init=self.kernel_init)(h))
        return nn.Dense(6, name="output", kernel_init=self.kernel_init)(h).reshape(2, 3)


def test_without_a_context_nothing_of_it_is_there():
    x = jnp.float32(np.random.default_rng(0).normal(size=(4, 5)))
    network, before = MLP((2, 3), hidden=(7, 4)), WithoutContext(nn.initializers.lecun_normal())
    params = network.init(jax.random.key(3), x)
    jax.tree.map(np.testing.assert_array_equal, params, before.init(jax.random.key(3), x))
    np.testing.assert_array_equal(network.apply(params, x), before.apply(params, x))
    np.testing.assert_array_equal(network.apply(params, x, None), network.apply(params, x))


def test_a_context_stands_after_the_input():
    network, context = MLP((3,), hidden=()), jnp.array([1.0, -2.0])
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 2)))
    params = network.init(jax.random.key(0), x, context)["params"]
    expected = np.concatenate([np.ravel(x), context]) @ np.asarray(params["output"]["kernel"])
    np.testing.assert_allclose(network.apply({"params": params}, x, context), expected, rtol=1e-5)


def test_parameters_have_the_dtype_asked_for():
    network = MLP((2,), hidden=(3,), param_dtype="bfloat16")
    params = network.init(jax.random.key(0), jnp.zeros(4))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_initial_weights_keep_the_variance_of_their_input():
    # LeCun: variance 1 / fan_in; the standard error of a variance over n normals is about sqrt(2 / n) of it.
    kernel = MLP((400,), hidden=()).init(jax.random.key(0), jnp.zeros(100))["params"]["output"]["kernel"]
    assert kernel.shape == (100, 400)
    assert abs(float(kernel.var()) * 100 - 1) < 4 * np.sqrt(2 / kernel.size)
    assert stats.ttest_1samp(np.asarray(kernel).ravel(), 0).pvalue > 0.01
