"""Trials that keep each other's shapes, as one program that trains them together: experiments.packed."""

from collections.abc import Collection, Sequence

from aevb.errors import InputError
from experiments import workdir
from launch import definition, trials
from launch.definition import Sweep
from launch.trials import Trial
from launch.watching import Job, Plan


def check(sweep: Sweep) -> None:
    """Refuse to pack trials that end one by one.

    Raises:
      InputError: they are stopped early, or drawn as the sweep goes on.
    """
    if sweep.budget.grace_epochs:
        raise InputError("--packed trains trials to their end together, and grace_epochs stops some: leave out one")
    if sweep.drawn_later:
        raise InputError("--packed trains trials together, and optuna draws one after another: use search='random'")


def group(members: Sequence[Trial], packable: Collection[str]) -> list[list[Trial]]:
    """Trials that differ in keys alone that a pack may differ in, in their order.

    Args:
      members: that are to be trained.
      packable: keys of the config that change numbers and no shapes.
    """
    found: dict[tuple, list[Trial]] = {}
    for trial in members:
        shared = tuple((key, str(value)) for key, value in trial.config.items() if key not in packable)
        found.setdefault(shared, []).append(trial)
    return list(found.values())


def contents(plan: Plan, members: Sequence[Trial]) -> dict:
    """What experiments.packed reads: the config, what all trials share, and the workdir and the rest of each."""
    given = [each.given for each in members]
    shared = {key: value for key, value in given[0].items() if all(key in g and g[key] == value for g in given)}
    return {
        "config": plan.sweep.config,
        "overrides": definition.arguments(plan.sweep.common | shared),
        "trials": [
            {
                "workdir": str(trials.folder(plan.folder, each)),
                "overrides": definition.arguments({k: v for k, v in each.given.items() if k not in shared}),
            }
            for each in members
        ],
    }


def job(plan: Plan, members: Sequence[Trial]) -> Job:
    """The job that trains these together; of one alone, an ordinary one. Writes what experiments.packed reads."""
    if len(members) == 1:
        return plan.single(members[0])
    path = plan.folder / "packs" / f"{members[0].name}_and_{len(members) - 1}_more.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, contents(plan, members))
    return Job(path.stem, list(members), ["-m", "experiments.packed", f"--trials={path}"])
