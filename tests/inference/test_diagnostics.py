"""Which latent dimensions count as active, at a known variance."""

import numpy as np

from aevb.inference.diagnostics import active_units


def test_a_unit_is_active_when_its_mean_varies_by_more_than_a_hundredth():
    # Two values a +- d have variance d^2: 0.0081, 0.0121, 0, and one that varies between dimensions but not examples.
    means = np.array([[1.09, -0.11, 5.0, 0.3], [0.91, 0.11, 5.0, 0.3]])
    np.testing.assert_array_equal(active_units(means), [False, True, False, False])
