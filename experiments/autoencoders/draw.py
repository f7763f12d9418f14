"""Figures of the autoencoders' results."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from aevb.figures import BLUE, DPI, FONT, GREY, INK, WIDTH

TURNS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00")  # Okabe and Ito's, in a row along the roll


def score(
    learned: Callable[[np.ndarray], np.ndarray],
    truth: Callable[[np.ndarray], np.ndarray],
    log_density: Callable[[np.ndarray], np.ndarray],
) -> Figure:
    """The learned and the true score of a density in the plane, as arrows over its contours, on one scale."""
    figure = Figure(figsize=(WIDTH, 4.0), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    fine = np.linspace(-3, 3, 121, dtype=np.float32)
    density = np.exp(np.asarray(log_density(np.stack(np.meshgrid(fine, fine), axis=-1))))
    coarse = np.linspace(-2.8, 2.8, 15, dtype=np.float32)
    grid = np.stack(np.meshgrid(coarse, coarse), axis=-1).reshape(-1, 2)
    for axes, field, colour, title in (
        (left, truth, INK, "true score, ∇ log p(x)"),
        (right, learned, BLUE, "(reconstruction − x) / s²"),
    ):
        axes.contourf(fine, fine, density, levels=8, cmap="Greys", alpha=0.45)
        arrows = np.asarray(field(grid))
        axes.quiver(*grid.T, *arrows.T, color=colour, angles="xy", scale=110, width=0.006)
        axes.set_title(title, fontsize=FONT, color=INK)
        plain(axes)
        axes.set_aspect("equal")
        axes.set_xlabel("$x_1$", fontsize=FONT, color=INK)
    left.set_ylabel("$x_2$", fontsize=FONT, color=INK)
    return figure


def curved(data: np.ndarray, rebuilt: dict[str, np.ndarray], turns: np.ndarray) -> Figure:
    """Points of a rolled-up plane, and what codes of two numbers give back of them, coloured along the roll.

    Args:
      data: `[N, 3]`.
      rebuilt: by what made it, `[N, 3]` each.
      turns: the quarter turn of each point, int `[N]`.
    """
    figure = Figure(figsize=(WIDTH, 2.9), dpi=DPI, layout="constrained")
    panels = {"data": data} | rebuilt
    for place, (title, points) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1, projection="3d")
        axes.scatter(*points.T, c=turns, cmap=ListedColormap(TURNS), s=3, linewidths=0, depthshade=False)
        axes.view_init(elev=10, azim=-68)
        axes.set_box_aspect((3, 2.1, 3), zoom=1.35)
        axes.set(xlim=(-1.5, 1.5), ylim=(0, 2.1), zlim=(-1.5, 1.5), xticks=[], yticks=[], zticks=[])
        axes.set_title(title, fontsize=FONT - 1, color=INK, y=1.04)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_pane_color((1, 1, 1, 0))
            axis.line.set_color(GREY)
    return figure


def plain(axes: Axes) -> None:
    """No frame above and right, grey axes, legible numbers."""
    axes.tick_params(labelsize=FONT - 2, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
