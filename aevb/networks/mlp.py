"""The multilayer perceptron of the paper's appendix C."""

import math
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.networks.layers import flat, initial


class MLP(nn.Module):
    """Fully connected layers from one datapoint of any shape to one output of a given shape.

    `h_0 = [flatten(x), context]`, `h_i = activation(W_i h_{i-1} + b_i)`, `output = reshape(W h_n + b)`: no activation
    on the output, which is what a likelihood or a posterior reads its parameters from.

    Attributes:
      output_shape: the shape of the output.
      hidden: the width of each hidden layer; empty for an affine map.
      activation: applied elementwise after each hidden layer.
      init_scale: weights and biases start as draws from N(0, init_scale^2), as in the paper; None starts them as Flax
        does, LeCun-normal weights and zero biases.
      param_dtype: the dtype of weights and biases.
    """

    output_shape: Sequence[int]
    hidden: Sequence[int] = (500,)
    activation: Callable[[jax.Array], jax.Array] = nn.tanh
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        h = flat(x, context)
        for i, width in enumerate(self.hidden):
            h = self.activation(nn.Dense(width, name=f"hidden_{i}", **options)(h))
        out = nn.Dense(math.prod(self.output_shape), name="output", **options)(h)
        return out.reshape(self.output_shape)
