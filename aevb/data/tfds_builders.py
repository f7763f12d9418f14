"""TFDS builders of the published sets that need no TensorFlow: Python unpacks, images are stored as bytes.

TFDS's own builders of these sets need TensorFlow to unpack and encode, so these have names of their own.
Importing this module registers them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from aevb.data.published import PUBLISHED, check_reachable, local_files
from aevb.data.splits import Split


class _Published(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of PUBLISHED, from the files in `manual_dir` or else downloaded; both are checked by content."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the published files there, gzipped or not; otherwise they are downloaded."
    SOURCE: ClassVar[str]
    IMAGE_SHAPE: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    HAS_LABELS: ClassVar[bool] = True

    @property
    def url_infos(self) -> dict[str, Any]:
        """URL -> size and checksum, instead of a checksums.tsv beside this file."""
        source = PUBLISHED[self.SOURCE]
        return {
            f"{source.url}{stem}{source.suffix}": tfds.download.checksums.UrlInfo(*known, f"{stem}{source.suffix}")
            for stem, known in source.files.items()
            if known
        }

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Tensor(shape=self.IMAGE_SHAPE, dtype=np.uint8, encoding="bytes")}
        if self.HAS_LABELS:
            features["label"] = tfds.features.ClassLabel(num_classes=10)
        # In the published order: the last rows of MNIST's train are its validation split.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        source = PUBLISHED[self.SOURCE]
        try:
            paths = local_files(self.SOURCE, Path(dl_manager.manual_dir))
        except AssertionError:  # TFDS's way to say that there is no such folder, or nothing in it
            paths = None
        if paths is None:
            check_reachable(source.url + next(iter(source.files)) + source.suffix)  # TFDS would try for minutes
            paths = dl_manager.download({stem: f"{source.url}{stem}{source.suffix}" for stem in source.files})
        return {part: self._generate_examples(split) for part, split in source.read(paths).items()}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, image in enumerate(split.examples):
            yield index, {"image": image} | ({"label": split.labels[index]} if self.HAS_LABELS else {})


class AevbMnist(_Published):
    """MNIST."""

    SOURCE = "mnist"


class AevbFashionMnist(_Published):
    """Fashion-MNIST."""

    SOURCE = "fashion_mnist"


class AevbBinarizedMnist(_Published):
    """Larochelle's binarized MNIST, 0/255."""

    SOURCE = "binarized_mnist"
    HAS_LABELS = False


class AevbFreyFace(_Published):
    """Frey Face."""

    SOURCE = "frey_face"
    IMAGE_SHAPE = (28, 20, 1)
    HAS_LABELS = False
