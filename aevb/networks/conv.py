"""Strided convolutions from an image to an output of any shape, and transposed convolutions back to an image."""

import math
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.networks.layers import STRIDE, Conv, TransposedConv, check_image, initial, plan_sizes, with_channels
from aevb.networks.mlp import MLP


class ConvEncoder(nn.Module):
    """Strided convolutions from one image `[H, W, C]` of any size, then an MLP to one output of a given shape.

    `h_0 = [x, context as constant channels]`, `h_i = activation(conv_i(h_{i-1}))`, each half as high and wide as the one
    before, rounded up; `output = MLP(h_n)`.

    Attributes:
      output_shape: the shape of the output.
      channels: the channels of each convolution.
      kernel: height and width of every kernel.
      hidden: the width of each dense layer between the convolutions and the affine map at the end.
      activation: applied elementwise after each convolution and hidden layer.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases.
      param_dtype: the dtype of weights and biases.

    Raises:
      InputError: at trace time, when the datapoint is no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    kernel: int = 4  # a multiple of the stride, so that in a decoder every pixel is reached by as many taps
    hidden: Sequence[int] = ()
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        check_image(x.shape)
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        h = with_channels(x, context)
        for i, width in enumerate(self.channels):
            conv = Conv(width, self.kernel, STRIDE, name=f"conv_{i}", **options)
            h = self.activation(conv(h))
        dense = MLP(self.output_shape, self.hidden, self.activation, self.init_scale, self.param_dtype, name="dense")
        return dense(h)


class ConvDecoder(nn.Module):
    """An MLP from one z, then transposed convolutions to one output `[H, W, C, P]` of any size.

    `h_n = MLP([z, context])` on the smallest grid of the encoder, `h_{i-1} = conv_i^T(activation(h_i))`, each as large
    as the encoder's input of that layer; the last one has C * P channels.

    Attributes:
      output_shape: H, W, C and P, the number of parameters of each element of the image.
      channels: the channels before each transposed convolution, from the image to the code: as the encoder's.
      kernel: height and width of every kernel.
      hidden: the width of each dense layer between z and the smallest grid.
      activation: applied elementwise after each hidden layer and before each transposed convolution.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases.
      param_dtype: the dtype of weights and biases.

    Raises:
      InputError: at trace time, when the output is of no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    kernel: int = 4
    hidden: Sequence[int] = ()
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, context: jax.Array | None = None) -> jax.Array:
        check_image(self.output_shape[:-1])
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        height, width, *per_pixel = self.output_shape
        *sizes, smallest = plan_sizes((height, width), len(self.channels))
        grid = (*smallest, self.channels[-1])
        h = MLP(grid, self.hidden, self.activation, self.init_scale, self.param_dtype, name="dense")(z, context)
        widths = (math.prod(per_pixel), *self.channels[:-1])
        for i in reversed(range(len(widths))):
            conv = TransposedConv(widths[i], self.kernel, sizes[i], name=f"conv_{i}", **options)
            h = conv(self.activation(h))
        return h.reshape(self.output_shape)
