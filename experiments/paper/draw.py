"""Figures 2, 3 and 5 of the paper; our curves over the paper's, thin lines over broad pale ones of the same colour."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from aevb.figures import BLUE, DPI, FONT, GREY, INK, ORANGE, WIDTH, compose
from experiments.paper.curves import ALGORITHMS, DATASETS, PANELS, SPLITS, Curve

COLOURS = {"aevb": BLUE, "wake-sleep": ORANGE, "mcem": "#009E73"}  # of Okabe and Ito's
OURS, PAPERS = 1.6, 4.4  # widths in points
DASH = (5.0, 2.6)  # points drawn, points left out
FIRST = {"mnist": 1e6, "frey": 1e5}  # training points; what the paper's curves do before them is off figure 2's scale
LEGEND = {
    "frameon": False, "fontsize": FONT, "labelcolor": INK,
    "handlelength": 2.1, "columnspacing": 1.8, "labelspacing": 0.4, "borderpad": 0,
}  # fmt: skip


def fig2(ours: Sequence[Curve], published: Sequence[Curve], dataset: str) -> Figure:
    """Figure 2 for "mnist" or "frey": the lower bound in nats against training points seen, a panel a latent size.

    The paper's train curve is a running average over the minibatches seen, so it starts below its test curve.
    """
    panels = PANELS["2", dataset]
    columns = 3 if len(panels) > 4 else 2
    figure = _figure(5.8, "training points seen", f"lower bound on {DATASETS[dataset]} (nats)")
    grid = figure.subplots(2, columns, sharex=True, sharey=True).flatten()
    ours, published = (_of(curves, figure="2", dataset=dataset) for curves in (ours, published))
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, f"$N_z = {panel.partition('=')[2]}$", _of(ours, panel=panel), _of(published, panel=panel))
    grid[0].set_xscale("log")
    grid[0].xaxis.set_major_locator(LogLocator(numticks=5))
    grid[0].xaxis.set_minor_locator(NullLocator())
    _limits(grid[0], ours, published, FIRST[dataset])
    if columns == 3:  # the place of the sixth panel is the legend's
        grid[2].tick_params(labelbottom=True)
        grid[5].set_axis_off()
        grid[5].legend(*_keys(ours + published), loc="center", **LEGEND)
    else:
        figure.legend(*_keys(ours + published), loc="outside upper center", ncols=3, **LEGEND)
    return figure


def fig3(ours: Sequence[Curve], published: Sequence[Curve]) -> Figure:
    """Figure 3: the marginal log-likelihood in nats against training points seen, a panel a training set."""
    figure = _figure(4.8, "training points seen (millions)", "marginal log-likelihood (nats)")
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    ours, published = (_of(curves, figure="3") for curves in (ours, published))
    for axes, panel in zip(grid, PANELS["3", "mnist"], strict=True):
        size = f"{int(panel.partition('=')[2]):,}".replace(",", "{,}")
        _panel(axes, rf"$N_\mathrm{{train}} = {size}$", _of(ours, panel=panel), _of(published, panel=panel))
    _limits(grid[0], ours, published, first=0)
    grid[0].set_xlim(left=0)
    grid[0].xaxis.set_major_formatter(FuncFormatter(lambda samples, _: f"{samples / 1e6:g}"))
    figure.legend(*_keys(ours + published), loc="outside upper center", ncols=3, **LEGEND)
    return figure


def _figure(height: float, xlabel: str, ylabel: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.07, h_pad=0.07)
    figure.supxlabel(xlabel, fontsize=FONT, color=INK)
    figure.supylabel(ylabel, fontsize=FONT, color=INK)
    return figure


def _of(curves: Sequence[Curve], **fields: str) -> list[Curve]:
    return [curve for curve in curves if all(getattr(curve, name) == value for name, value in fields.items())]


def _style(colour: str, split: str, ours: bool) -> dict:
    width = OURS if ours else PAPERS
    pale = tuple(1 - 0.38 * (1 - part) for part in to_rgb(colour))
    dashes = (0, tuple(length / width for length in DASH))  # matplotlib counts in widths of the line
    return {
        "color": colour if ours else pale,
        "linewidth": width,
        "linestyle": dashes if split == "train" else "solid",
        "zorder": 3 if ours else 2,
    }


def _panel(axes: Axes, title: str, ours: Sequence[Curve], published: Sequence[Curve]) -> None:
    axes.set_title(title, fontsize=FONT, color=INK)
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color="#E6E8EA", linewidth=0.8)
    for curve in (*published, *ours):
        style = _style(COLOURS[curve.algorithm], curve.split, ours=curve.seed is not None)
        marker = "o" if len(curve.samples) == 1 else None
        axes.plot(curve.samples, curve.nats, marker=marker, markersize=5, **style)


def _limits(axes: Axes, ours: Sequence[Curve], published: Sequence[Curve], first: float) -> None:
    """Show the paper's curves from `first` training points on, and of each of ours the end and the best at least."""
    nats = [curve.nats[curve.samples >= first] for curve in published]
    nats += [[curve.nats[-1], curve.nats.max()] for curve in ours]
    samples = [curve.samples for curve in published] + [curve.samples[-1:] for curve in ours]
    if nats:
        nats, samples = np.concatenate(nats), np.concatenate(samples)
        margin = 0.04 * np.ptp(nats) + 0.1
        axes.set_ylim(nats.min() - margin, nats.max() + margin)
        axes.set_xlim(samples.min() / 1.03, samples.max() * 1.03)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))


def _keys(curves: Sequence[Curve]) -> tuple[list[tuple[Line2D, ...]], list[str]]:
    """Handles and labels in three groups of one length: the algorithms there are, the splits, whose curve it is."""

    def key(colour: str, split: str, *whose: bool) -> tuple[Line2D, ...]:
        return tuple(Line2D([], [], **_style(colour, split, ours)) for ours in whose)

    present = {curve.algorithm for curve in curves}
    groups = [
        [(key(COLOURS[name], "test", False, True), label) for name, label in ALGORITHMS.items() if name in present],
        [(key(INK, split, False, True), split) for split in SPLITS],
        [(key(INK, "test", True), "ours"), (key(INK, "test", False), "the paper’s")],
    ]
    longest = max(map(len, groups))
    blank = (Line2D([], [], linestyle="none"),)
    entries = [entry for group in groups for entry in [*group, *[(blank, "")] * (longest - len(group))]]
    return [handle for handle, _ in entries], [label for _, label in entries]


def fig5(samples: Mapping[int, np.ndarray]) -> Figure:
    """Figure 5: a square of samples for each number of latent dimensions. Args: images of each, [N, *event]."""
    sides = {size: math.isqrt(len(images)) for size, images in samples.items()}
    figure = Figure(figsize=(WIDTH, WIDTH * (1 + 0.09 * (len(samples) > 2))), dpi=DPI, layout="constrained")
    grid = np.atleast_1d(figure.subplots(-(-len(samples) // 2), min(2, len(samples)))).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, (size, images) in zip(grid, samples.items(), strict=False):
        rows = np.round(255 * np.clip(images[: sides[size] ** 2], 0, 1)).astype(np.uint8)
        cells = np.broadcast_to(rows, (*rows.shape[:-1], 3)).reshape(sides[size], sides[size], *rows.shape[1:-1], 3)
        axes.imshow(compose(cells, scale=2, gap=1), interpolation="antialiased")
        axes.set_title(f"{size} latent dimensions", fontsize=FONT, color=INK)
    return figure
