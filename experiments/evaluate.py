"""Evaluate a trained model: the bound, the importance-weighted likelihood and what the latent code does with it.

python -m experiments.evaluate --workdir=runs/digits --num_samples=5000
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from aevb import bounds, data, training
from aevb.checkpoints import Checkpoints
from aevb.errors import InputError, NonFiniteError
from aevb.inference.diagnostics import active_units
from aevb.inference.importance import importance_estimate
from experiments import build, cli, report, workdir
from experiments.build import Run


def split_bound(run: Run, params: Any, name: str, max_examples: int | None = None) -> dict[str, Any]:
    """The trained bound at beta = 1 over a split, one draw a datapoint, the same draws each time; nats per datapoint.

    Raises:
      NonFiniteError: the bound of a datapoint is not finite.
    """
    split = head(getattr(run.dataset, name), max_examples)
    each = training.collect(run.bound_of_split(name)(params, split, run.split_key(name)))
    check_finite(each, f"the bound on the {name} split")
    return {
        "elbo": float(each.elbo.mean(dtype=np.float64)),
        "elbo_stderr": standard_error(each.elbo),
        "log_likelihood": float(each.log_likelihood.mean(dtype=np.float64)),
        "kl": float(each.kl.mean(dtype=np.float64)),
        "num_samples": 1,
        "num_examples": len(each.kl),
    }


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
    mapped = run.map_split(datapoint_evaluation(run, num_samples), split_name)
    batches = tqdm(
        mapped(params, split, run.split_key(split_name)),
        total=math.ceil(len(split.examples) / run.eval_batch_size),
        desc=f"importance sampling, {num_samples} draws",
        unit="batch",
        disable=not sys.stderr.isatty(),
    )
    each = training.collect(batches)
    check_finite(each, f"the evaluation of the {split_name} split")
    elbo = each["log_likelihood"] - each["kl"]
    nll = -each["log_marginal"]
    return {
        "split": split_name,
        "binarization": run.facts["binarization"],
        "num_examples": len(nll),
        "num_samples": num_samples,
        "bound": run.facts["bound"],
        "elbo": float(elbo.mean(dtype=np.float64)),
        "elbo_stderr": standard_error(elbo),
        "log_likelihood": float(each["log_likelihood"].mean(dtype=np.float64)),
        "kl": float(each["kl"].mean(dtype=np.float64)),
        "nll": float(nll.mean(dtype=np.float64)),
        "nll_stderr": standard_error(nll),
        **bits_per_dim(run, split, float(nll.mean(dtype=np.float64))),
        "effective_sample_size": float(each["effective_sample_size"].mean()),
        "active_units": int(active_units(each["mean"]).sum()),
        "latent_dim": run.model.latent_dim,
        "kl_per_dim": [float(kl) for kl in each["kl_per_dim"].mean(axis=0)],
        "density": run.facts["density"],
        "seed": run.facts["seed"],
        "evaluate_seconds": time.perf_counter() - start,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean over examples, `sd / sqrt(N)`; 0 for one example, of which it says nothing."""
    return float(values.std(ddof=1, dtype=np.float64) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def check_finite(tree: Any, what: str) -> None:
    """Keep what is not finite out of every file.

    Raises:
      NonFiniteError: a leaf holds NaN or infinity.
    """
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise NonFiniteError(
                f"{what} is not finite: lower the learning rate, clip the gradient, or look at the data"
            )


def bits_per_dim(run: Run, split: data.Split, nll: float) -> dict[str, Any]:
    """`nll / (D log 2)` in bits, and what it is a likelihood of."""
    if not run.facts["density"]:
        return {
            "bits_per_dim": None,
            "convention": "not a density: grey values given to a Bernoulli likelihood",
        }
    bits = nll / (math.prod(run.model.event_shape) * math.log(2))
    if run.model.likelihood.support == "binary":
        return {"bits_per_dim": bits, "convention": "log mass of binary values, nats per datapoint"}
    if run.facts["binarization"] == "none" and split.examples[0].dtype == np.uint8:
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


def restore(run: Run, folder: epath.Path) -> tuple[Any, dict[str, Any]]:
    """The replicated parameters of the run in a workdir, and which checkpoint they are from.

    A run with early stopping (`patience`) is judged by its best checkpoint on validation, any other by its last. Where
    an average of the weights was kept, that is what comes back.

    Raises:
      InputError: there is no whole checkpoint.
    """
    which = "best" if run.patience else "last"
    restored = restore_params(run, folder, which)
    if restored is None:
        raise InputError(f"{folder} has no checkpoint yet: train first, with experiments.train --workdir={folder}")
    params, step = restored
    return params, {"checkpoint": which, "step": step}


def restore_params(run: Run, folder: epath.Path, which: str) -> tuple[Any, int] | None:
    """The replicated parameters to evaluate, from the "last" or the "best" checkpoint, and their step."""
    path = folder / "checkpoints" / which
    if not path.exists():
        return None
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        restored = restore_state(run, checkpoints)
    if restored is None:
        return None
    state, step = restored
    return training.replicate(evaluated_params(state)), step


def restore_state(run: Run, checkpoints: Checkpoints) -> tuple[Any, int] | None:
    """The newest whole state and its step, None if nothing was ever saved; says which had to be passed over.

    Raises:
      InputError: no checkpoint is whole, or they are of another model or another version of the libraries.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None  # Orbax's reads, should it give them up
    try:
        restored = checkpoints.restore(run.init_state())
        sys.unraisablehook = hook
    except InputError:
        sys.unraisablehook = hook
        raise
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the checkpoints in {checkpoints.folder} do not fit the model of config.json ({reason}): restore that "
            "file, or use the versions in summary.json"
        ) from error
    if restored is None:
        return None
    state, step, passed_over = restored
    for sentence in passed_over:
        print(f"{sentence}; using step {step}", file=sys.stderr, flush=True)
    return state, step


def evaluated_params(state: Any) -> Any:
    """The average of the weights where one is kept, else the weights."""
    return state.params if state.ema_params is None else state.ema_params


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    folder = epath.Path(cli.required("workdir", "runs/digits"))
    split_name = flags.FLAGS.split
    if split_name not in build.SPLITS:
        raise InputError(f"--split is {split_name!r}: choose one of {', '.join(build.SPLITS)}")
    run = build.build(workdir.read_config(folder))
    params, which = restore(run, folder)
    result = evaluate(run, params, split_name, flags.FLAGS.num_samples, flags.FLAGS.max_examples) | which
    workdir.write_json(folder / "evaluation.json", result)
    report.write(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_string("split", "test", "train, validation or test.")
    flags.DEFINE_integer("num_samples", 5000, "Importance samples a datapoint.", lower_bound=1)
    flags.DEFINE_integer("max_examples", None, "Evaluate the first so many; all unless given.", lower_bound=1)
    cli.run(main)
