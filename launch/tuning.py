"""The jobs of a sweep under Ray Tune: on this machine, or on a cluster that is there already."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from aevb.errors import InputError
from experiments import cli
from launch import definition
from launch.definition import Choice, LogUniform, Sweep
from launch.trials import Trial
from launch.watching import Plan

LOST_NODES = 3  # that a job may lose
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",  # with SIGKILL, where SIGTERM would have them save
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "120",
}
START_MEMORY = 100 * 2**20  # bytes of the object store, which holds next to nothing


class Resources(NamedTuple):
    """What a trial is given of its node."""

    cpus: int
    gpus: float
    tpus: int

    def __str__(self) -> str:
        told = [f"{self.cpus} CPU core{'s' * (self.cpus != 1)}"]
        others = ((self.gpus, "GPU"), (self.tpus, "TPU chip"))
        told += [f"{num:g} {name}{'s' * (num > 1)}" for num, name in others if num]
        return " and ".join(told)


def check_installed(sweep: Sweep) -> None:
    """Refuse to go on without Ray, or Optuna where it searches.

    Raises:
      InputError: it is not there.
    """
    needed = ["ray"] + ["optuna"] * sweep.drawn_later
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed, and sweeps run on it: pip install -e '.[launch]'")


@contextlib.contextmanager
def connected(address: str | None, needs: Resources) -> Iterator[list[dict[str, float]]]:
    """A Ray cluster: of this machine alone, or the one at an address; what each of its nodes has.

    Raises:
      InputError: no cluster answers there, or no node has what a trial needs.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    given: dict[str, Any] = {"address": address}
    if address:
        _check_answers(address)
    else:
        given = {"address": "local", "include_dashboard": False, "num_cpus": num_cores()}
        given["object_store_memory"] = START_MEMORY
    _init(**given)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_fits(nodes, needs)
        yield nodes
    finally:
        ray.shutdown()


def _init(address: str, **given: Any) -> None:
    """Call `ray.init`, once more if it fails: it gives a busy machine half a minute to start its processes."""
    import ray

    for last in (False, True):
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **given)
            return
        except Exception as error:  # Ray raises bare ones, too
            ray.shutdown()
            if last:
                local = address == "local"
                at = "Ray does not start here" if local else f"--address={address} cannot be used"
                advice = "see /tmp/ray" if local else "start Ray on this machine too, and give the head's HOST:PORT"
                words = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(f"{at} ({words}): {advice}") from None


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_answers(address: str) -> None:
    """Refuse an address that nobody listens at, which Ray would wait for for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or "/" in host:
        raise InputError(f"--address={address} is no address: give HOST:PORT of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"--address={address} cannot be reached ({error.strerror or error}): see that the cluster's head runs there"
        ) from None


def check_fits(nodes: Sequence[dict[str, float]], needs: Resources) -> None:
    """Refuse trials that would wait for ever.

    Args:
      nodes: what each has, as Ray says it.
      needs: what a trial is given.

    Raises:
      InputError: no node has as much.
    """
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, "TPU": needs.tpus}
    if any(all(node.get(kind, 0) >= num for kind, num in asked.items()) for node in nodes):
        return
    most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in asked}
    over = next((kind for kind, num in asked.items() if num > most[kind]), None)
    if over is None:
        raise InputError(f"no node has {needs} together: ask for less of one of them")
    flag = f"--{over.lower()}s_per_trial"
    raise InputError(f"{flag} is {asked[over]:g}, and no node has more than {most[over]:g}: give at most as many")


def idle(nodes: Sequence[dict[str, float]], needs: Resources) -> str:
    """The kind of accelerator that nodes have and no trial is given; empty where there is none."""
    given = {"GPU": needs.gpus, "TPU": needs.tpus}
    if any(given.values()):
        return ""
    return next((kind for kind in given if any(node.get(kind, 0) for node in nodes)), "")


def slots(nodes: Sequence[dict[str, float]], needs: Resources) -> int:
    """Trials that run side by side."""
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, "TPU": needs.tpus}
    return sum(min(int(node.get(kind, 0) / num) for kind, num in asked.items() if num) for node in nodes)


def run(
    plan: Plan,
    needs: Resources,
    side_by_side: int,
    again: Sequence[Trial],
    num_trials: int,
    told: Callable[[Trial, dict[str, Any] | None], None],
) -> str:
    """Run all jobs to their ends.

    Args:
      plan: of the sweep; with jobs, or a search that draws them.
      needs: of each.
      side_by_side: how many fit.
      again: of a search, the trials of an earlier start, which it is told of first.
      num_trials: of a search, with these.
      told: is called with what becomes of each trial: its status, reason, and whether that is final; None where an
        earlier start has ended it.

    Returns:
      The name of the signal that stopped it, saved; empty where all came to their ends.
    """
    from ray import tune

    from launch.trainable import JobTrainable

    searched = plan.sweep.drawn_later
    with tempfile.TemporaryDirectory(prefix="aevb-sweep-") as scratch, _stopping() as stopped:
        bundle = {"CPU": needs.cpus, "GPU": needs.gpus, "TPU": needs.tpus}
        trainable = tune.with_resources(
            tune.with_parameters(JobTrainable, plan=plan),
            tune.PlacementGroupFactory([{kind: num for kind, num in bundle.items() if num}]),
        )
        tuner = tune.Tuner(
            trainable,
            param_space={} if searched else {"job": tune.grid_search(list(range(len(plan.jobs))))},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max" if plan.metric.better > 0 else "min",
                scheduler=_scheduler(plan),
                search_alg=_search(plan, again) if searched else None,
                num_samples=num_trials if searched else 1,
                max_concurrent_trials=side_by_side if searched else None,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,  # what is worth keeping is in the sweep's folder
                verbose=0,
                stop=_stopper(stopped),
                callbacks=[_listener(plan, told)],
                failure_config=tune.FailureConfig(max_failures=LOST_NODES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        for name in ("ray", "ray.tune", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what becomes of trials is in our own lines
        with warnings.catch_warnings(action="ignore"):
            tuner.fit()
    return stopped[0] if stopped else ""


@contextlib.contextmanager
def _stopping() -> Iterator[list[str]]:
    """Inside, a first SIGTERM or Ctrl-C is only remembered, by its name, so that every trial can save."""
    stopped: list[str] = []
    before = {signum: signal.getsignal(signum) for signum in cli.STOPS}

    def stop(signum: int, frame: object) -> None:
        stopped.append(signal.Signals(signum).name)
        signal.signal(signum, before[signum])

    for signum in cli.STOPS:
        signal.signal(signum, stop)
    try:
        yield stopped
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stopper(stopped: list[str]) -> Any:
    """Has Tune stop every trial once a signal has come."""
    from ray import tune

    class Stopper(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(stopped)

    return Stopper()


def _scheduler(plan: Plan) -> Any:
    """What stops bad trials early; None where all are to go on."""
    budget = plan.sweep.budget
    if not budget.grace_epochs:
        return None
    from ray.tune.schedulers import ASHAScheduler

    longest = max([budget.num_epochs, *(each.config[definition.LENGTH] for job in plan.jobs for each in job.trials)])
    return ASHAScheduler(
        time_attr="epoch",
        max_t=longest,
        grace_period=budget.grace_epochs,
        reduction_factor=budget.reduction,
        stop_last_trials=False,  # one at its end evaluates and writes its summary; see also Watch
    )


def _search(plan: Plan, again: Sequence[Trial]) -> Any:
    """Optuna over the distributions; first of all it is told the trials of an earlier start."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep, space = plan.sweep, {}
    for key, each in sweep.distributions.items():
        if isinstance(each, Choice):
            space[key] = optuna.distributions.CategoricalDistribution(list(each.values))
        elif definition.whole(sweep, key):
            space[key] = optuna.distributions.IntDistribution(*map(int, each), log=isinstance(each, LogUniform))
        else:
            space[key] = optuna.distributions.FloatDistribution(*map(float, each), log=isinstance(each, LogUniform))
    points = [each.given for each in again]
    return OptunaSearch(
        space,
        metric="score",
        mode="max" if plan.metric.better > 0 else "min",
        points_to_evaluate=points or None,
        sampler=optuna.samplers.TPESampler(seed=len(points), n_startup_trials=max(4, sweep.budget.num_trials // 4)),
    )


def _listener(plan: Plan, told: Callable[[Trial, dict[str, Any] | None], None]) -> Any:
    """Tells what becomes of trials, of those too that Tune stops, and of those whose nodes are lost."""
    from ray import tune

    class Listener(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # Tune's names
            result = trial.last_result or {}
            stopped = {
                "status": "stopped early",
                "reason": f"behind the others after {result.get('epoch', 0):g} epochs",
                "final": True,
            }
            for each in plan.job(trial.config).trials:
                told(each, result.get("outcomes", {}).get(each.name) if "outcomes" in result else stopped)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            error = trial.get_error()
            words = str(error).strip().splitlines()[-1] if error else "no reason was told"
            reason = f"lost with its node or process {trial.num_failures} times: {words}"
            for each in plan.job(trial.config).trials:
                told(each, {"status": "failed", "reason": reason, "final": False})

    return Listener()
