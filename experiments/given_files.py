"""Images of one's own, for a picture of what a model makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from aevb.data.arrays import read_given
from aevb.data.folder import SUFFIXES, read_image
from aevb.errors import InputError
from experiments import reconstruct


class Given(NamedTuple):
    """The examples of some files, in their order.

    Attributes:
      x: float32 `[N, *event]`, bytes as value / 255.
      transparent: of each bool `[height, width]`, where it is not wholly opaque; None of one that cannot be otherwise.
      paths: of each.
    """

    x: np.ndarray
    transparent: list[np.ndarray | None]
    paths: list[Path]

    def head(self, num: int) -> Self:
        """The first examples."""
        return type(self)(*(each[:num] for each in self))

    def hidden(self, usual: np.ndarray) -> np.ndarray:
        """What is to be filled in, bool `[N, height, width]`: what is transparent, or what is usual `[height, width]`.

        Raises:
          InputError: an image that may be transparent is so nowhere or everywhere.
        """
        for path, mask in zip(self.paths, self.transparent, strict=True):
            if mask is not None and mask.all():
                raise InputError(f"{path} is transparent everywhere: leave opaque what is to be seen of it")
            if mask is not None and not mask.any():
                raise InputError(
                    f"{path} is transparent nowhere: make transparent what is to be filled in, or save it without "
                    "transparency to have its centre hidden"
                )
        return np.stack([usual if mask is None else mask for mask in self.transparent])


def read(paths: Sequence[str], event_shape: tuple[int, ...]) -> Given:
    """Images and .npy files, `[N, *event]` or one `[*event]`, as datapoints of this shape.

    Raises:
      InputError: a file is not there, cannot be read, or holds none such.
    """
    if not any(paths):
        raise InputError("--files is empty: name some, separated by commas, or leave it out")
    examples, transparent, of = [], [], []
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"--files names {str(path)!r}, and there is no such file: correct it")
        if path.suffix == ".npy":
            each, mask = reconstruct.values(read_given(path, event_shape)), None
        else:
            each, mask = _image(path, event_shape)
        examples.append(each)
        transparent += [mask] * len(each)
        of += [path] * len(each)
    return Given(np.concatenate(examples), transparent, of)


def _image(path: Path, event_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """One image `[1, *event]`, and where it is transparent."""
    shape = (*event_shape, 1) if len(event_shape) == 2 else event_shape
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--files names {str(path)!r}, which is neither .npy nor an image ({' '.join(SUFFIXES)})")
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise InputError(
            f"--files names the image {str(path)!r}, and the model's datapoints have the shape {list(event_shape)}: "
            "give .npy files"
        )
    pixels, opacity = read_image(str(path), shape)
    return reconstruct.values(pixels).reshape(1, *event_shape), None if opacity is None else opacity < 255
