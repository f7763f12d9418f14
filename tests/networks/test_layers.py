"""Convolutions against those of Flax and XLA, and against what a convolution is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from xla_convolution import normal, strided, transposed

from aevb.networks import layers

SIZES = [(8, 6), (5, 7), (1, 2)]
KERNELS_AND_STRIDES = [(4, 2), (3, 2), (3, 1), (1, 2), (5, 3)]


@pytest.mark.parametrize(("k", "stride"), KERNELS_AND_STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_convolution_is_xlas(size, k, stride):
    x, kernel = normal(*size, 3), normal(k, k, 3, 2, seed=1)
    expected = strided(x, kernel, stride)
    assert expected.shape == (*(int(np.ceil(n / stride)) for n in size), 2)
    np.testing.assert_allclose(layers.convolution(x, kernel, stride), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("k", "stride"), KERNELS_AND_STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_transposed_convolution_is_the_adjoint(size, k, stride):
    # <conv(x), y> = <x, conv^T(y)> for every x and y is what a transpose is; XLA's is the one of its own convolution.
    x, kernel = normal(*size, 3), normal(k, k, 3, 2, seed=1)
    image = layers.convolution(x, kernel, stride)
    y = normal(*image.shape, seed=2)
    back = layers.transposed_convolution(y, kernel.swapaxes(2, 3), stride, size)
    np.testing.assert_allclose(np.vdot(x, back), np.vdot(image, y), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(back, transposed(y, kernel, stride, size), rtol=1e-4, atol=1e-5)


def test_transposed_convolution_lays_the_kernel_at_each_place():
    # By hand, for one pixel of ones in the middle of 3 x 3 and kernel 4: the kernel itself, from 2 * 1 - 1 on.
    kernel = normal(4, 4, 1, 1)
    out = layers.transposed_convolution(jnp.zeros((3, 3, 1)).at[1, 1].set(1.0), kernel, 2, (6, 6))
    np.testing.assert_array_equal(out[1:5, 1:5], kernel[..., 0])
    assert np.count_nonzero(out) == 16


def test_conv_has_the_parameters_and_values_of_flax():
    x = normal(7, 6, 3)
    ours, flax = layers.Conv(4, 3, stride=2), nn.Conv(4, (3, 3), strides=(2, 2))
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the bias starts at 0, where leaving it out would not show
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), rtol=1e-4, atol=1e-5)


def test_a_shift_of_the_image_shifts_the_features():
    # All that is not zero stays a kernel's width away from the border, so that no padding meets it.
    x = jnp.zeros((16, 16, 2)).at[6:9, 5:9].set(normal(3, 4, 2))
    kernel = normal(4, 4, 2, 3, seed=1)
    features = layers.convolution(x, kernel, 2)
    moved = layers.convolution(jnp.roll(x, (2, -2), (0, 1)), kernel, 2)
    assert np.abs(features).max() > 1
    np.testing.assert_allclose(moved, jnp.roll(features, (1, -1), (0, 1)), rtol=1e-5, atol=1e-6)
    enlarged = layers.transposed_convolution(features, kernel.swapaxes(2, 3), 2, (16, 16))
    np.testing.assert_allclose(
        layers.transposed_convolution(moved, kernel.swapaxes(2, 3), 2, (16, 16)),
        jnp.roll(enlarged, (2, -2), (0, 1)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_first_transposed_convolution_keeps_the_variance_of_its_input():
    # Each pixel of the output meets 2 x 2 of the 4 x 4 taps, of 50 channels. The standard error of a variance over n
    # normals is about sqrt(2 / n) of it.
    layer = layers.TransposedConv(60, 4, (6, 6))
    params = layer.init(jax.random.key(0), jnp.zeros((3, 3, 50)))["params"]
    assert params["kernel"].shape == (4, 4, 50, 60)
    assert abs(float(params["kernel"].var()) * 2 * 2 * 50 - 1) < 4 * np.sqrt(2 / params["kernel"].size)
    np.testing.assert_array_equal(params["bias"], np.zeros(60))


def test_the_plan_halves_and_rounds_up():
    assert layers.plan_sizes((28, 20), 2) == [(28, 20), (14, 10), (7, 5)]
    assert layers.plan_sizes((105, 3), 3) == [(105, 3), (53, 2), (27, 1), (14, 1)]
    assert layers.plan_sizes((9, 9), 0) == [(9, 9)]
