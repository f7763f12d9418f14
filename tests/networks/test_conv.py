"""The convolutional networks against chains of Flax's convolutions and of XLA's transposes of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from xla_convolution import normal, transposed

from aevb.networks import MLP, ConvDecoder, ConvEncoder


class FlaxEncoder(nn.Module):
    """What `ConvEncoder((2, 3), channels=(4, 5), kernel=4, hidden=(6,))` says it is."""

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((4, 5)):
            x = nn.relu(nn.Conv(width, (4, 4), strides=(2, 2), name=f"conv_{i}")(x))
        return MLP((2, 3), hidden=(6,), activation=nn.relu, name="dense")(x)


@pytest.mark.parametrize("shape", [(8, 6, 1), (5, 7, 3)])
def test_the_encoder_is_a_chain_of_flaxs_convolutions(shape):
    network = ConvEncoder((2, 3), channels=(4, 5), hidden=(6,))
    x = normal(*shape)
    params = network.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, FlaxEncoder().init(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at 0, where leaving them out would not show
    np.testing.assert_allclose(network.apply(params, x), FlaxEncoder().apply(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "half", "quarter"), [((8, 6), (4, 3), (2, 2)), ((5, 7), (3, 4), (2, 2))])
def test_the_decoder_goes_the_encoders_way_back(size, half, quarter):
    network = ConvDecoder((*size, 3, 2), channels=(4, 5), kernel=3, hidden=(6,))
    z = normal(7)
    params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(0), z)["params"])
    h = MLP((*quarter, 5), hidden=(6,), activation=nn.relu).apply({"params": params["dense"]}, z)
    for name, to in (("conv_1", half), ("conv_0", size)):
        kernel = params[name]["kernel"].swapaxes(2, 3)
        h = transposed(nn.relu(h), kernel, 2, to) + params[name]["bias"].reshape(1, 1, -1)
    assert h.shape == (*size, 6)
    expected = np.asarray(h).reshape(*size, 3, 2)  # channel c of parameter p is channel 2 c + p of the convolution
    np.testing.assert_allclose(network.apply({"params": params}, z), expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_sees_the_context_as_constant_channels():
    network = ConvEncoder((2, 3), channels=(4,), hidden=())
    x, context = normal(5, 7, 2), jnp.array([0.5, -2.0, 3.0])
    params = network.init(jax.random.key(0), x, context)
    painted = np.concatenate([x, np.tile(context, (5, 7, 1))], axis=-1)
    np.testing.assert_array_equal(network.apply(params, x, context), network.apply(params, jnp.asarray(painted)))


def test_without_channels_both_are_mlps():
    z, x = normal(4), normal(5, 3, 1)
    for network, given in (
        (ConvEncoder((2, 3), channels=(), hidden=(6,)), x),
        (ConvDecoder((5, 3, 1, 2), (), 4, (6,)), z),
    ):
        params = network.init(jax.random.key(0), given)
        mlp = MLP(network.output_shape, hidden=(6,), activation=nn.relu)
        expected = mlp.apply({"params": params["params"]["dense"]}, given)
        np.testing.assert_allclose(network.apply(params, given), expected, rtol=1e-6)
