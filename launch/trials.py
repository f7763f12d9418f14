"""The trials of a sweep: their names and commands, and how far each of them has come, by what is in its folder."""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from aevb.errors import InputError
from experiments import settings, workdir
from launch import definition
from launch.definition import Choice, Sweep

# How far a trial has come.
FINISHED, STOPPED, FAILED, BEGUN, WAITING = "finished", "stopped early", "failed", "begun", "waiting"
LONGEST_NAME = 150  # file systems take 255, and the names of logs and packs are longer
FILLED_IN = ("optimizer.decay_steps",)  # by the run itself, from the data


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: of its folder in DIR/trials, and of its log and record beside it.
      values: of the keys that vary, as they stand in its config.json.
      given: what the sweep itself names of them; the rest are the base config's.
      config: the whole of it, by dotted key, but for what a run fills in.
    """

    name: str
    values: dict[str, Any]
    given: dict[str, Any]
    config: dict[str, Any]

    @property
    def setting(self) -> tuple:
        """What it shares with the trials that differ from it in their seed alone."""
        return tuple((key, str(value)) for key, value in self.values.items() if key != "seed")


@dataclasses.dataclass(frozen=True)
class State:
    """How far a trial has come.

    Attributes:
      status: FINISHED, STOPPED, FAILED, BEGUN or WAITING.
      step: the last that metrics.jsonl tells of.
      reason: why it was stopped or has failed, a sentence.
      final: whether another start would end in the same place.
    """

    status: str
    step: int = 0
    reason: str = ""
    final: bool = False


def make(sweep: Sweep, given: Mapping[str, Any]) -> Trial:
    """The trial with these values.

    Raises:
      InputError: the config lacks a key of them, or a value has another type.
    """
    config = settings.flatten(sweep.load(given).to_dict())
    values = {key: config[key] for key in sweep.keys}
    return Trial(name(values), values, dict(given), config)


def known(sweep: Sweep) -> list[Trial]:
    """All trials of a grid, a list or a random search.

    Raises:
      InputError: two of a grid or a list are the same.
    """
    found: dict[str, Trial] = {}
    for given in definition.expand(sweep):
        trial = make(sweep, given)
        if trial.name in found and not sweep.distributions:
            raise InputError(f"the trial {trial.name} is in the sweep twice: name it once")
        found[trial.name] = trial
    return list(found.values())


def name(values: Mapping[str, Any]) -> str:
    """What tells a trial from the others, as the name of a folder: `latent_dim8_seed0`; a long one ends in a digest."""
    leaves = [key.split(".")[-1] for key in values]
    short = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(values, leaves, strict=True)}
    told = "_".join(f"{'' if leaf == 'name' else leaf}{_word(values[key])}" for key, leaf in short.items())
    return told if len(told) <= LONGEST_NAME else f"{told[: LONGEST_NAME - 9]}_{zlib.crc32(told.encode()):08x}"


def _word(value: Any) -> str:
    """A value in letters that any file system takes, other letters for another value."""
    if isinstance(value, list):
        return "x".join(map(_word, value)) or "none"
    if isinstance(value, float):
        return next(text for digits in (6, 17) if float(text := f"{value:.{digits}g}") == value)
    word = re.sub(r"[^A-Za-z0-9_.=-]+", "-", text := str(value))
    return word if word == text else f"{word}-{zlib.crc32(text.encode()):08x}"


def arguments(sweep: Sweep, trial: Trial) -> list[str]:
    """What experiments.train is given, but for its --workdir."""
    return [f"--config={sweep.config}", *definition.arguments(sweep.common | trial.given)]


def folder(root: epath.Path, trial: Trial) -> epath.Path:
    """The workdir of the trial."""
    return root / "trials" / trial.name


def log(root: epath.Path, trial: Trial) -> epath.Path:
    """The file that is added to with what its process prints."""
    return root / "trials" / f"{trial.name}.log"


def _record(root: epath.Path, trial: Trial) -> epath.Path:
    return root / "trials" / f"{trial.name}.json"


def record(root: epath.Path, trial: Trial, status: str, reason: str, final: bool) -> None:
    """Write down that a trial was stopped early or has failed, which its folder does not tell."""
    path = _record(root, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, {"status": status, "reason": reason, "final": final, "values": trial.values})


def forget(root: epath.Path, trial: Trial) -> None:
    """Remove the record of a trial that is begun again."""
    _record(root, trial).unlink(missing_ok=True)


def state(root: epath.Path, trial: Trial) -> State:
    """How far a trial has come: by its summary, which is written last, then by its record, then by its metrics.

    Raises:
      InputError: the folder holds a run of another config, or a file in it is not understood.
    """
    there = folder(root, trial)
    if (there / "config.json").exists():
        _check_config(there, trial)
    rows = workdir.read_metrics(there)
    step = rows[-1]["step"] if rows else 0
    if (there / "summary.json").exists():
        return State(FINISHED, step, final=True)
    path = _record(root, trial)
    if path.exists():
        told = workdir.read_json(path)
        return State(told["status"], step, told["reason"], told["final"])
    return State(BEGUN if step else WAITING, step)


def _check_config(there: epath.Path, trial: Trial) -> None:
    """Refuse a run that another config has made, as when the file of the base config has changed since."""
    made = settings.flatten(workdir.read_config(there).to_dict())
    differ = [key for key, value in trial.config.items() if made[key] != value and key not in FILLED_IN]
    if differ:
        raise InputError(
            f"{there} holds a run of another config ({differ[0]} is {made[differ[0]]!r} there and "
            f"{trial.config[differ[0]]!r} here): give another --workdir"
        )


def begun(root: epath.Path, sweep: Sweep) -> list[Trial]:
    """The trials of a search in the folder, in the order in which they were begun."""
    found = {}
    paths = [*(root / "trials").glob("*/config.json"), *(root / "trials").glob("*.json")]
    for path in sorted(paths, key=lambda path: (path.stat().mtime, path.name)):
        told = workdir.read_json(path)
        values = told["values"] if path.parent.name == "trials" else settings.flatten(told)
        try:
            trial = make(sweep, _as_drawn(sweep, {key: values[key] for key in sweep.keys}))
        except (KeyError, TypeError):
            raise InputError(f"{path} is of no trial of this sweep: give another --workdir") from None
        found.setdefault(trial.name, trial)
    return list(found.values())


def _as_drawn(sweep: Sweep, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial's config as the search draws them: a Choice may have `"(30, 20)"` for `[30, 20]`."""
    told = dict(values)
    for key, each in sweep.distributions.items():
        if isinstance(each, Choice):
            read = (settings.flatten(sweep.load({key: option}).to_dict())[key] for option in each.values)
            told[key] = next((o for o, value in zip(each.values, read, strict=True) if value == told[key]), told[key])
    return told


def to_do(states: Mapping[str, State]) -> list[str]:
    """The names of those that another start can bring further."""
    return [name for name, each in states.items() if not each.final]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Training steps of a trial, and how many an epoch has."""

    num_steps: int
    steps_per_epoch: float


def costs(trials: Sequence[Trial]) -> dict[str, Cost]:
    """The cost of each trial, by its name; reads each data set once, and sees that every config can be built.

    Raises:
      InputError: the data cannot be used, or a value cannot be.
    """
    import jax

    from experiments import build

    jax.config.update("jax_platforms", "cpu")  # the accelerators are the trials'
    datasets: dict[str, Any] = {}
    found, built = {}, set()
    for trial in trials:
        config = settings.conform(trial.config, "--config")
        read = [(key, value) for key, value in trial.config.items() if key.startswith("data")]
        try:
            dataset = datasets.get(str(read)) or datasets.setdefault(str(read), build.load_data(config))
            if trial.setting not in built:  # the seed changes nothing of it
                build.build(config, dataset)
                built.add(trial.setting)
        except InputError as error:
            raise InputError(f"trial {trial.name}: {error}") from None
        per_epoch = len(dataset.train.examples) / trial.config["train.batch_size"]
        found[trial.name] = Cost(math.ceil(trial.config[definition.LENGTH] * per_epoch), per_epoch)
    return found
