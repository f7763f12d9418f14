"""Residual networks against SciPy's correlation, and against the networks without blocks that they start as."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from quick_jit import quick_jit
from scipy.signal import correlate
from xla_convolution import normal

from aevb.networks import ConvDecoder, ConvEncoder, ResidualDecoder, ResidualEncoder
from aevb.networks.residual import ResidualBlock


def test_a_block_adds_two_convolutions_with_the_activation_before_each():
    block, h = ResidualBlock(nn.tanh, init_scale=0.3), normal(5, 4, 3)
    params = block.init(jax.random.key(0), h)["params"]

    def convolution(h, layer):
        kernel = np.asarray(layer["kernel"], np.float64)
        # Of channels [5, 4, 3] with [3, 3, 3] the middle of the third axis is the sum over channels.
        maps = [correlate(h, kernel[..., out], mode="same")[..., 1] for out in range(3)]
        return np.stack(maps, axis=-1) + np.asarray(layer["bias"])

    change = convolution(np.tanh(np.asarray(h, np.float64)), params["conv_0"])
    expected = np.asarray(h) + convolution(np.tanh(change), params["conv_1"])
    np.testing.assert_allclose(block.apply({"params": params}, h), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("residual", "plain", "shape", "output_shape"),
    [(ResidualEncoder, ConvEncoder, (7, 6, 2), (2, 3)), (ResidualDecoder, ConvDecoder, (4,), (7, 6, 2, 1))],
)
def test_a_network_starts_as_the_one_without_blocks(residual, plain, shape, output_shape):
    make = {"channels": (3, 5), "hidden": (4,)}
    network, without = residual(output_shape, num_blocks=3, **make), plain(output_shape, **make)
    x = normal(*shape)
    params = quick_jit(network.init)(jax.random.key(0), x)["params"]
    blocks = {name for name in params if name.startswith("block")}
    assert len(blocks) == 6
    rest = {name: params[name] for name in params.keys() - blocks}
    apply = quick_jit(lambda params: network.apply({"params": params}, x))
    np.testing.assert_allclose(apply(params), without.apply({"params": rest}, x), rtol=1e-5, atol=1e-6)
    # And every block is in use: what it adds shows in the output.
    for name in blocks:
        moved = {**params, name: jax.tree.map(lambda leaf: leaf + 0.1, params[name])}
        assert np.abs(apply(moved) - apply(params)).max() > 1e-4


def test_the_gradient_at_the_start_does_not_depend_on_the_depth():
    x = normal(6, 6, 1)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(num_blocks):
        network = ResidualEncoder((1, 2), channels=(3,), num_blocks=num_blocks, hidden=())
        params = network.init(jax.random.key(0), x)
        return jax.grad(lambda x: network.apply(params, x).sum())(x)

    assert np.abs(gradient(0)).max() > 1e-2
    np.testing.assert_allclose(gradient(8), gradient(0), rtol=1e-5, atol=1e-6)


def test_blocks_with_a_given_scale_start_with_it():
    network = ResidualEncoder((2, 3), channels=(20,), init_scale=0.01)
    params = network.init(jax.random.key(0), jnp.zeros((4, 4, 1)))["params"]
    kernel = np.asarray(params["block_0_0"]["conv_1"]["kernel"])
    # The standard error of a standard deviation over n normals is 1 / sqrt(2 n) of it.
    assert abs(kernel.std() / 0.01 - 1) < 4 / np.sqrt(2 * kernel.size)
