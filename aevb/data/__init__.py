"""Data sets by name: read, checked, and divided into train, validation and test."""

from collections.abc import Callable
from pathlib import Path

from aevb.data.arrays import read_arrays
from aevb.data.folder import read_folder
from aevb.data.generated import read_swiss_roll
from aevb.data.published import read_digits, read_published
from aevb.data.splits import (
    Datapoint,
    Dataset,
    LabelContext,
    RandomAccess,
    Split,
    divide,
    head,
    label_context,
    without_class,
)
from aevb.data.tfds_source import read_tfds
from aevb.errors import InputError

__all__ = [
    "SOURCES",
    "Datapoint",
    "Dataset",
    "LabelContext",
    "RandomAccess",
    "Split",
    "head",
    "label_context",
    "load",
    "without_class",
]

# name -> read(name, data_dir, memory_limit_mb), which returns the splits that the source has of its own.
SOURCES: dict[str, Callable[[str, Path | None, int], dict[str, Split]]] = {
    "digits": read_digits,
    "mnist": read_published,
    "fashion_mnist": read_published,
    "binarized_mnist": read_published,
    "frey_face": read_published,
    "swiss_roll": read_swiss_roll,
    "arrays": read_arrays,
    "folder": read_folder,
    "tfds": read_tfds,
}
LAST_ROWS = ("mnist", "fashion_mnist")  # validation is by custom the end of the published training set


def load(
    name: str,
    *,
    data_dir: str | None,
    validation_size: float,
    test_size: float,
    seed: int,
    memory_limit_mb: int,
) -> Dataset:
    """Loads a data set.

    Args:
      name: a key of SOURCES, or `tfds:NAME` for a TensorFlow Datasets name.
      data_dir: a folder that holds `mnist/`, `folder/`, ..., or the files themselves (`arrays`: or one file).
      validation_size: if the source has no validation split: a fraction below 1, else a number of examples.
      test_size: the same for the test split.
      seed: of the permutation that divides.
      memory_limit_mb: image folders, TFDS sets and .npy files of more MiB than this (decoded) stay on disk.

    Returns:
      The data set; binary data is 0/255, so that value/255 is the datapoint always.

    Raises:
      InputError: an unknown name, a missing or damaged file, values that are no data, sizes that do not fit.
    """
    source, _, rest = name.partition(":")
    if source not in SOURCES or (source == "tfds") != bool(rest):
        names = ", ".join(key for key in SOURCES if key != "tfds")
        raise InputError(f"unknown data set {name!r}; known are {names}, and tfds:NAME")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and not folder.exists():
        raise InputError(
            f"the data folder {folder} does not exist; correct data_dir (--config.data.dir or AEVB_DATA_DIR)"
        )
    parts = SOURCES[source](name, folder, memory_limit_mb)
    return divide(
        name,
        parts,
        validation_size=validation_size,
        test_size=test_size,
        seed=seed,
        last_rows=name in LAST_ROWS,
    )
