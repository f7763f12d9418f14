"""Every figure of the paper, one after another, with what each will cost on this machine printed first.

    python -m experiments.paper.all --scale=smoke

`smoke` shows that everything runs, `short` takes the curves to 1e7 training points, `full` as far as the paper's axes.
Costs are from speeds measured here before the start, of training and of evaluating each kind of run, and hold for one
run after another on all devices; runs side by side, which is the default, take less.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict

from aevb import training
from aevb.errors import InputError
from experiments import build, cli, evaluate, settings
from experiments.benchmarks.paper_speed import calls
from experiments.paper import fig2, fig3, fig4, fig5, full_vb, runs
from experiments.progress import evaluation_due

FIGURES = {"fig2": fig2, "fig3": fig3, "fig4": fig4, "fig5": fig5, "full_vb": full_vb}
# Training points of every run, at most: a figure's own number where that is smaller.
SCALES = {"smoke": 2e4, "short": 1e7, "full": 1e8}
OVERHEAD = 30.0  # seconds a run: start, compiling, the evaluation and the pictures at its end
CALLS = 2  # measured, after one that compiles


def config_of(job: runs.Job, points: float) -> ConfigDict:
    config, *overrides = job.arguments(points, seed=0)
    return settings.load(config.partition("=")[2], overrides)


def speeds(job: runs.Job) -> tuple[float, float]:
    """Training's examples a second, the best of a few calls, and the seconds of one evaluation on a curve."""
    run = build.build(config_of(job, 1e5))
    rate = max(calls(run, CALLS))
    params = training.replicate(run.init_state().params)
    evaluate.curve_rows(run, params)  # compiles
    started = time.perf_counter()
    evaluate.curve_rows(run, params)
    return rate, time.perf_counter() - started


def job_seconds(job: runs.Job, done: float, points: float, rate: float, evaluation: float) -> float:
    """Of a run alone from `done` training points to `points`."""
    keys = config_of(job, points).train
    first, last = (int(end / keys.batch_size / keys.log_every_steps) for end in (done, points))
    looks = (keys.log_every_steps * call for call in range(first + 1, last + 1))
    evaluations = sum(evaluation_due(keys, step) for step in looks)
    return (points - done) / rate + evaluations * evaluation + OVERHEAD


def costs(points: dict[str, float]) -> Iterator[str]:
    """A line a figure: its runs that no figure before it has, their training points and the hours they take."""
    measured: dict[tuple, tuple[float, float]] = {}
    counted: dict[str, float] = {}
    for name, figure in FIGURES.items():
        seconds, new = 0.0, 0
        for job in figure.jobs():
            done = counted.get(job.name(0), 0.0)
            if points[name] <= done:
                continue
            kind = (job.dataset, job.algorithm, job.overrides)  # runs of one kind are about as fast
            measured[kind] = measured.get(kind) or speeds(job)
            seconds += job_seconds(job, done, points[name], *measured[kind])
            if name == "full_vb":
                seconds += full_vb.PREDICTION_POINTS / measured[kind][0]
            counted[job.name(0)] = points[name]
            new += 1
        yield f"{name}: {new} runs of {points[name]:.0e} training points, about {seconds / 3600:.1f} hours"
    yield "gradients: about a minute"


def commands(points: dict[str, float]) -> list[list[str]]:
    """The arguments of every command, in order."""
    common = [f"--workdir={flags.FLAGS.workdir}", f"--out={flags.FLAGS.out or flags.FLAGS.workdir}"]
    common.append(f"--seed={flags.FLAGS.seed}")
    jobs = [f"--jobs={flags.FLAGS.jobs}"] if flags.FLAGS.jobs else []
    figures = [[f"experiments.paper.{name}", *common, *jobs, f"--training_points={points[name]:g}"] for name in FIGURES]
    return [*figures, ["experiments.paper.gradients", *common[1:]]]


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    scale = cli.required("scale", "smoke")
    if scale not in SCALES:
        raise InputError(f"--scale is {scale!r}: choose one of {', '.join(SCALES)}")
    points = {name: min(figure.TRAINING_POINTS, SCALES[scale]) for name, figure in FIGURES.items()}
    print("measuring how fast each kind of run is here, a few minutes", flush=True)
    for cost in costs(points):
        print(cost, flush=True)
    if flags.FLAGS.dry_run:
        return
    for command in commands(points):
        print("python -m", *command, flush=True)
        code = subprocess.call([sys.executable, "-m", *command])
        if code:
            cli.fail(f"{command[0]} ended with exit code {code}: run the same command to go on", code)


if __name__ == "__main__":
    flags.DEFINE_string("scale", None, f"How far to go: {', '.join(SCALES)}.")
    flags.DEFINE_bool("dry_run", False, "Only print what it costs.")
    flags.DEFINE_string("workdir", "runs/paper", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", None, "Where figures, CSVs and tables go; the workdir unless given.")
    flags.DEFINE_integer("seed", 0, "Of every run.", lower_bound=0)
    flags.DEFINE_integer("jobs", None, "Runs side by side; one a device, or one a core, unless given.", lower_bound=1)
    cli.run(main)
