"""Data that is made and not read: its shape is known, so that what a code finds can be told from what there is."""

from pathlib import Path

import numpy as np

from aevb.data.splits import Split

NUM = 10_000
SEED = 0  # of the points, whatever the seed of the split


def read_swiss_roll(name: str, data_dir: Path | None, memory_limit_mb: int) -> dict[str, Split]:
    """10,000 points of a plane rolled up in three dimensions, labelled by the quarter turn they lie on.

    `(t cos t, 21 v, t sin t) / 10` with t uniform on [1.5 pi, 4.5 pi] and v on [0, 1] (scikit-learn's
    `make_swiss_roll`): two numbers make three, and no plane holds them. Labels are 0 to 5 along t.
    """
    from sklearn.datasets import make_swiss_roll

    points, t = make_swiss_roll(NUM, random_state=SEED)
    turns = np.floor((t - 1.5 * np.pi) / (np.pi / 2)).astype(np.int32)
    names = tuple(f"quarter turn {i + 1}" for i in range(6))
    return {"train": Split(np.float32(points / 10), np.clip(turns, 0, 5), names)}
