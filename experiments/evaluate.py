"""Evaluate a trained model: the bound, the importance-weighted likelihood and what the latent code does with it.

python -m experiments.evaluate --workdir=runs/digits --num_samples=5000
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from aevb import bounds, data, training
from aevb.checkpoints import Checkpoints
from aevb.errors import InputError
from aevb.inference.diagnostics import active_units
from aevb.inference.importance import importance_estimate
from experiments import build, cli, report, workdir
from experiments.build import Run


def datapoint_bound(run: Run) -> Callable[[Any, jax.Array, jax.Array], bounds.Bound]:
    """The trained bound of one datapoint at beta = 1, one draw: what validation reports."""

    def one(params: Any, x: jax.Array, key: jax.Array) -> bounds.Bound:
        vae = run.model.bind({"params": params})
        posterior, prior = vae.encode(x), vae.prior()
        return run.bound(bounds.draw(key, x, posterior, prior, vae.decode), posterior, prior)

    return one


def datapoint_evaluation(run: Run, num_samples: int) -> Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]]:
    """All that is evaluated of one datapoint, from the same `num_samples` draws."""

    def one(params: Any, x: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        vae = run.model.bind({"params": params})
        posterior, prior = vae.encode(x), vae.prior()
        estimate = importance_estimate(key, x, posterior, prior, vae.decode, num_samples)
        closed_form = run.bound is bounds.sgvb_b
        return {
            "log_marginal": estimate.log_marginal,
            "effective_sample_size": estimate.effective_sample_size,
            "log_likelihood": estimate.log_likelihood,
            "kl": bounds.kl(posterior, prior) if closed_form else estimate.kl,
            "kl_per_dim": bounds.kl_per_dim(posterior, prior),
            "mean": posterior.mean,
        }

    return one


def evaluate(
    run: Run, params: Any, split_name: str, num_samples: int, max_examples: int | None = None
) -> dict[str, Any]:
    """Evaluate replicated parameters on a split; the dictionary of evaluation.json, without step and checkpoint."""
    start = time.perf_counter()
    split = head(run.split(split_name), max_examples)
    batch_size = run.config.eval.batch_size
    mapped = training.map_examples(datapoint_evaluation(run, num_samples), run.preprocess[split_name], batch_size)
    batches = tqdm(
        mapped(params, split, run.eval_key),
        total=math.ceil(len(split.examples) / batch_size),
        desc=f"importance sampling, {num_samples} draws",
        unit="batch",
        disable=not sys.stderr.isatty(),
    )
    each = training.collect(batches)
    elbo = each["log_likelihood"] - each["kl"]
    nll = -each["log_marginal"]
    return {
        "split": split_name,
        "binarization": run.config.data.binarization,
        "num_examples": len(nll),
        "num_samples": num_samples,
        "bound": run.config.bound.name,
        "elbo": float(elbo.mean(dtype=np.float64)),
        "elbo_stderr": standard_error(elbo),
        "log_likelihood": float(each["log_likelihood"].mean(dtype=np.float64)),
        "kl": float(each["kl"].mean(dtype=np.float64)),
        "nll": float(nll.mean(dtype=np.float64)),
        "nll_stderr": standard_error(nll),
        **bits_per_dim(run, float(nll.mean(dtype=np.float64))),
        "effective_sample_size": float(each["effective_sample_size"].mean()),
        "active_units": int(active_units(each["mean"]).sum()),
        "latent_dim": run.model.latent_dim,
        "kl_per_dim": [float(kl) for kl in each["kl_per_dim"].mean(axis=0)],
        "density": run.density,
        "seed": run.config.seed,
        "evaluate_seconds": time.perf_counter() - start,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean over examples, `sd / sqrt(N)`; 0 for one example, of which it says nothing."""
    return float(values.std(ddof=1, dtype=np.float64) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def bits_per_dim(run: Run, nll: float) -> dict[str, Any]:
    """`nll / (D log 2)` in bits, and what it is a likelihood of."""
    discrete = run.model.likelihood.support == "binary"
    if not run.density:
        return {
            "bits_per_dim": None,
            "convention": "not a density: grey values given to a Bernoulli likelihood",
        }
    bits = nll / (math.prod(run.model.event_shape) * math.log(2))
    if discrete:
        return {"bits_per_dim": bits, "convention": "log mass of binary values, nats per datapoint"}
    if run.dataset.test.examples.dtype == np.uint8:
        # A density over [0, 1] as one over the 256 levels, which are 1/255 apart.
        return {
            "bits_per_dim": bits + math.log2(255),
            "convention": "log density of values in [0, 1], nats per datapoint; bits per dimension are of the 256 "
            "levels, each taken at its midpoint (no dequantization noise: not a bound on the discrete likelihood)",
        }
    return {"bits_per_dim": bits, "convention": "log density in the units of the data, nats per datapoint"}


def head(split: data.Split, num: int | None) -> data.Split:
    """The first `num` examples; all of them if there are fewer or no number is given."""
    if num is None or num >= len(split.examples):
        return split
    rows = np.arange(num)
    labels = None if split.labels is None else split.labels[:num]
    return data.Split(training.read_rows(split.examples, rows), labels)


def restore(folder: epath.Path) -> tuple[Run, Any, dict[str, Any]]:
    """The run in a workdir, its replicated parameters, and which checkpoint they are from.

    A run that stopped early is judged by its best checkpoint on validation, any other by its last. Where an average
    of the weights was kept, that is what comes back.

    Raises:
      InputError: there is no run in the folder, or no whole checkpoint yet.
    """
    run = build.build(workdir.read_config(folder))
    which = "best" if run.config.train.patience else "last"
    restored = restore_params(run, folder, which)
    if restored is None:
        raise InputError(f"{folder} has no checkpoint yet: train first, with experiments.train --workdir={folder}")
    params, step = restored
    return run, params, {"checkpoint": which, "step": step}


def restore_params(run: Run, folder: epath.Path, which: str) -> tuple[Any, int] | None:
    """The replicated parameters to evaluate, from the "last" or the "best" checkpoint, and their step."""
    path = folder / "checkpoints" / which
    if not path.exists():
        return None
    checkpoints = Checkpoints(path)
    restored = checkpoints.restore(run.init_state())
    checkpoints.close()
    if restored is None:
        return None
    state, step, passed_over = restored
    for sentence in passed_over:
        print(f"{sentence}; using step {step}", file=sys.stderr)
    return training.replicate(evaluated_params(state)), step


def evaluated_params(state: Any) -> Any:
    """The average of the weights where one is kept, else the weights."""
    return state.params if state.ema_params is None else state.ema_params


def main(argv: list[str]) -> None:
    folder = epath.Path(flags.FLAGS.workdir)
    run, params, which = restore(folder)
    result = evaluate(run, params, flags.FLAGS.split, flags.FLAGS.num_samples, flags.FLAGS.max_examples) | which
    workdir.write_json(folder / "evaluation.json", result)
    report.write(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_string("split", "test", "train, validation or test.")
    flags.DEFINE_integer("num_samples", 5000, "Importance samples a datapoint.", lower_bound=1)
    flags.DEFINE_integer("max_examples", None, "Evaluate the first so many; all unless given.", lower_bound=1)
    cli.run(main)
