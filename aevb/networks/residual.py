"""Residual blocks between strided convolutions from an image, and between transposed convolutions back to one."""

import math
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.networks.layers import STRIDE, Conv, TransposedConv, check_image, initial, plan_sizes, with_channels
from aevb.networks.mlp import MLP


class ResidualBlock(nn.Module):
    """`h + conv_1(activation(conv_0(activation(h))))`, kernels 3x3, on a grid `[H, W, C]` (He et al., 2016).

    Without normalization: one of a batch is not a function of one datapoint. What batch normalization does for depth is
    to start each block near the identity (De & Smith, 2020), and `conv_1` starts at zero to the same end (Zhang et al.,
    2019): any number of blocks starts as none, with the gradients of none.

    Attributes:
      activation: applied elementwise before each convolution.
      init_scale: not None starts weights and biases, those of `conv_1` too, as draws from N(0, init_scale^2).
      param_dtype: the dtype of weights and biases.
    """

    activation: Callable[[jax.Array], jax.Array]
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        zero_kernel = {"kernel_init": nn.initializers.zeros, **options}
        change = Conv(h.shape[-1], 3, name="conv_0", **options)(self.activation(h))
        return h + Conv(h.shape[-1], 3, name="conv_1", **zero_kernel)(self.activation(change))


class ResidualEncoder(nn.Module):
    """From one image `[H, W, C]` of any size to one output of a given shape, as `ConvEncoder`, with residual blocks.

    Of each stage a strided convolution, then its blocks; `output = MLP(activation(h))` after the last. All stages but
    the first have the activation before their strided convolution too.

    Attributes:
      output_shape: the shape of the output.
      channels: the channels of each stage.
      num_blocks: residual blocks a stage.
      kernel: height and width of the kernels of the strided convolutions; those of the blocks are 3x3.
      hidden: the width of each dense layer between the convolutions and the affine map at the end.
      activation: applied elementwise before each convolution but the first, and after each hidden layer.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases, and every block at the identity.
      param_dtype: the dtype of weights and biases.

    Raises:
      InputError: at trace time, when the datapoint is no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    num_blocks: int = 1
    kernel: int = 4
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
            h = conv(self.activation(h) if i else h)
            for j in range(self.num_blocks):
                h = ResidualBlock(self.activation, self.init_scale, self.param_dtype, name=f"block_{i}_{j}")(h)
        dense = MLP(self.output_shape, self.hidden, self.activation, self.init_scale, self.param_dtype, name="dense")
        return dense(self.activation(h))


class ResidualDecoder(nn.Module):
    """From one z to one output `[H, W, C, P]` of any size, as `ConvDecoder`, with residual blocks.

    `MLP([z, context])` on the smallest grid of the encoder, then of each stage its blocks, the activation and a
    transposed convolution; the last one has C * P channels.

    Attributes:
      output_shape: H, W, C and P, the number of parameters of each element of the image.
      channels: the channels of each stage, from the image to the code: as the encoder's.
      num_blocks: residual blocks a stage.
      kernel: height and width of the kernels of the transposed convolutions; those of the blocks are 3x3.
      hidden: the width of each dense layer between z and the smallest grid.
      activation: applied elementwise after each hidden layer and before each convolution.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases, and every block at the identity.
      param_dtype: the dtype of weights and biases.

    Raises:
      InputError: at trace time, when the output is of no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    num_blocks: int = 1
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
            for j in range(self.num_blocks):
                h = ResidualBlock(self.activation, self.init_scale, self.param_dtype, name=f"block_{i}_{j}")(h)
            conv = TransposedConv(widths[i], self.kernel, sizes[i], name=f"conv_{i}", **options)
            h = conv(self.activation(h))
        return h.reshape(self.output_shape)
