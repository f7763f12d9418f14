"""The number that trials are judged by, and where a run has written it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from aevb.errors import InputError
from experiments import catalogue, workdir
from experiments.catalogue import CATALOGUE
from experiments.pages import read_if_there

# Measured during training only, and which way is better.
CURVES = {"iwae_bound": 1, "log_marginal": 1, "squared_error": -1, "masked_error": -1}
BETTER = {name: each.better for name, each in CATALOGUE.items()} | CURVES
HEADINGS = {
    "iwae_bound": ("IWAE bound", "nats", 2),
    "log_marginal": ("log p(x)", "nats", 2),
    "squared_error": ("squared error (sum)", "", 4),
    "masked_error": ("squared error of masked patches", "", 5),
}


class Metric(NamedTuple):
    """A number of a run.

    Attributes:
      split: that it is measured on.
      name: in the rows of metrics.jsonl or in evaluation.json.
      better: 1 where higher is, -1 where lower is.
    """

    split: str
    name: str
    better: int

    def __str__(self) -> str:
        return f"{self.split} {self.name}"

    @property
    def heading(self) -> str:
        """As a person writes it: `validation ELBO`."""
        return f"{self.split} {HEADINGS[self.name][0] if self.name in HEADINGS else CATALOGUE[self.name].heading}"

    @property
    def unit(self) -> str:
        return HEADINGS[self.name][1] if self.name in HEADINGS else CATALOGUE[self.name].unit

    @property
    def digits(self) -> int:
        """After the point."""
        return HEADINGS[self.name][2] if self.name in HEADINGS else CATALOGUE[self.name].digits

    @property
    def words(self) -> str:
        """With its better side, for a sentence."""
        return f"{self} ({'higher' if self.better > 0 else 'lower'} is better)"


def parse(text: str) -> Metric:
    """The metric of this name, with its better side.

    Raises:
      InputError: no run writes it, or neither side of it is the better one.
    """
    split, _, name = text.partition(" ") if isinstance(text, str) else ("", "", "")
    better = BETTER.get(name, 0)
    if split not in ("validation", "test") or not better:
        names = [each for each, side in BETTER.items() if side]
        raise InputError(
            f"metric is {text!r}: give validation or test, and one of {', '.join(names)}, such as 'validation elbo'"
        )
    return Metric(split, name, better)


def check(metric: Metric, config: Mapping[str, Any], early: bool) -> None:
    """Refuse a metric that a run of this config does not write.

    Args:
      metric: as above.
      config: by dotted key.
      early: whether it has to be known while the run still trains.

    Raises:
      InputError: it does not, or only at the end.
    """
    during = {f"{config['eval.curve_split']} {name}" for name in _curve(config)}
    at_end = {f"test {name}" for name in _evaluated(config)}
    if early and str(metric) not in during:
        raise InputError(
            f"metric is {str(metric)!r}, which a run does not measure while it trains, so that none can be stopped "
            f"early by it: choose one of {', '.join(sorted(during)) or 'none'}, or no grace_epochs"
        )
    if str(metric) not in during | at_end:
        raise InputError(
            f"metric is {str(metric)!r}, which a run of this config never writes: choose one of "
            f"{', '.join(sorted(during | at_end))}"
        )


def _curve(config: Mapping[str, Any]) -> list[str]:
    """What rows of metrics.jsonl hold of the split of the curve."""
    masked = config["learner.name"] == "masked"
    names = {
        "bound": ["elbo", "log_likelihood", *["iwae_bound"] * (config["bound.name"] == "iwae")],
        "marginal": ["log_marginal"],
        "reconstruction": ["masked_error"] if masked else ["squared_error", "log_likelihood"],
        "none": [],
    }
    return names[config["eval.curve_measure"]]


def _evaluated(config: Mapping[str, Any]) -> list[str]:
    """What evaluation.json holds."""
    from experiments import choices  # JAX comes with it

    if config["eval.estimator"] == "none":
        return ["mse", "psnr"] + ["log_likelihood"] * (config["learner.name"] != "masked")
    with_bound = choices.has_bound(config["learner.name"]) or config["learner.name"] in choices.AUTOENCODING
    return ["nll", "bits_per_dim"] + ["elbo", "log_likelihood"] * with_bound


def curve(folder: epath.Path, metric: Metric) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that have told the metric so far."""
    return [row for row in workdir.read_metrics(folder) if row["split"] == metric.split and metric.name in row]


def score(folder: epath.Path, metric: Metric) -> tuple[float, float | None] | None:
    """The metric of a run that has ended, and its standard error over examples where there is one.

    That of evaluation.json, if it is of this split; else that of metrics.jsonl at the step that was evaluated, which is
    the best on validation where there is `train.patience`; without an evaluation the last.
    """
    told = read_if_there(folder / "evaluation.json")
    if told.get("split") == metric.split and isinstance(told.get(metric.name), (int, float)):
        return told[metric.name], told.get(f"{metric.name}_stderr")
    rows = curve(folder, metric)
    if not rows:
        return None
    row = next((row for row in rows if row["step"] == told.get("step")), rows[-1])
    return row[metric.name], row.get(f"{metric.name}_stderr")


def others(names: Iterable[str], metric: Metric) -> list[str]:
    """Of the names in evaluation.json those that a page shows beside the metric: where one side is better."""
    shown = [name for name in names if name in CATALOGUE and CATALOGUE[name].better and CATALOGUE[name].heading]
    shown = [name for name in shown if name != "log_likelihood"]  # one part of the bound without the other
    return sorted((name for name in shown if f"test {name}" != str(metric)), key=catalogue.place)
