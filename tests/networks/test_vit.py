"""The masked autoencoder's networks against NumPy and SciPy, and against what may and may not depend on what."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_jit import quick_jit
from scipy.special import erf
from xla_convolution import normal

from aevb.errors import InputError
from aevb.networks.vit import (
    TransformerBlock,
    ViTDecoder,
    ViTEncoder,
    normalised,
    patch_grid,
    patches,
    positions,
    sample_mask,
    unnormalised,
    unpatched,
)

GRID, NUM_PATCHES, PATCH_DIM = (3, 4), 12, 5
VISIBLE = np.array([1, 4, 6, 11])
MASKED = np.setdiff1d(np.arange(NUM_PATCHES), VISIBLE)
# Two blocks and a second head, and a decoder of another width: all that a larger one has, too.
ENCODER = ViTEncoder(GRID, width=8, depth=2, num_heads=2)
DECODER = ViTDecoder(GRID, PATCH_DIM, width=12, depth=2, num_heads=3)


def params_of(network, *inputs):
    """Parameters that are all normals: with biases of 0 and scales of 1 leaving them out would not show."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape) / 2), shapes)


@functools.partial(quick_jit, static_argnums=0)
def apply(network, params, *inputs):
    return network.apply({"params": params}, *inputs)


def dense(layer, x):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def layer_norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(layer["scale"]) + np.asarray(layer["bias"])


def numpy_positions(grid, width):
    """Place by place and number by number, as the formula has it."""
    codes = np.zeros((*grid, width))
    n = width // 4
    for i, j in np.ndindex(*grid):
        for k in range(n):
            w = 1 / 10000 ** (k / n)
            codes[i, j, [k, n + k, 2 * n + k, 3 * n + k]] = (
                math.sin(i * w),
                math.cos(i * w),
                math.sin(j * w),
                math.cos(j * w),
            )
    return codes.reshape(-1, width)


SIZES = [
    pytest.param((28, 28, 1), 4, (7, 7), id="28x28x1"),
    pytest.param((28, 20, 1), 4, (7, 5), id="28x20x1"),
    pytest.param((32, 32, 3), 8, (4, 4), id="32x32x3"),
    pytest.param((105, 105, 3), 8, (14, 14), id="105x105x3 padded"),
    pytest.param((13, 7, 2), 3, (5, 3), id="13x7x2 padded"),
    pytest.param((9, 15, 1), 3, (3, 5), id="odd and no padding"),
    pytest.param((5, 3, 2), 7, (1, 1), id="smaller than a patch"),
    pytest.param((3, 2, 1), 1, (3, 2), id="pixels"),
]


@pytest.mark.parametrize(("shape", "size", "grid"), SIZES)
def test_patches_and_back_are_the_image(shape, size, grid):
    image = normal(*shape)
    cut = patches(image, size, pad=True)
    assert patch_grid(shape, size, pad=True) == grid
    assert cut.shape == (math.prod(grid), size * size * shape[2])
    np.testing.assert_array_equal(unpatched(cut, shape, size), image)
    # Every pixel is in one patch, and the rest is zeros.
    np.testing.assert_array_equal(np.sort(cut[cut != 0], axis=None), np.sort(image, axis=None))
    if shape[0] % size == 0 and shape[1] % size == 0:
        np.testing.assert_array_equal(patches(image, size), cut)
        np.testing.assert_array_equal(patches(unpatched(cut, shape, size), size), cut)


def test_patches_hold_the_pixels_they_should():
    image = jnp.arange(2 * 6 * 2).reshape(2, 6, 2)  # pixel (i, j) is [12 i + 2 j, 12 i + 2 j + 1]
    expected = [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 16, 17, 18, 19], [8, 9, 10, 11, 20, 21, 22, 23]]
    np.testing.assert_array_equal(patches(image, 2), expected)
    np.testing.assert_array_equal(patches(image.transpose(1, 0, 2), 2)[1], [4, 5, 16, 17, 6, 7, 18, 19])
    # Padding is below and to the right: the last of the 2 x 2 patches of 3 x 3 pixels keeps its first pixel.
    padded = patches(jnp.arange(1, 10).reshape(3, 3, 1), 2, pad=True)
    np.testing.assert_array_equal(padded, [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]])


def init(network, num_tokens, *indices):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((num_tokens, PATCH_DIM)), *indices)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: patches(jnp.zeros((105, 28, 3)), 4), r"105 x 28 pixels.* patch size 4: choose"),
        (lambda: patches(jnp.zeros((28, 105, 3)), 4), r"28 x 105 pixels.* patch size 4: choose"),
        (lambda: patch_grid((28, 28, 1), 5), r"28 x 28 pixels.* patch size 5: choose"),
        (lambda: patch_grid((28, 28, 1), 0, pad=True), "patch size of 0 .*choose"),
        (lambda: patches(jnp.zeros((28, 28)), 4), r"\[height, width, channels\].*\[28, 28\]: use"),
        (lambda: unpatched(jnp.zeros((48, 16)), (28, 28, 1), 4), r"\[49, 16\].*\[48, 16\]: give"),
        (lambda: unpatched(jnp.zeros((49, 16)), (28, 28, 3), 4), r"\[49, 48\].*\[49, 16\]: give"),
        (lambda: sample_mask(jax.random.key(0), 49, 1.0), r"ratio of 1.0 is outside \[0, 1\): give"),
        (lambda: sample_mask(jax.random.key(0), 49, -0.1), r"ratio of -0.1 is outside \[0, 1\): give"),
        (lambda: sample_mask(jax.random.key(0), 49, math.nan), r"ratio of nan is outside \[0, 1\): give"),
        (lambda: positions((3, 4), 30), "width of 30 .*: choose a multiple of 4"),
        (lambda: positions((3, 4), 0), "width of 0 .*: choose a multiple of 4"),
        (lambda: init(ViTEncoder(GRID, width=8, num_heads=3), 12), "3 heads .* width of 8: choose"),
        (lambda: init(ViTEncoder(GRID, width=8, num_heads=0), 12), "0 heads .* width of 8: choose"),
        (lambda: init(ViTEncoder(GRID, width=6), 12), "width of 6 .*: choose a multiple of 4"),
        (lambda: init(ENCODER, 4), "4 patches .* 12 places of the grid 3 x 4: give"),
        (lambda: init(ENCODER, 4, jnp.arange(3)), "4 patches .* 3 places of the grid 3 x 4: give"),
        (lambda: init(DECODER, 4, jnp.arange(4)), "4 codes .* 4 visible patches: give"),
    ],
)
def test_what_cannot_be_is_refused(refused, message):
    with pytest.raises(InputError, match=message):
        refused()


@pytest.mark.parametrize(
    ("num_patches", "ratio", "num_visible"),
    [(49, 0.75, 12), (49, 0.0, 49), (49, 0.5, 25), (196, 0.75, 49), (4, 0.9, 1), (1, 0.99, 1), (2, 0.5, 1)],
)
def test_the_number_of_visible_patches_is_exact(num_patches, ratio, num_visible):
    keys = jax.random.split(jax.random.key(0), 20)
    draws = np.asarray(quick_jit(jax.vmap(lambda key: sample_mask(key, num_patches, ratio)))(keys))
    assert draws.shape == (20, num_visible)
    assert (np.diff(draws) > 0).all() and draws.min() >= 0 and draws.max() < num_patches
    assert len(np.unique(draws, axis=0)) > 1 or num_visible == num_patches


def test_every_patch_is_visible_with_the_same_probability():
    num_draws, num_patches, ratio = 4000, 16, 0.75
    keys = jax.random.split(jax.random.key(0), num_draws)
    draws = quick_jit(jax.vmap(lambda key: sample_mask(key, num_patches, ratio)))(keys)
    visible = np.zeros((num_draws, num_patches))
    np.put_along_axis(visible, np.asarray(draws), 1.0, axis=1)
    # The standard error of a share p of n draws is sqrt(p (1 - p) / n), here 0.007; for pairs, below, 0.0034. The
    # farthest of 16 shares is given 4 of them, and the farthest of 120 pairs 4.5.
    np.testing.assert_allclose(visible.mean(0), 1 - ratio, atol=4 * np.sqrt(ratio * (1 - ratio) / num_draws))
    # Pairs are as frequent as without replacement: 4 of 16, then 3 of 15.
    pairs = (visible.T @ visible / num_draws)[np.triu_indices(num_patches, 1)]
    expected = 4 / 16 * 3 / 15
    np.testing.assert_allclose(pairs, expected, atol=4.5 * np.sqrt(expected * (1 - expected) / num_draws))


@pytest.mark.parametrize(("grid", "width"), [((7, 7), 64), ((14, 3), 8), ((1, 30), 4), ((5, 1), 12)])
def test_positions_are_the_formula_and_distinct(grid, width):
    codes = np.asarray(positions(grid, width))
    np.testing.assert_allclose(codes, numpy_positions(grid, width), rtol=1e-6, atol=1e-7)
    distances = np.linalg.norm(codes[:, None] - codes, axis=-1) + 10 * np.eye(len(codes))
    assert distances.min() > 1e-2


def test_a_block_is_numpys_attention_and_perceptron():
    block, h = TransformerBlock(num_heads=2), normal(5, 6)
    params = params_of(block, h)
    x = np.asarray(h, np.float64)
    layers, normed = params["attention"], layer_norm(params["norm_0"], x)
    attended = np.zeros_like(x)
    for head in range(2):
        query, key, value = (
            normed @ np.asarray(layers[name]["kernel"][:, head], np.float64) + np.asarray(layers[name]["bias"][head])
            for name in ("query", "key", "value")
        )
        for t in range(5):
            weights = np.exp([query[t] @ key[s] / np.sqrt(3) for s in range(5)])
            attended[t] += (weights / weights.sum()) @ value @ np.asarray(layers["out"]["kernel"][head])
    x = x + attended + np.asarray(layers["out"]["bias"])
    hidden = dense(params["hidden"], layer_norm(params["norm_1"], x))
    assert hidden.shape == (5, 24)
    expected = x + dense(params["output"], hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
    np.testing.assert_allclose(apply(block, params, h), expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_places_each_visible_patch_and_normalises():
    # Its blocks one by one, each of which NumPy has above, and the rest in NumPy.
    visible = normal(4, PATCH_DIM)
    params = params_of(ENCODER, visible, VISIBLE)
    placed = dense(params["embedding"], np.asarray(visible)) + numpy_positions(GRID, 8)[VISIBLE]
    h = jnp.float32(np.concatenate([params["class_token"], placed]))
    for name in ("block_0", "block_1"):
        h = apply(TransformerBlock(2), params[name], h)
    expected = layer_norm(params["norm"], np.asarray(h, np.float64))
    np.testing.assert_allclose(apply(ENCODER, params, visible, VISIBLE), expected, rtol=1e-4, atol=1e-5)
    everything = normal(NUM_PATCHES, PATCH_DIM)
    in_order = apply(ENCODER, params, everything, np.arange(NUM_PATCHES))
    np.testing.assert_array_equal(apply(ENCODER, params, everything), in_order)
    assert in_order.shape == (1 + NUM_PATCHES, 8)


def test_masked_patches_change_nothing_of_the_encoder():
    network = ViTEncoder((7, 7), width=16, depth=1)
    indices = sample_mask(jax.random.key(1), 49, 0.75)
    params = params_of(network, jnp.zeros((12, 16)), indices)

    def encoded(image):
        return apply(network, params, patches(jnp.asarray(image), 4)[indices], indices)

    image = np.array(normal(28, 28, 1))
    codes = encoded(image)
    assert codes.shape == (13, 16) and np.isfinite(codes).all()
    is_visible = jnp.zeros((49, 16), bool).at[indices].set(True)
    is_visible = np.asarray(unpatched(is_visible, (28, 28, 1), 4))
    assert is_visible.sum() == 12 * 16
    np.testing.assert_array_equal(encoded(np.where(is_visible, image, 100 * normal(28, 28, 1, seed=1))), codes)
    # While a pixel that is visible shows in every code.
    image[tuple(np.argwhere(is_visible)[0])] += 1
    assert (np.abs(encoded(image) - codes).max(axis=-1) > 0).all()


def test_the_encoder_knows_places_by_their_indices_alone():
    visible, order = normal(4, PATCH_DIM), np.array([2, 0, 3, 1])
    params = params_of(ENCODER, visible, VISIBLE)
    codes = apply(ENCODER, params, visible, VISIBLE)
    shuffled = apply(ENCODER, params, visible[order], VISIBLE[order])
    np.testing.assert_allclose(shuffled[1:], codes[1:][order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shuffled[0], codes[0], rtol=1e-4, atol=1e-5)
    # And it does know them: the same patches at each other's places are another image.
    assert np.abs(apply(ENCODER, params, visible, VISIBLE[order]) - codes).max() > 1e-2


def test_the_decoder_puts_the_mask_token_at_masked_places_only():
    # Without blocks each place is a function of what was put there.
    network = DECODER.clone(depth=0)
    codes, order = normal(5, 8), np.array([2, 0, 3, 1])
    indices = VISIBLE[order]
    params = params_of(network, codes, indices)
    tokens = np.tile(np.asarray(params["mask_token"], np.float64), (NUM_PATCHES, 1))
    for row, index in zip(np.asarray(codes[1:]), indices, strict=True):
        tokens[index] = dense(params["embedding"], row)
    expected = dense(params["output"], layer_norm(params["norm"], tokens + numpy_positions(GRID, 12)))
    np.testing.assert_allclose(apply(network, params, codes, indices), expected, rtol=1e-4, atol=1e-5)


def test_what_the_decoder_writes_depends_on():
    codes, network = normal(5, 8), DECODER.clone(depth=1)
    params = params_of(network, codes, VISIBLE)
    outputs = apply(network, params, codes, VISIBLE)
    assert outputs.shape == (NUM_PATCHES, PATCH_DIM)
    for code in range(5):  # the class token's and each visible patch's are attended to from everywhere
        changed = apply(network, params, codes.at[code].add(1.0), VISIBLE)
        assert (np.abs(changed - outputs).max(axis=-1) > 1e-4).all()

    @quick_jit
    def gradient(codes, indices):
        return jax.grad(lambda params: (network.apply({"params": params}, codes, indices) ** 2).sum())(params)

    assert np.abs(gradient(codes, VISIBLE)["mask_token"]).min() > 0
    all_visible = gradient(normal(1 + NUM_PATCHES, 8), np.arange(NUM_PATCHES))
    np.testing.assert_array_equal(all_visible.pop("mask_token"), np.zeros((1, 12)))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(all_visible["embedding"]))


def test_a_batch_is_a_vmap_with_a_mask_of_each_image_and_finite_gradients():
    images, keys = normal(3, 6, 8, 1), jax.random.split(jax.random.key(2), 3)
    encoder, decoder = ENCODER.clone(depth=1), DECODER.clone(patch_dim=4, depth=1)
    params = {
        "encoder": params_of(encoder, jnp.zeros((NUM_PATCHES, 4))),
        "decoder": params_of(decoder, jnp.zeros((5, 8)), VISIBLE),
    }

    def autoencoded(params, image, key):
        cut = patches(image, 2)
        indices = sample_mask(key, NUM_PATCHES, 0.75)
        codes = encoder.apply({"params": params["encoder"]}, cut[indices], indices)
        return decoder.apply({"params": params["decoder"]}, codes, indices)

    def loss(params):
        batch = jax.vmap(functools.partial(autoencoded, params))(images, keys)
        return (batch**2).sum(), batch

    gradient, batch = quick_jit(jax.grad(loss, has_aux=True))(params)
    one = quick_jit(autoencoded)(params, images[1], keys[1])
    np.testing.assert_allclose(batch[1], one, rtol=1e-4, atol=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        # The softmax is the same whatever is added to all keys, so that their bias has no gradient but rounding.
        assert np.abs(leaf).max() > 1e-4 or "['key']['bias']" in jax.tree_util.keystr(path), path


def test_normalised_patches_have_mean_0_and_variance_1():
    cut = 3 * normal(20, 48) + normal(20, 1, seed=1)
    targets = np.asarray(normalised(cut), np.float64)
    np.testing.assert_allclose(targets.mean(-1), np.zeros(20), atol=1e-6)
    np.testing.assert_allclose(targets.var(-1), np.ones(20), rtol=1e-5)
    x = np.asarray(cut, np.float64)
    np.testing.assert_allclose(targets[3], (x[3] - x[3].mean()) / x[3].std(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(normalised(jnp.full((2, 16), 0.5)), np.zeros((2, 16)))
    np.testing.assert_allclose(unnormalised(normalised(cut), cut), cut, atol=1e-5)


def test_the_work_of_the_encoder_falls_with_the_visible_share():
    network = ViTEncoder((7, 7), depth=2)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((49, 16)))

    def flops(num_visible):
        inputs = jax.ShapeDtypeStruct((num_visible, 16), "float32"), jax.ShapeDtypeStruct((num_visible,), "int32")
        return quick_jit(network.apply).lower(shapes, *inputs).compile().cost_analysis()["flops"]

    def products(num_visible, width=64, depth=2):
        """Of the matrices alone: 12 width^2 multiplications for each token and block, and the attention's square."""
        tokens = 1 + num_visible
        return depth * (24 * tokens * width**2 + 4 * tokens**2 * width) + 2 * num_visible * 16 * width

    counted = {num_visible: flops(num_visible) for num_visible in (12, 49)}
    for num_visible, count in counted.items():
        assert 1 < count / products(num_visible) < 1.3  # the rest is GELU, softmax and normalisation
        share = (1 + num_visible) / 50
        assert 0.85 * share < count / counted[49] <= share
