"""Many runs from one line: a grid, a list or a search over keys of a config, side by side, with one page at the end.

    python -m launch.sweep --sweep=launch/sweeps/latent_dim.py --workdir=runs/latent_dim

Each trial is a run of experiments.train in DIR/trials/NAME. The same command again goes on with what is unfinished, and
repeats nothing that is done. `--dry_run` prints the trials and their cost, and starts nothing.
"""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import cli, workdir
from experiments.pages import read_if_there
from launch import definition, metrics, packs, trials, tuning, watching
from launch.definition import LENGTH, Sweep
from launch.metrics import Metric
from launch.trials import BEGUN, FAILED, FINISHED, STOPPED, WAITING, Cost, State, Trial
from launch.tuning import Resources
from launch.watching import Plan

SOME_FAILED = 1  # exit code: the page is written, and tells which
PAGE_SECONDS = 120.0  # between two pages of a sweep on its way


@dataclasses.dataclass(frozen=True)
class Begun:
    """A sweep with its folder, its trials so far, what they cost, and how many a search is still to draw."""

    sweep: Sweep
    metric: Metric
    root: epath.Path
    trials: list[Trial]
    costs: dict[str, Cost]
    to_draw: int

    def states(self) -> dict[str, State]:
        """How far each trial has come, by its name."""
        return {each.name: trials.state(self.root, each) for each in self.trials}

    @property
    def num_trials(self) -> int:
        """With those that are drawn later."""
        return len(self.trials) + self.to_draw


def begin(path: str, root: epath.Path) -> Begun:
    """Read a sweep, and see that all of it can be made in the folder; write nothing.

    Raises:
      InputError: the sweep cannot be used, or the folder holds another.
    """
    sweep = definition.read(path)
    _check_folder(root, sweep)
    try:
        metric = metrics.parse(sweep.metric)
        drawn = sweep.drawn_later
        found = trials.begun(root, sweep) if drawn else trials.known(sweep)
        asked = found or [trials.make(sweep, definition.first(sweep))]
        for trial in {each.setting: each for each in asked}.values():
            metrics.check(metric, trial.config, early=bool(sweep.budget.grace_epochs))
        costs = trials.costs(asked)
    except InputError as error:
        raise InputError(f"--sweep={path}: {error}") from None
    if drawn:
        costs[""] = costs[asked[0].name]
    return Begun(sweep, metric, root, found, costs, left_to_draw(sweep, root, found))


def left_to_draw(sweep: Sweep, root: epath.Path, found: Sequence[Trial]) -> int:
    """How many a search is still to draw; it may draw the same twice, and has then drawn more than are found."""
    if not sweep.drawn_later:
        return 0
    return max(0, sweep.budget.num_trials - max(read_if_there(root / "sweep.json").get("drawn", 0), len(found)))


def said(sweep: Sweep) -> dict[str, Any]:
    """What makes two sweeps one: more values or trials may come later."""
    budget = sweep.budget
    return {
        "config": sweep.config,
        "overrides": definition.arguments(sweep.common),
        "metric": sweep.metric,
        "keys": sweep.keys,
        "early": [budget.grace_epochs, budget.reduction] if budget.grace_epochs else None,
    }


def _check_folder(root: epath.Path, sweep: Sweep) -> None:
    """Refuse a folder that is no sweep's, or another's."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: choose another --workdir")
    path = root / "sweep.json"
    if path.exists():
        theirs, ours = workdir.read_json(path), said(sweep)
        differ = [key for key in ours if theirs.get(key) != ours[key]]
        if differ:
            raise InputError(
                f"{root} holds another sweep ({differ[0]}: {theirs.get(differ[0])!r} there and {ours[differ[0]]!r} "
                "here): choose another --workdir"
            )
    elif root.exists() and any(path.name != workdir.LOCK for path in root.iterdir()):
        raise InputError(f"{root} is not empty and holds no sweep: choose another --workdir")


def dry_run(begun: Begun, groups: Sequence[Sequence[Trial]] | None) -> str:
    """The trials, their cost, and what of it is done, as lines."""
    sweep, states = begun.sweep, begun.states()
    lines = [f"{begun.num_trials} trials of {sweep.config}, judged by {begun.metric.words}"]
    width = max((len(each.name) for each in begun.trials), default=0)
    total = done = 0
    for each in begun.trials:
        state, cost = states[each.name], begun.costs[each.name]
        epochs = f"{each.config[LENGTH]:g} epochs, {cost.num_steps:,} steps"
        lines.append(f"  {each.name:{width}}  {epochs}: {_progress(state, cost)}")
        total += cost.num_steps
        done += cost.num_steps if state.final else min(state.step, cost.num_steps)
    if begun.to_draw:
        num_steps, each = begun.costs[""].num_steps, f"{sweep.budget.num_epochs:g} epochs"
        lines.append(f"  {begun.to_draw} more that optuna draws, each {each}, {num_steps:,} steps")
        total += begun.to_draw * num_steps
    early = ", at most: ASHA stops what is behind" if sweep.budget.grace_epochs else ""
    lines.append(f"in all {total:,} steps{early}; {done:,} of them are done ({100 * done / total:.0f} %)")
    if groups:
        sizes = ", ".join(str(len(each)) for each in groups)
        lines.append(f"packed into {len(groups)} program{'s' * (len(groups) > 1)}, of {sizes} trials")
    return "\n".join(lines)


def _progress(state: State, cost: Cost) -> str:
    if state.status == WAITING:
        return "to do"
    at = f" at step {state.step:,}" if state.step else ""
    if state.status == BEGUN:
        return f"begun,{at}"
    again = "" if state.final else ", to be tried again"
    return state.status + (at if state.step < cost.num_steps else "") + again


def resources(num_packs: int) -> Resources:
    """What the flags give each trial; fewer packs than cores share these, where nothing is said and Ray starts here."""
    given, cpus = flags.FLAGS, flags.FLAGS.cpus_per_trial
    if num_packs and not (flags.FLAGS["cpus_per_trial"].present or given.address):
        cpus = max(1, tuning.num_cores() // num_packs)
    return Resources(cpus, given.gpus_per_trial, given.tpus_per_trial)


def check_batches(members: Sequence[Trial], needs: Resources) -> None:
    """Refuse batches that do not divide over the devices of a trial.

    Raises:
      InputError: one does not.
    """
    devices = max(1, int(needs.gpus), needs.tpus)
    for trial in members:
        batch = trial.config["train.batch_size"]
        if batch % devices:
            raise InputError(
                f"trial {trial.name}: config.train.batch_size is {batch}, which does not divide over {needs}: set it "
                f"to a multiple of {devices}, or give each trial less"
            )


def environment(needs: Resources) -> dict[str, str]:
    """What a trial's process has beside the environment of its node."""
    told = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONUNBUFFERED": "1"}
    if not (needs.gpus or needs.tpus):
        told["JAX_PLATFORMS"] = "cpu"  # no accelerator was asked for, and side by side they would fight for it
    if 0 < needs.gpus < 1:
        told["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * needs.gpus:.3f}"
    return told


def make_plan(begun: Begun, needs: Resources) -> Plan:
    """The plan of the sweep, without its jobs."""
    return Plan(
        sweep=begun.sweep,
        metric=begun.metric,
        root=os.fspath(begun.root),
        jobs=[],
        command=list(watching.COMMAND),
        cwd=os.getcwd(),
        env=environment(needs),
        cores=0 if needs.gpus or needs.tpus else needs.cpus,
        rows=bool(begun.sweep.budget.grace_epochs),
        steps_per_epoch={name: cost.steps_per_epoch for name, cost in begun.costs.items()},
    )


def jobs_of(begun: Begun, plan: Plan, groups: Sequence[Sequence[Trial]] | None) -> Plan:
    """The plan with the jobs that are to do; one that schedules is told again of those that are done, at no cost."""
    if begun.sweep.drawn_later:
        return plan
    if groups is not None:
        return dataclasses.replace(plan, jobs=[packs.job(plan, each) for each in groups])
    states = begun.states()
    members = [each for each in begun.trials if plan.rows or not states[each.name].final]
    # Those that are done first; then a seed of each setting, whose compiled programs its other seeds find.
    rank = {each.name: sum(other.setting == each.setting for other in members[:i]) for i, each in enumerate(members)}
    members.sort(key=lambda each: (not states[each.name].final, rank[each.name]))
    return dataclasses.replace(plan, jobs=[plan.single(each) for each in members])


def groups_of(begun: Begun) -> list[list[Trial]]:
    """What is to do, as packs.

    Raises:
      InputError: the sweep cannot be packed.
    """
    from experiments import packed

    packs.check(begun.sweep)
    states = begun.states()
    return packs.group([each for each in begun.trials if not states[each.name].final], packed.PACKABLE)


class Teller:
    """Writes down what becomes of trials, says it in a line, and renews the page from time to time."""

    def __init__(self, begun: Begun) -> None:
        self.begun, self.written = begun, time.monotonic()
        self.ended = {name for name, each in begun.states().items() if each.final}

    def __call__(self, trial: Trial, outcome: Mapping[str, Any] | None) -> None:
        if outcome is None or (trial.name in self.ended and outcome["status"] != FAILED):
            return
        if outcome["status"] != FINISHED:
            trials.record(self.begun.root, trial, outcome["status"], outcome["reason"], outcome["final"])
        status = trials.state(self.begun.root, trial).status  # one that was to be stopped may have finished before
        self.ended.add(trial.name)
        found = metrics.score(trials.folder(self.begun.root, trial), self.begun.metric)
        number = f", {self.begun.metric} {found[0]:.{self.begun.metric.digits}f}" if found and status != FAILED else ""
        why = f": {outcome['reason']}" if outcome["reason"] and status != FINISHED else ""
        print(f"[{len(self.ended)}/{self.begun.num_trials}] {trial.name} {status}{number}{why}", flush=True)
        if time.monotonic() - self.written > PAGE_SECONDS:
            write_page(self.begun)
            self.written = time.monotonic()


def write_page(begun: Begun) -> epath.Path:
    """Write sweep.html and results.csv of what there is so far; the page's path."""
    from launch import page

    if begun.sweep.drawn_later:
        found = trials.begun(begun.root, begun.sweep)
        begun = dataclasses.replace(begun, trials=found, to_draw=left_to_draw(begun.sweep, begun.root, found))
    command = shlex.join(["python", "-m", "launch.sweep", *sys.argv[1:]])
    return page.write(begun.sweep, begun.metric, begun.root, begun.trials, begun.num_trials, command)


def train(begun: Begun, groups: Sequence[Sequence[Trial]] | None) -> str:
    """Bring every trial to its end, or every pack; the signal that stopped it before, if one has."""
    needs = resources(len(groups or ()))
    with tuning.connected(flags.FLAGS.address, needs) as nodes:
        side_by_side = tuning.slots(nodes, needs)
        begun.root.mkdir(parents=True, exist_ok=True)
        with workdir.claim(begun.root):
            path, drawn = begun.root / "sweep.json", begun.sweep.budget.num_trials
            workdir.write_json(path, said(begun.sweep) | {"drawn": drawn - begun.to_draw})
            for each in begun.trials:
                if not trials.state(begun.root, each).final:
                    trials.forget(begun.root, each)
            plan = jobs_of(begun, make_plan(begun, needs), groups)
            what = f"{begun.num_trials} trials" + (f" in {len(groups)} pack{'s' * (len(groups) > 1)}" if groups else "")
            print(f"{begun.root}: {what}, {side_by_side} side by side, each on {needs}", flush=True)
            if idle := tuning.idle(nodes, needs):
                print(f"no trial is given a {idle}, and there are some: --{idle.lower()}s_per_trial=1", flush=True)
            stopped = tuning.run(plan, needs, side_by_side, begun.trials, begun.num_trials, Teller(begun))
            if not stopped:
                workdir.write_json(path, said(begun.sweep) | {"drawn": drawn})
            return stopped


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    path = cli.required("sweep", "launch/sweeps/latent_dim.py")
    given = cli.required("workdir", "runs/latent_dim")
    begun = begin(path, workdir.at(given if workdir.in_store(given) else os.path.abspath(given)))
    groups = groups_of(begun) if flags.FLAGS.packed else None
    alone = begun.trials if groups is None else [each[0] for each in groups if len(each) == 1]
    check_batches(alone, resources(0))  # whole trials of packs are dealt out to devices
    if flags.FLAGS.dry_run:
        print(dry_run(begun, groups))
        return
    stopped = ""
    states = begun.states()
    if begun.to_draw or trials.to_do(states):
        tuning.check_installed(begun.sweep)
        stopped = train(begun, groups)
    page = write_page(begun)
    if stopped:
        cli.fail(f"stopped by {stopped}, saved: run the same command to go on, or look at {page}", cli.PREEMPTED)
    found = trials.begun(begun.root, begun.sweep) if begun.sweep.drawn_later else begun.trials
    states = {each.name: trials.state(begun.root, each) for each in found}
    print(f"look at {page}", flush=True)
    failed = [name for name, each in states.items() if each.status not in (FINISHED, STOPPED)]
    if failed:
        named = ", ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
        why = states[failed[0]].reason or "it did not end"
        cli.fail(f"{len(failed)} of {begun.num_trials} trials failed, {named}; the first by: {why}", SOME_FAILED)


if __name__ == "__main__":
    cli.leave_on_signal()  # but where trials run, which are to save
    flags.DEFINE_string("sweep", None, "A file of launch/sweeps, or your own.")
    flags.DEFINE_string("workdir", None, "The sweep's folder; made if it is not there.")
    flags.DEFINE_string("address", None, "HOST:PORT of the head of a Ray cluster, or auto; else Ray starts here.")
    flags.DEFINE_integer("cpus_per_trial", 1, "CPU cores of a trial; it is held to them.", lower_bound=1)
    flags.DEFINE_float("gpus_per_trial", 0.0, "GPUs of a trial, or a share of one.", lower_bound=0.0)
    flags.DEFINE_integer("tpus_per_trial", 0, "TPU chips of a trial.", lower_bound=0)
    flags.DEFINE_bool("packed", False, "Train trials that keep each other's shapes as one program.")
    flags.DEFINE_bool("dry_run", False, "Print the trials and their cost, and start nothing.")
    cli.run(main)
