"""Splits are disjoint, cover the source, and depend on the seed alone."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from aevb import data
from aevb.data.splits import Split, divide
from aevb.errors import InputError


@dataclasses.dataclass(frozen=True)
class Lazy:
    values: np.ndarray

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


def numbered(count, start=0):
    values = np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    return Split(values, np.arange(start, start + count, dtype=np.int32))


def cut(parts, validation_size=0.2, test_size=0.1, seed=0, **kwargs):
    return divide("set", parts, validation_size=validation_size, test_size=test_size, seed=seed, **kwargs)


def rows(split):
    return [int(split.examples[i][0]) for i in range(len(split.examples))]


@pytest.mark.parametrize("lazy", [False, True])
def test_random_splits_are_disjoint_cover_and_keep_labels(lazy):
    whole = numbered(50)
    loaded = cut({"train": Split(Lazy(whole.examples), whole.labels) if lazy else whole})
    splits = [rows(split) for split in (loaded.train, loaded.validation, loaded.test)]
    assert [len(split) for split in splits] == [35, 10, 5]
    assert sorted(number for split in splits for number in split) == list(range(50))
    for split, numbers in zip((loaded.train, loaded.validation, loaded.test), splits, strict=True):
        np.testing.assert_array_equal(split.labels, numbers)
    assert "validation (10) and test (5) taken from train by a random permutation with seed 0" in loaded.splits


def test_seed_decides_and_test_does_not_depend_on_validation_size():
    parts = {"train": numbered(50)}
    assert rows(cut(parts).test) == rows(cut(parts, validation_size=7).test)
    assert rows(cut(parts, seed=1).test) != rows(cut(parts).test)


def test_own_splits_are_kept():
    parts = {"train": numbered(50), "validation": numbered(5, 50), "test": numbered(4, 60)}
    loaded = cut(parts, validation_size=20)
    assert (loaded.train, loaded.validation, loaded.test) == tuple(parts.values())
    assert loaded.splits == "all splits are the source's own: train (50), validation (5), test (4)"


def test_last_rows():
    loaded = cut({"train": numbered(50), "test": numbered(4)}, validation_size=10, last_rows=True)
    assert rows(loaded.train) == list(range(40)) and rows(loaded.validation) == list(range(40, 50))
    assert rows(loaded.test) == [0, 1, 2, 3] and "last rows" in loaded.splits


@pytest.mark.parametrize("lazy", [False, True])
def test_size_zero_gives_an_empty_split_with_event_shape(lazy):
    whole = numbered(5)
    loaded = cut({"train": Split(Lazy(whole.examples), None) if lazy else whole}, 0, 1)
    assert loaded.validation.examples.shape == (0, 2) and loaded.validation.examples.dtype == np.float32
    assert len(loaded.test.examples) == 1 and len(loaded.train.examples) == 4


@pytest.mark.parametrize(("size", "count"), [(0.5, 10), (0.04, 1), (0.01, 1), (1, 1), (3.0, 3)])
def test_fractions_and_counts(size, count):
    assert len(cut({"train": numbered(20)}, size, 0).validation.examples) == count


@pytest.mark.parametrize("size", [-1, -0.1, 1.5, math.nan, math.inf])
def test_sizes_that_are_none(size):
    with pytest.raises(InputError, match=f"validation_size={size}"):
        cut({"train": numbered(20)}, validation_size=size)


def test_nothing_left_to_train_on():
    with pytest.raises(InputError, match=r"validation_size=18.*20 examples of set"):
        cut({"train": numbered(20)}, validation_size=18, test_size=2)
    with pytest.raises(InputError, match=r"10000.*1797 examples of digits"):
        data.load("digits", data_dir=None, validation_size=10000, test_size=0, seed=0, memory_limit_mb=1)


def test_splits_of_different_events():
    other = Split(np.zeros((3, 5), np.float32), None)
    with pytest.raises(InputError, match=r"set: the test examples are float32 \[5\].*\[2\]"):
        cut({"train": numbered(20), "test": other})
    with pytest.raises(InputError, match="uint8"):
        cut({"train": numbered(20), "test": Split(np.zeros((3, 2), np.uint8), None)})


def test_negative_seed():
    with pytest.raises(InputError, match="seed=-1"):
        cut({"train": numbered(20)}, seed=-1)


@pytest.mark.parametrize("name", ["mnits", "tfds", "tfds:", "mnist:1", ""])
def test_unknown_name_lists_the_known(name):
    with pytest.raises(InputError, match=f"{name!r}.*digits, mnist,.*tfds:NAME"):
        data.load(name, data_dir=None, validation_size=0.1, test_size=0.1, seed=0, memory_limit_mb=1)


@pytest.mark.parametrize("name", ["mnist", "arrays", "folder", "tfds:cifar10"])
def test_missing_data_dir(name, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/absent does not exist"):
        data.load(name, data_dir=f"{tmp_path}/absent", validation_size=0.1, test_size=0.1, seed=0, memory_limit_mb=1)


def test_import_is_light():
    heavy = "tensorflow_datasets tensorflow grain sklearn PIL scipy"
    code = f"import sys, aevb.data; print([m for m in {heavy.split()!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("lazy", [False, True])
def test_a_class_held_out_is_left_in_the_test_split_alone(lazy):
    whole = Split(numbered(60).examples, np.arange(60, dtype=np.int32) % 3)
    loaded = cut({"train": Split(Lazy(whole.examples), whole.labels) if lazy else whole})
    without = data.without_class(loaded, 1)
    for name in ("train", "validation"):
        left, had = rows(getattr(without, name)), rows(getattr(loaded, name))
        assert left == [row for row in had if row % 3 != 1] and len(left) < len(had)
        np.testing.assert_array_equal(getattr(without, name).labels, np.array(left) % 3)
    assert rows(without.test) == rows(loaded.test) and without.splits.endswith(
        "class 1 left out of train and validation"
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(50, dtype=np.int32) % 2, "class 7 is to be held out, but the train split of set has only 0, 1"),
        (None, "class 7 is to be held out, but the train split of set has no classes"),
        (np.zeros((50, 2), np.float32), "has no classes"),
        (np.full(50, 7, np.int32), "class 7 is to be held out, and the train split of set has no other"),
    ],
)
def test_a_class_that_cannot_be_held_out(labels, message):
    loaded = cut({"train": Split(numbered(50).examples, labels)})
    with pytest.raises(InputError, match=message):
        data.without_class(loaded, 7)
