"""The end of a run: evaluate, draw, and write summary.json and report.html."""

import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from aevb import training
from aevb.errors import InputError
from experiments import build, evaluate, generate, report, workdir
from experiments.build import Run


def finish(
    run: Run, folder: epath.Path, state: Any, rows: list[dict[str, Any]], timings: dict[str, Any], *, started: float
) -> None:
    """Evaluate, draw, summarise and report."""
    from aevb import figures

    which, step = "last", rows[-1]["step"]
    params = evaluate.evaluated_params(state)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures.save(figures.learning_curves(rows), folder / "figures" / "learning_curves.png")
    bounds = {name: final_and_best(rows, name) for name in ("train", "validation")}
    evaluation = None
    if len(run.dataset.test.examples):
        bounds["test"], best = test_bounds(run, folder, params, step)
        if run.patience and best is not None:
            which, (params, step) = "best", best
        print(f"evaluating the test split with {run.num_importance_samples} importance samples", flush=True)
        evaluation = evaluate.evaluate(run, params, "test", run.num_importance_samples)
        evaluation |= {"checkpoint": which, "step": step}
        workdir.write_json(folder / "evaluation.json", evaluation)
    generate.draw_all(run, params, folder / "figures")
    show_figures(folder, rows[-1]["step"])
    summary = summarise(run, state, rows) | {"bounds": bounds, "evaluation": evaluation} | timings
    workdir.write_json(folder / "summary.json", summary | {"total_seconds": time.time() - started})
    page = report.write(folder)
    if evaluation:
        print(
            f"test: elbo {evaluation['elbo']:.2f}, nll {evaluation['nll']:.2f} +- {evaluation['nll_stderr']:.2f} nats "
            f"({evaluation['num_samples']} importance samples, {evaluation['num_examples']} examples, "
            f"binarization {evaluation['binarization']}{'' if evaluation['density'] else ': not a density'})"
        )
    print(f"look at {page}", flush=True)


def show_figures(folder: epath.Path, step: int) -> None:
    """Put the figures on TensorBoard."""
    from PIL import Image
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as board:
        for path in sorted((folder / "figures").glob("[!.]*.png")):
            with Image.open(path) as image:
                board.add_image(path.stem, np.asarray(image.convert("RGB")), step, dataformats="HWC")


def test_bounds(run: Run, folder: epath.Path, params: Any, step: int) -> tuple[dict[str, Any], Any]:
    """The bound on the test split at the last step and at the one best on validation, and the latter's parameters."""
    mapped = run.map_split(evaluate.datapoint_bound(run), "test", batches=10)

    def bound(params: Any, step: int) -> dict[str, Any]:
        each = training.collect(mapped(params, run.dataset.test, run.eval_key))
        evaluate.check_finite(each, f"the bound on the test split at step {step}")
        return mean_bound(each) | {"step": step}

    final = bound(params, step)
    try:
        best = evaluate.restore_params(run, folder, "best")
    except InputError as error:
        print(f"{error}; the last one is used instead", file=sys.stderr, flush=True)
        best = None
    return {"final": final, "best": bound(*best) if best else final}, best


def mean_bound(each: Any) -> dict[str, float]:
    """The mean of a bound over examples, with its parts, nats per datapoint."""
    mean = jax.tree.map(lambda values: float(values.mean(dtype=np.float64)), each)
    return {"elbo": mean.elbo, "log_likelihood": mean.log_likelihood, "kl": mean.kl}


def final_and_best(rows: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """The last and the highest bound of a split among the rows; nothing if it has none."""
    bounds = [
        {key: row[key] for key in ("elbo", "log_likelihood", "kl", "step")} for row in rows if row["split"] == split
    ]
    return {"final": bounds[-1], "best": max(bounds, key=lambda row: row["elbo"])} if bounds else {}


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
