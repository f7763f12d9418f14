"""What every network keeps to: its output shape, a context, one datapoint at a time, gradients; and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from quick_jit import quick_jit
from xla_convolution import normal

from aevb.errors import InputError
from aevb.networks import MLP, ConvDecoder, ConvEncoder, GatedMLP, ResidualDecoder, ResidualEncoder

IMAGES = [(28, 28, 1), (28, 20, 1), (32, 32, 3), (105, 105, 1), (5, 7, 3), (8, 8, 1), (1, 1, 1)]
small = {"channels": (2, 3), "hidden": (4,)}
ENCODERS = {
    "mlp": functools.partial(MLP, hidden=(4,)),
    "gated_mlp": functools.partial(GatedMLP, hidden=(4,)),
    "conv": functools.partial(ConvEncoder, **small),
    "residual": functools.partial(ResidualEncoder, **small),
}
DECODERS = {
    "mlp": ENCODERS["mlp"],
    "gated_mlp": ENCODERS["gated_mlp"],
    "conv": functools.partial(ConvDecoder, **small),
    "residual": functools.partial(ResidualDecoder, **small),
}
CONTEXT = jnp.array([0.5, -2.0, 3.0])


def shape_of(network, *inputs):
    """The output's shape, without computing it."""
    return jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), *inputs)[0]).shape


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", ENCODERS)
def test_images_of_any_size_come_back_in_their_shape(name, image):
    for context in ((), (CONTEXT,)):
        assert shape_of(ENCODERS[name]((2, 5)), jnp.zeros(image), *context) == (2, 5)
        for per_pixel in (1, 2):
            assert shape_of(DECODERS[name]((*image, per_pixel)), jnp.zeros(5), *context) == (*image, per_pixel)


CASES = [
    *(pytest.param(ENCODERS[name]((2, 5)), (5, 7, 3), id=f"{name} encoder") for name in ENCODERS),
    *(pytest.param(DECODERS[name]((5, 7, 3, 2)), (5,), id=f"{name} decoder") for name in DECODERS),
]


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_batches_are_a_vmap_and_gradients_are_finite(network, shape):
    xs, contexts = normal(3, *shape), normal(3, 3, seed=1)

    def outputs(params):
        return jax.vmap(lambda x, context: network.apply(params, x, context))(xs, contexts)

    @quick_jit
    def everything():
        params = network.init(jax.random.key(0), xs[0], contexts[0])
        gradient = jax.grad(lambda params: (outputs(params) ** 2).sum())(params)
        return params, gradient, outputs(params), network.apply(params, xs[1], contexts[1])

    params, gradient, batch, one = everything()
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    np.testing.assert_allclose(batch[1], one, rtol=1e-4, atol=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        # The last convolution of a block starts at zero, so the one before it has no gradient yet.
        zero_kernel_after = "block" in str(path) and "conv_0" in str(path)
        assert zero_kernel_after != np.any(leaf), path


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_weights_start_at_the_scale_and_in_the_dtype_asked_for(network, shape):
    network = network.clone(init_scale=0.5, param_dtype="bfloat16")
    params = quick_jit(network.init)(jax.random.key(0), jnp.zeros(shape))
    leaves = jax.tree.leaves(params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    draws = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    assert abs(draws.std() / 0.5 - 1) < 4 / np.sqrt(2 * draws.size)  # its standard error, for n normals


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_the_activation_asked_for_is_used(name):
    # Without one the whole network is affine: f(x) + f(-x) = 2 f(0).
    for network, shape in ((ENCODERS[name]((2, 5)), (5, 7, 3)), (DECODERS[name]((5, 7, 3, 2)), (5,))):
        x = normal(*shape)
        network = network.clone(init_scale=0.5)
        params = quick_jit(network.init)(jax.random.key(0), x)
        for activation, affine in ((lambda h: h, True), (nn.softplus, False)):
            network = network.clone(activation=activation)

            @quick_jit
            def bend(params, x=x, network=network):
                f = functools.partial(network.apply, params)
                there, back, middle = jax.vmap(f)(jnp.stack([x, -x, jnp.zeros_like(x)]))
                return there + back - 2 * middle, there

            bent, value = bend(params)
            assert (np.abs(bent).max() < 1e-4 * np.abs(value).max()) == affine


def absorbed(params, given, context):
    """The parameters of the network without a context whose first layers have `W_c context` in their biases."""

    def absorb(layer):
        kernel, bias = layer["kernel"][:given], layer["bias"] + context @ layer["kernel"][given:]
        return {"kernel": kernel, "bias": bias}

    if "dense" in params:
        return {**params, "dense": absorbed(params["dense"], given, context)}
    return {**params, **{name: absorb(params[name]) for name in ("hidden_0", "gate_0") if name in params}}


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(DECODERS["mlp"]((2, 5)), id="mlp"),
        pytest.param(DECODERS["gated_mlp"]((2, 5)), id="gated_mlp"),
        pytest.param(DECODERS["conv"]((5, 7, 1, 2)), id="conv decoder"),
        pytest.param(DECODERS["residual"]((5, 7, 1, 2)), id="residual decoder"),
    ],
)
def test_a_constant_context_is_a_bias(network):
    z = normal(5)
    params = quick_jit(network.init)(jax.random.key(0), z, CONTEXT)["params"]
    apply = quick_jit(lambda params, *inputs: network.apply({"params": params}, *inputs))
    told = apply(params, z, CONTEXT)
    np.testing.assert_allclose(told, apply(absorbed(params, 5, CONTEXT), z), rtol=1e-4, atol=1e-5)
    assert np.abs(told - apply(params, z, -CONTEXT)).max() > 1e-2


@pytest.mark.parametrize("name", ["conv", "residual"])
@pytest.mark.parametrize("shape", [(784,), (28, 28), (2, 28, 28, 1)])
def test_what_is_no_image_is_refused(name, shape):
    message = (
        r"takes images \[height, width, channels\].*\[" + ", ".join(map(str, shape)) + r"\]: use .* mlp or gated_mlp"
    )
    with pytest.raises(InputError, match=message):
        shape_of(ENCODERS[name]((2, 5)), jnp.zeros(shape))
    with pytest.raises(InputError, match=message):
        shape_of(DECODERS[name]((*shape, 1)), jnp.zeros(5))
