"""A person's own arrays: .npy and .npz files."""

import dataclasses
import math
import sys
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aevb.data.published import source_root
from aevb.data.splits import Split
from aevb.errors import InputError

LAYOUTS = (  # split -> (key of the examples, key of the labels)
    {"train": ("examples", "labels")},
    {part: (part, f"{part}_labels") for part in ("train", "validation", "test")},
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},  # Keras
)
UNDERSTOOD = (
    "one array of any name, or examples (labels), or train, validation, test (train_labels, ...), "
    "or x_train, x_test (y_train, y_test)"
)
CHUNK_BYTES = 1 << 26


def converted(values: np.ndarray, where: str, first: int = 0) -> np.ndarray:
    """Values as uint8 (bool, integers from 0 to 255) or float32, as their type has it.

    Args:
      values: any array `[N, *event]`.
      where: file and key, for messages.
      first: index of `values[0]` in the whole array, for messages.

    Raises:
      InputError: another type, integers outside 0..255, NaN or infinity (also by rounding to float32).
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(values.dtype, np.integer):
        wrong, result = (values < 0) | (values > 255), values.astype(np.uint8)
        advice = "integers stand for grey levels 0 to 255, so rescale them or store floats"
    elif np.issubdtype(values.dtype, np.floating):
        with np.errstate(over="ignore"):
            result = values.astype(np.float32)
        wrong = ~np.isfinite(result)
        advice = "remove or replace what is not a finite float32"
    else:
        raise InputError(f"{where} has the type {values.dtype}; store uint8, bool, integers 0 to 255 or floats")
    if wrong.any():
        index = np.argwhere(wrong)[0]
        place = [int(index[0]) + first, *map(int, index[1:])]
        raise InputError(f"{where} holds {values[tuple(index)]} at index {place}; {advice}")
    return result


@dataclasses.dataclass
class NpyFile:
    """The examples of a .npy file, left on disk, converted one at a time; each process maps it for itself."""

    path: str

    def __post_init__(self) -> None:
        self._map = np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.__init__(path)

    def __len__(self) -> int:
        return len(self._map)

    def __getitem__(self, index: int) -> np.ndarray:
        return converted(np.array(self._map[index])[None], self.path, index)[0]


def _examples(values: np.ndarray, where: str) -> np.ndarray | NpyFile:
    if values.ndim < 2 or 0 in values.shape:
        raise InputError(f"{where} has the shape {list(values.shape)}; examples are [N, *event] with no size 0")
    if not isinstance(values, np.memmap):
        return converted(values, where)
    rows = max(1, CHUNK_BYTES // (values.itemsize * math.prod(values.shape[1:])))
    for start in range(0, len(values), rows):  # every value is checked now, not in the middle of a run
        converted(values[start : start + rows], where, start)
    return NpyFile(str(values.filename))


def _labels(values: np.ndarray, count: int, where: str) -> np.ndarray:
    if values.shape in ((count,), (count, 1)) and np.issubdtype(values.dtype, np.integer):
        return np.asarray(values).reshape(count).astype(np.int32)
    vectors = values.ndim == 2 and len(values) == count and np.issubdtype(values.dtype, np.floating)
    if vectors and np.isfinite(values).all():
        return np.asarray(values, np.float32)
    raise InputError(
        f"{where} holds {values.dtype} {list(values.shape)}; expected a class for each example, integers [{count}], "
        f"or a vector, finite floats [{count}, size]"
    )


def _load(path: Path, memory_limit_mb: int) -> dict[str, np.ndarray]:
    """The arrays of one file by key; a .npy's goes by the file's name, memory-mapped if it is large."""
    try:
        if path.suffix == ".npy" and path.stat().st_size > memory_limit_mb * 2**20:
            return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
        with path.open("rb") as file:  # np.load leaves a file open that it cannot read
            content = np.load(file, allow_pickle=False)
            return {path.stem: content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "not a file of plain arrays" if "pickle" in str(error) else " ".join(str(error).split())
        raise InputError(f"cannot read {path} ({reason}); write it again by np.save or np.savez") from error


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        if path.suffix not in (".npy", ".npz"):
            raise InputError(f"{path} is neither a .npy nor a .npz file; write it by np.save or np.savez")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz"))
    if not found or (len(found) > 1 and any(file.suffix == ".npz" for file in found)):
        names = ", ".join(file.name for file in found) or "no arrays"
        raise InputError(f"{path} holds {names}; expected one .npz file, or .npy files named like its keys")
    return found


def read_given(path: Path, event_shape: tuple[int, ...]) -> np.ndarray:
    """The examples of a .npy file, `[N, *event]` or one `[*event]`: uint8 or float32 `[N, *event]`, as `converted`.

    Raises:
      InputError: it cannot be read, holds examples of another shape or none, or values that are no data.
    """
    values = _load(path, sys.maxsize)[path.stem]
    if values.shape == tuple(event_shape):
        values = values[None]
    if values.shape[1:] != tuple(event_shape) or not len(values):
        raise InputError(
            f"{path} has the shape {list(values.shape)}; wanted are examples of shape {list(event_shape)}, one, or "
            "several along a first axis"
        )
    return converted(values, str(path))


def read_arrays(name: str, data_dir: Path | None, memory_limit_mb: int) -> dict[str, Split]:
    """The splits in a .npz file, a .npy file, or a folder of .npy files named like a .npz file's keys.

    Args:
      name: the source's name.
      data_dir: the file, its folder, or the folder above `arrays/`.
      memory_limit_mb: a larger .npy file stays on disk.

    Returns:
      The splits found; types as `converted` has them, labels int32 `[N]` or float32 `[N, size]`.

    Raises:
      InputError: unreadable files, unknown keys, values that are no data, labels that do not fit.
    """
    if data_dir is None:
        raise InputError("the data set arrays needs --config.data.dir: a .npy or .npz file, or a folder that holds it")
    root = source_root(data_dir, name)
    arrays: dict[str, np.ndarray] = {}
    for file in _files(root):
        arrays |= _load(file, memory_limit_mb)
    if len(arrays) == 1:
        layout = {"train": (next(iter(arrays)), None)}
    else:
        layouts = [layout for layout in LAYOUTS if _fits(layout, set(arrays))]
        if not layouts:
            raise InputError(f"{root} holds {', '.join(arrays) or 'no arrays'}; understood are {UNDERSTOOD}")
        layout = layouts[0]
    splits = {}
    for part, (key, label_key) in layout.items():
        if key in arrays:
            examples = _examples(arrays[key], f"{root}: {key}")
            labels = arrays.get(label_key)
            if labels is not None:
                labels = _labels(labels, len(examples), f"{root}: {label_key}")
            splits[part] = Split(examples, labels)
    return splits


def _fits(layout: dict[str, tuple[str, str]], keys: set[str]) -> bool:
    """Whether all keys belong to the layout, it has a train split, and no labels lack their examples."""
    known = {key for pair in layout.values() for key in pair}
    orphans = [pair for pair in layout.values() if pair[1] in keys and pair[0] not in keys]
    return keys <= known and layout["train"][0] in keys and not orphans
