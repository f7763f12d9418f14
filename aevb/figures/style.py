"""What all figures share: their size, letters and colours, and how they are saved."""

import os
import pathlib

from matplotlib.figure import Figure

WIDTH = 7.0  # inches
DPI = 200  # or a little more: a page shows about 900 pixels, a retina page twice as many
FONT = 13  # points
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#B4B9BE", "#333333"  # two of Okabe and Ito's, two neutral


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure, all or nothing; the suffix of `path` is the format, and its folder must exist."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi="figure")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
