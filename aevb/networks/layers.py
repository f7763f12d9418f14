"""What several networks are made of: the context beside an input, first values, convolutions and their transposes.

The convolutions are the maps of `nn.Conv` and `nn.ConvTranspose`, each written as one matrix product. On a CPU XLA has
fast code for a convolution, but not for its gradients inside a loop, and training is a scan over steps. Measured in a
scan on one core of an AMD EPYC (JAX 0.10.2), milliseconds of CPU time for the values and both gradients of 100 images:

| | Flax | here |
| --- | --- | --- |
| 14x14x32 -> 7x7x64, kernel 4, stride 2 | 224 | 22 |
| 14x14x32 -> 14x14x32, kernel 3, stride 1 | 480 | 37 |
| 7x7x64 -> 14x14x32 transposed, kernel 4, stride 2 | 337 | 24 |
| 14x14x32 -> 28x28x1 transposed, kernel 4, stride 2 | 18 | 3 |

What is often put in the place of a transposed convolution, written as a product too, gains nothing on the last two
rows: 67 and 82 for enlarging to the nearest neighbour before a kernel of 3, 23 and 11 for a sub-pixel convolution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.errors import InputError

STRIDE = 2  # of the convolutions that make an image smaller, and of those that make it larger again


def initial(init_scale: float | None) -> dict[str, Any]:
    """Where a layer's weights and biases start: N(0, init_scale^2), or what the layer has of itself for None."""
    return {} if init_scale is None else dict.fromkeys(("kernel_init", "bias_init"), nn.initializers.normal(init_scale))


def flat(x: jax.Array, context: jax.Array | None) -> jax.Array:
    """The elements of x and then those of the context, if there is one, in a vector."""
    return x.reshape(-1) if context is None else jnp.concatenate([x.reshape(-1), context])


def with_channels(image: jax.Array, context: jax.Array | None) -> jax.Array:
    """The image `[H, W, C]` and then each number of the context, if there is one, as a constant channel."""
    if context is None:
        return image
    return jnp.concatenate([image, jnp.broadcast_to(context, (*image.shape[:2], context.size))], axis=-1)


def check_image(event_shape: tuple[int, ...]) -> None:
    """Refuse a datapoint that is no image.

    Raises:
      InputError: the shape has not three axes.
    """
    if len(event_shape) != 3:
        raise InputError(
            "a convolutional network takes images [height, width, channels], but the datapoint has shape "
            f"{list(event_shape)}: use the network mlp or gated_mlp"
        )


def plan_sizes(size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Height and width before the first strided convolution and after each of them, `stages + 1` pairs.

    Each makes ceil(n / STRIDE) of n, so 7 comes from 13 as well as from 14, and from the 7 a decoder cannot tell which
    one to go back to. So it plans the way down from its output first, and walks the plan backwards.
    """
    sizes = [size]
    for _ in range(stages):
        sizes.append(tuple(-(-n // STRIDE) for n in sizes[-1]))
    return sizes


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution with padding SAME, `out[p] = sum_t x[stride p + t - low] kernel[t]`, with zeros outside x.

    Args:
      x: `[H, W, in]`.
      kernel: `[k, k, in, out]`.
      stride: at least 1.

    Returns:
      `[ceil(H / stride), ceil(W / stride), out]`.
    """
    k = kernel.shape[0]
    height, width, num_in = x.shape
    (rows, top), (columns, left) = (_places(n, k, stride) for n in (height, width))
    # In cells of stride x stride pixels the stride is 1, and the kernel is `reach` cells high and wide.
    reach = -(-k // stride)
    cell_rows, cell_columns = rows + reach - 1, columns + reach - 1
    bottom, right = cell_rows * stride - height - top, cell_columns * stride - width - left
    x = jnp.pad(x, ((top, bottom), (left, right), (0, 0)))
    x = x.reshape(cell_rows, stride, cell_columns, stride, num_in).transpose(0, 2, 1, 3, 4)
    x = x.reshape(cell_rows, cell_columns, -1)
    patches = jnp.concatenate([x[i : i + rows, j : j + columns] for i in range(reach) for j in range(reach)], axis=-1)
    return patches @ _in_cells(kernel, stride).reshape(patches.shape[-1], -1)


def transposed_convolution(x: jax.Array, kernel: jax.Array, stride: int, size: tuple[int, int]) -> jax.Array:
    """The transpose of the `convolution` of an image of this size, `out[stride p + t - low] += x[p] kernel[t]`.

    x lays a kernel at each of its places p, and where kernels overlap they add up. What the convolution padded is what
    is cropped here: `low` rows and columns before the first, and after the last as many as it takes to be of `size`.

    Args:
      x: `[ceil(H / stride), ceil(W / stride), in]`.
      kernel: `[k, k, in, out]`, the kernel of the convolution with its last two axes swapped.
      stride: at least 1.
      size: H and W.

    Returns:
      `[H, W, out]`.
    """
    k, _, num_in, num_out = kernel.shape
    (rows, top), (columns, left) = (_places(n, k, stride) for n in size)
    reach = -(-k // stride)
    laid = jnp.split(x @ jnp.moveaxis(_in_cells(kernel, stride), 2, 0).reshape(num_in, -1), reach**2, axis=-1)
    cells = sum(
        jnp.pad(laid[i * reach + j], ((i, reach - 1 - i), (j, reach - 1 - j), (0, 0)))
        for i in range(reach)
        for j in range(reach)
    )
    cell_rows, cell_columns = rows + reach - 1, columns + reach - 1
    out = cells.reshape(cell_rows, cell_columns, stride, stride, num_out).transpose(0, 2, 1, 3, 4)
    out = out.reshape(cell_rows * stride, cell_columns * stride, num_out)
    return out[top : top + size[0], left : left + size[1]]


def _places(n: int, k: int, stride: int) -> tuple[int, int]:
    """Of a row of n pixels: the number of places a kernel is put at, and `low`, the zeros before the first pixel."""
    places = -(-n // stride)
    return places, max((places - 1) * stride + k - n, 0) // 2


def _in_cells(kernel: jax.Array, stride: int) -> jax.Array:
    """The kernel `[k, k, in, out]` by cells, and by pixels within a cell: `[cells, stride^2, in, out]`."""
    k, _, num_in, num_out = kernel.shape
    reach = -(-k // stride)
    kernel = jnp.pad(kernel, ((0, reach * stride - k), (0, reach * stride - k), (0, 0), (0, 0)))
    kernel = kernel.reshape(reach, stride, reach, stride, num_in, num_out).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(reach**2, stride**2, num_in, num_out)


class Conv(nn.Module):
    """`convolution(x, kernel) + bias`, with the parameters and first values of `nn.Conv`.

    Attributes:
      features: channels of the output.
      kernel: k, height and width of the kernel.
      stride: how many times smaller the output is.
      kernel_init: of the kernel; LeCun-normal unless given.
      bias_init: of the bias; zeros unless given.
      param_dtype: the dtype of kernel and bias.
    """

    features: int
    kernel: int
    stride: int = 1
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return convolution(x, kernel, self.stride) + bias.reshape(1, 1, -1)


class TransposedConv(nn.Module):
    """`transposed_convolution(x, kernel) + bias` with stride `STRIDE`.

    Attributes:
      features: channels of the output.
      kernel: k, height and width of the kernel.
      size: height and width of the output.
      kernel_init: of the kernel; LeCun-normal unless given, by the (k / STRIDE)^2 taps that meet one pixel of the
        output, where `nn.ConvTranspose` counts all k^2 and starts with an output half as large.
      bias_init: of the bias; zeros unless given.
      param_dtype: the dtype of kernel and bias.
    """

    features: int
    kernel: int
    size: tuple[int, int]
    kernel_init: Callable[..., jax.Array] = nn.initializers.variance_scaling(STRIDE**2, "fan_in", "truncated_normal")
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return transposed_convolution(x, kernel, STRIDE, self.size) + bias.reshape(1, 1, -1)
