"""What a sweep has come to: a row a trial, seeds taken together, and the best; files only, no JAX."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from experiments import workdir
from experiments.catalogue import CATALOGUE
from experiments.pages import read_if_there
from launch import metrics, trials
from launch.definition import Sweep
from launch.metrics import Metric
from launch.trials import FINISHED, STOPPED, State, Trial

LEVEL = 0.95  # of the intervals


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What a trial has come to so far.

    Attributes:
      trial, state: which, and how far it is.
      score: the metric at its end; None before it, and of one that was stopped or has failed.
      stderr: of the score over examples; None where it is not known.
      rows: of metrics.jsonl.
      summary, evaluation: of the files of these names; empty while they are not there.
    """

    trial: Trial
    state: State
    score: float | None
    stderr: float | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: dict[str, Any]


class Mean(NamedTuple):
    """Of the seeds of a setting: their mean, half of its interval (None of one seed alone), and how many they are."""

    value: float
    half: float | None
    num: int


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """Trials that differ in their seed alone.

    Attributes:
      values: of the keys that vary, but for the seed.
      results: of its trials.
      score: the mean over those that have finished; None while none has.
    """

    values: dict[str, Any]
    results: list[Result]
    score: Mean | None

    @property
    def whole(self) -> bool:
        """Whether all its trials have finished."""
        return all(each.score is not None for each in self.results)

    def mean(self, name: str) -> Mean | None:
        """Of another number of evaluation.json, over the trials that have finished."""
        found = [each.evaluation.get(name) for each in self.results if each.score is not None]
        found = [value for value in found if isinstance(value, (int, float)) and math.isfinite(value)]
        return mean(found) if found else None


def mean(values: Sequence[float]) -> Mean:
    """The mean of independent runs, with the t interval of it: `mean +- t(0.975, n - 1) s / sqrt(n)`.

    It covers the mean over all seeds 95 times in a hundred, if runs are normally distributed over seeds.

    Args:
      values: at least one.
    """
    from scipy.special import stdtrit

    num, middle = len(values), sum(values) / len(values)
    if num < 2:
        return Mean(middle, None, num)
    deviation = math.sqrt(sum((value - middle) ** 2 for value in values) / (num - 1))
    return Mean(middle, float(stdtrit(num - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(num), num)


def read(root: epath.Path, metric: Metric, trial: Trial) -> Result:
    """What is in the folder of a trial."""
    there, state = trials.folder(root, trial), trials.state(root, trial)
    found = metrics.score(there, metric) if state.status == FINISHED else None
    if found is not None and not math.isfinite(found[0]):
        found = None
    return Result(
        trial,
        state,
        *(found or (None, None)),
        workdir.read_metrics(there),
        read_if_there(there / "summary.json"),
        read_if_there(there / "evaluation.json"),
    )


def settings(results: Sequence[Result]) -> list[Setting]:
    """Seeds taken together, in the order of their first trials."""
    found: dict[tuple, list[Result]] = {}
    for each in results:
        found.setdefault(each.trial.setting, []).append(each)
    told = []
    for members in found.values():
        values = {key: value for key, value in members[0].trial.values.items() if key != "seed"}
        scores = [each.score for each in members if each.score is not None]
        told.append(Setting(values, members, mean(scores) if scores else None))
    return told


def best(found: Sequence[Setting], metric: Metric) -> Setting | None:
    """The setting with the best mean, of those whose seeds have all finished if there are any; None while none has.

    A setting is not the best by the seeds that survived.
    """
    having = [each for each in found if each.score and each.whole] or [each for each in found if each.score]
    return max(having, key=lambda each: metric.better * each.score.value) if having else None


def table(sweep: Sweep, metric: Metric, results: Sequence[Result]) -> tuple[list[str], Iterator[list]]:
    """The columns and rows of results.csv: a row a trial, as far as it has come; what is not known is empty."""
    numbers = [name for name in CATALOGUE if any(name in each.evaluation for each in results)]
    split = next((each.evaluation["split"] for each in results if each.evaluation), "test")
    named = [f"{split} {name}" for name in numbers]
    columns = ["trial", *sweep.keys, "status", "step", str(metric), f"{metric} stderr"]
    columns += [name for name in named if name != str(metric)]
    columns += ["train_seconds", "total_seconds", "reason", "command"]

    def rows() -> Iterator[list]:
        for each in results:
            told = zip(named, numbers, strict=True)
            found = [each.evaluation.get(number) for name, number in told if name != str(metric)]
            value = each.score if each.score is not None else last(each, metric)
            row = [each.trial.name, *each.trial.values.values(), each.state.status, each.state.step, value]
            row += [each.stderr, *found, each.summary.get("train_seconds"), each.summary.get("total_seconds")]
            row += [each.state.reason, each.summary.get("command")]
            yield ["" if value is None else value for value in row]

    return columns, rows()


def last(result: Result, metric: Metric) -> float | None:
    """The metric as training last told it, also where a trial did not come to its end."""
    told = [row[metric.name] for row in result.rows if row["split"] == metric.split and metric.name in row]
    return told[-1] if told and math.isfinite(told[-1]) else None


def curve_of(metric: Metric, results: Sequence[Result]) -> Metric | None:
    """What learning curves are of: the metric, or, where it is of the end, the first that was measured in training."""
    names = dict.fromkeys((row["split"], name) for each in results for row in each.rows for name in row)
    if (metric.split, metric.name) in names:
        return metric
    return next(
        (Metric(split, name, metrics.BETTER[name]) for split, name in names
         if split != "train" and name in ("elbo", *metrics.CURVES)),
        None,
    )  # fmt: skip


def ended(results: Sequence[Result]) -> int:
    """How many have come to an end that was meant."""
    return sum(each.state.status in (FINISHED, STOPPED) for each in results)
