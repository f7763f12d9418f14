"""Pictures and the arrays behind them, from a finished run and from data that are no images."""

import dataclasses
import math
import pathlib
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from test_configs import load, tiny

from aevb import data, figures, training
from aevb.errors import InputError
from experiments import build, generate, pictures
from experiments.artist import Artist


@pytest.fixture(scope="module")
def artist() -> Artist:
    run = build.build(load("model.hidden=8"))
    return Artist(run, training.replicate(run.init_state().params))


def decoded(artist: Artist, z: np.ndarray) -> np.ndarray:
    """One z at a time."""
    vae = artist.run.model.bind({"params": artist.params})
    return np.stack([vae.decode(row).mean for row in z.reshape(-1, 2)]).reshape(*z.shape[:-1], 8, 8, 1)


@pytest.mark.parametrize(
    ("what", "num", "shapes"),
    [
        ("samples", 5, {"z": (5, 2), "mean": (5, 8, 8, 1)}),
        ("reconstructions", 5, {"x": (5, 8, 8, 1), "z": (5, 2), "mean": (5, 8, 8, 1)}),
        ("interpolations", 3, {"z": (3, 10, 2), "mean": (3, 10, 8, 8, 1)}),
        ("traversals", 4, {"z": (2, 4, 2), "mean": (2, 4, 8, 8, 1), "kl_per_dim": (2,)}),
        ("manifold", 4, {"z": (4, 4, 2), "mean": (4, 4, 8, 8, 1)}),
        ("latents", 50, {"mean": (50, 2), "label": (50,)}),
    ],
)
def test_arrays(artist: Artist, what: str, num: int, shapes: dict):
    _, arrays = generate.WHAT[what][0](artist, num)
    assert {name: array.shape for name, array in arrays.items() if array is not None} == shapes
    if "z" in arrays:
        np.testing.assert_allclose(arrays["mean"], decoded(artist, arrays["z"]), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def conditional() -> Artist:
    run = build.build(load("model.hidden=8", "model.context=label", "model.prior=conditional_gaussian"))
    return Artist(run, training.replicate(run.init_state().params))


def test_classes_share_a_latent_down_each_column(conditional: Artist):
    _, arrays = generate.WHAT["classes"][0](conditional, 3)
    z, contexts = arrays["z"], arrays["context"]
    assert (z.shape, arrays["mean"].shape) == ((10, 3, 2), (10, 3, 8, 8, 1))
    np.testing.assert_array_equal(contexts, np.eye(10))
    vae = conditional.run.model.bind({"params": conditional.params})

    def places(row: np.ndarray, context: np.ndarray) -> np.ndarray:
        """In standard deviations from the mean of a class's prior."""
        prior = vae.given(context).prior().base_dist
        return (row - np.asarray(prior.loc)) / np.asarray(prior.scale)

    for row, context, means in zip(z, contexts, arrays["mean"], strict=True):
        np.testing.assert_allclose(places(row, context), places(z[0], contexts[0]), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(means[0], vae.given(context).decode(row[0]).mean, rtol=1e-4, atol=1e-6)


def test_one_label(conditional: Artist):
    three = Artist(conditional.run, conditional.replicated, label=3)
    for what in ("samples", "traversals", "manifold"):
        _, arrays = generate.WHAT[what][0](three, 4)
        assert (arrays["context"].reshape(-1, 10).argmax(axis=1) == 3).all(), what
    with pytest.raises(InputError, match="--label is 10, and the classes of digits are 0 to 9"):
        Artist(conditional.run, conditional.replicated, label=10)


def test_a_label_that_the_model_was_not_told(artist: Artist):
    with pytest.raises(InputError, match="--label is 3, but the model was told nothing of a datapoint"):
        Artist(artist.run, artist.replicated, label=3)
    assert not generate.can_draw(artist.run, "classes")


def test_a_line_needs_two_examples(artist: Artist):
    one = data.head(artist.run.dataset.test, 1)
    run = dataclasses.replace(artist.run, dataset=dataclasses.replace(artist.run.dataset, test=one))
    assert generate.can_draw(artist.run, "interpolations") and not generate.can_draw(run, "interpolations")


def test_latent_paths(artist: Artist):
    """Lines start and end at posterior means; traversals move one dimension; the manifold is the unit square's."""
    ends = pictures.reconstructions(artist, 6)[1]["z"]
    lines = pictures.interpolations(artist, 3)[1]["z"]
    np.testing.assert_allclose(lines[:, [0, -1]].reshape(6, 2), ends, rtol=1e-5)
    np.testing.assert_allclose(np.diff(lines, 2, axis=1), 0, atol=1e-5)
    traversal = pictures.traversals(artist, 7)[1]["z"]
    np.testing.assert_allclose(traversal[0], np.stack([np.linspace(-3, 3, 7), np.zeros(7)], axis=1), atol=1e-4)
    manifold = pictures.manifold(artist, 4)[1]["z"]
    cdf = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(manifold)
    np.testing.assert_allclose(cdf[0, :, 0], [0.125, 0.375, 0.625, 0.875], rtol=1e-5)
    np.testing.assert_allclose(cdf[:, 0, 1], [0.125, 0.375, 0.625, 0.875], rtol=1e-5)


@pytest.mark.parametrize("name", ["arrays", "folder"])
def test_every_picture_of_other_shapes(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    """Vectors of 6 and 5x7 pixels in three colours, 3 latent dimensions, no labels, two test examples."""
    monkeypatch.setattr(build, "load_data", lambda config: tiny(config.dataset))
    run = build.build(load("model.hidden=4", "model.latent_dim=3", dataset=name))
    params = training.replicate(run.init_state().params)
    with mock.patch.dict(generate.REPORTED, {"samples": (pictures.samples, 4)}):
        generate.draw_all(run, params, tmp_path)
    drawn = {"samples", "reconstructions", "interpolations", "traversals", "latents", "kl_per_dim"}
    assert {path.stem for path in tmp_path.iterdir()} == drawn
    sides = {"arithmetic": {"minus": ["0"], "plus": ["1", "2"]}, "denoise": {"noise": "salt_and_pepper"}}
    run = dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, test=run.dataset.train))
    for what in ("denoise", "inpaint", "neighbours", "arithmetic"):
        if generate.can_draw(run, what):
            figure, arrays = generate.WHAT[what][0](Artist(run, params), 2, **sides.get(what, {}))
            figures.save(figure, tmp_path / f"{what}.png")
            assert len(arrays["x"]) == 2
    assert (tmp_path / "inpaint.png").exists() == (name == "folder")


OWN_FLAGS = {
    "denoise": ["--noise=masking", "--level=0.5"],
    "inpaint": ["--share=0.5"],
    "arithmetic": ["--minus=7", "--plus=1,4"],
}


@pytest.mark.parametrize("what", sorted(set(generate.WHAT) - {"classes", "restorations", "filters"}))
def test_command(command, finished: pathlib.Path, tmp_path: pathlib.Path, what: str):
    out, own = tmp_path / "new" / "picture.png", OWN_FLAGS.get(what, [])
    ended = command.ok("generate", f"--workdir={finished}", f"--what={what}", "--num=4", f"--out={out}", *own)
    assert ended.err == ""
    assert {path.name for path in out.parent.iterdir()} == {"picture.png", "picture.npz"}
    with Image.open(out) as image:
        image.load()
    with np.load(out.with_suffix(".npz")) as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays)


def test_into_the_figures(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    command.ok("generate", f"--workdir={tmp_path}", "--what=samples")
    with np.load(tmp_path / "figures/samples.npz") as arrays:
        assert arrays["mean"].shape == (64, 8, 8, 1)
