"""Whether a model's probabilities are what happens: reliability of binary pixels, coverage of intervals of others."""

import dataclasses

import numpy as np

from experiments import numbers

NUM_BINS = 20
LEVELS = np.arange(1, NUM_BINS) / NUM_BINS  # of central predictive intervals


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """A curve that a calibrated method has on the diagonal, and numbers that sum it up: `name: (value, stderr)`.

    Attributes:
      predicted: the mean predicted probability in each bin, or the level of each interval.
      observed: the share of pixels that are 1, or that lie inside.
    """

    predicted: np.ndarray
    observed: np.ndarray
    numbers: dict[str, tuple[float, float]]


def reliability(probability: np.ndarray, x: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """How often pixels are 1, against the probability that was given for it, in bins of equal width.

    The expected calibration error is the mean over pixels of |share of ones - mean probability| of their bin; its
    standard error is by the bootstrap over images, whose pixels belong together.

    Args:
      probability: of a 1, `[n, pixels]`.
      x: binary, `[n, pixels]`.
      num_bins: of which empty ones are left out of the curve.
    """
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    places = bins + num_bins * np.arange(len(x))[:, None]

    def sums(values: np.ndarray) -> np.ndarray:
        """By image and bin, `[n, bins]`."""
        return np.bincount(places.ravel(), values.ravel(), num_bins * len(x)).reshape(len(x), num_bins)

    counts, given, ones = sums(np.ones_like(probability)), sums(probability), sums(x)
    times = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), size=200)
    again = np.abs(times @ (ones - given)).sum(axis=1) / (times @ counts).sum(axis=1)
    error = float(np.abs((ones - given).sum(axis=0)).sum() / counts.sum())
    count, given, ones = (parts.sum(axis=0)[counts.any(axis=0)] for parts in (counts, given, ones))
    return Calibration(given / count, ones / count, {"expected_calibration_error": (error, float(again.std(ddof=1)))})


def coverage(cdf: np.ndarray) -> Calibration:
    """The share of pixels inside the central predictive interval of each level, standard error over images.

    Args:
      cdf: the predictive distribution's at each pixel, `[n, pixels]`; uniform where the model is calibrated.
    """
    shares = (np.abs(2 * cdf - 1)[..., None] <= LEVELS + 1e-9).mean(axis=1)
    told = {}
    for level in (50, 90):
        share = shares[:, level * NUM_BINS // 100 - 1]
        told[f"share_within_{level}"] = (float(share.mean()), numbers.standard_error(share))
    return Calibration(LEVELS, shares.mean(axis=0), told)
