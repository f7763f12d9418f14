"""What a sweep is: a base config, what varies in it, the number that trials are judged by, and the budget.

A sweep is a Python file with `get_sweep()`, which returns a `Sweep`; launch/sweeps/ has examples.
"""

import dataclasses
import itertools
import math
import random
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aevb.errors import InputError
from experiments import settings

SEARCHES = ("random", "optuna")
OF_DATA = ("dataset", "data.validation_size", "data.test_size", "data.held_out_class", "data.train_size")
LENGTH = "train.num_epochs"  # the budget's, unless it is swept


class Uniform(NamedTuple):
    """Any number from `low` to `high`, each as likely; whole numbers for a key that is one."""

    low: float
    high: float


class LogUniform(NamedTuple):
    """Any number from `low` to `high`, both above 0, its logarithm uniform; whole numbers for a key that is one."""

    low: float
    high: float


class Choice(NamedTuple):
    """One of these, each as likely."""

    values: Sequence[Any]


Distribution = Uniform | LogUniform | Choice


class Budget(NamedTuple):
    """What a sweep may cost.

    Attributes:
      num_epochs: of every trial, `config.train.num_epochs`.
      num_trials: of a sweep over distributions; grids and lists have as many as they have.
      grace_epochs: above 0, a trial that has trained for so long may be stopped early (asynchronous successive halving,
        ASHA, Li et al., 2020): of those that have come as far, the best one in `reduction` goes on.
      reduction: also by how much further the survivors train before they are compared again.
    """

    num_epochs: float
    num_trials: int = 0
    grace_epochs: float = 0.0
    reduction: int = 3


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A base config and what varies; keys are those of the config, such as "model.latent_dim".

    Attributes:
      config: FILE or FILE:DATASET, as of experiments.train.
      metric: "validation elbo", "test nll", ...: the split, and the name in metrics.jsonl or evaluation.json.
      budget: what it may cost.
      overrides: values that all trials share.
      grid: values of each key; every combination of them is a trial, and every one of them with every one of the list.
      trials: the list: the values of each trial.
      distributions: that values are drawn from, where there is neither a grid nor a list.
      search: how they are drawn: random, or optuna, which learns from the trials before.
    """

    config: str
    metric: str
    budget: Budget
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ()
    distributions: Mapping[str, Distribution] = dataclasses.field(default_factory=dict)
    search: str = "random"

    @property
    def keys(self) -> list[str]:
        """What varies, in the order in which the sweep names it."""
        listed = [key for trial in self.trials for key in trial]
        return list(dict.fromkeys([*listed, *self.grid, *self.distributions]))

    @property
    def drawn_later(self) -> bool:
        """Whether a trial is not known before those before it have ended."""
        return bool(self.distributions) and self.search == "optuna"

    @property
    def common(self) -> dict[str, Any]:
        """The values that every trial is given, with the budget's length."""
        return dict(self.overrides) | ({} if LENGTH in self.keys else {LENGTH: self.budget.num_epochs})

    def load(self, values: Mapping[str, Any]) -> ConfigDict:
        """The config of the trial with these values.

        Raises:
          InputError: the config lacks a key, or a value has another type.
        """
        return settings.load(self.config, arguments(self.common | dict(values)))


def arguments(values: Mapping[str, Any]) -> list[str]:
    """`--config.KEY=VALUE` for experiments.train, which reads the same value back."""
    return [f"--config.{key}={tuple(value) if isinstance(value, list) else value}" for key, value in values.items()]


def read(path: str) -> Sweep:
    """The sweep that a file defines, checked as far as it can be without knowing any data.

    Raises:
      InputError: there is no such file, it defines no sweep, or a key, value, metric or budget of it cannot be used.
    """
    if not Path(path).is_file():
        raise InputError(f"--sweep={path}: there is no such file; give for example launch/sweeps/latent_dim.py")
    try:
        sweep = runpy.run_path(path)["get_sweep"]()
    except InputError:
        raise
    except KeyError as error:
        if error.args != ("get_sweep",):
            raise InputError(_unreadable(path, error)) from error
        raise InputError(f"--sweep={path} has no get_sweep: define it, as launch/sweeps/latent_dim.py does") from None
    except Exception as error:  # whatever the file does: it is the caller's own
        raise InputError(_unreadable(path, error)) from error
    if not isinstance(sweep, Sweep):
        raise InputError(f"--sweep={path}: get_sweep returns a {type(sweep).__name__}: return a Sweep")
    try:
        check(sweep)
    except InputError as error:
        raise InputError(f"--sweep={path}: {error}") from None
    except Exception as error:  # a list where keys and values are meant, a text where a number is, ...
        raise InputError(_unreadable(path, error)) from error
    return sweep


def _unreadable(path: str, error: Exception) -> str:
    return f"--sweep={path} cannot be read as a sweep ({type(error).__name__}: {error}): mend it"


def check(sweep: Sweep) -> None:
    """Refuse what no sweep could be.

    Raises:
      InputError: for the first of it.
    """
    budget = sweep.budget
    if not isinstance(budget, Budget):
        raise InputError(f"budget is {budget!r}: give a Budget, such as Budget(num_epochs=100)")
    if not sweep.keys:
        raise InputError("nothing varies: give a grid, a list of trials or distributions")
    for key, values in sweep.grid.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not len(values):
            raise InputError(f"grid has {values!r} for {key}: give a list with at least one value")
    for key in sweep.keys:
        if key in sweep.overrides:
            raise InputError(f"{key} is in overrides and varies: take it out of one of them")
    twice = [key for key in sweep.grid if any(key in trial for trial in sweep.trials)]
    if twice:
        raise InputError(f"{twice[0]} is in the grid and in the list of trials: take it out of one of them")
    if LENGTH in sweep.overrides:
        raise InputError(f"{LENGTH} is in overrides: it is the budget's num_epochs")
    if not (isinstance(budget.num_epochs, (int, float)) and 0 < budget.num_epochs < math.inf):
        raise InputError(f"the budget's num_epochs is {budget.num_epochs!r}: it must be a number above 0")
    if not 0 <= budget.grace_epochs < budget.num_epochs:
        raise InputError(f"the budget's grace_epochs is {budget.grace_epochs}: it must be from 0 to below num_epochs")
    if not (isinstance(budget.reduction, int) and budget.reduction > 1):
        raise InputError(f"the budget's reduction is {budget.reduction}: it must be a whole number above 1")
    _check_distributions(sweep)
    for values in sweep.trials or [{}]:
        sweep.load(values)  # each key and type, before their combinations
    for key, values in sweep.grid.items():
        for value in values:
            sweep.load(dict(sweep.trials[0] if sweep.trials else {}) | {key: value})


def _check_distributions(sweep: Sweep) -> None:
    """Refuse distributions that nothing can be drawn from."""
    if not sweep.distributions:
        if sweep.budget.num_trials:
            raise InputError("the budget's num_trials is of distributions: a grid or a list has as many as it has")
        return
    if sweep.grid or sweep.trials:
        raise InputError("distributions go with neither a grid nor a list of trials: give a Choice in their place")
    if sweep.search not in SEARCHES:
        raise InputError(f"search is {sweep.search!r}: choose one of {', '.join(SEARCHES)}")
    if not (isinstance(sweep.budget.num_trials, int) and sweep.budget.num_trials > 0):
        raise InputError(f"the budget's num_trials is {sweep.budget.num_trials}: say how many to draw")
    for key, each in sweep.distributions.items():
        if not isinstance(each, Distribution):
            raise InputError(f"distributions has {each!r} for {key}: give a Uniform, LogUniform or Choice")
        if isinstance(each, Choice):
            if not len(each.values):
                raise InputError(f"the Choice for {key} is empty: give at least one value")
        elif not (each.low < each.high and (each.low > 0 or isinstance(each, Uniform))):
            raise InputError(f"{each} for {key} has no numbers: low must be below high, and above 0 for LogUniform")
    for last in (False, True):
        sweep.load({key: _end(sweep, key, last) for key in sweep.distributions})
    unseen = [key for key in sweep.distributions if key in OF_DATA]
    if unseen and sweep.search == "optuna":
        raise InputError(f"optuna draws trials of the same data, and {unseen[0]} changes them: use search='random'")


def _end(sweep: Sweep, key: str, last: bool) -> Any:
    """The lowest or the highest of what can be drawn for a key, or the first or the last choice."""
    each = sweep.distributions[key]
    return each.values[-last] if isinstance(each, Choice) else each[last]


def first(sweep: Sweep) -> dict[str, Any]:
    """The lowest of what can be drawn for each key, or the first choice: what can be seen of a search beforehand."""
    return {key: _end(sweep, key, False) for key in sweep.distributions}


def whole(sweep: Sweep, key: str) -> bool:
    """Whether a key of the config holds a whole number."""
    return type(settings.flatten(sweep.load({}).to_dict())[key]) is int


def rounded(value: Any, drawn_from: Distribution) -> Any:
    """A drawn number as it is trained with: to a ten-thousandth of the range, or of itself, to fit a folder's name."""
    if isinstance(drawn_from, Choice) or not isinstance(value, float):
        return value
    low, high = drawn_from
    step = value if isinstance(drawn_from, LogUniform) else high - low
    return min(max(round(value, 4 - math.floor(math.log10(step))), low), high)


def expand(sweep: Sweep) -> list[dict[str, Any]]:
    """The values that make each trial; those of a random search too, which are the same each time."""
    if sweep.distributions:
        integers = {key for key in sweep.distributions if whole(sweep, key)}
        return [_draw(sweep, number, integers) for number in range(sweep.budget.num_trials)]
    combinations = [dict(zip(sweep.grid, each, strict=True)) for each in itertools.product(*sweep.grid.values())]
    return [dict(listed) | each for listed in sweep.trials or [{}] for each in combinations]


def _draw(sweep: Sweep, number: int, integers: set[str]) -> dict[str, Any]:
    """The values of the trial with this number of a random search."""
    source, values = random.Random(f"trial {number}"), {}
    for key, each in sweep.distributions.items():
        if isinstance(each, Choice):
            values[key] = source.choice(list(each.values))
            continue
        share, integer = source.random(), key in integers
        low, high = (each.low, each.high + 1) if integer else each
        value = low * (high / low) ** share if isinstance(each, LogUniform) else low + share * (high - low)
        values[key] = min(math.floor(value), int(each.high)) if integer else rounded(value, each)
    return values
