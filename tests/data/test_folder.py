"""Image folders: PNG is lossless, so what is read must be what was written."""

import pickle

import numpy as np
import pytest
from PIL import Image

from aevb import data
from aevb.data.folder import read_image
from aevb.errors import InputError

GENERATOR = np.random.default_rng(0)


def load(path, **kwargs):
    sizes = {"validation_size": 0, "test_size": 0, "seed": 0, "memory_limit_mb": 100}
    return data.load("folder", data_dir=str(path), **sizes | kwargs)


def error(path):
    """The message of the InputError, which must be one line and name the path."""
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def write(path, shape=(5, 4), mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = GENERATOR.integers(0, 256, shape, np.uint8)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return pixels


@pytest.mark.parametrize(("shape", "event"), [((5, 4), (5, 4, 1)), ((5, 4, 3), (5, 4, 3))])
@pytest.mark.parametrize("memory_limit_mb", [0, 100])
def test_flat_folder(tmp_path, shape, event, memory_limit_mb):
    expected = [write(tmp_path / f"{i}.PNG", shape).reshape(event) for i in range(4)]
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._0.png").write_text("what some systems leave beside an image")
    loaded = load(tmp_path, memory_limit_mb=memory_limit_mb)
    assert loaded.event_shape == event and loaded.train.labels is None
    assert isinstance(loaded.train.examples, np.ndarray) == (memory_limit_mb > 0)
    for examples in (loaded.train.examples, pickle.loads(pickle.dumps(loaded.train.examples))):
        assert len(examples) == 4 and examples[0].dtype == np.uint8
        np.testing.assert_array_equal([examples[i] for i in range(4)], expected)


def test_class_folders_and_splits(tmp_path):
    written = {}
    for part, label, name in [
        ("train", "b", "0.png"),
        ("train", "a", "deep/1.png"),
        ("train", "b", "2.png"),
        ("test", "b", "3.png"),
    ]:
        written[part, label, name] = write(tmp_path / "folder" / part / label / name)
    for limit in (0, 100):
        loaded = load(tmp_path, memory_limit_mb=limit, validation_size=0)
        np.testing.assert_array_equal(loaded.train.labels, [0, 1, 1])
        assert loaded.train.names == loaded.test.names == ("a", "b")
        np.testing.assert_array_equal(loaded.test.labels, [1])
        assert loaded.train.labels.dtype == np.int32 and len(loaded.validation.examples) == 0
        np.testing.assert_array_equal(loaded.test.examples[0][..., 0], written["test", "b", "3.png"])
        np.testing.assert_array_equal(loaded.train.examples[0][..., 0], written["train", "a", "deep/1.png"])


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_modes(tmp_path, mode, channels):
    write(tmp_path / "0.png", (5, 4, 3), mode)
    expected = np.asarray(Image.open(tmp_path / "0.png").convert("RGB"))[..., :channels]
    np.testing.assert_array_equal(load(tmp_path).train.examples[0], expected)


def test_sizes_that_differ(tmp_path):
    write(tmp_path / "0.png", (5, 4))
    write(tmp_path / "1.png", (5, 5))
    message = error(tmp_path)
    assert "0.png has (5, 4, 1)" in message and "1.png has (5, 5, 1)" in message
    write(tmp_path / "1.png", (5, 4, 3))
    assert "1.png has (5, 4, 3)" in error(tmp_path)


def test_damaged_images(tmp_path):
    write(tmp_path / "0.png", (50, 40))
    whole = (tmp_path / "0.png").read_bytes()
    for content in (b"", b"no image", whole[:20], whole[: len(whole) // 2], whole[:50] + b"!" + whole[51:]):
        (tmp_path / "0.png").write_bytes(content)
        assert "cannot read the image" in error(tmp_path) and "0.png" in error(tmp_path)
    (tmp_path / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read the image .*0\.png"):
        load(tmp_path, memory_limit_mb=0).train.examples[0]


def test_sixteen_bits(tmp_path):
    Image.fromarray(np.full((5, 4), 999, np.uint16)).save(tmp_path / "0.png")
    assert "0.png has more than 8 bits" in error(tmp_path)


def test_folders_without_one_meaning(tmp_path):
    assert "holds no images" in error(tmp_path)
    write(tmp_path / "test" / "0.png")
    assert "holds test but no train" in error(tmp_path)
    (tmp_path / "train").mkdir()
    assert "train holds no images" in error(tmp_path)
    write(tmp_path / "train" / "a" / "0.png")
    assert "0.png is of a class that" in error(tmp_path)
    write(tmp_path / "train" / "0.png")
    assert "both beside and inside" in error(tmp_path)


def test_folder_needs_a_place():
    with pytest.raises(InputError, match=r"folder needs --config\.data\.dir"):
        data.load("folder", data_dir=None, validation_size=0, test_size=0, seed=0, memory_limit_mb=1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_in_the_channels_that_are_wanted(tmp_path, mode, channels):
    pixels = GENERATOR.integers(0, 256, (5, 4, 4), np.uint8)
    image = Image.fromarray(pixels[..., : 3 if mode == "P" else 4]).convert(mode)
    image.save(tmp_path / "x.png")
    found, opacity = read_image(str(tmp_path / "x.png"), (5, 4, channels))
    converted = image.convert("RGB") if mode == "P" else image
    np.testing.assert_array_equal(
        found, np.asarray(converted.convert("L" if channels == 1 else "RGB")).reshape(5, 4, channels)
    )
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(opacity, pixels[..., 3])
    else:
        assert opacity is None


def test_transparency_of_a_palette(tmp_path):
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for transparency, expected in ((1, [[255, 0], [0, 255]]), (b"\xff\x07", [[255, 7], [7, 255]])):
        image.save(tmp_path / "x.png", transparency=transparency)
        pixels, opacity = read_image(str(tmp_path / "x.png"), (2, 2, 1))
        np.testing.assert_array_equal(opacity, expected)
        np.testing.assert_array_equal(pixels[..., 0], np.asarray(image.convert("RGB").convert("L")))


def test_one_image_of_another_size(tmp_path):
    write(tmp_path / "x.png", (5, 4))
    with pytest.raises(InputError, match=r"x\.png has the height and width 5 x 4, and 8 x 8 are wanted"):
        read_image(str(tmp_path / "x.png"), (8, 8, 1))
