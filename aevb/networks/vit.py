"""The networks of a masked autoencoder (He et al., 2021, arXiv:2111.06377), for one image `[H, W, C]` of any size.

An image is cut into N patches of P = size * size * C numbers. `ViTEncoder` reads the V patches that a mask leaves
visible, and they are all that is handed to it, so the work falls with V; `ViTDecoder` puts one learned token in each
place that was masked, and writes all N patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aevb.errors import InputError

VARIANCE_FLOOR = 1e-6  # added to a patch's variance by `normalised`, in squared units of a pixel
LONGEST_WAVE = 10000.0  # of the positions, in patches over 2 pi (Vaswani et al., 2017)
FIRST_WEIGHTS = nn.initializers.xavier_uniform()  # the paper's, appendix A.1


def patch_grid(image_shape: tuple[int, ...], size: int, pad: bool = False) -> tuple[int, int]:
    """How many patches an image is high and wide, `(H / size, W / size)`, rounded up if it may be padded.

    Args:
      image_shape: H, W and C.
      size: height and width of a patch, at least 1.
      pad: whether an image with a side that the size does not divide may be padded.

    Returns:
      The rows and columns of the grid of patches.

    Raises:
      InputError: the shape has not three axes, the size is below 1, or it does not divide a side and pad is False.
    """
    if len(image_shape) != 3:
        raise InputError(
            "patches are cut from an image [height, width, channels], but the datapoint has shape "
            f"{list(image_shape)}: use another network"
        )
    height, width, _ = image_shape
    if size < 1:
        raise InputError(f"a patch size of {size} holds no pixel: choose 1 or more")
    if not pad and (height % size or width % size):
        raise InputError(
            f"the sides of an image of {height} x {width} pixels are no multiples of the patch size {size}: choose a "
            "size that divides both, or let the image be padded (pad)"
        )
    return -(-height // size), -(-width // size)


def patches(image: jax.Array, size: int, pad: bool = False) -> jax.Array:
    """The image cut into squares of s = size: `patches[i columns + j] = flatten(image[i s : (i+1) s, j s : (j+1) s])`.

    Args:
      image: `[H, W, C]`.
      size: height and width of a patch, at least 1.
      pad: whether to put zeros below the image and right of it where its sides are no multiples of the size.

    Returns:
      `[N, size * size * C]`, the patches row by row, and within each its pixels row by row.

    Raises:
      InputError: at trace time; as of `patch_grid`.
    """
    rows, columns = patch_grid(image.shape, size, pad)
    height, width, channels = image.shape
    padded = jnp.pad(image, ((0, rows * size - height), (0, columns * size - width), (0, 0)))
    cells = padded.reshape(rows, size, columns, size, channels).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * columns, size * size * channels)


def unpatched(patches: jax.Array, image_shape: tuple[int, ...], size: int) -> jax.Array:
    """The image that its patches came from, `unpatched(patches(image, size, pad), image.shape, size) = image`.

    Args:
      patches: `[N, size * size * C]`.
      image_shape: H, W and C; what padding added to them is cropped.
      size: height and width of a patch.

    Returns:
      `[H, W, C]`.

    Raises:
      InputError: at trace time, when these are not the patches of such an image, or as of `patch_grid`.
    """
    rows, columns = patch_grid(image_shape, size, pad=True)
    height, width, channels = image_shape
    if patches.shape != (rows * columns, size * size * channels):
        raise InputError(
            f"an image of shape {list(image_shape)} in patches of size {size} is an array of shape "
            f"{[rows * columns, size * size * channels]}, but the patches have shape {list(patches.shape)}: give the "
            "shape and the size that they were cut with"
        )
    cells = patches.reshape(rows, columns, size, size, channels).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * size, columns * size, channels)[:height, :width]


def normalised(patches: jax.Array) -> jax.Array:
    """Each patch less its mean over its standard deviation, `(x - mean(x)) / sqrt(var(x) + VARIANCE_FLOOR)`.

    As targets they gave the paper better features than pixels did (section 4.1). A patch of one colour becomes zeros.

    Args:
      patches: `[N, P]`.

    Returns:
      `[N, P]`, each row with mean 0 and variance `var / (var + VARIANCE_FLOOR)`.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    return (patches - mean) / jnp.sqrt(patches.var(axis=-1, keepdims=True) + VARIANCE_FLOOR)


def unnormalised(values: jax.Array, patches: jax.Array) -> jax.Array:
    """The inverse of `normalised`: `values * sqrt(var(patches) + VARIANCE_FLOOR) + mean(patches)`, `[N, P]` all."""
    mean = patches.mean(axis=-1, keepdims=True)
    return values * jnp.sqrt(patches.var(axis=-1, keepdims=True) + VARIANCE_FLOOR) + mean


def num_visible(num_patches: int, ratio: float) -> int:
    """How many of N patches a mask leaves: `V = N - round(ratio N)`, at least one; halves are rounded to even numbers.

    Raises:
      InputError: the ratio is outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise InputError(f"a mask ratio of {ratio} is outside [0, 1): give the share of patches to mask, such as 0.75")
    return max(1, num_patches - round(ratio * num_patches))


def sample_mask(key: jax.Array, num_patches: int, ratio: float) -> jax.Array:
    """Which patches stay visible: a uniform draw without replacement of `num_visible` of N.

    Args:
      key: consumed.
      num_patches: N.
      ratio: the share of patches to mask, in [0, 1); 0.75 in the paper.

    Returns:
      The indices of the visible patches, integers `[V]` in increasing order.

    Raises:
      InputError: the ratio is outside [0, 1).
    """
    return jnp.sort(jax.random.permutation(key, num_patches)[: num_visible(num_patches, ratio)])


def positions(grid: tuple[int, int], width: int) -> jax.Array:
    """The code of each place of a grid, `[wave(i), wave(j)]` in row i and column j, fixed and of no parameters.

    `wave(p) = [sin(p w_0), ..., sin(p w_{n-1}), cos(p w_0), ..., cos(p w_{n-1})]`, `w_k = LONGEST_WAVE^(-k / n)` and
    `n = width / 4`. As w_0 = 1, no two places have the same code.

    Args:
      grid: rows and columns.
      width: a multiple of 4.

    Returns:
      `[rows * columns, width]`, row by row.

    Raises:
      InputError: the width is no multiple of 4.
    """
    if width < 1 or width % 4:
        raise InputError(
            f"a width of {width} cannot be parted in four, for the sines and the cosines of a patch's row and column: "
            "choose a multiple of 4"
        )
    frequencies = LONGEST_WAVE ** (-np.arange(width // 4) / (width // 4))
    rows, columns = (
        np.concatenate([np.sin(p.reshape(-1, 1) * frequencies), np.cos(p.reshape(-1, 1) * frequencies)], axis=-1)
        for p in np.indices(grid)
    )
    return jnp.asarray(np.concatenate([rows, columns], axis=-1), jnp.float32)


class TransformerBlock(nn.Module):
    """`h' = h + attention(norm_0(h))`, `h'' = h' + output(gelu(hidden(norm_1(h'))))`, on tokens `[T, width]`.

    Each token attends to all of them, and the hidden layer is 4 times as wide as a token (Dosovitskiy et al., 2021).

    Attributes:
      num_heads: of the attention; a divisor of the width.

    Raises:
      InputError: at trace time, when the heads cannot share the width.
    """

    num_heads: int

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        width = h.shape[-1]
        if self.num_heads < 1 or width % self.num_heads:
            raise InputError(f"{self.num_heads} heads cannot share a width of {width}: choose a divisor of the width")
        attention = nn.MultiHeadDotProductAttention(self.num_heads, kernel_init=FIRST_WEIGHTS, name="attention")
        h = h + attention(nn.LayerNorm(name="norm_0")(h))
        hidden = nn.Dense(4 * width, kernel_init=FIRST_WEIGHTS, name="hidden")(nn.LayerNorm(name="norm_1")(h))
        return h + nn.Dense(width, kernel_init=FIRST_WEIGHTS, name="output")(nn.gelu(hidden, approximate=False))


class ViTEncoder(nn.Module):
    """A vision transformer of the visible patches of one image: `[V, P]` and their indices to `[1 + V, width]`.

    `h_0 = [class token, W x + b + positions[indices]]`, `h_i = block_i(h_{i-1})`, `output = norm(h_depth)`: first the
    code of the whole image, which has no place, and then that of each visible patch, in the order given.

    The call takes the patches `[V, P]` and their distinct indices in the grid `[V]`, or without indices all patches in
    order. Masked patches are no input, so that nothing of them can be in the output.

    Attributes:
      grid: rows and columns of patches of the whole image, as of `patch_grid`.
      width: of each token; a multiple of 4 and of num_heads.
      depth: the number of blocks.
      num_heads: of each block's attention.

    Raises:
      InputError: at trace time, when there is not one index for each patch, or the width is no such multiple.
    """

    grid: tuple[int, int]
    width: int = 64
    depth: int = 4
    num_heads: int = 4

    @nn.compact
    def __call__(self, visible: jax.Array, indices: jax.Array | None = None) -> jax.Array:
        rows, columns = self.grid
        if indices is None:
            indices = jnp.arange(rows * columns)
        if visible.shape[:1] != indices.shape:
            raise InputError(
                f"{visible.shape[0]} patches cannot be at {indices.size} places of the grid {rows} x {columns}: give "
                "the index of each visible patch, or all patches and no indices"
            )
        class_token = self.param("class_token", nn.initializers.normal(0.02), (1, self.width))
        embedded = nn.Dense(self.width, kernel_init=FIRST_WEIGHTS, name="embedding")(visible)
        h = jnp.concatenate([class_token, embedded + positions(self.grid, self.width)[indices]])
        for i in range(self.depth):
            h = TransformerBlock(self.num_heads, name=f"block_{i}")(h)
        return nn.LayerNorm(name="norm")(h)


class ViTDecoder(nn.Module):
    """A vision transformer from the codes of the visible patches to all patches: `[1 + V, any]` to `[N, patch_dim]`.

    `e = W codes + b`; t has e's row of a patch in each visible place and the mask token in every other;
    `h_0 = [e's class token, t + positions]`, `h_i = block_i(h_{i-1})`, `output = W' norm(h_depth) + b'` of the places.

    The call takes the codes `[1 + V, any]` of `ViTEncoder` and the distinct indices `[V]` of the visible patches.

    Attributes:
      grid: rows and columns of patches of the whole image, as of `patch_grid`.
      patch_dim: P, the numbers of a patch.
      width: of each token; a multiple of 4 and of num_heads. The encoder's codes may have another.
      depth: the number of blocks.
      num_heads: of each block's attention.

    Raises:
      InputError: at trace time, when there is not one index for each code after the first, or the width is no such
        multiple.
    """

    grid: tuple[int, int]
    patch_dim: int
    width: int = 32
    depth: int = 2
    num_heads: int = 4

    @nn.compact
    def __call__(self, codes: jax.Array, indices: jax.Array) -> jax.Array:
        if codes.shape[0] != 1 + indices.size:
            raise InputError(
                f"{codes.shape[0]} codes are not the class token's and those of {indices.size} visible patches: give "
                "the encoder's output, and the indices that it was given"
            )
        places = positions(self.grid, self.width)
        e = nn.Dense(self.width, kernel_init=FIRST_WEIGHTS, name="embedding")(codes)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width))
        t = jnp.broadcast_to(mask_token, places.shape).at[indices].set(e[1:], unique_indices=True)
        h = jnp.concatenate([e[:1], t + places])
        for i in range(self.depth):
            h = TransformerBlock(self.num_heads, name=f"block_{i}")(h)
        return nn.Dense(self.patch_dim, kernel_init=FIRST_WEIGHTS, name="output")(nn.LayerNorm(name="norm")(h[1:]))
