"""Train a model from a config; running the same command again resumes it, or says that it is finished.

python -m experiments.train --config=experiments/configs/vae.py --workdir=runs/digits
"""

import time

_STARTED = time.time()  # before the heavy imports: what a person waits for

import dataclasses  # noqa: E402
import math  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from etils import epath  # noqa: E402
from ml_collections import config_flags  # noqa: E402
from tqdm import tqdm  # noqa: E402

from aevb import training  # noqa: E402
from aevb.checkpoints import Checkpoints  # noqa: E402
from aevb.errors import InputError  # noqa: E402
from experiments import build, cli, workdir  # noqa: E402
from experiments.build import Run  # noqa: E402

# Keys that may change between two starts of one run: where the data lies, what is looked at, how long it goes on.
WATCHING = {
    "data.dir",
    "data.workers",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.num_samples",
    "eval.batch_size",
}
LENGTHENING = "train.num_epochs"


@dataclasses.dataclass
class Journal:
    """What a run has told so far: the rows of metrics.jsonl, in the file, on TensorBoard and on the terminal."""

    folder: epath.Path
    rows: list[dict[str, Any]]
    num_steps: int
    step: int

    def __post_init__(self) -> None:
        from tensorboardX import SummaryWriter

        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.num_steps, initial=self.step, unit="step", dynamic_ncols=True)

    def add(self, row: dict[str, Any]) -> None:
        """Record a row everywhere."""
        self.rows.append(row)
        workdir.append_metrics(self.folder, row)
        for name, value in row.items():
            if name not in ("step", "split"):
                self.board.add_scalar(f"{row['split']}/{name}", value, row["step"])
        training_row = row["split"] == "train"
        if self.bar is not None:
            if training_row:
                self.bar.set_postfix_str(f"elbo {row['elbo']:.2f} nats, {row['examples_per_second']:,.0f} examples/s")
            self.bar.update(row["step"] - self.bar.n)
        elif not training_row or row["step"] == self.num_steps:
            rate = f", {row['examples_per_second']:,.0f} examples/s" if training_row else ""
            print(
                f"step {row['step']}/{self.num_steps} {row['split']}: elbo {row['elbo']:.2f} nats "
                f"(log-likelihood {row['log_likelihood']:.2f}, kl {row['kl']:.2f}){rate}",
                flush=True,
            )

    def validation_bounds(self) -> list[float]:
        return [row["elbo"] for row in self.rows if row["split"] == "validation"]

    def close(self) -> None:
        self.board.close()
        if self.bar is not None:
            self.bar.close()


def open_workdir(folder: epath.Path, run: Run) -> None:
    """Make the folder and write config.json; or check that the run in it is this one.

    Raises:
      InputError: another run is in the folder, or the disk has no room for this one.
    """
    ours = workdir.flatten(run.config.to_dict())
    if (folder / "config.json").exists():
        theirs = workdir.flatten(workdir.read_json(folder / "config.json"))
        allowed = WATCHING | (set() if run.config.train.patience else {"train.eval_every_steps"})
        if ours[LENGTHENING] >= theirs.get(LENGTHENING, math.inf):
            allowed = allowed | {LENGTHENING}
        differ = [k for k in sorted(ours | theirs) if ours.get(k) != theirs.get(k) and k not in allowed]
        if differ:
            named = ", ".join(f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differ)
            raise InputError(f"{folder} holds a run of another config ({named}): choose another --workdir")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no run: choose another --workdir")
    _check_room(folder, run)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / "config.json", run.config.to_dict())


def _check_room(folder: epath.Path, run: Run) -> None:
    """Refuse to start a run whose checkpoints would not fit: parameters, their optimizer's state and average."""
    state = jax.eval_shape(run.init_state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = size * (run.config.train.keep_checkpoints + 3) + 32 * 2**20
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{existing} has {free / 2**20:.0f} MiB free and the run needs {needed / 2**20:.0f} MiB for checkpoints "
            "and figures: make room or choose another --workdir"
        )


def train(run: Run, folder: epath.Path, preemption: cli.Preemption) -> tuple[Any, Journal, dict[str, float]]:
    """Train from the last whole checkpoint to the end, or until stopped early or by SIGTERM.

    Returns:
      The replicated state at the end, the journal, and the timings of this start.
    """
    keys = run.config.train
    last = Checkpoints(folder / "checkpoints" / "last", keys.keep_checkpoints)
    best = Checkpoints(folder / "checkpoints" / "best", 1)
    state, step = resume(run, folder, last)
    rows = [row for row in workdir.read_metrics(folder) if row["step"] <= step]
    workdir.write_metrics(folder, rows)
    journal = Journal(folder, rows, run.num_steps, step)
    validate = make_validation(run)
    replicated = training.replicate(state)
    seconds, first_step_seconds, first = 0.0, 0.0, step
    steps = training.train(
        run.learner,
        state,
        run.feed,
        run.preprocess["train"],
        num_steps=step if stopped_early(run, journal) else run.num_steps,
        steps_per_call=keys.log_every_steps,
        ema_decay=keys.ema_decay,
    )
    preemption.training = True
    started = time.perf_counter()
    for replicated, metrics in steps:
        seconds += (elapsed := time.perf_counter() - started)
        first_step_seconds = first_step_seconds or time.time() - _STARTED
        step += len(metrics["loss"])
        journal.add(training_row(run, step, metrics, elapsed))
        saving = step == run.num_steps or step % keys.checkpoint_every_steps == 0
        if (step == run.num_steps or step % keys.eval_every_steps == 0) and len(run.dataset.validation.examples):
            row = {"step": step, "split": "validation", "examples_seen": step * keys.batch_size}
            journal.add(row | validate(replicated))
            bounds = journal.validation_bounds()
            if bounds[-1] >= max(bounds):
                best.save(step, training.unreplicate(replicated))
        ended = stopped_early(run, journal)
        if saving or ended or preemption.requested:
            last.save(step, training.unreplicate(replicated))
        if ended or preemption.requested:
            break
        started = time.perf_counter()
    preemption.training = False
    last.close()
    best.close()
    journal.close()
    if preemption.requested:
        cli.fail(f"stopped by SIGTERM at step {step}, saved: run the same command to go on", cli.PREEMPTED)
    rate = (step - first) * keys.batch_size / seconds if seconds else 0.0
    timings = {
        "train_seconds": seconds,
        "first_step_seconds": first_step_seconds,
        "examples_per_second": rate,
    }
    return replicated, journal, timings


def resume(run: Run, folder: epath.Path, last: Checkpoints) -> tuple[Any, int]:
    """The state to start from, and its step; says which checkpoints had to be passed over."""
    state = run.init_state()
    restored = last.restore(state, repair=True)
    if restored is None:
        return state, 0
    state, step, passed_over = restored
    for sentence in passed_over:
        print(f"{sentence}; going on from step {step}", file=sys.stderr)
    if step < run.num_steps:
        print(f"resuming {folder} at step {step} of {run.num_steps}", flush=True)
    return state, step


def stopped_early(run: Run, journal: Journal) -> bool:
    """Whether the best validation bound is `patience` evaluations old."""
    bounds, patience = journal.validation_bounds(), run.config.train.patience
    return bool(patience) and len(bounds) > patience and max(bounds[-patience:]) <= max(bounds[:-patience])


def training_row(run: Run, step: int, metrics: dict[str, np.ndarray], elapsed: float) -> dict[str, Any]:
    """A row of metrics.jsonl: the mean over the steps of one call, nats per datapoint at beta = 1."""
    optimizer, batch_size = run.config.optimizer, run.config.train.batch_size
    means = {name: float(values.mean(dtype=np.float64)) for name, values in metrics.items()}
    return {
        "step": step,
        "split": "train",
        "examples_seen": step * batch_size,
        **means,
        "kl_weight": float(metrics["kl_weight"][-1]),
        "learning_rate": optimizer.learning_rate * float(build.learning_rate_factor(optimizer)(step - 1)),
        "examples_per_second": len(metrics["loss"]) * batch_size / elapsed,
    }


def make_validation(run: Run) -> Any:
    """From a replicated state to the mean bound over the validation split, the same draws each time."""
    from experiments.evaluate import datapoint_bound, evaluated_params

    mapped = training.map_examples(datapoint_bound(run), run.preprocess["validation"], 10 * run.config.eval.batch_size)

    def validate(state: Any) -> dict[str, float]:
        return mean_bound(training.collect(mapped(evaluated_params(state), run.dataset.validation, run.eval_key)))

    return validate


def mean_bound(each: Any) -> dict[str, float]:
    """The mean of a bound over examples, with its parts, nats per datapoint."""
    mean = jax.tree.map(lambda values: float(values.mean(dtype=np.float64)), each)
    return {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl}


def finish(run: Run, folder: epath.Path, state: Any, journal: Journal, timings: dict[str, float]) -> None:
    """Evaluate, draw, summarise and report."""
    from aevb import figures
    from experiments import evaluate, generate, report

    which, step = "last", journal.rows[-1]["step"]
    params = evaluate.evaluated_params(state)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures.save(figures.learning_curves(journal.rows), folder / "figures" / "learning_curves.png")
    bounds = {name: final_and_best(journal.rows, name) for name in ("train", "validation")}
    evaluation = None
    if len(run.dataset.test.examples):
        bounds["test"], best = test_bounds(run, folder, params, step)
        if run.config.train.patience and best is not None:
            which, (params, step) = "best", best
        print(f"evaluating the test split with {run.config.eval.num_samples} importance samples", flush=True)
        evaluation = evaluate.evaluate(run, params, "test", run.config.eval.num_samples)
        evaluation |= {"checkpoint": which, "step": step}
        workdir.write_json(folder / "evaluation.json", evaluation)
    generate.draw_all(run, params, folder / "figures")
    workdir.write_json(
        folder / "summary.json",
        summarise(run, state, journal, bounds, evaluation) | timings | {"total_seconds": time.time() - _STARTED},
    )
    page = report.write(folder)
    if evaluation:
        print(
            f"test: elbo {evaluation['elbo']:.2f}, nll {evaluation['nll']:.2f} +- {evaluation['nll_stderr']:.2f} nats "
            f"({evaluation['num_samples']} importance samples, {evaluation['num_examples']} examples, "
            f"binarization {evaluation['binarization']}{'' if run.density else ': not a density'})"
        )
    print(f"look at {page}")


def test_bounds(run: Run, folder: epath.Path, params: Any, step: int) -> tuple[dict[str, Any], Any]:
    """The bound on the test split at the last step and at the one best on validation, and the latter's parameters."""
    from experiments import evaluate

    mapped = training.map_examples(
        evaluate.datapoint_bound(run), run.preprocess["test"], 10 * run.config.eval.batch_size
    )

    def bound(params: Any, step: int) -> dict[str, Any]:
        return mean_bound(training.collect(mapped(params, run.dataset.test, run.eval_key))) | {"step": step}

    final = bound(params, step)
    best = evaluate.restore_params(run, folder, "best")
    return {"final": final, "best": bound(*best) if best else final}, best


def final_and_best(rows: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """The last and the highest bound of a split among the rows; nothing if it has none."""
    bounds = [
        {key: row[key] for key in ("elbo", "log_likelihood", "kl", "step")} for row in rows if row["split"] == split
    ]
    return {"final": bounds[-1], "best": max(bounds, key=lambda row: row["elbo"])} if bounds else {}


def summarise(run: Run, state: Any, journal: Journal, bounds: dict[str, Any], evaluation: Any) -> dict[str, Any]:
    """What summary.json says apart from times; two equal runs agree on all of it."""
    step = journal.rows[-1]["step"]
    params = training.unreplicate(state.params)
    return {
        "status": "early_stopped" if step < run.num_steps else "finished",
        "dataset": run.dataset.name,
        "splits": run.dataset.splits,
        "binarization": run.config.data.binarization,
        "likelihood": run.config.model.likelihood,
        "density": run.density,
        "step": step,
        "num_steps": run.num_steps,
        "examples_seen": step * run.config.train.batch_size,
        "num_examples": {name: len(getattr(run.dataset, name).examples) for name in build.SPLITS},
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seed": run.config.seed,
        "bound": run.config.bound.name,
        "bounds": bounds,
        "evaluation": evaluation,
        "versions": workdir.versions(),
        "hardware": workdir.hardware(),
    }


def finished(run: Run, folder: epath.Path) -> bool:
    """Whether the run in the folder has come to its end and its summary is written."""
    path = folder / "summary.json"
    if not path.exists():
        return False
    summary = workdir.read_json(path)
    return summary["status"] == "early_stopped" or summary["step"] >= run.num_steps


def main(argv: list[str]) -> None:
    if flags.FLAGS.config is None:
        raise InputError("--config is missing: give for example --config=experiments/configs/vae.py")
    preemption = cli.Preemption()
    folder = epath.Path(flags.FLAGS.workdir)
    run = build.build(flags.FLAGS.config)
    open_workdir(folder, run)
    if finished(run, folder):
        print(f"{folder} is finished; look at {folder / 'report.html'}, or raise --config.{LENGTHENING} to go on")
        return
    state, journal, timings = train(run, folder, preemption)
    finish(run, folder, state, journal, timings)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file of experiments/configs, with :DATASET.")
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.", required=True)
    cli.run(main)
