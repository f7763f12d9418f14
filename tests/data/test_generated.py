"""Made data against the formula that made it."""

import numpy as np

from aevb import data

SIZES = {"validation_size": 0, "test_size": 0, "seed": 3, "memory_limit_mb": 1}


def test_a_swiss_roll_lies_on_its_roll():
    loaded = data.load("swiss_roll", data_dir=None, **SIZES)
    points, labels = loaded.train.examples, loaded.train.labels
    assert points.shape == (10_000, 3) and points.dtype == np.float32 and loaded.event_shape == (3,)
    x, height, z = np.float64(points.T) * 10
    t = np.hypot(x, z)
    np.testing.assert_allclose(np.stack([x, z]), t * np.stack([np.cos(t), np.sin(t)]), atol=1e-4)
    assert (
        (t > 1.5 * np.pi - 1e-4).all()
        and (t < 4.5 * np.pi + 1e-4).all()
        and (height >= 0).all()
        and height.max() < 21.1
    )
    np.testing.assert_array_equal(np.unique(labels), np.arange(6))
    edges = 1.5 * np.pi + np.arange(7) * np.pi / 2
    assert ((t > edges[labels] - 1e-4) & (t < edges[labels + 1] + 1e-4)).all()
    np.testing.assert_allclose(np.bincount(labels) / 10_000, 1 / 6, atol=4 * np.sqrt(5 / 36 / 10_000))
    again = data.load("swiss_roll", data_dir=None, **SIZES | {"seed": 4}).train.examples
    np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(again, axis=0))
