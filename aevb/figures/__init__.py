"""Pictures of a model, from numpy arrays to a matplotlib `Figure`; no model and no pyplot state comes in.

Every figure is 7 inches wide with letters of 13 points, so that it reads on a page, on a phone and in a talk.
A grid is drawn as one picture, and its resolution is chosen so that a pixel of an event is a whole number of
pixels of the figure: nothing is blurred. Events are images, `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, floats
(clipped to [0, 1] for display) or uint8; an event of any other shape is drawn as a line through its values.
"""

from aevb.figures.grids import (
    GAP,
    MAX_CELL,
    beside,
    classes,
    compose,
    interpolations,
    manifold,
    reconstructions,
    samples,
    traversals,
)
from aevb.figures.plots import gap, kl_per_dim, latents, learning_curves, proposals
from aevb.figures.style import BLUE, DPI, FONT, GREY, INK, ORANGE, WIDTH, save

__all__ = [
    "BLUE",
    "DPI",
    "FONT",
    "GAP",
    "GREY",
    "INK",
    "MAX_CELL",
    "ORANGE",
    "WIDTH",
    "beside",
    "classes",
    "compose",
    "gap",
    "interpolations",
    "kl_per_dim",
    "latents",
    "learning_curves",
    "manifold",
    "proposals",
    "reconstructions",
    "samples",
    "save",
    "traversals",
]
