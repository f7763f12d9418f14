"""Pictures of a model, from numpy arrays to a matplotlib `Figure`; no model and no pyplot state comes in.

Every figure is 7 inches wide with letters of 13 points, so that it reads on a page, on a phone and in a talk.
A grid is drawn as one picture, and its resolution is chosen so that a pixel of an event is a whole number of
pixels of the figure: nothing is blurred. Events are images, `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, floats
(clipped to [0, 1] for display) or uint8; an event of any other shape is drawn as a line through its values.
"""

import math
import os
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

WIDTH = 7.0  # inches
DPI = 200  # or a little more: a page shows about 900 pixels, a retina page twice as many
MAX_DPI = 400
MAX_CELL = 1.4  # inches: a grid of a few cells does not fill the width
GAP = 3  # pixels between cells
FONT = 13  # points
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#B4B9BE", "#333333"  # two of Okabe and Ito's, two neutral
CLASSES = (  # Okabe and Ito's eight, and two between them
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"),
    *("#56B4E9", "#F0E442", "#000000", "#882255", "#999999"),
)
MAX_TRAVERSALS = 20  # rows
SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": "#009E73"}
MEASURES = {  # what learning curves may show, the first that there is on top
    "log_marginal": "log p(x) (nats)",
    "elbo": "bound (nats)",
    "log_likelihood": "log-likelihood (nats)",
    "kl": "KL (nats)",
    "acceptance": "HMC acceptance",
}
PROFILE = (60, 100)  # height and width, in pixels, of the card that holds a line


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure, all or nothing; the suffix of `path` is the format, and its folder must exist."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi="figure")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- Grids --------------------------------------------------------------------------------------------------


def compose(cells: np.ndarray, scale: int, gap: int) -> np.ndarray:
    """One picture of a grid of images, each pixel magnified, white between the cells.

    Args:
        cells: uint8 images, [R, C, H, W, 3].
        scale: pixels of the picture for one pixel of an image.
        gap: white pixels to the right of and below each cell.

    Returns:
        uint8 [R * (scale * H + gap), C * (scale * W + gap), 3].
    """
    cells = cells.repeat(scale, axis=2).repeat(scale, axis=3)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = cells.shape
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _is_image(event_shape: tuple[int, ...]) -> bool:
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[-1] in (1, 3))


def _floats(images: np.ndarray) -> np.ndarray:
    return np.asarray(images) / (255 if images.dtype == np.uint8 else 1)


def _pixels(cells: np.ndarray) -> np.ndarray:
    """uint8 [R, C, H, W, 3]: the images (NaN is white), or the pale cards that lines are drawn on."""
    if not _is_image(cells.shape[2:]):
        return np.full((*cells.shape[:2], *PROFILE, 3), 232, np.uint8)
    cells = np.round(255 * np.clip(np.nan_to_num(cells, nan=1), 0, 1)).astype(np.uint8)
    cells = cells.reshape(*cells.shape[:4], -1)
    return np.broadcast_to(cells, (*cells.shape[:4], 3))


def _grid(
    cells: np.ndarray, left: float = 0, right: float = 0, top: float = 0, bottom: float = 0
) -> tuple[Figure, Axes]:
    """A figure with one grid; its axes count cells: (r, c) is [c, c + 1] x [r, r + 1]. Margins in inches."""
    cells = _floats(cells)
    pixels, profiles = _pixels(cells), not _is_image(cells.shape[2:])
    bottom += 0.3 * profiles
    rows, columns, height, width, _ = pixels.shape
    cell = min((WIDTH - left - right) / columns, MAX_CELL)
    scale = math.ceil(cell * DPI / width)
    dpi = min((scale * width + GAP) / cell, MAX_DPI)
    picture = compose(pixels, scale, GAP)

    wide, high = columns * cell, rows * cell * (scale * height + GAP) / (scale * width + GAP)
    left += (WIDTH - left - right - wide) / 2
    size = np.round(np.array([WIDTH, top + high + bottom]) * dpi)
    corner = np.round(np.array([left, bottom]) * dpi)
    figure = Figure(figsize=tuple((size + 0.01) / dpi), dpi=dpi)
    axes = figure.add_axes((*(corner / size), *(np.array([wide, high]) * dpi / size)))
    smooth = dpi == MAX_DPI  # events larger than their cells are averaged
    axes.imshow(picture, extent=(0, columns, rows, 0), interpolation="antialiased" if smooth else "nearest")
    axes.set(aspect="auto", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if profiles:
        _draw_profiles(axes, cells)
    return figure, axes


def _draw_profiles(axes: Axes, cells: np.ndarray) -> None:
    """One line a cell through its values (512 of them at most), all on one scale, which is stated below."""
    flat = cells.reshape(*cells.shape[:2], -1)
    low, high, size = np.nanmin(flat), np.nanmax(flat), flat.shape[-1]
    flat = flat[..., :: math.ceil(size / 512)]
    row, column, place = np.indices(flat.shape)
    x = column + 0.04 + 0.90 * place / max(1, flat.shape[-1] - 1)
    y = row + 0.88 - 0.80 * (flat - low) / ((high - low) or 1)
    lines = np.stack([x, y], axis=-1).reshape(-1, flat.shape[-1], 2)
    axes.add_collection(LineCollection(list(lines), colors=BLUE, linewidths=1), autolim=False)
    text = f"{size} values a cell, all on one scale: {low:.3g} to {high:.3g}".replace("-", "−")
    axes.figure.text(0.5, 0.03 / axes.figure.get_figheight(), text, fontsize=FONT - 2, color=INK, ha="center")


def _label_cells(axis, names: Sequence[str], across: bool) -> None:  # noqa: ANN001 (an XAxis or a YAxis)
    """Names beside the cells; every second, third, ... where the cells are too small for all of them."""
    box = axis.axes.bbox
    room = (box.width if across else box.height) / axis.axes.figure.dpi / len(names)
    letters = max(map(len, names)) + 1 if across else 1.7
    step = math.ceil(letters * 0.62 * FONT / 72 / room)
    axis.set_ticks(np.arange(0, len(names), step) + 0.5, names[::step], fontsize=FONT, color=INK)
    axis.set_tick_params(length=0, pad=4)


def _number(value: float) -> str:
    return f"{value + 0.0:.1f}".replace("-", "−").replace("−0.0", "0.0")


def samples(images: np.ndarray) -> Figure:
    """A grid of samples, about as wide as it is high, read row by row. Args: images, [N, *event]."""
    images = _floats(images)
    height, width = _pixels(images[None, :1]).shape[2:4]
    columns = min(len(images), math.ceil(math.sqrt(len(images) * height / width)))
    rows = math.ceil(len(images) / columns)
    cells = np.full((rows * columns, *images.shape[1:]), np.nan)
    cells[: len(images)] = images
    return _grid(cells.reshape(rows, columns, *images.shape[1:]))[0]


def reconstructions(originals: np.ndarray, reconstructions: np.ndarray) -> Figure:
    """Pairs, each original above its reconstruction. Args: both [N, *event]; ten are a good number."""
    figure, axes = _grid(np.stack([_floats(originals), _floats(reconstructions)]), left=0.75)
    _label_cells(axes.yaxis, ["data", "model"], across=False)
    return figure


def interpolations(images: np.ndarray) -> Figure:
    """Paths between datapoints, their ends framed. Args: images, [R, C, *event], a path in each row."""
    figure, axes = _grid(images, left=0.04, right=0.04, top=0.3, bottom=0.04)
    rows, columns = images.shape[:2]
    for column in (0, columns - 1):
        frame = Rectangle((column, 0), 1, rows, fill=False, edgecolor=ORANGE, linewidth=2.5, clip_on=False)
        axes.add_patch(frame)
    axes.xaxis.tick_top()
    axes.set_xticks([0.5, columns - 0.5], ["from", "to"], fontsize=FONT, color=ORANGE)
    axes.tick_params(length=0, pad=4)
    return figure


def traversals(images: np.ndarray, values: np.ndarray, kl_per_dim: np.ndarray | None = None) -> Figure:
    """What each latent dimension does: a row moves one z_i (i from 1), the others stay.

    Args:
        images: decoded events, [L, T, *event].
        values: of z_i along a row, [T].
        kl_per_dim: [L], nats; if given, the rows are sorted by it, largest first.

    Returns:
        The figure, with 20 rows at most.
    """
    count = len(images)
    order = np.arange(count) if kl_per_dim is None else np.argsort(-np.asarray(kl_per_dim), kind="stable")
    order = order[:MAX_TRAVERSALS]
    figure, axes = _grid(images[order], left=0.6, right=0.0 if kl_per_dim is None else 0.75, top=0.6)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("value of the latent $z_i$", fontsize=FONT, color=INK, labelpad=4)
    _label_cells(axes.xaxis, [_number(value) for value in values], across=True)
    _label_cells(axes.yaxis, [f"$z_{{{index + 1}}}$" for index in order], across=False)
    if kl_per_dim is not None:
        axes.annotate("KL,\nnats", (1, 1), (5, 5), "axes fraction", "offset points", fontsize=FONT, color=INK)
        twin = axes.secondary_yaxis("right")
        _label_cells(twin.yaxis, [f"{kl_per_dim[index]:.2f}" for index in order], across=False)
        twin.spines[:].set_visible(False)
    return figure


def manifold(images: np.ndarray, quantiles: np.ndarray | None = None) -> Figure:
    """The decoder over a plane of latents, spread as the prior spreads them: z = Φ⁻¹(u), u in (0, 1)².

    Args:
        images: [n, n, *event]; images[i, j] is decoded from z = (Φ⁻¹(u_j), Φ⁻¹(u_i)), so z_2 grows with i and
            i = 0 is drawn at the bottom.
        quantiles: u, [n], rising; (i + 1/2) / n by default.

    Returns:
        The figure, as the manifolds of Kingma and Welling (2014), figure 4.
    """
    count = len(images)
    quantiles = (np.arange(count) + 0.5) / count if quantiles is None else np.asarray(quantiles)
    figure, axes = _grid(images[::-1], left=0.85, right=1.05, top=0.6, bottom=0.55)
    ticks = np.unique(np.linspace(0, count - 1, 4 + count % 2).round().astype(int))
    latents = [_number(statistics.NormalDist().inv_cdf(quantiles[tick])) for tick in ticks]
    fractions = [f"{quantiles[tick]:.3g}" for tick in ticks]
    top, right = axes.secondary_xaxis("top"), axes.secondary_yaxis("right")
    style = {"fontsize": FONT, "color": INK}
    axes.set_xticks(ticks + 0.5, latents, **style)
    axes.set_yticks(count - ticks - 0.5, latents, **style)
    top.set_xticks(ticks + 0.5, fractions, **style)
    right.set_yticks(count - ticks - 0.5, fractions, **style)
    axes.set_xlabel("$z_1$", **style)
    axes.set_ylabel("$z_2$", rotation=0, va="center", **style)
    top.set_xlabel(r"$u_1 = \Phi(z_1)$", **style)
    right.set_ylabel(r"$u_2 = \Phi(z_2)$", **style)
    for part in (axes, top, right):
        part.tick_params(length=3, color=INK, pad=3)
        part.spines[:].set_visible(False)
    return figure


# --- Plots --------------------------------------------------------------------------------------------------


def _style(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=FONT, color=INK)
    axes.set_ylabel(ylabel, fontsize=FONT, color=INK)
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


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
        _style(axes, "training examples seen", MEASURES[key])
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
            _show_the_bulk(axes, curves)
    first = panels[names[0]]
    validation = [row for row in rows if row["split"] == "validation" and np.isfinite(row.get(names[0], np.nan))]
    if validation:
        best = max(validation, key=lambda row: row[names[0]])
        label = f"best validation, {best[names[0]]:.2f} nats".replace("-", "−")
        style = {"color": INK, "markersize": 15, "markeredgecolor": "white", "clip_on": False, "zorder": 5}
        first.plot(best["examples_seen"], best[names[0]], "*", label=label, **style)
    if rows:
        first.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, frameon=False, fontsize=FONT - 1,
            handlelength=1.3, columnspacing=1.2, borderpad=0,
        )  # fmt: skip
    return figure


def _show_the_bulk(axes: Axes, curves: list[np.ndarray]) -> None:
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


def latents(means: np.ndarray, labels: np.ndarray | None = None) -> Figure:
    """The posterior means of datapoints; above two dimensions, their first two principal components.

    Args:
        means: [N, latent], at least two datapoints.
        labels: integers, [N]; up to 20 classes have a legend, more a colour bar.
    """
    means = np.asarray(means, float)
    points, names = _project(means)
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
        for i, name in enumerate(classes):  # dots for the legend only, large enough to tell their colours
            axes.scatter([], [], s=80, color=CLASSES[i % 10], marker="o^"[i // 10], label=str(name))
        figure.legend(
            loc="outside upper center", ncols=min(len(classes), 10), frameon=False, fontsize=FONT,
            handletextpad=0, columnspacing=0.7, borderpad=0,
        )  # fmt: skip
    _style(axes, *names)
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
    _style(axes, f"{each} ({kl.sum():.2f} nats in all)", "KL (nats)")
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
