"""The end of a run: evaluate, draw, and write report.html and summary.json."""

import io
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from aevb import processes, training
from aevb.errors import InputError
from experiments import build, checkpointed, evaluate, generate, report, workdir
from experiments.build import Run

TRAIN_EXAMPLES = 10_000  # of the training split, at the end; it may be large
# Of the evaluation, on TensorBoard: nats, bits, and what the code does.
SHOWN = (
    "nll",
    "elbo",
    "mse",
    "psnr",
    "active",
    "dead_units",
    "log_likelihood",
    "kl",
    "bits_per_dim",
    "effective_sample_size",
    "active_units",
    "mutual_information",
    "marginal_kl",
    "scales_at_floor",
)


def finish(
    run: Run,
    folder: epath.Path,
    state: Any,
    rows: list[dict[str, Any]],
    first_step_seconds: float | None,
    *,
    started: float,
    command: str,
    packed_with: int | None = None,
) -> None:
    """Evaluate, draw, summarise and report; `started` in seconds since the epoch, by this command.

    Of several processes all evaluate and draw, since examples go through the devices of all; the first one writes. A
    trial of `experiments.packed` shared its times and rates with so many others, and `command` makes it alone.
    """
    from aevb import figures

    memory = workdir.peak_memory()  # evaluation comes after
    final = checkpointed.evaluated_params(state), rows[-1]["step"]
    best = best_params(run, folder) or final
    which, (params, step) = ("best", best) if run.patience else ("last", final)
    if processes.is_first():
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        figures.save(figures.learning_curves(rows), folder / "figures" / "learning_curves.png")
    bounds = final_and_best(run, final, best)
    evaluation = None
    if len(run.dataset.test.examples):
        how = run.evaluation
        print(f"evaluating the test split{evaluate.words(how)}", flush=True)
        evaluation = evaluate.evaluate(run, params, "test", **how) | {"checkpoint": which, "step": step}
        workdir.write_json(folder / "evaluation.json", evaluation)
    generate.draw_all(run, params, folder / "figures")
    if processes.is_first():
        show(folder, rows[-1]["step"], evaluation or {})
    summary = summarise(run, state, rows) | {"bounds": bounds, "evaluation": evaluation}
    summary |= speed(run, rows) | {"first_step_seconds": first_step_seconds, "peak_memory_gib": memory}
    summary |= {"total_seconds": time.time() - started, "command": command}
    summary |= {} if packed_with is None else {"packed_with": packed_with}
    if not processes.is_first():
        return
    page = report.write(folder, summary)
    workdir.write_json(folder / "summary.json", summary)  # last: with it a run is finished, and names its page
    if evaluation:
        print(
            f"test: {headline(evaluation)} ({evaluation['estimator']}, {evaluation['num_examples']} examples, "
            f"binarization {evaluation['binarization']}{'' if evaluation['density'] else ': not a density'})"
        )
        if evaluation.get("collapsed"):
            print(f"posterior collapse: {evaluation['advice']}")
    print(f"look at {page}", flush=True)


def headline(evaluation: dict[str, Any]) -> str:
    """What a run came to, in a line."""
    if "nll" not in evaluation:
        if "log_likelihood" not in evaluation:
            return f"squared error of masked patches {evaluation['mse']:.5f}"
        pca = f" (PCA {evaluation['pca_mse']:.5f})" if "pca_mse" in evaluation else ""
        return f"log-likelihood {evaluation['log_likelihood']:.2f} nats, squared error {evaluation['mse']:.5f}{pca}"
    bound = f"elbo {evaluation['elbo']:.2f}, " if "elbo" in evaluation else ""
    return f"{bound}nll {evaluation['nll']:.2f} +- {evaluation['nll_stderr']:.2f} nats"


def show(folder: epath.Path, step: int, evaluation: dict[str, Any]) -> None:
    """Put the evaluation and the figures on TensorBoard."""
    from PIL import Image
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as board:
        for name in SHOWN:
            if evaluation.get(name) is not None:
                board.add_scalar(f"evaluation/{name}", evaluation[name], step)
        for path in sorted((folder / "figures").glob("[!.]*.png")):
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                board.add_image(path.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def best_params(run: Run, folder: epath.Path) -> tuple[Any, int] | None:
    """The parameters best on validation, and their step; None, and a sentence, if they cannot be had."""
    try:
        return checkpointed.restore_params(run, folder, "best")
    except InputError as error:
        checkpointed.warn(f"{error}; the last one is used instead")
        return None


def final_and_best(run: Run, final: tuple[Any, int], best: tuple[Any, int]) -> dict[str, Any]:
    """The bound on each split at the last step and at the one best on validation; of training, its first examples.

    A learner without a bound has none.
    """
    if not run.learner.has_bound:
        return {}
    return {
        name: {
            which: evaluate.split_bound(run, params, name, TRAIN_EXAMPLES if name == "train" else None) | {"step": step}
            for which, (params, step) in (("final", final), ("best", best))
        }
        for name in build.SPLITS
        if len(getattr(run.dataset, name).examples)
    }


def speed(run: Run, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Seconds of training, over every start of the run, and the median rate of its calls, which no compiling slows."""
    rows = [row for row in rows if "examples_per_second" in row]
    steps = np.diff([0, *(row["step"] for row in rows)])
    rates = [row["examples_per_second"] for row in rows]
    seconds = float((steps * run.batch_size / np.asarray(rates)).sum())
    return {"train_seconds": seconds, "examples_per_second": float(np.median(rates))}


def summarise(run: Run, state: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What summary.json says apart from results and times; two equal runs agree on all of it."""
    step = rows[-1]["step"]
    return {
        "status": "early_stopped" if step < run.num_steps else "finished",
        **run.facts,
        "step": step,
        "num_steps": run.num_steps,
        "examples_seen": step * run.batch_size,
        "num_examples": {name: len(getattr(run.dataset, name).examples) for name in build.SPLITS},
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(training.unreplicate(state.params))),
        "versions": workdir.versions(),
        "hardware": workdir.hardware(),
    }
