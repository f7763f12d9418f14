"""Figures of the textbook's results."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from aevb.figures import BLUE, DPI, FONT, GREY, INK, ORANGE, WIDTH


def beta(rows: Sequence[dict], floor: float) -> Figure:
    """What changes with beta: the two terms of the bound and the NLL, the samples, and the active units.

    Args:
      rows: of beta.csv, in the order of beta.
      floor: the Fréchet distance of training images from test images.
    """
    figure = Figure(figsize=(WIDTH, 7.2), dpi=DPI, layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1.5, 1, 1])
    betas = [row["beta"] for row in rows]

    def line(axes: Axes, values: Sequence[float], label: str, colour: str) -> None:
        axes.plot(betas, values, color=colour, marker="o", markersize=5, linewidth=1.8, label=label)

    line(top, [-row["log_likelihood"] for row in rows], "reconstruction, −E log p(x | z)", BLUE)
    line(top, [row["kl"] for row in rows], "KL", ORANGE)
    line(top, [row["nll"] for row in rows], "NLL, −log p(x)", INK)
    line(middle, [row["frechet_distance"] for row in rows], "", BLUE)
    line(bottom, [row["active_units"] for row in rows], "", BLUE)
    middle.axhline(floor, color=GREY, linewidth=1.5, linestyle="--")
    middle.annotate(
        "training images", (betas[0], floor), xytext=(0, 4), textcoords="offset points", fontsize=FONT - 2, color=INK
    )
    top.legend(frameon=False, fontsize=FONT - 1, labelcolor=INK)
    for axes, label in ((top, "nats"), (middle, "Fréchet distance\nof samples"), (bottom, "active units")):
        axes.set_ylabel(label, fontsize=FONT, color=INK)
        if axes is not middle:
            axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.grid(axis="y", color="#E6E8EA", linewidth=0.8)
    middle.set_yscale("log")
    middle.set_ylim(floor / 2, 2 * max(row["frechet_distance"] for row in rows))
    middle.tick_params(which="minor", color=GREY)
    middle.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bottom.set_xscale("log")
    bottom.set_xlabel("β in training", fontsize=FONT, color=INK)
    bottom.xaxis.set_major_locator(FixedLocator(betas))
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure
