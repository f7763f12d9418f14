"""The multilayer perceptron with gated linear units."""

import math
from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from aevb.networks.layers import flat, initial


class GatedMLP(nn.Module):
    """Fully connected gated layers from one datapoint of any shape to one output of a given shape.

    `h_0 = [flatten(x), context]`, `h_i = (W_i h_{i-1} + b_i) * sigmoid(V_i h_{i-1} + c_i)`,
    `output = reshape(W h_n + b)`. The gate is what bends, so there is no activation (Dauphin et al., 2017); with two
    layers of 300 these are the networks of Tomczak & Welling (2018).

    Attributes:
      output_shape: the shape of the output.
      hidden: the width of each hidden layer; empty for an affine map.
      init_scale: weights and biases start as draws from N(0, init_scale^2); None starts them as Flax does, LeCun-normal
        weights and zero biases, so with gates half open.
      param_dtype: the dtype of weights and biases.
    """

    output_shape: Sequence[int]
    hidden: Sequence[int] = (300, 300)
    init_scale: float | None = None
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        options = {"param_dtype": self.param_dtype, **initial(self.init_scale)}
        h = flat(x, context)
        for i, width in enumerate(self.hidden):
            gate = nn.sigmoid(nn.Dense(width, name=f"gate_{i}", **options)(h))
            h = nn.Dense(width, name=f"hidden_{i}", **options)(h) * gate
        out = nn.Dense(math.prod(self.output_shape), name="output", **options)(h)
        return out.reshape(self.output_shape)
