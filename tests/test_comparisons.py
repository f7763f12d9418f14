"""Figures of several models: heights of names against scikit-learn, and what is drawn against what was given."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.isotonic import IsotonicRegression

from aevb import figures
from aevb.figures.comparisons import LONGEST, spread


@pytest.mark.parametrize("seed", range(5))
def test_names_stand_as_near_to_their_lines_as_they_can(seed):
    heights, apart = np.sort(np.random.default_rng(seed).uniform(size=9)), 0.08
    places = np.arange(9)
    for low, high in ((-np.inf, np.inf), (0.1, 0.8)):
        bounds = {"y_min": low, "y_max": high - 8 * apart}
        expected = IsotonicRegression(**bounds).fit_transform(places, heights - apart * places) + apart * places
        found = spread(heights, apart, low, high)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert (np.diff(found) > apart - 1e-12).all() and low <= found[0] and found[-1] <= high + 1e-12
    np.testing.assert_array_equal(spread(10 * places, apart), 10 * places)


def curve(end):
    return np.array([[100.0, 3.0], [200.0, end]])


def test_no_name_covers_another_and_all_are_on_the_figure():
    names = [f"a model with a rather long name {i}" for i in range(20)]
    panels = [
        figures.Panel("error", {name: [curve(1 + 1e-3 * i)] for i, name in enumerate(names)}, log=True),
        figures.Panel("bound", {name: [curve(-5.0)] for name in names[3:5]}),
    ]
    figure = figures.compared_curves(panels, names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
        boxes.sort(key=lambda box: box.y0)
        assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
        assert min(box.y0 for box in boxes) > 0 and max(box.x1 for box in boxes) < figure.bbox.x1
        assert max(box.y1 for box in boxes) < figure.bbox.y1
    # One look each: no two models share colour and dashes, and a model has its own in every panel.
    lines = [line for line in figure.axes[0].lines if line.get_transform() == figure.axes[0].transData]
    looks = [(line.get_color(), str(line._dash_pattern)) for line in lines]
    assert len(set(looks)) == len(names)
    assert figure.axes[1].lines[0].get_color() == looks[3][0]
    assert all(len(figures.short(name)) <= LONGEST for name in names)


def test_accuracies_are_drawn_where_they_are():
    series = {
        "model": figures.Accuracies([10, 1258], [0.5, 0.9], [0.05, 0.01], "model"),
        "model (untrained encoder)": figures.Accuracies([10, 1258], [0.4, 0.8], [0.05, 0.01], "model", True),
        "pixels, 64": figures.Accuracies([10, 1000, 1258], [0.3, 0.85, 0.9], [0.0, 0.0, 0.0]),
    }
    figure = figures.label_efficiency(series, ["model"], 1258)
    (axes,) = figure.axes
    drawn = [container.lines[0].get_xydata() for container in axes.containers]
    for each, points in zip(series.values(), drawn, strict=True):
        np.testing.assert_allclose(points, np.stack([each.num_labels, 100 * np.array(each.accuracy)], axis=1))
    bars = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [45, 55])
    assert [text.get_text() for text in axes.texts] == ["model", "pixels, 64"]  # from below
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "1,000", "\nall 1,258"]
    colours = [container.lines[0].get_color() for container in axes.containers]
    assert colours[0] == colours[1] != colours[2]
