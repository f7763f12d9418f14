"""Train a model from a config; running the same command again resumes it, or says that it is finished.

python -m experiments.train --config=experiments/configs/vae.py --workdir=runs/digits
"""

import time

_STARTED = time.time()  # before the heavy imports: what a person waits for

from experiments import cli  # noqa: E402

if __name__ == "__main__":
    cli.leave_on_signal()  # also in the middle of the imports, which take seconds

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import math  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from etils import epath  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from tqdm import tqdm  # noqa: E402

from aevb import training  # noqa: E402
from aevb.checkpoints import Checkpoints  # noqa: E402
from aevb.errors import InputError, NonFiniteError  # noqa: E402
from experiments import build, checkpointed, evaluate, numbers, settings, summary, workdir  # noqa: E402
from experiments.build import Run  # noqa: E402

# Keys that may change between two starts of one run: where the data lies, what is looked at, how long it goes on.
WATCHING = {
    "data.dir",
    "data.workers",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "eval.num_samples",
    "eval.batch_size",
}
# These, too, unless it is the evaluations that tell a run when to stop.
PACE = {"train.log_every_steps", "train.eval_every_steps", "train.eval_growth"}
LENGTHENING = "train.num_epochs"
# On the terminal, with their digits: nats, a share, and squared units of x.
SHOWN = {"elbo": ".2f", "log_marginal": ".2f", "log_likelihood": ".2f", "kl": ".2f", "acceptance": ".2f"}
SHOWN |= {"masked_error": ".5f"}


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
        """Record a row everywhere, or nowhere if it holds a number that is not finite."""
        bad = [f"{name} {value}" for name, value in row.items() if name != "split" and not math.isfinite(value)]
        if bad:
            raise NonFiniteError(
                f"step {row['step']} has {' and '.join(bad)} ({row['split']}): the run stops here and keeps the last "
                "good checkpoint; lower the learning rate, clip the gradient, or look at the data"
            )
        self.rows.append(row)
        workdir.append_metrics(self.folder, row)
        for name, value in row.items():
            if name not in ("step", "split"):
                self.board.add_scalar(f"{row['split']}/{name}", value, row["step"])
        first, *rest = [f"{name.replace('_', '-')} {row[name]:{SHOWN[name]}}" for name in SHOWN if name in row]
        first += "" if "masked_error" in row else " nats"
        rate = f", {row['examples_per_second']:,.0f} examples/s" if "examples_per_second" in row else ""
        if self.bar is None:
            parts = f" ({', '.join(rest)})" if rest else ""
            print(f"step {row['step']}/{self.num_steps} {row['split']}: {first}{parts}{rate}", flush=True)
        else:
            if rate:
                self.bar.set_postfix_str(f"{first}{rate}")
            self.bar.update(row["step"] - self.bar.n)

    def close(self) -> None:
        self.board.close()
        if self.bar is not None:
            self.bar.close()


def check_workdir(folder: epath.Path, run: Run) -> None:
    """See that the run in the folder, if there is one, is this one, and that a run can be made here; write nothing.

    Raises:
      InputError: another run is in the folder, the disk has no room, or the batch does not divide over the devices.
    """
    ours = settings.flatten(run.config.to_dict())
    if (folder / "config.json").exists():
        theirs = settings.flatten(workdir.read_config(folder).to_dict())
        allowed = WATCHING | (set() if run.patience else PACE)
        if ours[LENGTHENING] >= theirs[LENGTHENING]:
            allowed = allowed | {LENGTHENING}
        differ = [key for key in ours if ours[key] != theirs[key] and key not in allowed]
        if differ:
            named = ", ".join(f"{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in differ)
            raise InputError(f"{folder} holds a run of another config ({named}): choose another --workdir")
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --workdir")
    elif folder.exists() and any(not path.name.startswith(".config.json.") for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no run: choose another --workdir")
    devices = jax.local_device_count()
    if run.batch_size % devices:
        raise InputError(
            f"config.train.batch_size is {run.batch_size}, which does not divide over {devices} devices: "
            f"set it to a multiple of {devices}"
        )
    _check_room(folder, run)


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


def train(run: Run, folder: epath.Path) -> tuple[Any, list[dict[str, Any]], float | None]:
    """Train from the last whole checkpoint to the end, or until stopped early or by a signal.

    Returns:
      The replicated state at the end, the rows of metrics.jsonl, and the seconds from the start to the end of the
      first call; None if no step was left to make.
    """
    keys = run.config.train
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(cli.Preemption())
        last, best = (
            stack.enter_context(contextlib.closing(Checkpoints(folder / "checkpoints" / name, keep)))
            for name, keep in (("last", keys.keep_checkpoints), ("best", 1))
        )
        state, first = resume(run, folder, last, best)
        journal = stack.enter_context(contextlib.closing(open_journal(run, folder, first)))
        replicated, step, first_step_seconds = training.replicate(state), first, None
        steps = training.train(
            run.learner,
            state,
            run.feed,
            run.preprocess["train"],
            num_steps=first if stopped_early(run, journal.rows) else run.num_steps,
            steps_per_call=keys.log_every_steps,
            ema_decay=run.ema_decay,
        )
        started = time.perf_counter()
        for replicated, metrics in steps:
            elapsed = time.perf_counter() - started
            first_step_seconds = first_step_seconds or time.time() - _STARTED
            step += len(metrics["loss"])
            journal.add(training_row(run, step, metrics, elapsed))
            at_end = step == run.num_steps
            if at_end or evaluation_due(keys, step):
                for row in evaluate.curve_rows(run, checkpointed.evaluated_params(replicated)):
                    journal.add({"step": step, "examples_seen": step * run.batch_size} | row)
                scores = validation_scores(journal.rows)
                if (
                    scores
                    and journal.rows[-1]["split"] == "validation"
                    and scores[-1] > max(scores[:-1], default=-math.inf)
                ):
                    save(best, step, replicated)
            ended = at_end or stopped_early(run, journal.rows)
            if ended or preemption.requested or step % keys.checkpoint_every_steps == 0:
                best.wait()  # a run that goes on from here must find the best one up to here
                journal.board.flush()
                save(last, step, replicated)
            if ended or preemption.requested:
                break
            started = time.perf_counter()
    if preemption.requested:
        stopped = f"stopped by {preemption.requested} at step {step}"
        cli.fail(f"{stopped}, saved: run the same command to go on", cli.PREEMPTED)
    return replicated, journal.rows, first_step_seconds


def save(checkpoints: Checkpoints, step: int, replicated: Any) -> None:
    """Start saving a state, unless an update after the last loss took it out of the numbers."""
    state = training.unreplicate(replicated)
    numbers.check_finite((state.params, state.opt_state, state.ema_params), f"the state after step {step}")
    checkpoints.save(step, state)


def resume(run: Run, folder: epath.Path, last: Checkpoints, best: Checkpoints) -> tuple[Any, int]:
    """The state to start from, and its step; says which checkpoints had to be passed over."""
    try:
        restored = checkpointed.restore_state(run, last)
    except InputError as error:
        restored = checkpointed.restore_state(run, best)
        if restored is None:
            raise
        print(f"{error}; going on from the best one, step {restored[1]}", file=sys.stderr, flush=True)
        last.forget_after(-1)
        last.save(restored[1], restored[0])
    state, step = restored or (run.init_state(), 0)
    for checkpoints in (last, best):
        checkpoints.forget_after(step)  # damaged ones, and those of steps that are now made again
    if restored is None:
        return state, step
    if step < run.num_steps:
        print(f"resuming {folder} at step {step} of {run.num_steps}", flush=True)
    return state, step


def open_journal(run: Run, folder: epath.Path, step: int) -> Journal:
    """The journal of a run that goes on from a step; what was told after that step is told again."""
    rows = [row for row in workdir.read_metrics(folder) if row["step"] <= step]
    workdir.write_metrics(folder, rows)
    return Journal(folder, rows, run.num_steps, step)


def evaluation_due(keys: ConfigDict, step: int) -> bool:
    """Whether to evaluate after this step: every so many, and whenever they have grown by a factor (config.train)."""
    growth = keys.eval_growth
    if step % keys.eval_every_steps == 0 or not growth:
        return step % keys.eval_every_steps == 0
    before = max(step - keys.log_every_steps, 1)
    return math.floor(math.log(step, growth)) > math.floor(math.log(before, growth))


def validation_scores(rows: list[dict[str, Any]]) -> list[float]:
    """What models are chosen by, nats: the trained bound, or the likelihood that is measured in its place."""
    names = ("iwae_bound", "elbo", "log_marginal", "log_likelihood")
    rows = [row for row in rows if row["split"] == "validation"]
    return [-row["masked_error"] if "masked_error" in row else next(row[n] for n in names if n in row) for row in rows]


def stopped_early(run: Run, rows: list[dict[str, Any]]) -> bool:
    """Whether the best score on validation is `patience` evaluations old."""
    scores, patience = validation_scores(rows), run.patience
    return bool(patience) and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def training_row(run: Run, step: int, metrics: dict[str, np.ndarray], elapsed: float) -> dict[str, Any]:
    """A row of metrics.jsonl: the mean over the steps of one call, nats per datapoint at beta = 1."""
    means = {name: float(values.mean(dtype=np.float64)) for name, values in metrics.items()}
    return {
        "step": step,
        "split": "train",
        "examples_seen": step * run.batch_size,
        **means,
        **({"kl_weight": float(metrics["kl_weight"][-1])} if "kl_weight" in metrics else {}),
        "learning_rate": run.learning_rate(step - 1),
        "examples_per_second": len(metrics["loss"]) * run.batch_size / elapsed,
    }


def finished(run: Run, folder: epath.Path) -> str | None:
    """What to say of the run in the folder if it has come to its end and its summary is written."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    told = workdir.read_json(path)
    if told["status"] == "early_stopped":
        return f"{folder} is finished: it stopped early at step {told['step']}; look at {folder / 'report.html'}"
    if told["step"] < run.num_steps:
        return None
    return f"{folder} is finished; look at {folder / 'report.html'}, or raise --config.{LENGTHENING} to go on"


def describe(run: Run) -> str:
    """What is about to be trained, on what."""
    counts = ", ".join(f"{len(getattr(run.dataset, name).examples):,} {name}" for name in build.SPLITS)
    shape = "x".join(map(str, run.dataset.event_shape))
    examples = run.dataset.train.examples
    if isinstance(examples, np.ndarray) and examples.dtype != np.uint8:
        low, high = examples.min(), examples.max()
        shape += f" from {low:.4g} to {high:.4g}" + (" (clipped to [0, 1] in pictures)" * bool(low < 0 or high > 1))
    params = jax.eval_shape(run.init_state).params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"{run.dataset.name}: {counts} examples of {shape}, binarization {run.facts['binarization']}, "
        f"likelihood {run.facts['likelihood']}; {size:,} parameters, {run.num_steps:,} steps on "
        f"{jax.local_device_count()} {jax.default_backend()} device(s)"
    )


@contextlib.contextmanager
def opened(run: Run, folder: epath.Path) -> Iterator[None]:
    """The folder of a run, made if it is not there, held for this process, and with the run's config in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with workdir.claim(folder):
        print(f"{folder}: {describe(run)}", flush=True)
        workdir.sweep(folder)
        workdir.write_json(folder / "config.json", run.config.to_dict())
        yield


def command(path: str, overrides: list[str], folder: epath.Path) -> str:
    """The line for a shell that makes this run, from wherever `python -m experiments.train` is found."""
    arguments = [f"--config={path}", *overrides, f"--workdir={folder}"]
    return shlex.join(["python", "-m", "experiments.train", *arguments])


def main(argv: list[str]) -> None:
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    cli.refuse([argument for argument in argv if argument not in overrides])
    path = cli.required("config", "experiments/configs/vae.py")
    folder = epath.Path(cli.required("workdir", "runs/digits"))
    run = build.build(settings.load(path, overrides))
    check_workdir(folder, run)
    if end := finished(run, folder):
        print(end)
        return
    with opened(run, folder):
        (folder / "summary.json").unlink(missing_ok=True)  # of a shorter run that now goes on
        summary.finish(run, folder, *train(run, folder), started=_STARTED, command=command(path, overrides, folder))


if __name__ == "__main__":
    flags.DEFINE_string(
        "config", None, "A file of experiments/configs, with :DATASET; --config.KEY=VALUE changes a key."
    )
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
    cli.run(main)
