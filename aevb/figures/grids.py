"""Grids of pictures, drawn as one picture, whose pixels are whole numbers of pixels of the figure."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aevb.figures.style import BLUE, DPI, FONT, INK, ORANGE, WIDTH

MAX_DPI = 400
MAX_CELL = 1.4  # inches: a grid of a few cells does not fill the width
GAP = 3  # pixels between cells
MAX_TRAVERSALS = 20  # rows
PROFILE = (60, 100)  # height and width, in pixels, of the card that holds a line


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


def _number(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


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


def beside(images: np.ndarray, names: Sequence[str], widths: Sequence[int], what: str = "") -> Figure:
    """An example in each row, framed, and what was made or found of it, in blocks of columns.

    Args:
        images: [R, C, *event]; the first column is the examples.
        names: of the examples and of each block, [1 + B].
        widths: columns of the examples, 1, and of each block; they sum to C.
        what: is on top of the names; nothing if empty.

    Returns:
        The figure, with a line between blocks where they are wider than a column.
    """
    figure, axes = _grid(images, left=0.04, right=0.04, top=0.65 if what else 0.3, bottom=0.04)
    rows, ends = len(images), np.cumsum(widths)
    frame = Rectangle((0, 0), 1, rows, fill=False, edgecolor=ORANGE, linewidth=2.5, clip_on=False)
    axes.add_patch(frame)
    for end in ends[1:-1] if max(widths) > 1 else ():
        axes.axvline(end, color=INK, linewidth=2.5)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(ends - np.array(widths) / 2, names, fontsize=FONT, color=INK)
    axes.get_xticklabels()[0].set_color(ORANGE)
    axes.tick_params(length=0, pad=4)
    axes.set_xlabel(what, fontsize=FONT, color=INK, labelpad=8)
    return figure


def traversals(
    images: np.ndarray,
    values: np.ndarray,
    kl_per_dim: np.ndarray | None = None,
    what: str = "value of the latent $z_i$",
) -> Figure:
    """What each latent dimension does: a row moves one z_i (i from 1), the others stay.

    Args:
        images: decoded events, [L, T, *event].
        values: of z_i along a row, [T].
        kl_per_dim: [L], nats; if given, the rows are sorted by it, largest first.
        what: the values are.

    Returns:
        The figure, with 20 rows at most.
    """
    count = len(images)
    order = np.arange(count) if kl_per_dim is None else np.argsort(-np.asarray(kl_per_dim), kind="stable")
    order = order[:MAX_TRAVERSALS]
    figure, axes = _grid(images[order], left=0.6, right=0.0 if kl_per_dim is None else 0.75, top=0.6)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(what, fontsize=FONT, color=INK, labelpad=4)
    digits = 1 if np.ptp(values) > 1 else 3
    _label_cells(axes.xaxis, [_number(value, digits) for value in values], across=True)
    _label_cells(axes.yaxis, [f"$z_{{{index + 1}}}$" for index in order], across=False)
    if kl_per_dim is not None:
        axes.annotate("KL,\nnats", (1, 1), (5, 5), "axes fraction", "offset points", fontsize=FONT, color=INK)
        twin = axes.secondary_yaxis("right")
        _label_cells(twin.yaxis, [f"{kl_per_dim[index]:.2f}" for index in order], across=False)
        twin.spines[:].set_visible(False)
    return figure


def classes(images: np.ndarray, names: Sequence[str], what: str = "class") -> Figure:
    """A row a class, the same latent down each column.

    Args:
        images: [R, C, *event].
        names: of the rows, [R]; of one line or several.
        what: they are names of; nothing if empty.
    """
    longest = max(len(line) for name in names for line in name.split("\n"))
    left = (0.75 if what else 0.5) + max(0, longest - 3) * 0.6 * FONT / 72
    figure, axes = _grid(images, left=left)
    _label_cells(axes.yaxis, names, across=False)
    axes.set_ylabel(what, fontsize=FONT, color=INK)
    return figure


def manifold(images: np.ndarray, values: np.ndarray) -> Figure:
    """The decoder over a plane of latents, spread as the prior spreads them: at its quantiles `u_i = (i + 1/2) / n`.

    Args:
        images: [n, n, *event]; images[i, j] is decoded from z = (values[j, 0], values[i, 1]), so z_2 grows with i and
            i = 0 is drawn at the bottom.
        values: the prior's quantiles of z_1 and z_2, [n, 2], rising.

    Returns:
        The figure, as the manifolds of Kingma and Welling (2014), figure 4.
    """
    count = len(images)
    figure, axes = _grid(images[::-1], left=0.85, right=1.05, top=0.6, bottom=0.55)
    ticks = np.unique(np.linspace(0, count - 1, 4 + count % 2).round().astype(int))
    first, second = ([_number(value) for value in part] for part in np.asarray(values)[ticks].T)
    fractions = [f"{(tick + 0.5) / count:.3g}" for tick in ticks]
    top, right = axes.secondary_xaxis("top"), axes.secondary_yaxis("right")
    style = {"fontsize": FONT, "color": INK}
    axes.set_xticks(ticks + 0.5, first, **style)
    axes.set_yticks(count - ticks - 0.5, second, **style)
    top.set_xticks(ticks + 0.5, fractions, **style)
    right.set_yticks(count - ticks - 0.5, fractions, **style)
    axes.set_xlabel("$z_1$", **style)
    axes.set_ylabel("$z_2$", rotation=0, va="center", **style)
    top.set_xlabel("$u_1$, the quantile in the prior of $z_1$", **style)
    right.set_ylabel("$u_2$, the quantile in the prior of $z_2$", **style)
    for part in (axes, top, right):
        part.tick_params(length=3, color=INK, pad=3)
        part.spines[:].set_visible(False)
    return figure
