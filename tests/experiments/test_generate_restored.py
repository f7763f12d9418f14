"""Noise taken away and regions filled in, against the projection of PCA in NumPy, and images of one's own."""

import dataclasses
import pathlib
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image
from test_usefulness import pca_weights, run_of, unit

from aevb import training
from aevb.errors import InputError
from experiments import build, generate, given_files, restoration, usefulness
from experiments.artist import Artist
from experiments.restored_pictures import denoise, inpaint

CENTRE = restoration.centred_rectangle(8, 8, 0.25)


def artist_of(run: build.Run, params: dict | None = None, label: int | None = None) -> Artist:
    return Artist(run, training.replicate(run.init_state().params if params is None else params), label)


@pytest.fixture(scope="module")
def linear() -> tuple[Artist, restoration.PCA]:
    """A linear autoencoder that is PCA."""
    run = run_of("linear", "model.latent_dim=6")
    params, pca = pca_weights(run)
    return artist_of(run, params), pca


@pytest.fixture(scope="module")
def masked() -> Artist:
    return artist_of(run_of("mae", "train.num_epochs=1"))


@pytest.mark.parametrize(
    ("noise", "level"), [(None, None), ("gaussian", 0.5), ("masking", None), ("salt_and_pepper", 0.4)]
)
def test_noise_is_taken_away_as_pca_does(linear: tuple[Artist, restoration.PCA], noise: str | None, level: float):
    artist, pca = linear
    _, arrays = denoise(artist, 300, noise, level)
    x, seen = arrays["x"], arrays["seen"]
    np.testing.assert_array_equal(x, np.float32(unit(artist.run.dataset.test.examples[:300])))
    np.testing.assert_allclose(arrays["mean"], pca.reconstruct(seen), atol=1e-4)
    np.testing.assert_allclose(arrays["z"], pca.encode(seen), atol=1e-4)
    level = level or 0.25  # of a range of 1
    if noise in (None, "gaussian"):
        assert (seen - x).std() == pytest.approx(level, rel=4 / np.sqrt(2 * x.size))
    else:
        changed, salted = (x > 0) & (x < 1) & (seen != x), (seen == 1) & (x < 1)
        total = ((x > 0) & (x < 1)).sum()
        assert changed.sum() / total == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / total))
        assert np.isin(seen[changed], [0, 1]).all() and salted.any() == (noise == "salt_and_pepper")
    again = denoise(artist, 20, noise, level)[1]
    np.testing.assert_array_equal(again["seen"], seen[:20])  # the key is the example's


def test_gaussian_noise_is_usually_of_the_range_of_the_data(linear: tuple[Artist, restoration.PCA]):
    run = linear[0].run
    wide = {
        name: dataclasses.replace(split, examples=np.float32(7 * unit(split.examples) - 3))
        for name, split in ((name, getattr(run.dataset, name)) for name in build.SPLITS)
    }
    artist = artist_of(dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, **wide)))
    _, arrays = denoise(artist, 300)
    assert (arrays["seen"] - arrays["x"]).std() == pytest.approx(7 / 4, rel=4 / np.sqrt(2 * arrays["x"].size))


def test_a_denoising_run_draws_the_noise_that_it_was_trained_with(tmp_path: pathlib.Path):
    noisy, clean = (run_of(name, "model.latent_dim=4") for name in ("denoising", "linear"))
    artist = artist_of(noisy)
    arrays = denoise(artist, 300)[1]
    x = arrays["x"]
    assert (arrays["seen"][x > 0] == 0).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / (x > 0).sum()))
    np.testing.assert_array_equal(denoise(artist, 300, "masking")[1]["seen"], arrays["seen"])
    other = denoise(artist, 300, "gaussian")[1]["seen"] - x
    assert other.std() == pytest.approx(0.25, rel=0.05)
    with mock.patch.dict(generate.REPORTED, {"denoise": (denoise, 4)}, clear=True):
        generate.draw_all(noisy, artist.replicated, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["denoise.png"]
        (tmp_path / "denoise.png").unlink()
        generate.draw_all(clean, training.replicate(clean.init_state().params), tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_conditional_model_is_told_the_label_of_each():
    artist = artist_of(run_of("cvae", "train.num_epochs=1", "model.hidden=8"))
    labels = artist.run.dataset.test.labels[:6]
    model = artist.run.model.bind({"params": artist.params})
    for draw in (denoise, inpaint):
        _, arrays = draw(artist, 6)
        np.testing.assert_array_equal(arrays["context"], np.eye(10)[labels])
        seen = arrays["seen"] if "seen" in arrays else np.where(CENTRE[..., None], np.float32(0), arrays["x"])
        for i in range(6):
            given = model.given(arrays["context"][i])
            expected = np.asarray(given.decode(given.encode(seen[i]).mean).mean)
            if draw is inpaint:
                expected = np.where(CENTRE[..., None], expected, arrays["x"][i])
            np.testing.assert_allclose(arrays["mean"][i], expected, atol=1e-5)


def test_what_is_visible_stays_and_what_is_hidden_is_pcas(linear: tuple[Artist, restoration.PCA]):
    artist, pca = linear
    _, arrays = inpaint(artist, 20)
    x, mean = arrays["x"], arrays["mean"]
    np.testing.assert_array_equal(arrays["hidden"], np.broadcast_to(CENTRE, (20, 8, 8)))
    np.testing.assert_array_equal(mean[:, ~CENTRE], x[:, ~CENTRE])
    blind = np.where(CENTRE[..., None], 0, x)
    np.testing.assert_allclose(mean[:, CENTRE], pca.reconstruct(blind)[:, CENTRE], atol=1e-4)
    wide = inpaint(artist, 2, 0.6)[1]["hidden"]
    np.testing.assert_array_equal(wide[0], restoration.centred_rectangle(8, 8, 0.6))


def test_a_masked_autoencoder_sees_nothing_of_what_is_hidden(masked: Artist):
    x, odd = masked.examples(5)[0], 0.2  # of the area: 4 x 4 pixels, in patches of 2 x 2
    other = x.copy()
    hidden = restoration.centred_rectangle(8, 8, odd)
    other[:, hidden] = 0.7
    test = dataclasses.replace(masked.run.dataset.test, examples=other)
    run = dataclasses.replace(masked.run, dataset=dataclasses.replace(masked.run.dataset, test=test))
    (_, one), (_, two) = inpaint(masked, 5, odd), inpaint(Artist(run, masked.replicated), 5, odd)
    np.testing.assert_array_equal(one["x"], x)
    np.testing.assert_array_equal(two["x"], other)
    np.testing.assert_array_equal(one["mean"], two["mean"])
    np.testing.assert_array_equal(one["mean"][:, ~hidden], x[:, ~hidden])
    assert (one["mean"][:, hidden] != x[:, hidden]).all()


def saved(path: pathlib.Path, pixels: np.ndarray) -> str:
    """Grey, grey and opacity, colour, or colour and opacity, by the channels."""
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture(scope="module")
def some() -> np.ndarray:
    """Four grey images, uint8 `[4, 8, 8]`."""
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)


def test_given_files_are_what_is_seen(linear: tuple[Artist, restoration.PCA], some: np.ndarray, tmp_path: pathlib.Path):
    artist, pca = linear
    np.save(tmp_path / "two.npy", some[1:3, ..., None])
    np.save(tmp_path / "one.npy", np.float64(some[3, ..., None] / 255))
    colour = np.repeat(some[0, ..., None], 3, axis=2)
    files = [saved(tmp_path / "grey.png", some[0]), saved(tmp_path / "colour.png", colour)]
    files += [str(tmp_path / "two.npy"), str(tmp_path / "one.npy")]
    _, arrays = denoise(artist, 10, files=files)
    expected = np.float32(some[[0, 0, 1, 2, 3]][..., None] / 255)
    np.testing.assert_allclose(arrays["seen"], expected, rtol=1e-6)
    np.testing.assert_allclose(arrays["mean"], pca.reconstruct(expected), atol=1e-4)
    assert "x" not in arrays
    assert len(denoise(artist, 2, files=files)[1]["seen"]) == 2


def test_what_is_transparent_is_filled_in(
    linear: tuple[Artist, restoration.PCA], masked: Artist, some: np.ndarray, tmp_path: pathlib.Path
):
    opacity = np.full((2, 8, 8), 255, np.uint8)
    opacity[0, :3, 5:], opacity[1, 6:, 1:7] = 0, 200
    hidden = np.stack([*(opacity < 255), CENTRE])
    rgba = np.concatenate([np.repeat(some[1, ..., None], 3, axis=2), opacity[1, ..., None]], axis=2)
    files = [
        saved(tmp_path / "grey.png", np.stack([some[0], opacity[0]], axis=2)),
        saved(tmp_path / "colour.png", rgba),
        saved(tmp_path / "opaque.png", some[2]),
    ]
    x = np.float32(some[:3, ..., None] / np.float32(255))
    artist, pca = linear
    for each in (artist, masked):
        _, arrays = inpaint(each, 10, files=files)
        np.testing.assert_array_equal(arrays["x"], x)
        np.testing.assert_array_equal(arrays["hidden"], hidden)
        np.testing.assert_array_equal(arrays["mean"][~hidden], x[~hidden])
        if each is artist:
            expected = pca.reconstruct(np.where(hidden[..., None], 0, x))
        else:
            fills = [usefulness.filling(each.run, each.replicated, mask) for mask in hidden]
            expected = np.stack([fill(x[i : i + 1], np.array([i]))[0] for i, fill in enumerate(fills)])
        np.testing.assert_allclose(arrays["mean"][hidden], expected[hidden], atol=1e-4)


def test_files_that_are_none(some: np.ndarray, tmp_path: pathlib.Path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (tmp_path / "words.txt").write_text("words")
    np.save(tmp_path / "flat.npy", some.reshape(4, 64))
    saved(tmp_path / "small.png", some[0, :5])
    saved(tmp_path / "deep.png", np.uint16(some[0]))
    saved(tmp_path / "good.png", some[0])
    for name, event, words in (
        ("missing.png", (8, 8, 1), "no such file"),
        ("damaged.png", (8, 8, 1), "cannot read the image"),
        ("words.txt", (8, 8, 1), "neither .npy nor an image"),
        ("flat.npy", (8, 8, 1), r"the shape \[4, 64\]; wanted are examples of shape \[8, 8, 1\]"),
        ("small.png", (8, 8, 1), "5 x 8, and 8 x 8 are wanted"),
        ("deep.png", (8, 8, 1), "more than 8 bits"),
        ("good.png", (64,), r"datapoints have the shape \[64\]: give .npy"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            given_files.read([str(tmp_path / name)], event)
        assert name in str(refused.value) and "\n" not in str(refused.value)
    two_axes = given_files.read([str(tmp_path / "good.png")], (8, 8))
    np.testing.assert_allclose(two_axes.x[0], some[0] / 255, rtol=1e-6)


def test_what_cannot_be_asked(linear: tuple[Artist, restoration.PCA], some: np.ndarray, tmp_path: pathlib.Path):
    artist, _ = linear
    clear, opaque = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    files = {
        name: saved(tmp_path / f"{name}.png", np.stack([some[0], alpha], axis=2))
        for name, alpha in (("clear", clear), ("opaque", opaque))
    }
    for draw, options, words in (
        (inpaint, {"files": [files["clear"]]}, r"clear\.png is transparent everywhere"),
        (inpaint, {"files": [files["opaque"]]}, r"opaque\.png is transparent nowhere"),
        (inpaint, {"files": []}, "--files is empty"),
        (denoise, {"files": []}, "--files is empty"),
        (inpaint, {"share": 1.5}, "the share of the area to mask is 1.5"),
        (denoise, {"files": [files["opaque"]], "noise": "masking"}, "--files are noisy themselves"),
        (denoise, {"noise": "masking", "level": 1.5}, "the level of masking noise is 1.5"),
        (denoise, {"level": -1.0}, "the level of gaussian noise is -1"),
    ):
        with pytest.raises(InputError, match=words):
            draw(artist, 3, **options)


def test_files_of_a_conditional_model_need_a_label(some: np.ndarray, tmp_path: pathlib.Path):
    run = run_of("cvae", "train.num_epochs=1", "model.hidden=8")
    params = jax.tree.map(np.asarray, run.init_state().params)
    file = saved(tmp_path / "x.png", some[0])
    with pytest.raises(InputError, match="give --label"):
        denoise(artist_of(run, params), 3, files=[file])
    three = artist_of(run, params, label=3)
    with pytest.raises(InputError, match="--label is of files"):
        denoise(three, 3)
    np.testing.assert_array_equal(denoise(three, 3, files=[file])[1]["context"], np.eye(10)[[3]])
