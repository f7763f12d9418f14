"""What all figures share: their size, letters and colours, and how they are saved."""

import io
import os
import pathlib

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.0  # inches
DPI = 200  # or a little more: a page shows about 900 pixels, a retina page twice as many
FONT = 13  # points
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#B4B9BE", "#333333"  # two of Okabe and Ito's, two neutral
CLASSES = (  # Okabe and Ito's eight, and two between them
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"),
    *("#56B4E9", "#F0E442", "#000000", "#882255", "#999999"),
)


def style_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Names beside the axes, and no more lines around them than they need."""
    axes.set_xlabel(xlabel, fontsize=FONT, color=INK)
    axes.set_ylabel(ylabel, fontsize=FONT, color=INK)
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure, all or nothing; the suffix of `path` is the format, and its folder must exist."""
    if "://" in os.fspath(path):  # an object of a store is there when it is whole, and not before
        drawn, path = io.BytesIO(), epath.Path(path)
        figure.savefig(drawn, dpi="figure", format=path.suffix.removeprefix("."))
        path.write_bytes(drawn.getvalue())
        return
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi="figure")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
