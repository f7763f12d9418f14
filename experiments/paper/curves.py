"""Curves of figures 2 and 3: kept in CSV files, interpolated, and compared with the paper's at equal training points.

A file has one row a point, in the columns of `published.csv` and a `seed`; `nats` is the lower bound (figure 2) or the
marginal log-likelihood (figure 3) per datapoint, up is better, and `samples` is the training points seen.
"""

import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from aevb.errors import InputError
from experiments.workdir import write_csv, write_text

PUBLISHED = pathlib.Path(__file__).with_name("published.csv")
PANELS = {  # of each figure and data set, in the paper's order
    ("2", "mnist"): ("Nz=3", "Nz=5", "Nz=10", "Nz=20", "Nz=200"),
    ("2", "frey"): ("Nz=2", "Nz=5", "Nz=10", "Nz=20"),
    ("3", "mnist"): ("Ntrain=1000", "Ntrain=50000"),
}
ALGORITHMS = {"aevb": "AEVB", "wake-sleep": "wake-sleep", "mcem": "MCEM"}
DATASETS = {"mnist": "MNIST", "frey": "Frey Face"}
SPLITS = ("train", "test")
COMPARED_AT = {"2": (1e6, 1e7, 1e8), "3": (3e6, 1e7, 3e7, 6e7)}  # training points; the paper has most curves there
LIMITS = {"mnist": 2.0, "frey": 30.0}  # nats: a larger difference wants a reason
NEAR_AN_END = 1.03  # the paper's Frey curves were read up to 9.77e7, where the axis ends at 1e8

_NAME = ("figure", "dataset", "panel", "algorithm", "split")
_COLUMNS = (*_NAME, "samples", "nats", "seed")


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One line of a figure.

    Args:
      figure, dataset, panel: "2" or "3", a data set and a panel of `PANELS`.
      algorithm, split: of `ALGORITHMS` and `SPLITS`.
      seed: of our run; None for the paper's.
      samples: training points seen, [points], positive and rising.
      nats: per datapoint, up is better, [points].

    Raises:
      InputError: the figure has no such curve, or its points are not finite, not rising or none.
    """

    figure: str
    dataset: str
    panel: str
    algorithm: str
    split: str
    seed: int | None
    samples: np.ndarray
    nats: np.ndarray

    def __post_init__(self) -> None:
        place = (self.figure, self.dataset)
        if self.panel not in PANELS.get(place, ()) or self.algorithm not in ALGORITHMS or self.split not in SPLITS:
            raise InputError(f"{self} is not in the paper: correct its name, as in {PUBLISHED.name}")
        points = np.stack([self.samples, self.nats])
        rising = self.samples[0] > 0 and (np.diff(self.samples) > 0).all() if points.size else False
        if not (rising and np.isfinite(points).all()):
            raise InputError(f"{self} has points that are missing, repeated or not finite: correct or remove them")

    def __str__(self) -> str:
        return f"the curve {', '.join(self.name)} of seed {self.seed}"

    @property
    def name(self) -> tuple[str, str, str, str, str]:
        """What a curve of ours and the paper's have in common."""
        return (self.figure, self.dataset, self.panel, self.algorithm, self.split)


# --- Files ----------------------------------------------------------------------------------------------------


def published() -> list[Curve]:
    """The paper's curves, within about 0.4 nats of the drawn line for MNIST and 10 for Frey Face."""
    return _read(PUBLISHED, _COLUMNS[:-1])


def read(path: str | os.PathLike) -> list[Curve]:
    """The curves of a file that `write` wrote.

    Raises:
      InputError: the file is not there, lacks a column, or has a value that cannot be.
    """
    return _read(epath.Path(path), _COLUMNS)


def write(path: str | os.PathLike, curves: Iterable[Curve]) -> None:
    """Write our curves as CSV, whole or not at all, in the paper's order; nats have 4 decimals."""
    rows = [
        (*curve.name, f"{samples:.10g}", f"{nats:.4f}", curve.seed)
        for curve in sorted(curves, key=_order)
        for samples, nats in zip(curve.samples, curve.nats, strict=True)
    ]
    write_csv(epath.Path(path), _COLUMNS, rows)


def merge(old: Iterable[Curve], new: Iterable[Curve]) -> list[Curve]:
    """The old curves and the new ones; a new curve replaces the old one of its name and seed."""
    return sorted({(*curve.name, curve.seed): curve for curve in (*old, *new)}.values(), key=_order)


def _read(path: pathlib.Path | epath.Path, columns: Sequence[str]) -> list[Curve]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is not there: make it with experiments.paper.fig2 or fig3") from None
    except ValueError:
        raise InputError(f"{path} is not text in UTF-8: restore it or remove it") from None
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    for column in columns:
        if column not in (rows.fieldnames or ()):
            raise InputError(f"{path} has no column {column!r}: its columns must be {', '.join(columns)}")
    points: dict[tuple, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows, 1):
        try:
            seed = int(row["seed"]) if "seed" in columns else None
            point = (float(row["samples"]), float(row["nats"]))
        except (TypeError, ValueError):
            raise InputError(f"{path} has no number where row {number} needs one: correct or remove the row") from None
        points.setdefault((*(row[column] for column in _NAME), seed), []).append(point)
    try:
        return [Curve(*key, *np.array(sorted(values)).T) for key, values in points.items()]
    except InputError as error:
        raise InputError(f"in {path}, {error}") from None


def _order(curve: Curve) -> tuple:
    figure, dataset, panel, algorithm, split = curve.name
    place = list(PANELS).index((figure, dataset)), PANELS[figure, dataset].index(panel)
    return (*place, list(ALGORITHMS).index(algorithm), SPLITS.index(split), -1 if curve.seed is None else curve.seed)


# --- Comparison -----------------------------------------------------------------------------------------------


def at(curve: Curve, samples: float) -> float | None:
    """The nats of a curve at so many training points, linear in their logarithm between its own points.

    Returns:
      Nats per datapoint; None before the curve's first point and after its last. An end less than 3 % away stands
      for the point asked for.
    """
    first, last = curve.samples[0], curve.samples[-1]
    if not first / NEAR_AN_END <= samples <= last * NEAR_AN_END:
        return None
    return float(np.interp(math.log(samples), np.log(curve.samples), curve.nats))


@dataclasses.dataclass(frozen=True)
class Difference:
    """Our nats minus the paper's at equal training points; `beyond` says whether that is more than `LIMITS`."""

    figure: str
    dataset: str
    panel: str
    algorithm: str
    split: str
    seed: int
    samples: float
    ours: float
    paper: float
    difference: float
    beyond: bool


def differences(ours: Iterable[Curve], paper: Iterable[Curve]) -> list[Difference]:
    """Each of our curves against the paper's of the same name, at the points of `COMPARED_AT` where both exist.

    Args:
      ours: curves with seeds, in any order.
      paper: `published()`.

    Returns:
      One row for each curve of ours and training points, in the paper's order.
    """
    theirs = {curve.name: curve for curve in paper}
    rows = []
    for curve in sorted(ours, key=_order):
        for samples in COMPARED_AT[curve.figure]:
            mine = at(curve, samples)
            its = at(theirs[curve.name], samples) if curve.name in theirs else None
            if mine is not None and its is not None:
                beyond = abs(mine - its) > LIMITS[curve.dataset]
                rows.append(Difference(*curve.name, curve.seed, samples, mine, its, mine - its, beyond))
    return rows


def markdown(rows: Sequence[Difference]) -> str:
    """The differences as a table: a row for each curve, a column for each number of training points."""
    points = sorted({row.samples for row in rows})
    table = {}
    for row in rows:
        label = (DATASETS[row.dataset], row.panel.replace("=", " = "), ALGORITHMS[row.algorithm], row.split, row.seed)
        table.setdefault(label, {})[row.samples] = row
    lines = [
        "Nats per datapoint at equal training points: ours / the paper's (ours minus the paper's).",
        f"Bold: a difference of more than {LIMITS['mnist']:g} nats for MNIST, {LIMITS['frey']:g} for Frey Face.",
        "",
        "| data | panel | algorithm | split | seed |" + "".join(f" {_points(samples)} |" for samples in points),
        "| --- | --- | --- | --- | --- |" + " --- |" * len(points),
    ]
    for label, cells in table.items():
        texts = (_cell(cells[samples]) if samples in cells else "" for samples in points)
        lines.append("| " + " | ".join([*map(str, label), *texts]) + " |")
    return "\n".join(lines) + "\n"


def write_differences(stem: str | os.PathLike, rows: Sequence[Difference]) -> None:
    """Write `STEM.csv` with every column and `STEM.md`, the table, each whole or not at all."""
    columns = [field.name for field in dataclasses.fields(Difference)]
    cells = [
        (*dataclasses.astuple(row)[:6], f"{row.samples:.10g}", f"{row.ours:.4f}", f"{row.paper:.4f}")
        + (f"{row.difference:.4f}", row.beyond)
        for row in rows
    ]
    write_csv(epath.Path(f"{os.fspath(stem)}.csv"), columns, cells)
    write_text(epath.Path(f"{os.fspath(stem)}.md"), markdown(rows))


def _points(samples: float) -> str:
    """1e+08 as 1e8."""
    mantissa, _, exponent = f"{samples:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _cell(row: Difference) -> str:
    digits = 1 if row.dataset == "mnist" else 0
    difference = f"{row.difference:+.{digits}f}"
    text = f"{row.ours:.{digits}f} / {row.paper:.{digits}f} ({f'**{difference}**' if row.beyond else difference})"
    return text.replace("-", "−")
