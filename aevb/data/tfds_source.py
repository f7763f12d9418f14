"""Sets of TensorFlow Datasets, read without TensorFlow, and prepared where that needs none or it is there."""

import contextlib
import dataclasses
import importlib.util
import logging
import math
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aevb.data.published import WAY_OUT, check_reachable, local_files, source_root
from aevb.data.splits import Split
from aevb.errors import InputError

BATCH = 1000  # records read at once, which is 2.5 times as fast as one by one


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints and logs its progress; a library should not."""
    log = logging.getLogger("absl")
    disabled, log.disabled = log.disabled, True
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            yield
    finally:
        log.disabled = disabled


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds

        from aevb.data import tfds_builders  # noqa: F401, its classes register themselves
    except ImportError as error:
        raise InputError(
            f"no local files, and TFDS needs {error.name}: pip install -e '.[tfds]', or {WAY_OUT}"
        ) from error
    tfds.disable_progress_bar()
    return tfds


@dataclasses.dataclass(frozen=True)
class TfdsImages:
    """The images of a TFDS split, decoded one at a time."""

    source: Sequence[dict[str, Any]]
    shape: tuple[int, ...]
    where: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        return _checked(self.source[index]["image"], self.shape, f"{self.where} image {index}")


def _checked(image: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape != shape:
        raise InputError(
            f"{where} is {image.dtype} {list(image.shape)} but the first is {list(shape)}; "
            "all must be uint8 [height, width, channels] of one shape"
        )
    return image


def _prepare(tfds: Any, dataset: str, tfds_dir: Path | None, data_dir: Path | None) -> Any:
    """Prepares a set as array_record; TFDS writes into a folder `incomplete.*` and renames it when done."""
    try:
        builder = tfds.builder(dataset, data_dir=tfds_dir, file_format="array_record")
    except ValueError as error:  # DatasetNotFoundError among them
        raise InputError(f"TFDS {tfds.__version__} knows no data set {dataset!r}; correct the name") from error
    source = dataset.removeprefix("aevb_")
    manual_dir = None
    if dataset.startswith("aevb_"):
        root = source_root(data_dir, source) if data_dir is not None else None
        manual_dir = root if root is not None and local_files(source, root) else None
    elif importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"tfds:{dataset} is not prepared in {builder.data_path} and TensorFlow, needed to prepare it, "
            f"is not installed; where it is, run tfds.builder({dataset!r}, file_format='array_record')"
            ".download_and_prepare()"
        )
    else:
        for url in {urllib.parse.urlsplit(url).netloc: url for url in builder.url_infos or ()}.values():
            check_reachable(url)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    failures = (
        OSError,
        tfds.core.download.util.DownloadError,
        tfds.core.download.download_manager.NonMatchingChecksumError,
    )
    try:
        builder.download_and_prepare(download_config=config)
    except failures as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot prepare tfds:{dataset} in {builder.data_path}: {reason}; try again") from error
    return builder.data_path


def _open(dataset: str, data_dir: Path | None) -> Any:
    """A builder that reads the prepared set, which is prepared first if it must and can be."""
    tfds = _import_tfds()
    tfds_dir = None
    if data_dir is not None:
        root = source_root(data_dir, "tfds")
        tfds_dir = root if root != data_dir or (root / dataset.split("/")[0].split(":")[0]).exists() else None
    with _quiet():
        try:
            return tfds.core.read_only_builder.builder_from_files(dataset, data_dir=tfds_dir)
        except ValueError:  # not prepared
            path = _prepare(tfds, dataset, tfds_dir, data_dir)
            return tfds.core.read_only_builder.builder_from_directory(path)


def read_tfds(name: str, data_dir: Path | None, memory_limit_mb: int) -> dict[str, Split]:
    """The splits of a TFDS set with a feature `image` and perhaps `label`.

    Args:
      name: `tfds:NAME`, with config and version as TFDS has them.
      data_dir: a folder that holds `tfds/` or the set's own folder; otherwise TFDS's default folder is used.
      memory_limit_mb: larger sets are decoded one image at a time (their labels are read through at once).

    Returns:
      TFDS's own `train`, `validation` and `test`, uint8 `[height, width, channels]` in the order stored.

    Raises:
      InputError: an unknown name, a set that is not prepared and cannot be, no network, no images.
    """
    dataset = name.removeprefix("tfds:")
    builder = _open(dataset, data_dir)
    features, sizes = builder.info.features, builder.info.splits
    if "image" not in features:
        raise InputError(f"{name} has no feature image; it has {', '.join(features)}")
    parts = [part for part in ("train", "validation", "test") if part in sizes and sizes[part].num_examples]
    if "train" not in parts:
        raise InputError(f"{name} has no split train; it has {', '.join(sizes)}")
    try:
        sources = {part: builder.as_data_source(part) for part in parts}
        first = sources["train"][0]["image"]
        shape = _checked(first, first.shape, f"{name}: the first train image").shape
        total = sum(len(source) for source in sources.values())
        in_memory = total * math.prod(shape) <= memory_limit_mb * 2**20
        return {
            part: _split(builder, part, source, shape, f"{name} {part}", in_memory) for part, source in sources.items()
        }
    except NotImplementedError as error:
        raise InputError(
            f"{name} is prepared in {builder.data_path} as {builder.info.file_format.value}, which has no "
            "random access; prepare it with file_format='array_record'"
        ) from error
    except RuntimeError as error:  # array_record's
        reason = " ".join(str(error).split())
        raise InputError(f"{builder.data_path} is damaged ({reason}); remove it and prepare it again") from error


def _split(builder: Any, part: str, source: Any, shape: tuple[int, ...], where: str, in_memory: bool) -> Split:
    has_labels = "label" in builder.info.features and builder.info.features["label"].shape == ()
    images = np.empty((len(source), *shape), np.uint8) if in_memory else TfdsImages(source, shape, where)
    labels = np.empty(len(source), np.int32) if has_labels else None
    if not in_memory:  # the labels alone
        from tensorflow_datasets import decode

        source = builder.as_data_source(part, decoders={"image": decode.SkipDecoding()})
    for start in range(0, len(source), BATCH) if in_memory or has_labels else ():
        rows = range(start, min(start + BATCH, len(source)))
        for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
            if in_memory:
                images[row] = _checked(record["image"], shape, f"{where} image {row}")
            if has_labels:
                labels[row] = record["label"]
    names = getattr(builder.info.features["label"], "names", None) if has_labels else None
    return Split(images, labels, tuple(names or ()))
