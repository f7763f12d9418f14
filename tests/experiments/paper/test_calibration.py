"""Calibration by closed forms."""

import numpy as np
import pytest
from scipy import stats

from experiments.paper import calibration

GENERATOR = np.random.default_rng(0)


def test_reliability_by_hand():
    probability = np.array([[0.1, 0.12, 0.9], [0.14, 1.0, 0.0]])
    x = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    got = calibration.reliability(probability, x, num_bins=5)
    # Four of six pixels in the first bin, mean 0.09 and a quarter ones; two in the last, mean 0.95 and all ones.
    np.testing.assert_allclose(got.predicted, [0.09, 0.95])
    np.testing.assert_allclose(got.observed, [0.25, 1.0])
    error, stderr = got.numbers["expected_calibration_error"]
    np.testing.assert_allclose(error, (4 * 0.16 + 2 * 0.05) / 6)
    assert stderr > 0


def test_reliability_of_calibrated_and_of_shifted_probabilities():
    probability = GENERATOR.uniform(size=(500, 400))
    x = (GENERATOR.uniform(size=probability.shape) < probability).astype(float)
    # Of 10,000 pixels in a bin the share has a standard error of 0.005 at most, and their mean is off by 0.0008.
    calibrated = calibration.reliability(probability, x)
    np.testing.assert_allclose(calibrated.observed, calibrated.predicted, atol=4.5 * 0.005)
    assert calibrated.numbers["expected_calibration_error"][0] < 0.005
    given = np.full_like(probability, 0.3)
    error, stderr = calibration.reliability(given, x).numbers["expected_calibration_error"]
    # One bin: the error is |mean of x - 0.3|, and the images are independent; 200 bootstraps know it to 5 %.
    np.testing.assert_allclose(error, x.mean() - 0.3)
    np.testing.assert_allclose(stderr, x.mean(1).std() / np.sqrt(len(x)), rtol=4 * 0.05)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_coverage_of_a_gaussian_that_is_too_narrow_or_right(scale):
    cdf = stats.norm.cdf(scale * GENERATOR.normal(size=(1000, 50)))
    got = calibration.coverage(cdf)
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.5 + calibration.LEVELS / 2) / scale) - 1
    stderr = 0.5 / np.sqrt(50_000)  # at most
    np.testing.assert_allclose(got.observed, expected, atol=4 * stderr)
    assert list(got.numbers) == ["share_within_50", "share_within_90"]
    for level, (share, error) in zip((0.5, 0.9), got.numbers.values(), strict=True):
        (place,) = np.flatnonzero(np.isclose(calibration.LEVELS, level))
        np.testing.assert_allclose(share, got.observed[place], rtol=1e-9)
        np.testing.assert_allclose(error, np.sqrt(share * (1 - share) / 50_000), rtol=0.15)
