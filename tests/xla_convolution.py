"""XLA's own convolution and its transpose, of one image, to compare with; and numbers to put into them."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def strided(x, kernel, stride):
    """Padding SAME; kernel `[k, k, in, out]`."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), "SAME", dimension_numbers=numbers)[0]


def transposed(y, kernel, stride, size):
    """The transpose of `strided` on images of `size`, as its gradient in the image; kernel `[k, k, in, out]` too."""
    image = jnp.zeros((*size, kernel.shape[2]))
    return jax.vjp(lambda x: strided(x, kernel, stride), image)[1](y)[0]
