"""The figures of a sweep: its metric against what varies, and its learning curves."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from aevb.figures import BLUE, DPI, FONT, INK, ORANGE, WIDTH, Panel, compared_curves, short
from aevb.figures.style import style_axes
from launch import results
from launch.metrics import Metric
from launch.results import Result, Setting
from launch.trials import FAILED, FINISHED

NAMED = 8  # learning curves that each have a colour and a name
GRID = {"axis": "y", "color": "#E6E8EA", "linewidth": 0.8}
FAR = 3.0  # times the distance from the best to the lower quartile: what is further behind is not drawn, but counted


def label(key: str) -> str:
    """A key as it stands beside an axis: `latent dim`, `learner`."""
    return key.removesuffix(".name").split(".")[-1].replace("_", " ")


def said(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, list):
        return "×".join(map(said, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def setting_name(setting: Setting) -> str:
    """`latent dim 8, kl weight 0.5`; of one key that is a text, the text."""
    told = [f"{label(key)} {said(value)}" for key, value in setting.values.items()]
    alone = len(setting.values) == 1 and isinstance(next(iter(setting.values.values())), str)
    return said(next(iter(setting.values.values()))) if alone else ", ".join(told) or "all seeds"


def against(found: Sequence[Setting], keys: Sequence[str], metric: Metric, best: Setting | None) -> Figure:
    """The metric against each key: every trial a dot, every setting its mean with the interval over its seeds.

    Args:
      found: the settings, one of them finished at least.
      keys: that vary, but for the seed.
      metric: on the vertical axis.
      best: is starred.
    """
    columns = 1 if len(keys) == 1 else 2
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(WIDTH, 4.3 if columns == 1 else 3.4 * rows + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    unit = f" ({metric.unit})" if metric.unit else ""
    for place, (key, axes) in enumerate(zip(keys, panels, strict=False)):
        style_axes(axes, label(key), f"{metric.heading}{unit}" if place % columns == 0 else "")
        axes.grid(**GRID)
        place_of = _horizontal(axes, [each.values[key] for each in found])
        numbers = all(isinstance(each.values[key], (int, float)) for each in found)
        _dots(axes, found, key, place_of, metric, best, joined=len(keys) == 1 and numbers)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", useOffset=False) if axes.get_yscale() == "linear" else None
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    _show_the_best(panels[: len(keys)], found, metric)
    handles, words = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, words, loc="outside upper left", ncols=len(words), frameon=False, fontsize=FONT - 1,
                      handletextpad=0.3, columnspacing=1.2, borderpad=0, labelcolor=INK)  # fmt: skip
    return figure


def _horizontal(axes: Axes, values: Sequence[Any]) -> dict[str, float]:
    """Lay out the values of a key along the horizontal axis; where each of them stands."""
    distinct = list({str(value): value for value in values}.values())
    if all(isinstance(value, list) for value in distinct):
        distinct.sort()
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in distinct):
        axes.set_xticks(range(len(distinct)), [short(said(value)) for value in distinct])
        axes.set_xlim(-0.6, len(distinct) - 0.4)
        if sum(len(said(value)) for value in distinct) > 45:
            axes.tick_params(axis="x", rotation=30)
        return {str(value): place for place, value in enumerate(distinct)}
    distinct.sort()
    wide = min(distinct) > 0 and max(distinct) >= 8 * min(distinct)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if max(distinct) < 100 * min(distinct):  # hardly two powers of ten
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    places = np.log(distinct) if wide else np.array(distinct, float)
    if len(distinct) <= 8 and np.all(np.diff(places) > 0.1 * np.ptp(places)):  # their labels do not touch
        axes.set_xticks(distinct, [said(value) for value in distinct])
        axes.xaxis.set_minor_locator(NullLocator())
    margin = 0.08
    low, high = (math.log(distinct[0]), math.log(distinct[-1])) if wide else (distinct[0], distinct[-1])
    margin *= (high - low) or 1
    axes.set_xlim(*((math.exp(low - margin), math.exp(high + margin)) if wide else (low - margin, high + margin)))
    return {str(value): value for value in distinct}


def _dots(
    axes: Axes,
    found: Sequence[Setting],
    key: str,
    place_of: dict[str, float],
    metric: Metric,
    best: Setting | None,
    joined: bool,
) -> None:
    """The trials, the means over seeds with their intervals, and what did not come to its end."""
    several = any(len(each.results) > 1 for each in found)
    each_trial = [(place_of[str(s.values[key])], r) for s in found for r in s.results]
    done = np.array([(x, r.score) for x, r in each_trial if r.score is not None])
    if several and len(done):
        beside = axes.transData + ScaledTranslation(9 / 72, 0, axes.figure.dpi_scale_trans)
        axes.plot(*done.T, "o", color="#6FAFD8", markersize=5, markeredgewidth=0, transform=beside, label="a trial")
    means = [(place_of[str(each.values[key])], each) for each in found if each.score]
    means.sort(key=lambda pair: pair[0])
    if means:
        x, y = [place for place, _ in means], [each.score.value for _, each in means]
        half = [each.score.half or 0.0 for _, each in means]
        style = {"color": BLUE, "markersize": 7, "linewidth": 1.6, "linestyle": "-" if joined and several else "none"}
        words = "mean over seeds, 95 % interval" if several else "a trial"
        if several:
            axes.errorbar(x, y, half, marker="o", capsize=4, elinewidth=1.6, zorder=3, label=words, **style)
        else:
            axes.plot(x, y, marker="o", zorder=3, label=words, **style)
    if best is not None:
        axes.plot(place_of[str(best.values[key])], best.score.value, "*", color=ORANGE, markersize=17,
                  markeredgecolor="white", zorder=5, label="best")  # fmt: skip
    before = [(x, results.last(r, metric)) for x, r in each_trial if r.state.status not in (FINISHED, FAILED)]
    before = np.array([pair for pair in before if pair[1] is not None])
    if len(before):
        axes.plot(*before.T, "v", color="#6B7379", markerfacecolor="white", markersize=7, zorder=2,
                  label="before its end")  # fmt: skip
    failed = [x for x, r in each_trial if r.state.status == FAILED]
    if failed:
        axes.plot(failed, [0.03] * len(failed), "x", color=INK, markersize=8, markeredgewidth=2, zorder=4,
                  transform=axes.get_xaxis_transform(), label="failed")  # fmt: skip


def _show_the_best(panels: Sequence[Axes], found: Sequence[Setting], metric: Metric) -> None:
    """Leave out of the panels what is far behind, and say how much that is."""
    scores = [r.score for each in found for r in each.results if r.score is not None]
    seen = [results.last(r, metric) for each in found for r in each.results if r.score is None]
    everything = np.array(scores + [value for value in seen if value is not None])
    if len(scores) < 3:
        return
    sign = metric.better
    top, quartile = max(sign * s for s in scores), float(np.quantile([sign * s for s in scores], 0.25))
    least = quartile - FAR * max(top - quartile, 1e-9)
    behind = int(np.sum(sign * everything < least))
    if not behind:
        return
    edges = sorted((sign * least, sign * (top + 0.15 * (top - least))))
    arrow, side, height = ("↓", "bottom", 0.1) if sign > 0 else ("↑", "top", 0.97)
    for axes in panels:
        axes.set_ylim(*edges)
    panels[0].text(0.99, height, f"{behind} far behind {arrow}", transform=panels[0].transAxes, ha="right", va=side,
                   fontsize=FONT - 2, color=INK)  # fmt: skip


def curves(found: Sequence[Setting], metric: Metric, best: Setting | None) -> Figure | None:
    """Learning curves of every trial; of few settings each has a colour and its name, of many the best one has."""
    lines = {_curve_name(each): [_curve(result, metric) for result in each.results] for each in found}
    lines = {name: [line for line in each if len(line) > 1] for name, each in lines.items()}
    lines = {name: each for name, each in lines.items() if each}
    unit = f" ({metric.unit})" if metric.unit else ""
    if not lines:
        return None
    if len(lines) <= NAMED:
        return compared_curves([Panel(f"{metric.heading}{unit}", lines)], list(lines))
    figure = Figure(figsize=(WIDTH, 4.3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    style_axes(axes, "training examples seen", f"{metric.heading}{unit}")
    starred = _curve_name(best) if best else ""
    for name, each in sorted(lines.items(), key=lambda pair: pair[0] == starred):
        for line in each:
            colour, width = (ORANGE, 2.4) if name == starred else ("#6B7379", 0.9)
            axes.plot(*line.T, color=colour, linewidth=width, alpha=1 if name == starred else 0.55, label=name)
    _show_ends(axes, [line for each in lines.values() for line in each])
    axes.set_xlim(left=0)
    axes.grid(**GRID)
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if starred in lines:
        handles, words = axes.get_legend_handles_labels()
        said_of = f"best: {starred}" if len(starred) <= 40 else "the best setting"
        axes.legend([handles[words.index(starred)]], [said_of], loc="lower left", frameon=False,
                    bbox_to_anchor=(-0.02, 1), fontsize=FONT - 1, borderpad=0, labelcolor=INK)  # fmt: skip
    return figure


def _curve_name(setting: Setting) -> str:
    """Short enough beside a line: of several keys the values alone."""
    return setting_name(setting) if len(setting.values) < 2 else ", ".join(map(said, setting.values.values()))


def _curve(result: Result, metric: Metric) -> np.ndarray:
    rows = [row for row in result.rows if row["split"] == metric.split and metric.name in row]
    return np.array([(row["examples_seen"], row[metric.name]) for row in rows])


def _show_ends(axes: Axes, lines: Sequence[np.ndarray]) -> None:
    """Limit the axis to where most curves end, and some way before: those that go astray would press them flat."""
    ends = np.array([line[-1, 1] for line in lines])
    late = np.concatenate([line[len(line) // 4 :, 1] for line in lines])
    low, high = np.quantile(ends, [0.25, 0.75])
    reach = 3 * max(high - low, 1e-9)
    kept = late[(late > low - reach) & (late < high + reach)]
    if len(kept):
        margin = 0.05 * max(np.ptp(kept), 1e-9)
        axes.set_ylim(kept.min() - margin, kept.max() + margin)
