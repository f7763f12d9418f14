"""Runs side by side: the seeds of a model taken together, the table of it all, and what of it can be compared."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from experiments.catalogue import CATALOGUE, name_of, place
from experiments.measured import (
    MEAN_IMAGE,
    MODEL,
    NOISY,
    PCA,
    PIXELS,
    SCRATCH,
    UNTRAINED,
    Number,
    Numbers,
    Run,
    basis,
    facts,
)  # fmt: skip

SHARED = (PIXELS, PCA, NOISY, MEAN_IMAGE)  # what is not a run's own: once for all runs on the same data
COLUMNS = ("model", "code_size", "metric", "value", "stderr", "seeds", "train_seconds", "command")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Runs that differ in their seed only, the first seed first."""

    name: str
    runs: list[Run]


class Row(NamedTuple):
    """A line of the tables: a model, or what models are measured beside.

    Attributes:
      name: of the model, as in the CSV.
      kind: `MODEL`, `UNTRAINED`, ...
      code_size: elements of the code; None where there is none.
      numbers: by metric, means over the seeds.
      train_seconds: mean over the seeds; None of what is not trained, or not yet.
      command: that makes the first of the runs; empty where it was not kept.
      runs: that the numbers are of.
    """

    name: str
    kind: str
    code_size: int | None
    numbers: Numbers
    train_seconds: float | None
    command: str
    runs: list[Run]


def group(runs: Sequence[Run]) -> list[Model]:
    """Runs of one config but for the seed are one model; one of a seed that is there already begins another."""
    found: list[tuple[dict, list[Run]]] = []
    for run in runs:
        config = {key: value for key, value in run.config.items() if key != "seed"}
        for known, members in found:
            if known == config and run.seed not in [member.seed for member in members]:
                members.append(run)
                break
        else:
            found.append((config, [run]))
    members = [runs for _, runs in found]
    return [Model(*pair) for pair in zip(_names(members), members, strict=True)]


def _names(groups: list[list[Run]]) -> list[str]:
    """The folder's name, of several seeds without its _seedN; with as many folders above it as tell all apart."""
    whole = [runs[0].folder for runs in groups]
    short = [
        epath.Path(re.sub(r"[_-]seed\d+$", "", str(path))) if len(runs) > 1 else path
        for path, runs in zip(whole, groups, strict=True)
    ]
    paths = short if len(set(short)) == len(short) else whole
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def rows(models: Sequence[Model]) -> list[Row]:
    """A row a model and a row for what each is measured beside; what runs share comes last, once."""
    own, shared = [], {}
    for model in models:
        first = model.runs[0]
        seconds = [run.summary["train_seconds"] for run in model.runs if "train_seconds" in run.summary]
        for kind in (MODEL, UNTRAINED, SCRATCH):
            numbers = _mean([run.numbers.get(kind, {}) for run in model.runs])
            if kind != MODEL and not numbers:
                continue
            name = model.name if kind == MODEL else f"{model.name} ({kind})"
            mean = sum(seconds) / len(seconds) if seconds and kind == MODEL else None
            command = first.summary.get("command", "")
            own.append(Row(name, kind, first.sizes[kind], numbers, mean, command, model.runs))
        for run in model.runs:
            for kind in SHARED:
                if kind in run.numbers:
                    _share(shared, run, kind, model.name)
    return own + sorted(shared.values(), key=lambda row: (SHARED.index(row.kind), row.code_size or 0))


def _share(shared: dict[tuple, Row], run: Run, kind: str, model: str) -> None:
    """Keep of pixels, PCA, ... what no run on the same data has told before."""
    size, data = run.sizes.get(kind), basis(run, "probe_accuracy")
    key = (kind, size, data)
    if key not in shared:
        others = any((kind, size) == known[:2] for known in shared)
        shared[key] = Row(f"{kind} (of {model})" if others else kind, kind, size, {}, None, "", [run])
    for metric, number in run.numbers[kind].items():
        shared[key].numbers.setdefault(metric, number)


def _mean(each: list[Numbers]) -> Numbers:
    """Over the seeds that have a number; its standard error is theirs, of one seed the one measured over examples."""
    metrics = sorted(dict.fromkeys(metric for numbers in each for metric in numbers), key=place)
    found = {}
    for metric in metrics:
        told = [numbers[metric] for numbers in each if metric in numbers]
        values, stderr = [number.value for number in told], told[0].stderr
        mean = sum(values) / len(values)
        if len(told) > 1:
            stderr = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
        found[metric] = Number(mean, stderr, len(told))
    return found


def label(row: Row) -> str:
    """A row's name on the page, with the size of what has no training to tell it by."""
    if row.kind in (PIXELS, PCA):
        return f"{row.name}, {row.code_size:,}"
    short = {UNTRAINED: "untrained", SCRATCH: SCRATCH}
    return row.name.replace(f" ({row.kind})", f", {short[row.kind]}") if row.kind in short else row.name


def table(rows: Iterable[Row]) -> Iterator[tuple]:
    """The rows of comparison.csv, under `COLUMNS`; what is not known is empty."""
    for row in rows:
        for metric in sorted(row.numbers, key=place):
            number = row.numbers[metric]
            told = (row.name, row.code_size, metric, *number, row.train_seconds, row.command)
            yield tuple("" if each is None else each for each in told)


def best(rows: Sequence[Row], metric: str) -> set[float]:
    """The best value of a column, if it has a better side, two rows at least, and they can be compared."""
    better = CATALOGUE[name_of(metric)].better
    having = [row for row in rows if metric in row.numbers]
    bases = {basis(run, metric) for row in having for run in row.runs if any(metric in n for n in run.numbers.values())}
    if not better or len(having) < 2 or len(bases) > 1:
        return set()
    return {max((row.numbers[metric].value for row in having), key=lambda value: better * value)}


def differences(models: Sequence[Model]) -> str:
    """One sentence on what keeps runs from being compared; empty if nothing does."""
    parts = []
    for fact in dict.fromkeys(fact for model in models for run in model.runs for fact in facts(run)):
        whose: dict[Any, list[str]] = {}
        for model in models:
            told = [(facts(run)[fact], run.folder.name) for run in model.runs if fact in facts(run)]
            alike = len({value for value, _ in told}) == 1
            for value, name in told[:1] if alike else told:
                whose.setdefault(value, []).append(model.name if alike else name)
        if len(whose) > 1:
            said = [f"{value:,}" if isinstance(value, int) else str(value) for value in whose]
            said = [f"{value} ({listed(names)})" for value, names in zip(said, whose.values(), strict=True)]
            parts.append(f"{fact} {' or '.join(said)}")
    return f"Not all of these numbers can be compared, for the runs differ: {'; '.join(parts)}." if parts else ""


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
