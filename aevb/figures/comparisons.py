"""Several models in one figure: their curves on the same axes, and what their codes make of few labels.

A model has one colour and one kind of line in every panel and every figure, by its place among `names`, which stand at
the ends of the lines, apart from each other.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator

from aevb.figures.plots import show_the_bulk
from aevb.figures.style import CLASSES, DPI, FONT, INK, WIDTH, style_axes

COLOURS = tuple(colour for colour in CLASSES if colour not in ("#F0E442", "#999999"))  # yellow and grey are hard to see
DASHES = ((0, ()), (0, (5, 1.5)), (0, (1, 1)))  # of the first 8 models, the next 8, ...
LONGEST = 24  # letters of a name
LINE = 1.45 * (FONT - 1) / 72  # inches from one name to the next
LETTER = 0.56 * (FONT - 1) / 72  # inches


class Panel(NamedTuple):
    """What one measure did in training.

    Attributes:
      measure: its name and unit.
      curves: of each model, by name, one or more (a seed each) `[N, 2]`: training examples seen, and the measure.
      log: whether it falls by factors: the measure, positive, is on a logarithmic axis.
    """

    measure: str
    curves: Mapping[str, Sequence[np.ndarray]]
    log: bool = False


class Accuracies(NamedTuple):
    """Of one representation, on test examples.

    Attributes:
      num_labels: that a probe learned from, rising, `[N]`.
      accuracy: in [0, 1], `[N]`.
      stderr: its standard errors, `[N]`.
      like: the model whose colour it has; a reference without one is grey.
      dashed: whether its line is.
    """

    num_labels: Sequence[int]
    accuracy: Sequence[float]
    stderr: Sequence[float]
    like: str | None = None
    dashed: bool = False


def compared_curves(panels: Sequence[Panel], names: Sequence[str]) -> Figure:
    """A panel a measure, the curves of all models in it, against the training examples seen.

    Where the first tenth of the curves more than doubles the range, the axis shows the rest, and says where they start.

    Args:
      panels: one below the other, at least one.
      names: of all models, in the order of their colours.
    """
    shown = [name for panel in panels for name in panel.curves]
    heights = [max(2.6, LINE * len(panel.curves)) for panel in panels]
    figure, rows = _stacked(heights, shown)
    for panel, axes in zip(panels, rows, strict=True):
        style_axes(axes, "training examples seen", panel.measure)
        ends, everything = [], []
        for name, curves in panel.curves.items():
            style = _line(name, names)
            for curve in curves:
                marker = "o" if len(curve) <= 30 else None
                axes.plot(*curve.T, linewidth=1.7, marker=marker, markersize=3.5, **style)
                everything.append(curve[:, 1])
            ends.append((name, *curves[0][-1], style["color"]))
        axes.set_xlim(left=0)
        if panel.log:
            axes.set_yscale("log")
            _sparse_log_ticks(axes)
        else:
            show_the_bulk(axes, everything)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.ticklabel_format(axis="y", useOffset=False)
        axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}"))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color="#E6E8EA", linewidth=0.8)
        _name_ends(axes, ends)
    return figure


def label_efficiency(series: Mapping[str, Accuracies], names: Sequence[str], num_all: int) -> Figure:
    """The accuracy of probes against the number of labels, on a logarithmic axis; bars are one standard error.

    Args:
      series: by name; those of a dashed line go without a name.
      names: of all models, in the order of their colours.
      num_all: labels that there are; its tick says so.
    """
    named = [name for name, each in series.items() if not each.dashed]
    figure, (axes,) = _stacked([max(4.4, LINE * len(named))], named)
    ends, ticks, grey = [], set(), 0
    for name, each in series.items():
        if each.like is None:
            style = {"color": "#6B7379", "linestyle": DASHES[2], "marker": "sD^v<>"[grey % 6], "zorder": 2}
            grey += 1
        else:
            style = _line(each.like, names) | {"marker": "o", "zorder": 3}
        if each.dashed:
            style |= {"linestyle": (0, (4, 2.5)), "markerfacecolor": "white", "linewidth": 1.2}
        axes.errorbar(each.num_labels, 100 * np.asarray(each.accuracy), 100 * np.asarray(each.stderr),
                      **{"linewidth": 1.7, "markersize": 5, "elinewidth": 1, "capsize": 2} | style)  # fmt: skip
        ticks |= set(each.num_labels)
        if not each.dashed:
            ends.append((name, each.num_labels[-1], 100 * each.accuracy[-1], style["color"]))
    style_axes(axes, "labels that a linear probe learns from", "accuracy on test examples (%)")
    axes.set_xscale("log")
    # Where all labels are hardly more than the number before, their tick stands a line lower.
    near = [tick for tick in ticks if tick < num_all < 3 * tick]
    words = {tick: f"{tick:,}" for tick in ticks} | {num_all: f"{bool(near) * chr(10)}all {num_all:,}"}
    axes.set_xticks(sorted(words), [words[tick] for tick in sorted(words)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#E6E8EA", linewidth=0.8)
    _name_ends(axes, ends)
    return figure


def short(name: str) -> str:
    """A name that fits beside a plot: of a longer one, its beginning and its end."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def _line(name: str, names: Sequence[str]) -> dict:
    place = list(names).index(name)
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}


def _stacked(heights: Sequence[float], names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Axes of so many inches below each other, with room on the right for names."""
    left, right, below, top = 0.95, 0.4 + LETTER * max(len(short(name)) for name in names), 0.85, 0.15
    high = sum(heights) + below * len(heights) + top
    figure = Figure(figsize=(WIDTH, high), dpi=DPI)
    rows, bottom = [], high - top
    for height in heights:
        bottom -= height
        rows.append(figure.add_axes((left / WIDTH, bottom / high, (WIDTH - left - right) / WIDTH, height / high)))
        bottom -= below
    return figure, rows


def _name_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Names on the right, each as near to the height where its line ends as the others let it be; (name, x, y, colour).

    A thin line leads from the end to the name.
    """
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    axes.set(ylim=(low, high), xlim=(axes.get_xlim()[0], right))
    inches = axes.get_position().height * axes.figure.get_figheight()
    apart = LINE / inches
    to_axes = axes.transData + axes.transAxes.inverted()
    order = sorted(ends, key=lambda end: end[2])
    points = np.array([to_axes.transform(end[1:3]) for end in order])
    heights = spread(np.clip(points[:, 1], 0, 1), apart, 0, 1)
    for (name, _, _, colour), (x, y), height in zip(order, points, heights, strict=True):
        axes.plot([x, 1.015, 1.045], [y, height, height], color=colour, linewidth=0.8, alpha=0.7,
                  transform=axes.transAxes, clip_on=False)  # fmt: skip
        axes.annotate(short(name), (1.045, height), (4, 0), "axes fraction", "offset points", fontsize=FONT - 1,
                      va="center", color=INK, annotation_clip=False)  # fmt: skip


def spread(heights: np.ndarray, apart: float, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Heights nearest to those given (least squares), at least `apart` from one to the next, from `low` to `high`.

    With `h_i = g_i + i * apart`, g has to rise: isotonic regression, by pooling neighbours that fall.

    Args:
      heights: rising, `[N]`.
      apart: at most `(high - low) / (N - 1)`.
      low, high: of the lowest and the highest.
    """
    steps = apart * np.arange(len(heights))
    blocks: list[list[float]] = []  # mean and size
    for value in np.asarray(heights, float) - steps:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (second, more), (first, some) = blocks.pop(), blocks.pop()
            blocks.append([(first * some + second * more) / (some + more), some + more])
    rising = np.repeat([mean for mean, _ in blocks], [int(size) for _, size in blocks])
    return np.clip(rising, low, high - steps[-1]) + steps


def _sparse_log_ticks(axes: Axes) -> None:
    """As few ticks as tell the scale: powers of ten, or some between them where hardly any is in view."""
    low, high = axes.get_ylim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)) - 1, np.ceil(np.log10(high)) + 1)
    for between in ([1], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]):
        ticks = [tick for tick in np.outer(powers, between).ravel() if low <= tick <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    axes.set_yticks(ticks)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
