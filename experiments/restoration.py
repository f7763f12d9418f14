"""What reconstructions are good for: their error and PSNR, noise taken away, a masked region filled; PCA beside them.

Pure functions of NumPy arrays, images `[N, *event]`. A mean squared error is of one pixel (and channel), in squares of
the data's unit; the peak signal-to-noise ratio is in decibels, and both are of all images together.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from aevb.errors import InputError
from experiments import numbers

# Batch-wise: images `[B, *event]` and their indices in the split, int `[B]`, to images `[B, *event]`. What else is
# needed, a key or a context, is found by index, so that the size of a batch changes no draw.
ImageFn = Callable[[np.ndarray, np.ndarray], np.ndarray]
BATCH = 500


def told(errors: np.ndarray, data_range: float) -> dict[str, float | None]:
    """Of mean squared errors, one an image: `mse`, their mean; `mse_stderr`, over images; `psnr`, of the mean.

    The peak signal-to-noise ratio is `10 log10(data_range^2 / mse)` in decibels. (The mean of the PSNR of each image is
    another number, and a larger one.)

    Args:
      errors: of a pixel, `[N]`, finite, at least 0, in squares of the data's unit.
      data_range: the largest value less the smallest that a pixel can have, 1 for [0, 1] and 255 for bytes; positive.

    Returns:
      By name; the PSNR of an error that float32's rounding accounts for is infinite, so None: no JSON holds it.

    Raises:
      InputError: the range is not positive.
    """
    if not (data_range > 0 and math.isfinite(data_range)):
        raise InputError(f"data_range is {data_range}: give the positive width of the range of a pixel, such as 1")
    mse = float(errors.mean(dtype=np.float64))
    exact = mse < (np.finfo(np.float32).eps * data_range) ** 2
    psnr = None if exact else 10 * math.log10(data_range**2 / mse)
    return {"mse": mse, "mse_stderr": numbers.standard_error(errors), "psnr": psnr}


def reconstructing(x: np.ndarray, reconstruct: ImageFn, data_range: float) -> dict[str, float | None]:
    """The error of reconstructing images: `reconstruction_mse`, its standard error over images, `reconstruction_psnr`.

    Args:
      x: images `[N, *event]`, finite.
      reconstruct: images to their reconstructions, batch-wise.
      data_range: as in `told`.

    Returns:
      By name; a PSNR that is infinite is None, as no JSON holds it.

    Raises:
      InputError: as in `told`, or images and reconstructions differ in shape or are not finite.
    """
    return _named("reconstruction", told(squared_errors(x, reconstruct), data_range))


def squared_errors(x: np.ndarray, reconstruct: ImageFn) -> np.ndarray:
    """The mean squared error of each image's reconstruction, `[N]`; arguments and errors as in `reconstructing`.

    Batch by batch: as float64 a training set may not fit beside its reconstructions.
    """
    if not len(x):
        return _errors(x, x)
    starts = range(0, len(x), BATCH)
    return np.concatenate([_errors(x[i : i + BATCH], _batch(reconstruct, x, i)) for i in starts])


def denoising(x: np.ndarray, corrupt: ImageFn, reconstruct: ImageFn, data_range: float) -> dict[str, float | None]:
    """The error of the clean images' reconstructions from noisy ones, beside that of the noisy ones themselves.

    Args:
      x: the clean images `[N, *event]`, finite.
      corrupt: clean images to noisy ones, batch-wise.
      reconstruct: noisy images to clean ones, batch-wise.
      data_range: as in `told`.

    Returns:
      `denoising_mse`, `denoising_mse_stderr`, `denoising_psnr` and `noisy_psnr`, which a model that changed nothing
      would have; the PSNR are None where infinite.

    Raises:
      InputError: as in `reconstructing`.
    """
    noisy = _in_batches(corrupt, x)
    found = _named("denoising", told(_errors(x, _in_batches(reconstruct, noisy)), data_range))
    return found | {"noisy_psnr": told(_errors(x, noisy), data_range)["psnr"]}


def centred_rectangle(height: int, width: int, share: float) -> np.ndarray:
    """A centred rectangle of about this share of the area, of the image's own proportions: bool `[height, width]`.

    Its sides are those of the image times `sqrt(share)`, to the nearest pixel and at least one.

    Raises:
      InputError: the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"the share of the area to mask is {share}: give one above 0 and below 1")
    mask = np.zeros((height, width), bool)
    sides = [max(1, round(side * math.sqrt(share))) for side in (height, width)]
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def inpainting(
    x: np.ndarray, reconstruct: ImageFn, share: float, data_range: float, mean_image: np.ndarray
) -> dict[str, float | None]:
    """The error of filling in a centred rectangle, measured on its pixels alone.

    Args:
      x: images `[N, height, width, ...]`, finite.
      reconstruct: images in which the rectangle is 0 to whole ones, batch-wise.
      share: of the area, about, in (0, 1); see `centred_rectangle`.
      data_range: as in `told`.
      mean_image: of the training images, `[height, width, ...]`.

    Returns:
      `inpainting_mse`, `inpainting_mse_stderr` and `inpainting_psnr`; `inpainting_share`, that of the area which was
      masked; `mean_image_mse`, of filling in the mean image, which knows nothing of the visible pixels.

    Raises:
      InputError: as in `reconstructing` and `centred_rectangle`, or the datapoints are no images.
    """
    if x.ndim < 3:
        raise InputError(f"datapoints of shape {x.shape[1:]} have no rectangle to mask: give images, height and width")
    mask = centred_rectangle(x.shape[1], x.shape[2], share)
    masked = x.copy()
    masked[:, mask] = 0
    filled, hidden = _in_batches(reconstruct, masked)[:, mask], np.asarray(x, np.float64)[:, mask]
    found = _named("inpainting", told(_errors(hidden, filled), data_range))
    blind = _errors(hidden, np.broadcast_to(mean_image[mask], hidden.shape))
    return found | {"inpainting_share": float(mask.mean()), "mean_image_mse": float(blind.mean())}


class PCA(NamedTuple):
    """The linear subspace of largest variance: of all linear codes of its size, the one with the smallest error.

    Attributes:
      mean: of the training images, flat, `[pixels]`.
      components: orthonormal rows, by falling variance, `[code, pixels]`.
    """

    mean: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, size: int, seed: int) -> Self:
        """Fit images `[N, *event]`; as many components as asked, at most N and as many as there are pixels.

        Exact up to 1000 pixels, by the covariance, or where the code is nearly as large as the data; else by random
        projections, from the seed (Halko et al., 0909.4061).

        Raises:
          InputError: the size is below 1, or an image is not finite.
        """
        from sklearn.decomposition import PCA as SklearnPCA

        flat = _flat(x)
        if size < 1 or not flat.size:
            raise InputError(f"{size} components were asked of images {x.shape}: ask for at least 1, of at least 1")
        if not np.isfinite(flat).all():
            raise InputError(f"{np.sum(~np.isfinite(flat).all(axis=1))} of {len(x)} images are not finite: clean them")
        solver = "covariance_eigh" if flat.shape[1] <= 1000 else "auto"
        fitted = SklearnPCA(min(size, *flat.shape), svd_solver=solver, random_state=seed).fit(flat)
        return cls(fitted.mean_, fitted.components_)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Images `[N, *event]` to codes `[N, code]`, `(x - mean) components^T`."""
        return (_flat(x) - self.mean) @ self.components.T

    def reconstruct(self, x: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
        """Images `[N, *event]` to the nearest ones of the subspace: an `ImageFn`, for whom the index is nothing."""
        return (self.encode(x) @ self.components + self.mean).reshape(x.shape)


def _named(prefix: str, found: dict[str, float | None]) -> dict[str, float | None]:
    return {f"{prefix}_{name}": value for name, value in found.items()}


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)  # eigenvalues far below the first need the digits


def _in_batches(fn: ImageFn, x: np.ndarray) -> np.ndarray:
    return np.concatenate([_batch(fn, x, start) for start in range(0, len(x), BATCH)]) if len(x) else x


def _batch(fn: ImageFn, x: np.ndarray, start: int) -> np.ndarray:
    indices = np.arange(start, min(start + BATCH, len(x)))
    out = np.asarray(fn(x[indices], indices))
    if out.shape != (len(indices), *x.shape[1:]):
        raise InputError(
            f"of images {(len(indices), *x.shape[1:])} came images {out.shape}: a reconstruction has the shape of "
            "what it reconstructs"
        )
    return out


def _errors(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean squared error of each image, `[N]`."""
    if x.shape != other.shape or not x.size:
        raise InputError(f"the images are {x.shape} and their reconstructions {other.shape}: give some, of one shape")
    for images, what in ((x, "images"), (other, "reconstructions")):
        if not np.isfinite(images).all():
            bad = np.sum(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))
            raise InputError(f"{bad} of {len(images)} {what} are not finite: look at what made them")
    return np.square(_flat(x) - _flat(other)).mean(axis=1)  # bytes, too, are subtracted as numbers
