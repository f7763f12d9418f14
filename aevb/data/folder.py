"""A folder of images, with train/, validation/ and test/ below it or not, and with class folders or not."""

import contextlib
import dataclasses
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aevb.data.published import source_root
from aevb.data.splits import Split
from aevb.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """An image of Pillow; what goes wrong while reading it names the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"cannot read the image {path} ({type(error).__name__}); repair or remove it") from error


def _shape(path: str) -> tuple[int, int, int]:
    """Height, width and channels as the header has them."""
    with _opened(path) as image:
        if image.mode in DEEP_MODES:
            raise InputError(f"the image {path} has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
        return image.height, image.width, 1 if image.mode in GREY_MODES else 3


def _decode(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    with _opened(path) as image:
        if image.mode == "P":
            image = image.convert("RGBA")  # straight from it, Pillow warns about transparency in the palette
        pixels = np.asarray(image.convert("L" if shape[2] == 1 else "RGB"))
    return pixels.reshape(shape)


def read_image(path: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """One image in the channels of others.

    Args:
      path: the file.
      shape: height, width and channels, 1 or 3; other channels are converted to these.

    Returns:
      The image, uint8 `[height, width, channels]`, and its opacity, uint8 `[height, width]`, 255 where nothing shines
      through; None of an image without transparency.

    Raises:
      InputError: it cannot be read, has more than 8 bits a channel, or another height or width.
    """
    height, width, _ = _shape(path)
    if (height, width) != tuple(shape[:2]):
        raise InputError(
            f"the image {path} has the height and width {height} x {width}, and {shape[0]} x {shape[1]} are wanted: "
            "crop or resize it"
        )
    with _opened(path) as image:
        opacity = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
    return _decode(path, shape), opacity


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Images of one shape, decoded one at a time."""

    paths: tuple[str, ...]
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return _decode(self.paths[index], self.shape)


def _listing(folder: Path) -> dict[str, str | None]:
    """path -> class folder, or None for images that lie in `folder` itself, in the order of the paths."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    classes = {str(path): path.relative_to(folder).parts[0] if path.parent != folder else None for path in paths}
    if not classes:
        raise InputError(f"{folder} holds no images; understood are {' '.join(SUFFIXES)}")
    if None in classes.values() and len(set(classes.values())) > 1:
        raise InputError(f"{folder} holds images both beside and inside class folders; use one or the other")
    return classes


def read_folder(name: str, data_dir: Path | None, memory_limit_mb: int) -> dict[str, Split]:
    """The splits of an image folder; uint8 `[height, width, 1 or 3]`, without transparency.

    Args:
      name: the source's name.
      data_dir: the folder, or the one above `folder/`.
      memory_limit_mb: the images stay files if they need more than this once decoded, in all splits together.

    Returns:
      `train`, and `validation` and `test` if they exist; a label is the rank of the class folder in train.

    Raises:
      InputError: no images, an unreadable image, images of several shapes, a class that train does not have.
    """
    if data_dir is None:
        raise InputError("the data set folder needs --config.data.dir: a folder of images")
    root = source_root(data_dir, name)
    folders = {part: root / part for part in ("train", "validation", "test") if (root / part).is_dir()}
    if folders and "train" not in folders:
        raise InputError(f"{root} holds {' and '.join(folders)} but no train; add it")
    listings = {part: _listing(folder) for part, folder in (folders or {"train": root}).items()}

    shapes = {path: _shape(path) for listing in listings.values() for path in listing}
    first, shape = next(iter(shapes.items()))
    for path, other in shapes.items():
        if other != shape:
            raise InputError(
                f"images differ in (height, width, channels): {first} has {shape} and {path} has {other}; "
                "crop, resize or convert them to one"
            )
    classes = sorted({str(label) for label in listings["train"].values()})
    in_memory = len(shapes) * math.prod(shape) <= memory_limit_mb * 2**20
    splits = {}
    for part, listing in listings.items():
        unknown = [path for path, label in listing.items() if str(label) not in classes]
        if unknown:
            raise InputError(f"{unknown[0]} is of a class that {root / 'train'} lacks; add the class or remove it")
        images = ImageFiles(tuple(listing), shape)
        labels, names = None, ()
        if None not in listing.values():
            labels, names = np.array([classes.index(label) for label in listing.values()], np.int32), tuple(classes)
        examples = np.stack([images[i] for i in range(len(images))]) if in_memory else images
        splits[part] = Split(examples, labels, names)
    return splits
