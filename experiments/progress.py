"""How far a run has come: its journal, its checkpoints, and when it looks at validation."""

import dataclasses
import math
import sys
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from aevb import processes, training
from aevb.checkpoints import Checkpoints, DamagedError
from aevb.errors import NonFiniteError
from experiments import checkpointed, evaluate, numbers, workdir
from experiments.build import Run

# On the terminal, with their digits: nats, a share, and squared units of x.
SHOWN = {"elbo": ".2f", "log_marginal": ".2f", "log_likelihood": ".2f", "kl": ".2f", "acceptance": ".2f"}
SHOWN |= {"masked_error": ".5f"}


@dataclasses.dataclass
class Journal:
    """What a run has told so far: rows of metrics.jsonl, in the file, on TensorBoard and, if shown, on the terminal.

    Of several processes all keep the rows, and the first one tells them.
    """

    folder: epath.Path
    rows: list[dict[str, Any]]
    num_steps: int
    step: int
    shown: bool = True

    def __post_init__(self) -> None:
        from tensorboardX import SummaryWriter

        self.board = self.bar = None
        self._num_written = len(self.rows)
        if not processes.is_first():
            return
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(total=self.num_steps, initial=self.step, unit="step", dynamic_ncols=True)

    def add(self, row: dict[str, Any]) -> None:
        """Record a row, in the file at the next `write`; nowhere if it holds a number that is not finite."""
        bad = [f"{name} {value}" for name, value in row.items() if name != "split" and not math.isfinite(value)]
        if bad:
            raise NonFiniteError(
                f"step {row['step']} has {' and '.join(bad)} ({row['split']}): the run stops here and keeps the last "
                "good checkpoint; lower the learning rate, clip the gradient, or look at the data"
            )
        self.rows.append(row)
        if not processes.is_first():
            return
        for name, value in row.items():
            if name not in ("step", "split"):
                self.board.add_scalar(f"{row['split']}/{name}", value, row["step"])
        if self.shown:
            self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
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

    def write(self) -> None:
        """Put into the file what was recorded since the last time: a whole object where it lies in a store."""
        workdir.append_metrics(self.folder, self.rows, self._num_written)
        self._num_written = len(self.rows)

    def flush(self) -> None:
        """Leave nothing of the run's telling in memory alone."""
        self.write()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        self.write()
        for told in (self.board, self.bar):
            if told is not None:
                told.close()


def save(checkpoints: Checkpoints, step: int, replicated: Any) -> None:
    """Start saving a state, unless an update after the last loss took it out of the numbers."""
    state = training.unreplicate(replicated)
    check_state(state, step)
    checkpoints.save(step, state)


def check_state(state: Any, step: int) -> None:
    """See that a state is one to go on from.

    Raises:
      NonFiniteError: it is not finite.
    """
    numbers.check_finite((state.params, state.opt_state, state.ema_params), f"the state after step {step}")


def resume(run: Run, folder: epath.Path, last: Checkpoints, best: Checkpoints) -> tuple[Any, int]:
    """The state to start from, and its step; says which checkpoints had to be passed over."""
    try:
        restored = checkpointed.restore_state(run, last)
    except DamagedError as error:
        restored = checkpointed.restore_state(run, best)
        if restored is None:
            raise
        checkpointed.warn(f"{error}; going on from the best one, step {restored[1]}")
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


def open_journal(run: Run, folder: epath.Path, step: int, shown: bool = True) -> Journal:
    """The journal of a run that goes on from a step; what was told after that step is told again."""

    def told_until_then() -> list[dict[str, Any]]:
        rows = [row for row in workdir.read_metrics(folder) if row["step"] <= step]
        workdir.write_metrics(folder, rows)
        return rows

    rows = processes.told_by_first(told_until_then)
    return Journal(folder, rows, run.num_steps, step, shown)


def look(run: Run, journal: Journal, step: int, params: Any) -> bool:
    """Evaluate replicated parameters in the middle of training, and tell it; whether they are the best so far."""
    rows = evaluate.curve_rows(run, params)
    for row in rows:
        journal.add({"step": step, "examples_seen": step * run.batch_size} | row)
    scores = validation_scores(journal.rows)
    return bool(rows) and rows[-1]["split"] == "validation" and scores[-1] > max(scores[:-1], default=-math.inf)


def evaluation_due(keys: ConfigDict, step: int) -> bool:
    """Whether to evaluate after this step: every so many, and whenever they have grown by a factor (config.train)."""
    growth = keys.eval_growth
    if step % keys.eval_every_steps == 0 or not growth:
        return step % keys.eval_every_steps == 0
    before = max(step - keys.log_every_steps, 1)
    return math.floor(math.log(step, growth)) > math.floor(math.log(before, growth))


def look_if_owed(run: Run, journal: Journal, step: int, state: Any, best: Checkpoints) -> None:
    """Where a run goes on from, make the evaluation that was due there, if a stop has left it out.

    Must come before anything else can write the journal: the row is for the file only once the best state is.
    """
    due = step > 0 and (step == run.num_steps or evaluation_due(run.config.train, step))
    if not due or any(row["step"] == step and "examples_per_second" not in row for row in journal.rows):
        return
    if look(run, journal, step, training.replicate(checkpointed.evaluated_params(state))):
        check_state(state, step)
        best.save(step, state)
        best.wait()
    journal.write()


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
