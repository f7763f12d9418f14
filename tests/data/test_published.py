"""Published formats against hand-made bytes, and against what is known of the published data."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from aevb import data
from aevb.data import published
from aevb.errors import InputError

SIZES = {"validation_size": 0.1, "test_size": 0.1, "seed": 0, "memory_limit_mb": 1000}


def idx(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def real(name):
    root = os.environ.get("AEVB_DATA_DIR")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"AEVB_DATA_DIR names no folder with {name}/")
    return root


def error(name, folder, **sizes):
    """The message of the InputError, which must be one line and name a path below `folder`."""
    with pytest.raises(InputError) as caught:
        data.load(name, data_dir=str(folder), **SIZES | sizes)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def write_idx_set(folder, train=3, test=2, labels=None, size=28):
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, size, size), np.uint8)
        classes = (np.arange(count if labels is None else labels) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(classes)))
        arrays[prefix] = images, classes
    return arrays


def test_parse_idx_reads_hand_made_bytes():
    content = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    np.testing.assert_array_equal(published.parse_idx(content, 3, Path("x")), [[[1, 2, 3]], [[4, 5, 255]]])
    labels = published.parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), 1, Path("x"))
    np.testing.assert_array_equal(labels, [7, 9])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "nothing"),
        (b"\0\0\x08\x03", "00000803"),
        (bytes([0, 0, 9, 3]) + bytes(12), "00000903"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]), "00000801"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 5]), "1 values"),
        (bytes([0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]), "0 values"),
    ],
)
def test_parse_idx_refuses_other_bytes(content, found):
    with pytest.raises(InputError, match=f"some/file.*{found}"):
        published.parse_idx(content, 3, Path("some/file"))


def test_parse_amat_reads_hand_made_text():
    images = published.parse_amat(b"0 1 1\n1 0 0\n", Path("x"), pixels=3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, [[0, 255, 255], [255, 0, 0]])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 bytes"),
        (b"0 1 1\n1 0", "9 bytes"),
        (b"0 1 1\n1 2 0\n", "line 2, value 2"),
        (b"0 1 1 1 0 0\n", "line 1"),
    ],
)
def test_parse_amat_refuses_other_text(content, found):
    with pytest.raises(InputError, match=f"some/file.*{found}"):
        published.parse_amat(content, Path("some/file"), pixels=3)


def test_damaged_idx_sets(tmp_path):
    write_idx_set(tmp_path / "mnist")
    assert "images [3, 28, 28], expected [60000, 28, 28]" in error("mnist", tmp_path)
    write_idx_set(tmp_path / "mnist", labels=1)
    message = error("mnist", tmp_path)
    assert "train-labels-idx1-ubyte.gz has 1 labels" in message and "has 3 images" in message
    labels = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-12])
    assert "train-labels-idx1-ubyte.gz (Compressed file ended" in error("mnist", tmp_path)
    labels.unlink()
    assert "lacks train-labels-idx1-ubyte" in error("mnist", tmp_path)


def test_content_is_checked(tmp_path, monkeypatch):
    arrays = write_idx_set(tmp_path / "fashion_mnist", train=60000, test=10000)
    loaded = data.load("fashion_mnist", data_dir=str(tmp_path), **SIZES | {"validation_size": 10000})
    images, labels = arrays["train"]
    np.testing.assert_array_equal(loaded.train.examples[..., 0], images[:50000])
    np.testing.assert_array_equal(loaded.validation.examples[..., 0], images[50000:])
    np.testing.assert_array_equal(loaded.validation.labels, labels[50000:])
    np.testing.assert_array_equal(loaded.test.examples[..., 0], arrays["t10k"][0])
    assert loaded.train.labels.dtype == np.int32 and "last rows" in loaded.splits

    digest = hashlib.md5(idx(images)).hexdigest()
    (tmp_path / "fashion_mnist").rename(tmp_path / "mnist")
    message = error("mnist", tmp_path)
    assert digest in message and published.MNIST_MD5["train-images-idx3-ubyte"] in message
    monkeypatch.setitem(published.MNIST_MD5, "train-images-idx3-ubyte", digest)
    assert "MNIST's file, not Fashion-MNIST's" in error("fashion_mnist", tmp_path / "mnist")


def test_binarized_mnist_refuses_other_content(tmp_path):
    for stem in published.BINARIZED_SHA256:
        (tmp_path / stem).write_bytes(b"0 1 " * 391 + b"0 1\n")
    assert "binarized_mnist_train.amat is not the published file" in error("binarized_mnist", tmp_path)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"gg": np.zeros((560, 1965), np.uint8)}, "holds gg, expected the key ff"),
        ({"ff": np.zeros((1965, 560), np.uint8)}, "uint8 \\[1965, 560\\]"),
        ({"ff": np.zeros((560, 1965))}, "float64"),
        ({"ff": np.zeros((560, 1965), np.uint8)}, "checksum"),
    ],
)
def test_frey_face_refuses_other_content(tmp_path, variables, found):
    scipy.io.savemat(tmp_path / "frey_rawface.mat", variables)
    with pytest.raises(InputError, match=f"frey_rawface.mat.*{found}"):
        data.load("frey_face", data_dir=str(tmp_path), **SIZES)


def test_frey_face_damaged_file(tmp_path):
    (tmp_path / "frey_rawface.mat").write_bytes(b"MATLAB 5.0" + bytes(300))
    assert "frey_rawface.mat is no readable MATLAB file" in error("frey_face", tmp_path)


def test_frey_face_takes_a_face_per_column(tmp_path, monkeypatch):
    faces = np.random.default_rng(0).integers(0, 256, (560, 1965), np.uint8)
    monkeypatch.setattr(published, "FREY_SHA256", hashlib.sha256(faces.tobytes()).hexdigest())
    scipy.io.savemat(tmp_path / "frey_rawface.mat", {"ff": faces})
    loaded = data.load("frey_face", data_dir=str(tmp_path), **SIZES | {"validation_size": 0, "test_size": 0})
    assert loaded.event_shape == (28, 20, 1) and loaded.test.examples.shape == (0, 28, 20, 1)
    assert loaded.train.examples[7, 3, 5, 0] == faces[3 * 20 + 5, 7]


def test_digits_are_the_published_ones_scaled():
    loaded = data.load("digits", data_dir=None, **SIZES | {"validation_size": 0, "test_size": 0})
    assert loaded.train.examples.shape == (1797, 8, 8, 1)
    assert set(np.unique(loaded.train.examples)) == {round(v * 255 / 16) for v in range(17)}
    # The first row of the data set's file (UCI optdigits.tes): 0,0,5,13,9,1,0,0.
    np.testing.assert_array_equal(loaded.train.examples[0, 0, :, 0], [0, 0, 80, 207, 143, 16, 0, 0])
    np.testing.assert_array_equal(np.bincount(loaded.train.labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_real_mnist():
    loaded = data.load("mnist", data_dir=real("mnist"), **SIZES | {"validation_size": 10000})
    assert loaded.event_shape == (28, 28, 1)
    assert [len(s.examples) for s in (loaded.train, loaded.validation, loaded.test)] == [50000, 10000, 10000]
    counts = np.bincount(loaded.train.labels) + np.bincount(loaded.validation.labels)
    np.testing.assert_array_equal(counts, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    np.testing.assert_array_equal(
        np.bincount(loaded.test.labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
    mean = (loaded.train.examples.mean() * 5 + loaded.validation.examples.mean()) / 6 / 255
    assert abs(mean - 0.1307) < 5e-5  # the mean that everyone normalises MNIST by


def test_real_binarized_mnist():
    loaded = data.load("binarized_mnist", data_dir=real("binarized_mnist"), **SIZES)
    splits = loaded.train, loaded.validation, loaded.test
    assert [split.examples.shape for split in splits] == [(n, 28, 28, 1) for n in (50000, 10000, 10000)]
    assert all(split.labels is None and set(np.unique(split.examples)) == {0, 255} for split in splits)
    assert "own" in loaded.splits


def test_real_frey_face():
    loaded = data.load("frey_face", data_dir=real("frey_face"), **SIZES)
    splits = loaded.train, loaded.validation, loaded.test
    assert [len(split.examples) for split in splits] == [1573, 196, 196]
    values = np.concatenate([split.examples for split in splits])
    assert (values.min(), values.max()) == (8, 238)
    # Neighbouring pixels of a picture are alike in both directions only if it is 28 rows of 20 pixels.
    assert np.abs(np.diff(values.astype(int), axis=1)).mean() < 25
    assert np.abs(np.diff(values.astype(int), axis=2)).mean() < 25  # 46 if the rows were 28 wide
