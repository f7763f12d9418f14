"""Plots: learning curves, the latent space, and what its dimensions carry."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from aevb.figures.style import BLUE, CLASSES, DPI, FONT, GREY, INK, ORANGE, WIDTH, style_axes

SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": "#009E73"}
MEASURES = {  # what learning curves may show, the first that there is on top
    "log_marginal": "log p(x) (nats)",
    "elbo": "ELBO (nats)",
    "log_likelihood": "log-likelihood (nats)",
    "kl": "KL (nats)",
    "squared_error": "squared error (sum)",
    "masked_error": "squared error of masked patches",
    "acceptance": "HMC acceptance",
}
ERRORS = ("squared_error", "masked_error")  # of these the least is the best


def learning_curves(rows: Sequence[dict]) -> Figure:
    """What was measured, each against the training examples seen; the first of it large, the best on validation marked.

    Where the first tenth of the curves more than doubles the range, the axis shows the rest, and says where they start.

    Args:
        rows: of metrics.jsonl: "split" (train, validation, test), "examples_seen", and any of `MEASURES`.
    """
    names = [name for name in MEASURES if any(name in row for row in rows)] or list(MEASURES)[:1]
    below = names[1:3]
    mosaic = [names[:1] * max(1, len(below)), below] if below else [names[:1]]
    figure = Figure(figsize=(WIDTH, 5.8 if below else 3.6), dpi=DPI, layout="constrained")
    panels = figure.subplot_mosaic(mosaic, height_ratios=[1.35, 1][: len(mosaic)])
    for key, axes in panels.items():
        style_axes(axes, "training examples seen", MEASURES[key])
        axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}"))
        axes.xaxis.set_major_locator(MaxNLocator(7 if key == names[0] else 3))
        axes.yaxis.set_major_locator(MaxNLocator(6 if key == names[0] else 4))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(axis="y", color="#E6E8EA", linewidth=0.8)
        curves = []
        for split, colour in SPLIT_COLOURS.items():
            points = [(row["examples_seen"], row[key]) for row in rows if row["split"] == split and key in row]
            points = np.array([point for point in points if np.isfinite(point[1])])
            if not len(points):
                continue
            marker = "o" if len(points) <= 30 else None
            axes.plot(*points.T, color=colour, marker=marker, markersize=4, linewidth=1.5, label=split)
            curves.append(points[:, 1])
        if curves:
            axes.set_xlim(left=0)
            show_the_bulk(axes, curves)
    first = panels[names[0]]
    validation = [row for row in rows if row["split"] == "validation" and np.isfinite(row.get(names[0], np.nan))]
    if validation:
        falls = names[0] in ERRORS
        best = (min if falls else max)(validation, key=lambda row: row[names[0]])
        value = f"{best[names[0]]:.4f}" if falls else f"{best[names[0]]:.2f} nats"
        label = f"best validation, {value}".replace("-", "−")
        style = {"color": INK, "markersize": 15, "markeredgecolor": "white", "clip_on": False, "zorder": 5}
        first.plot(best["examples_seen"], best[names[0]], "*", label=label, **style)
    if rows:
        first.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, frameon=False, fontsize=FONT - 1,
            handlelength=1.3, columnspacing=1.2, borderpad=0,
        )  # fmt: skip
    return figure


def show_the_bulk(axes: Axes, curves: list[np.ndarray]) -> None:
    """Limits y to what follows the first tenth of each curve, if that more than halves the range."""
    everything = np.concatenate(curves)
    later = np.concatenate([curve[math.ceil(len(curve) / 10) :] for curve in curves])
    if len(later) < 5 or np.ptp(everything) <= 2 * np.ptp(later):
        return
    margin = max(0.06 * np.ptp(later), 0.05)
    low, high = later.min() - margin, later.max() + margin
    axes.set_ylim(low, high)
    style = {"transform": axes.transAxes, "fontsize": FONT - 2, "color": INK, "ha": "right", "zorder": 5}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # readable over a curve
    if everything.min() < low:
        text = f"starts at {everything.min():,.0f} ↓".replace("-", "−")
        axes.text(0.99, 0.03, text, va="bottom", **style)
    if everything.max() > high:
        text = f"starts at {everything.max():,.0f} ↑".replace("-", "−")
        axes.text(0.99, 0.97, text, va="top", **style)


def _project(means: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Two coordinates, [N, 2], and what they are."""
    count, latent_dim = means.shape
    if latent_dim == 2:
        return means, ["$z_1$", "$z_2$"]
    if latent_dim == 1:  # with the rank as height, the points draw their cumulative distribution
        rank = (np.argsort(np.argsort(means[:, 0])) + 0.5) / count
        return np.stack([means[:, 0], rank], axis=1), ["$z_1$", "fraction of datapoints below"]
    centred = means - means.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    explained = singular**2 / max(np.sum(singular**2), np.finfo(float).tiny)
    names = [f"principal direction {i + 1} ({100 * explained[i]:.1f} % of the variance)" for i in range(2)]
    return centred @ directions[:2].T, names


def latents(means: np.ndarray, labels: np.ndarray | None = None, names: Sequence[str] = ()) -> Figure:
    """The posterior means of datapoints; above two dimensions, their first two principal components.

    Args:
        means: [N, latent], at least two datapoints.
        labels: integers, [N]; up to 20 classes have a legend, more a colour bar.
        names: of the classes, by label; none for their numbers.
    """
    means = np.asarray(means, float)
    points, sides = _project(means)
    figure = Figure(figsize=(WIDTH, 6.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    style = {"s": min(30, max(5, 30_000 / len(means))), "alpha": 0.75, "linewidths": 0}
    classes = [] if labels is None else np.unique(labels)
    if labels is None:
        axes.scatter(*points.T, color=BLUE, **style)
    elif len(classes) > 20:
        cloud = axes.scatter(*points.T, c=labels, cmap="viridis", **style)
        bar = figure.colorbar(cloud, ax=axes, pad=0.02)
        bar.set_label("label", fontsize=FONT, color=INK)
        bar.ax.tick_params(labelsize=FONT - 1)
        bar.solids.set_alpha(1)
    else:
        which = np.searchsorted(classes, labels)
        for first, marker in ((0, "o"), (10, "^")):
            chosen = (which >= first) & (which < first + 10)
            axes.scatter(*points[chosen].T, c=np.array(CLASSES)[which[chosen] % 10], marker=marker, **style)
        said = [names[label] if names else str(label) for label in classes]
        for i, name in enumerate(said):  # dots for the legend only, large enough to tell their colours
            axes.scatter([], [], s=80, color=CLASSES[i % 10], marker="o^"[i // 10], label=name)
        figure.legend(
            loc="outside upper center", ncols=min(len(said), 10, 80 // (max(map(len, said)) + 4) + 1),
            frameon=False, fontsize=FONT, handletextpad=0, columnspacing=0.7, borderpad=0,
        )  # fmt: skip
    style_axes(axes, *sides)
    if means.shape[1] > 1:
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def kl_per_dim(kl: np.ndarray, active: np.ndarray) -> Figure:
    """The KL of each latent dimension, nats, largest first. Args: kl, [latent]; active, booleans [latent]."""
    kl, active = np.asarray(kl), np.asarray(active, bool)
    order = np.argsort(-kl, kind="stable")
    count = len(kl)
    figure = Figure(figsize=(WIDTH, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colours = np.where(active[order], BLUE, GREY)
    axes.bar(np.arange(count) + 1, kl[order], color=colours, width=0.8 if count <= 50 else 1.0)
    each = "latent dimension, largest KL first" if count <= 25 else "rank of the latent dimension by KL"
    style_axes(axes, f"{each} (their sum is {kl.sum():.2f} nats)", "KL (nats)")
    if count <= 25:
        axes.set_xticks(np.arange(count) + 1, [f"{index + 1}" for index in order])
        for text, colour in zip(axes.get_xticklabels(), colours, strict=True):
            text.set_color(INK if colour == BLUE else "#9AA0A6")
    margin = max(0.6, 0.5 * (8 - count))  # two bars are not two walls
    axes.set_xlim(1 - margin, count + margin)
    handles = [
        Patch(color=BLUE, label=f"active ({active.sum()})"),
        Patch(color=GREY, label=f"inactive ({count - active.sum()})"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=FONT, handlelength=1)
    return figure


def gap(levels: Mapping[str, float], seen: Sequence[float], elbos: Sequence[float]) -> Figure:
    """What the elbo lacks to log p(x), in two parts, and what training the encoder alone makes of it.

    Args:
        levels: `log_marginal`, `optimal_elbo` and `elbo`, nats per datapoint.
        seen: training examples that the encoder has seen alone, from 0.
        elbos: the elbo then, nats.
    """
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    right = max(seen) or 1
    top, best, first = (levels[name] for name in ("log_marginal", "optimal_elbo", "elbo"))
    bottom = min(best, first, *elbos)
    close = top - best < 0.15 * (top - bottom)  # too near for two lines of letters above them
    for level, name, colour, side in (
        (top, "log p(x)", INK, "bottom"),
        (best, "best posterior of the family", "#009E73", "top" if close else "bottom"),
    ):
        axes.axhline(level, color=colour, linewidth=1.6)
        axes.annotate(name, (0.01 * right, level), (0, -4 if side == "top" else 4), textcoords="offset points",
                      va=side, fontsize=FONT - 1, color=colour)  # fmt: skip
    axes.plot(seen, elbos, color=BLUE, marker="o", markersize=4, linewidth=1.6)
    axes.annotate("the encoder’s, trained on alone", (right, bottom), (0, -22), textcoords="offset points",
                  ha="right", fontsize=FONT - 1, color=BLUE)  # fmt: skip
    for low, high, name, at, side in (
        (best, top, "approximation gap", top, "bottom"),
        (first, best, "amortization gap", (first + best) / 2, "center"),
    ):
        arrow = {"arrowstyle": "<->", "color": INK, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (1.04 * right, high), (1.04 * right, low), arrowprops=arrow)
        axes.annotate(f"{name}\n{high - low:.2f} nats", (1.04 * right, at), (8, 0), va=side, fontsize=FONT - 1,
                      textcoords="offset points", color=INK, annotation_clip=False)  # fmt: skip
    style_axes(axes, "training examples that the encoder has seen alone", "nats per datapoint")
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}"))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= right])
    axes.set_xlim(-0.02 * right, 1.35 * right)
    margin = 0.12 * (top - bottom) + 0.05
    axes.set_ylim(bottom - 2 * margin, top + margin)
    axes.ticklabel_format(axis="y", useOffset=False)
    return figure


def proposals(
    num_samples: Sequence[int], below: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]]
) -> Figure:
    """How far K draws from the posterior, and K from the prior, leave an estimate below log p(x).

    Args:
        num_samples: K, [N].
        below: of `from_posterior` and `from_prior`, log p(x) minus the estimate, nats, [N].
        errors: the standard errors of these, nats, [N]; the bars are twice as long, up and down.
    """
    figure = Figure(figsize=(WIDTH, 4.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for name, label, colour in (("from_prior", "draws from p(z)", ORANGE), ("from_posterior", "from q(z | x)", BLUE)):
        style = {"color": colour, "marker": "o", "markersize": 5, "capsize": 3, "label": label}
        axes.errorbar(num_samples, below[name], 2 * np.asarray(errors[name]), **style)
    axes.set_xscale("log")
    ends = np.array([below[name] + sign * 2 * np.asarray(errors[name]) for name in below for sign in (-1, 1)])
    if ends.min() > 0:
        axes.set_yscale("log")
        axes.set_ylim(ends.min() / 2, 2 * ends.max())
    else:  # next to log p(x), an estimate may lie above it
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(2 * ends.min() - 0.02, 2 * ends.max())
        axes.axhline(0, color=GREY, linewidth=1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axes.tick_params(which="minor", color=GREY)
    style_axes(axes, "number of draws K", "log p(x) minus its estimate (nats)")
    axes.legend(frameon=False, fontsize=FONT, labelcolor=INK, title="± 2 standard errors", title_fontsize=FONT - 1)
    axes.get_legend().get_title().set_color(INK)
    return figure
