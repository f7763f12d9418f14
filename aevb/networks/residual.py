"""Residual blocks between the strided convolutions of an image, and between the transposed convolutions back to one."""

import math
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.networks.layers import STRIDE, Conv, TransposedConv, check_image, initial, plan_sizes, with_channels
from aevb.networks.mlp import MLP


class ResidualBlock(nn.Module):
    """`h + conv_1(activation(conv_0(activation(h))))` on a grid `[H, W, C]`, with kernels 3x3 (He et al., 2016).

    There is no batch normalization, which is no function of one datapoint. What it does for deep networks is to start
    each block near the identity (De & Smith, 2020), and here `conv_1` starts at zero to the same end (as in Zhang et
    al., 2019): a network of any depth starts as the one without blocks, and its signals and gradients neither grow nor
    vanish with the depth.

    Attributes:
      activation: applied elementwise before each convolution.
      init_scale: unless None, weights and biases start as draws from N(0, init_scale^2), those of `conv_1` too.
      param_dtype: the dtype of weights and biases.
    """

    activation: Callable[[jax.Array], jax.Array]
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        zero = {"kernel_init": nn.initializers.zeros, **options}
        change = Conv(h.shape[-1], 3, name="conv_0", **options)(self.activation(h))
        return h + Conv(h.shape[-1], 3, name="conv_1", **zero)(self.activation(change))


class ResidualEncoder(nn.Module):
    """`ConvEncoder` with residual blocks after each of its convolutions: one image `[H, W, C]` to one output.

    The activation follows the blocks of a stage, so that what they add to has none on its way through them.

    Attributes:
      num_blocks: after each strided convolution.
      activation: applied elementwise before each convolution but the first, and after each hidden layer.
      init_scale: None starts every block at the identity, and the rest as Flax does.
      output_shape, channels, kernel, hidden, param_dtype: as of `ConvEncoder`; the kernels of blocks are 3x3.

    Raises:
      InputError: at trace time, when the datapoint is no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (16, 32)
    num_blocks: int = 1
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
            h = Conv(width, self.kernel, STRIDE, name=f"conv_{i}", **options)(h)
            for j in range(self.num_blocks):
                h = ResidualBlock(self.activation, self.init_scale, self.param_dtype, name=f"block_{i}_{j}")(h)
            h = self.activation(h)
        dense = MLP(self.output_shape, self.hidden, self.activation, self.init_scale, self.param_dtype, name="dense")
        return dense(h)


class ResidualDecoder(nn.Module):
    """`ConvDecoder` with residual blocks before each of its convolutions: one z to one output `[H, W, C, P]`.

    Attributes:
      num_blocks: before each transposed convolution.
      activation: applied elementwise before each convolution, and after each hidden layer.
      init_scale: None starts every block at the identity, and the rest as Flax does.
      output_shape, channels, kernel, hidden, param_dtype: as of `ConvDecoder`; the kernels of blocks are 3x3.

    Raises:
      InputError: at trace time, when the output is of no image.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (16, 32)
    num_blocks: int = 1
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
            for j in range(self.num_blocks):
                h = ResidualBlock(self.activation, self.init_scale, self.param_dtype, name=f"block_{i}_{j}")(h)
            h = TransposedConv(widths[i], self.kernel, sizes[i], name=f"conv_{i}", **options)(self.activation(h))
        return h.reshape(self.output_shape)
