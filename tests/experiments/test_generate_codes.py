"""Neighbours and arithmetic of codes, against brute force and NumPy; and which pictures are not of which model."""

import dataclasses

import jax
import numpy as np
import pytest
from test_generate_restored import artist_of
from test_usefulness import pca_weights, run_of, unit

from aevb import data, training
from aevb.errors import InputError
from experiments import build, generate, pictures, settings
from experiments.artist import Artist
from experiments.code_pictures import NEIGHBOURS, STEPS, arithmetic, nearest, neighbours


@pytest.fixture(scope="module")
def linear() -> Artist:
    run = run_of("linear", "model.latent_dim=6")
    return artist_of(run, pca_weights(run)[0])


def kernel_and_bias(artist: Artist, part: str) -> tuple[np.ndarray, np.ndarray]:
    leaves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), artist.params[part]["output"])
    return leaves["kernel"], leaves["bias"]


def flat(split: data.Split) -> np.ndarray:
    return np.float64(unit(split.examples)).reshape(len(split.examples), -1)


def brute_force(queries: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances = np.sqrt(np.square(queries[:, None] - points).sum(axis=2))
    order = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    return order, np.take_along_axis(distances, order, axis=1)


def test_neighbours_are_those_of_brute_force(linear: Artist):
    train, test = (flat(getattr(linear.run.dataset, name)) for name in ("train", "test"))
    _, arrays = neighbours(linear, 20)
    kernel, bias = kernel_and_bias(linear, "encoder")
    for by, queries, points in (("code", test @ kernel + bias, train @ kernel + bias), ("pixels", test, train)):
        order, distances = brute_force(queries[:20], points)
        np.testing.assert_array_equal(arrays[f"index_by_{by}"], order)
        np.testing.assert_allclose(arrays[f"distance_by_{by}"], distances, rtol=1e-4)
        np.testing.assert_allclose(
            arrays[f"nearest_by_{by}"].reshape(20, NEIGHBOURS, 64), train[order], rtol=1e-6, atol=1e-7
        )
    np.testing.assert_allclose(arrays["x"].reshape(20, 64), test[:20], rtol=1e-6)


def test_filters_are_the_decoders_rows_by_how_much_they_move_pictures(linear: Artist):
    """Of PCA the components by their eigenvalues, whatever the basis was; an element whose rows are 0 comes last."""
    _, arrays = pictures.filters(linear, 4)
    kernel, _ = kernel_and_bias(linear, "decoder")
    np.testing.assert_array_equal(arrays["z"], np.eye(6)[:4])
    np.testing.assert_allclose(arrays["filter"].reshape(4, 64), kernel[:4], atol=1e-6)
    params = jax.tree.map(np.array, linear.params)
    for part, axis in (("encoder", 1), ("decoder", 0)):
        leaves = params[part]["output"]
        leaves["kernel"] = np.roll(leaves["kernel"], 1, axis)
    params["encoder"]["output"]["bias"] = np.roll(params["encoder"]["output"]["bias"], 1)
    params["decoder"]["output"]["kernel"][2] = 0  # the second component
    turned = artist_of(linear.run, params)
    _, arrays = pictures.filters(turned, 6)
    np.testing.assert_array_equal(arrays["z"].argmax(axis=1), [1, 3, 4, 5, 0, 2])
    assert arrays["moved"][-1] == 0 < arrays["moved"][-2]


def test_blocks_change_nothing_and_the_first_of_equals_comes_first():
    rng = np.random.default_rng(0)
    points, queries = rng.integers(0, 3, (50, 2)).astype(float), rng.integers(0, 3, (4, 2)).astype(float)
    order, distances = brute_force(queries, points)
    for size in (1, 7, 50):
        blocks = [points[start : start + size] for start in range(0, 50, size)]
        found = nearest(queries, blocks, NEIGHBOURS)
        np.testing.assert_array_equal(found[0], order)
        np.testing.assert_allclose(found[1], distances)
    assert nearest(queries, [points[:3]], NEIGHBOURS)[0].shape == (4, 3)


def test_neighbours_of_data_out_of_memory(linear: Artist):
    dataset = linear.run.dataset
    streamed = {
        name: dataclasses.replace(
            split, examples=data.splits.Rows(split.examples, np.arange(30)), labels=split.labels[:30]
        )
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    run = dataclasses.replace(linear.run, dataset=dataclasses.replace(dataset, **streamed))
    order, _ = brute_force(flat(dataset.test)[:3], flat(dataset.train)[:30])
    np.testing.assert_array_equal(neighbours(Artist(run, linear.replicated), 3)[1]["index_by_pixels"], order)


def test_codes_of_a_conditional_model_are_made_in_the_context_of_each():
    artist = artist_of(run_of("cvae", "train.num_epochs=1", "model.hidden=8"))
    _, arrays = neighbours(artist, 4)
    model, test = artist.run.model.bind({"params": artist.params}), artist.run.dataset.test
    for x, label, code in zip(np.float32(unit(test.examples)), test.labels, arrays["code"], strict=False):
        np.testing.assert_allclose(code, model.given(np.eye(10)[label]).encode(x).mean, atol=1e-5)


def test_a_code_is_moved_by_the_difference_of_the_means(linear: Artist):
    _, arrays = arithmetic(linear, 5, ["7"], ["1", "4"])
    train, test = linear.run.dataset.train, linear.run.dataset.test
    kernel, bias = kernel_and_bias(linear, "encoder")
    codes = flat(train) @ kernel + bias
    v = codes[(train.labels == 1) | (train.labels == 4)].mean(axis=0) - codes[train.labels == 7].mean(axis=0)
    rows = np.flatnonzero(test.labels == 7)[:5]
    np.testing.assert_array_equal(arrays["label"], 7)
    np.testing.assert_allclose(arrays["x"].reshape(5, 64), flat(test)[rows], rtol=1e-6)
    np.testing.assert_allclose(arrays["v"], v, atol=1e-4)
    z = (flat(test)[rows] @ kernel + bias)[:, None] + np.array(STEPS)[:, None] * v
    weights, mean = kernel_and_bias(linear, "decoder")
    np.testing.assert_allclose(arrays["mean"].reshape(5, len(STEPS), 64), z @ weights + mean, atol=1e-4)
    assert arrays["t"][4] == 1 and arrays["t"][0] == 0


@pytest.mark.parametrize(
    ("minus", "plus", "words"),
    [
        (None, ["1"], "--minus is missing"),
        (["7"], None, "--plus is missing"),
        (["7"], ["11"], "--plus names the class '11', and those of digits are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (["seven"], ["1"], "--minus names the class 'seven'"),
        (["7", "1"], ["1"], "--minus and --plus both name the class 1"),
    ],
)
def test_sides_that_cannot_be(linear: Artist, minus: list[str] | None, plus: list[str] | None, words: str):
    with pytest.raises(InputError, match=words):
        arithmetic(linear, 3, minus, plus)


def test_arithmetic_needs_classes_and_examples_of_them(linear: Artist):
    dataset = linear.run.dataset

    def drawn(**splits: data.Split) -> None:
        run = dataclasses.replace(linear.run, dataset=dataclasses.replace(dataset, **splits))
        arithmetic(Artist(run, linear.replicated), 3, ["7"], ["1"])

    with pytest.raises(InputError, match="digits has no labels"):
        drawn(train=dataclasses.replace(dataset.train, labels=None))
    with pytest.raises(InputError, match="digits has vectors for labels"):
        drawn(train=dataclasses.replace(dataset.train, labels=np.float32(dataset.train.labels[:, None])))
    with pytest.raises(InputError, match="the test split has no example of --minus=7"):
        drawn(test=dataclasses.replace(dataset.test, labels=0 * dataset.test.labels))


NEW = ("denoise", "inpaint", "neighbours", "arithmetic")
MCEM = "paper.py:digits,mcem"
REFUSED = {
    "linear.py": {},
    "vae.py": {},
    "cvae.py": {"arithmetic": "keeps it out of the code"},
    "mae.py": {"denoise": "use --what=inpaint", "arithmetic": "decodes no code of a whole image"},
    MCEM: {what: "mcem trains no encoder: use --what=samples" for what in NEW},
}


@pytest.mark.parametrize("config", REFUSED)
def test_pictures_that_are_not_of_a_model(config: str):
    overrides = ["--config.train.num_epochs=1", "--config.data.binarization=dynamic"] if config == MCEM else []
    run = build.build(settings.load(f"experiments/configs/{config}", overrides))
    for what in NEW:
        reason = generate.why_not(run, what)
        assert generate.can_draw(run, what) == (reason is None)
        assert REFUSED[config].get(what, "None") in str(reason), what


def test_more_that_is_not_drawn():
    normalised = run_of("mae", "vit.normalise=True")
    assert "config.vit.normalise" in generate.why_not(normalised, "inpaint")
    assert generate.why_not(normalised, "neighbours") is None
    linear = run_of("linear")
    model = dataclasses.replace(linear.model, event_shape=(64,))
    assert "datapoints have shape [64]" in generate.why_not(dataclasses.replace(linear, model=model), "inpaint")


def test_neighbours_of_a_masked_autoencoder():
    run = run_of("mae", "train.num_epochs=1")
    artist = Artist(run, training.replicate(run.init_state().params))
    _, arrays = neighbours(artist, 2)
    model = run.model.bind({"params": artist.params})
    codes = np.asarray(jax.vmap(lambda x: model.encode(x).mean)(np.float32(unit(run.dataset.train.examples))))
    order, _ = brute_force(np.float64(arrays["code"]), np.float64(codes))
    np.testing.assert_array_equal(arrays["index_by_code"], order)
