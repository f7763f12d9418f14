"""Arrays of a person's own: every layout, every type, every way to be wrong."""

import pickle

import numpy as np
import pytest

from aevb import data
from aevb.data.arrays import read_given
from aevb.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 3), np.uint8)
LABELS = np.arange(12)


def load(path, **kwargs):
    sizes = {"validation_size": 0, "test_size": 0, "seed": 0, "memory_limit_mb": 100}
    return data.load("arrays", data_dir=str(path), **sizes | kwargs)


def error(path):
    """The message of the InputError, which must be one line and name the path."""
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def saved(tmp_path, values, name="x.npy"):
    np.save(tmp_path / name, values)
    return tmp_path / name


def test_npy_file_folder_and_folder_above(tmp_path):
    (tmp_path / "arrays").mkdir()
    path = saved(tmp_path / "arrays", IMAGES)
    for place in (path, path.parent, tmp_path):
        loaded = load(place)
        assert loaded.event_shape == (4, 3) and loaded.train.labels is None
        np.testing.assert_array_equal(loaded.train.examples, IMAGES)


@pytest.mark.parametrize(
    ("arrays", "sizes", "labelled"),
    [
        ({"anything": IMAGES}, [12, 0, 0], []),
        ({"examples": IMAGES, "labels": LABELS}, [12, 0, 0], ["train", "validation", "test"]),
        ({"train": IMAGES, "test": IMAGES[:5], "test_labels": LABELS[:5]}, [12, 0, 5], ["test"]),
        (
            {"train": IMAGES, "train_labels": LABELS, "validation": IMAGES[:2], "test": IMAGES[:5]},
            [12, 2, 5],
            ["train"],
        ),
        (
            {"x_train": IMAGES, "y_train": LABELS[:, None], "x_test": IMAGES[:5], "y_test": LABELS[:5]},
            [12, 0, 5],
            ["train", "validation", "test"],
        ),
    ],
)
@pytest.mark.parametrize("files", [False, True])
def test_layouts(tmp_path, arrays, sizes, labelled, files):
    if files:
        for key, values in arrays.items():
            saved(tmp_path, values, f"{key}.npy")
    else:
        np.savez(tmp_path / "x.npz", **arrays)
    loaded = load(tmp_path, memory_limit_mb=0 if files else 100)
    splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}
    assert [len(split.examples) for split in splits.values()] == sizes
    assert [part for part, split in splits.items() if split.labels is not None] == labelled
    if "train" in labelled:
        assert loaded.train.labels.dtype == np.int32
        np.testing.assert_array_equal(loaded.train.labels, LABELS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (IMAGES, IMAGES),
        (IMAGES > 99, np.where(IMAGES > 99, 255, 0).astype(np.uint8)),
        (IMAGES.astype(np.int64), IMAGES),
        (IMAGES.astype(">u2"), IMAGES),
        (IMAGES / 255, (IMAGES / 255).astype(np.float32)),
        (np.asfortranarray(IMAGES.astype(np.float16)), IMAGES.astype(np.float32)),
    ],
)
def test_types_in_memory_and_on_disk(tmp_path, values, expected):
    path = saved(tmp_path, values)
    whole = load(path, test_size=3).test.examples
    lazy = load(path, test_size=3, memory_limit_mb=0).test.examples
    assert isinstance(whole, np.ndarray) and not isinstance(lazy, np.ndarray)
    order = np.random.Generator(np.random.Philox(0)).permutation(12)[:3]
    assert whole.dtype == expected.dtype
    np.testing.assert_array_equal(whole, expected[order])
    for examples in (lazy, pickle.loads(pickle.dumps(lazy))):
        assert len(examples) == 3 and len(pickle.dumps(examples)) < 1000
        for i in range(3):
            assert examples[i].dtype == expected.dtype
            np.testing.assert_array_equal(examples[i], whole[i])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.full((3, 2), 256), "256 at index \\[0, 0\\]"),
        (np.array([[0, 1], [2, -7]]), "-7 at index \\[1, 1\\]"),
        (np.array([[0.0, 1], [np.nan, np.inf]]), "nan at index \\[1, 0\\]"),
        (np.array([[0.0, 1], [0, 1e39]]), "1e\\+39 at index \\[1, 1\\]"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([["a", "b"]]), "<U1"),
        (np.zeros(5), "\\[5\\]"),
        (np.zeros((0, 3)), "\\[0, 3\\]"),
        (np.zeros((3, 0)), "\\[3, 0\\]"),
        (np.array([[{}]]), "cannot read|Python objects"),
    ],
)
@pytest.mark.parametrize("memory_limit_mb", [0, 100])
def test_values_that_are_no_data(tmp_path, monkeypatch, values, found, memory_limit_mb):
    monkeypatch.setattr("aevb.data.arrays.CHUNK_BYTES", 1)  # a row at a time, so that indices must be shifted
    path = saved(tmp_path, values)
    with pytest.raises(InputError, match=found) as caught:
        load(path, memory_limit_mb=memory_limit_mb)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"a": IMAGES, "b": IMAGES}, "holds a, b; understood are one array"),
        ({"test": IMAGES, "validation": IMAGES}, "holds test, validation"),
        ({"train": IMAGES, "test_labels": LABELS}, "holds train, test_labels"),
        ({"examples": IMAGES, "labels": LABELS, "extra": LABELS}, "extra"),
        ({}, "holds no arrays"),
        ({"examples": IMAGES, "labels": LABELS[:5]}, "holds int64 [5]; expected a class for each example"),
        ({"examples": IMAGES, "labels": LABELS / 2}, "labels holds float64 [12]"),
    ],
)
def test_keys_and_labels_that_do_not_fit(tmp_path, arrays, found):
    np.savez(tmp_path / "x.npz", **arrays)
    assert found in error(tmp_path / "x.npz")


def test_event_shapes_that_differ(tmp_path):
    np.savez(tmp_path / "x.npz", train=IMAGES, test=IMAGES[:, :2])
    with pytest.raises(InputError, match=r"the test examples are uint8 \[2, 3\].*uint8 \[4, 3\]"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 100, -5])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("memory_limit_mb", [0, 100])
def test_damaged_files(tmp_path, name, keep, memory_limit_mb):
    path = tmp_path / name
    np.save(path, IMAGES) if name == "x.npy" else np.savez(path, IMAGES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"cannot read {path}"):
        load(path, memory_limit_mb=memory_limit_mb)


def test_garbage_and_other_files(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"not an array at all")
    assert "cannot read" in error(tmp_path / "x.npy")
    (tmp_path / "x.csv").write_text("1,2")
    assert "neither a .npy nor a .npz" in error(tmp_path / "x.csv")


def test_folders_without_one_meaning(tmp_path):
    assert "holds no arrays; expected one .npz" in error(tmp_path)
    np.savez(tmp_path / "a.npz", IMAGES)
    saved(tmp_path, IMAGES, "b.npy")
    assert "holds a.npz, b.npy" in error(tmp_path)


def test_arrays_need_a_place():
    with pytest.raises(InputError, match=r"arrays needs --config\.data\.dir"):
        data.load("arrays", data_dir=None, validation_size=0, test_size=0, seed=0, memory_limit_mb=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (IMAGES, IMAGES),
        (IMAGES[0], IMAGES[:1]),
        (IMAGES > 99, (IMAGES > 99) * np.uint8(255)),
        (IMAGES / 255, np.float32(IMAGES / 255)),
    ],
)
def test_examples_of_a_given_shape(tmp_path, values, expected):
    np.save(tmp_path / "x.npy", values)
    found = read_given(tmp_path / "x.npy", (4, 3))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (IMAGES[..., :2], r"x\.npy has the shape \[12, 4, 2\]; wanted are examples of shape \[4, 3\]"),
        (IMAGES[:0], r"\[0, 4, 3\]"),
        (np.full((4, 3), np.nan), r"x\.npy holds nan at index \[0, 0, 0\]"),
        (np.array(3), r"x\.npy has the shape \[\]"),
    ],
)
def test_examples_of_no_such_shape(tmp_path, values, words):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(InputError, match=words):
        read_given(tmp_path / "x.npy", (4, 3))
