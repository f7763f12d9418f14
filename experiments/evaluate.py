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

from aevb import bounds, data, models, processes, training
from aevb.data import Datapoint
from aevb.errors import InputError
from aevb.inference.annealed_importance import NUM_TEMPERATURES, AISEstimate, annealed_importance_estimate
from aevb.inference.diagnostics import active_units, code_information, posterior_collapse
from aevb.inference.importance import importance_estimate
from aevb.inference.marginal_likelihood import HMCEstimate, check_chains, hmc_estimate
from experiments import build, checkpointed, choices, cli, numbers, reconstruct, report, usefulness, workdir
from experiments.build import Run

DatapointFn = Callable[[Any, Datapoint, jax.Array], Any]
KL_SAMPLES = 50  # draws a datapoint for the KL of each dimension, where it has no closed form
INFORMATION_EXAMPLES = 2000  # that the code is asked to tell apart; the time grows with their square


def split_bound(run: Run, params: Any, name: str, max_examples: int | None = None) -> dict[str, Any]:
    """The bound at beta = 1 over a split, the same draws each time; nats per datapoint.

    It is the elbo, of one draw a datapoint; where `iwae` is trained, that bound stands beside it, of its own k draws.

    Raises:
      NonFiniteError: the bound of a datapoint is not finite.
    """
    split = data.head(getattr(run.dataset, name), max_examples)
    each = training.collect(run.bound_of_split(name)(params, split, run.split_key(name)))
    numbers.check_finite(each, f"the bound on the {name} split")
    return {
        "elbo": float(each.elbo.mean(dtype=np.float64)),
        "elbo_stderr": numbers.standard_error(each.elbo),
        "log_likelihood": float(each.log_likelihood.mean(dtype=np.float64)),
        "kl": float(each.kl.mean(dtype=np.float64)),
        **({"iwae_bound": float(each.value.mean(dtype=np.float64))} if run.curve_bound is bounds.iwae else {}),
        "num_samples": run.curve_samples,
        "num_examples": len(each.kl),
    }


def split_marginal(run: Run, params: Any, name: str, max_examples: int | None = None) -> dict[str, Any]:
    """The marginal likelihood of a split by the estimator of appendix D, with the paper's 50 posterior samples; nats.

    Raises:
      SamplingError: the chains of most datapoints diverge or never move.
    """
    split = data.head(getattr(run.dataset, name), max_examples)
    mapped = run.once(estimate_of_split, name, "hmc", choices.ESTIMATORS["hmc"].usual)
    each = training.collect(mapped(params, split, run.split_key(name)))
    check_chains(each)
    numbers.check_finite(each.log_marginal, f"the marginal likelihood on the {name} split")
    return {
        "log_marginal": float(each.log_marginal.mean(dtype=np.float64)),
        "log_marginal_stderr": numbers.standard_error(each.log_marginal),
        "hmc_acceptance": float(each.acceptance.mean()),
        "num_samples": choices.ESTIMATORS["hmc"].usual,
        "num_examples": len(each.log_marginal),
    }


def curve_rows(run: Run, params: Any) -> list[dict[str, Any]]:
    """What is measured in the middle of training, a row a split; none where the split is empty."""
    measure, name, most = run.curve
    if measure == "none" or not len(getattr(run.dataset, name).examples):
        return []
    if measure == "bound":
        return [{"split": name} | split_bound(run, params, name, most)]
    if measure == "reconstruction":
        return [{"split": name} | reconstruct.curve_row(run, params, name, most)]
    return [{"split": split} | split_marginal(run, params, split, most) for split in ("train", name)]


def importance(run: Run, num_samples: int) -> DatapointFn:
    """The bound and its parts, and log p(x) by importance sampling, from the same draws."""

    def one(params: Any, point: Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        vae = run.model.bind({"params": params}).given(point.context)
        posterior, prior = vae.encode(point.x), vae.prior()
        estimate_key, kl_key = jax.random.split(key)
        estimate = importance_estimate(estimate_key, point.x, posterior, prior, vae.decode, num_samples)
        closed_form = run.elbo is bounds.sgvb_b
        z = jax.vmap(posterior.sample)(jax.random.split(kl_key, KL_SAMPLES))
        at_floor = {}
        if isinstance(run.model.likelihood, models.Gaussian | models.Laplace) and run.model.likelihood.learns_scale:
            at_floor["scales_at_floor"] = models.floored(vae.decode(z[0]), run.model.likelihood).mean()
        return {
            **estimate._asdict(),
            "kl": bounds.kl(posterior, prior) if closed_form else estimate.kl,
            "kl_per_dim": bounds.kl_per_dim(posterior, prior, z),
            "mean": posterior.mean,
            "outputs": vae.outputs(point.x),
            **({} if point.context is None else {"context": point.context}),
            **at_floor,
        }

    return one


def hmc(run: Run, num_samples: int) -> DatapointFn:
    """log p(x) by the estimator of appendix D."""

    def one(params: Any, point: Datapoint, key: jax.Array) -> HMCEstimate:
        vae = run.model.bind({"params": params}).given(point.context)
        return hmc_estimate(key, point.x, vae.prior(), vae.decode, num_samples=num_samples)

    return one


def ais(run: Run, num_samples: int) -> DatapointFn:
    """log p(x) by annealed importance sampling, with so many chains."""

    def one(params: Any, point: Datapoint, key: jax.Array) -> AISEstimate:
        vae = run.model.bind({"params": params}).given(point.context)
        return annealed_importance_estimate(key, point.x, vae.prior(), vae.decode, num_chains=num_samples)

    return one


# What log p(x) can be estimated with: the function of one datapoint, the samples of this command, and their words.
ESTIMATORS: dict[str, tuple[Callable[[Run, int], DatapointFn], int, str]] = {
    "importance": (importance, 5000, "importance samples"),
    "hmc": (hmc, choices.ESTIMATORS["hmc"].usual, "posterior samples by HMC (appendix D)"),
    "ais": (ais, choices.ESTIMATORS["ais"].usual, f"annealed importance chains over {NUM_TEMPERATURES} temperatures"),
}


def estimate_of_split(run: Run, name: str, estimator: str, num_samples: int) -> Callable:
    """`map_examples` of an estimator, for `run.once`."""
    return run.map_split(ESTIMATORS[estimator][0](run, num_samples), name)


def information_of_codes(run: Run) -> Callable:
    """`code_information`, for `run.once`."""

    def information(params: Any, key: jax.Array, outputs: jax.Array, context: jax.Array | None = None) -> Any:
        vae = run.model.bind({"params": params})
        return code_information(key, vae.posterior, outputs, lambda context: vae.given(context).prior(), context)

    return jax.jit(information)


def evaluate(
    run: Run,
    params: Any,
    split_name: str,
    num_samples: int,
    max_examples: int | None = None,
    estimator: str = "importance",
) -> dict[str, Any]:
    """Evaluate replicated parameters on a split; the dictionary of evaluation.json, without step and checkpoint.

    Raises:
      InputError: importance sampling is asked of a learner without an encoder.
    """
    if estimator == "none":
        return reconstruct.evaluate(run, params, split_name, max_examples)
    start = time.perf_counter()
    check_estimator(run, estimator)
    words = ESTIMATORS[estimator][2]
    split = data.head(run.split(split_name), max_examples)
    batches = tqdm(
        run.once(estimate_of_split, split_name, estimator, num_samples)(params, split, run.split_key(split_name)),
        total=math.ceil(len(split.examples) / run.eval_batch_size),
        desc=f"{num_samples} {words}",
        unit="batch",
        disable=not (sys.stderr.isatty() and processes.is_first()),
    )
    each = training.collect(batches)
    chains = {}
    if estimator != "importance":
        check_chains(each)
        chains, each = chain_numbers(each._asdict()), each._asdict()
    numbers.check_finite(each["log_marginal"], f"the evaluation of the {split_name} split")
    told = each
    if chains and run.learner.has_encoder:  # the bound and the code are of the encoder, whatever estimates log p(x)
        mapped = run.once(estimate_of_split, split_name, "importance", KL_SAMPLES)
        told = training.collect(mapped(params, split, run.split_key(split_name)))
    nll = -each["log_marginal"]
    mean_nll = float(nll.mean(dtype=np.float64))
    return {
        "split": split_name,
        "binarization": run.facts["binarization"],
        "num_examples": len(nll),
        "num_samples": num_samples,
        "estimator": f"{num_samples:,} {words}",
        "learner": run.facts["learner"],
        "weights": run.facts["weights"],
        **(bound_numbers(run, params, told) if run.learner.has_encoder else {}),
        **chains,
        "nll": mean_nll,
        "nll_stderr": numbers.standard_error(nll),
        **bits_per_dim(run, split, mean_nll),
        "latent_dim": run.model.latent_dim,
        "density": run.facts["density"],
        "seed": run.facts["seed"],
        "evaluate_seconds": time.perf_counter() - start,
    }


def words(how: dict[str, Any]) -> str:
    """Of the samples of an estimator, after a colon; nothing where there is none."""
    return "" if how["estimator"] == "none" else f": {how['num_samples']} {ESTIMATORS[how['estimator']][2]}"


def check_estimator(run: Run, estimator: str) -> None:
    """Refuse an estimator that the run's model cannot be asked for.

    Raises:
      InputError: it needs an encoder and the learner trains none.
    """
    if not run.learner.has_bound and run.learner.has_encoder and estimator != "none":
        raise InputError(
            f"{run.facts['learner']} makes an autoencoder, which has no log p(x) for {estimator} sampling to estimate: "
            "give the --workdir of a model with a bound, or --estimator=none"
        )
    if estimator == "importance" and not run.learner.has_encoder:
        raise InputError(
            f"importance sampling draws from an encoder, and {run.facts['learner']} trains none: use --estimator=hmc "
            "(up to 5 latent dimensions) or --estimator=ais"
        )


def bound_numbers(run: Run, params: Any, each: dict[str, np.ndarray]) -> dict[str, Any]:
    """The bound, its parts, and what the code does with its dimensions."""
    numbers.check_finite(each, "the bound")
    elbo = each["log_likelihood"] - each["kl"]
    return {
        "bound": run.facts["bound"],
        "elbo": float(elbo.mean(dtype=np.float64)),
        "elbo_stderr": numbers.standard_error(elbo),
        "log_likelihood": float(each["log_likelihood"].mean(dtype=np.float64)),
        "kl": float(each["kl"].mean(dtype=np.float64)),
        "effective_sample_size": float(each["effective_sample_size"].mean()),
        **({"scales_at_floor": float(each["scales_at_floor"].mean())} if "scales_at_floor" in each else {}),
        **code_numbers(run, params, each),
    }


def code_numbers(run: Run, params: Any, each: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the code says of the datapoints, how far all codes together are from the prior, and whether it collapsed.

    A model that was told the class is asked what its code says beside it. One that was told vectors is asked for active
    units alone: hardly two datapoints share a vector, and what is to be said beside it cannot be estimated.
    """
    classes = each["context"] if run.context is not None and run.context.classes else None
    active, kl_per_dim = active_units(each["mean"], classes), each["kl_per_dim"].mean(axis=0)
    told = {"active_units": int(active.sum()), "kl_per_dim": [float(kl) for kl in kl_per_dim]}
    some = {name: each[name][:INFORMATION_EXAMPLES] for name in ("outputs", "context") if name in each}
    if len(some["outputs"]) < 2 or (run.context is not None and classes is None):
        return told
    key = jax.random.fold_in(run.eval_key, len(build.SPLITS))  # those before it are the splits' own
    information = run.once(information_of_codes)(training.unreplicate(params), key, **some)
    collapse = posterior_collapse(active, kl_per_dim, float(information.mutual_information))
    return told | {
        "mutual_information": float(information.mutual_information),
        "marginal_kl": float(information.marginal_kl),
        "information_examples": len(some["outputs"]),
        "collapsed": collapse.collapsed,
        "advice": collapse.advice,
    }


def chain_numbers(each: dict[str, np.ndarray]) -> dict[str, Any]:
    """How the chains behind a marginal likelihood did."""
    told = {"acceptance": "acceptance", "stderr": "stderr_of_one", "effective_sample_size": "effective_sample_size"}
    return {key: float(each[name].mean()) for name, key in told.items() if name in each}


def bits_per_dim(run: Run, split: data.Split, nll: float) -> dict[str, Any]:
    """`nll / (D log 2)` in bits, and what it is a likelihood of."""
    if not run.facts["density"]:
        return {
            "bits_per_dim": None,
            "convention": "not a density: grey values given to a Bernoulli likelihood",
        }
    support = run.model.likelihood.support
    words = {
        "binary": "mass of binary values",
        "levels": "mass of the 256 levels, without dequantization",
        "counts": "mass of counts",
    }.get(support, "density in the units of the data")
    bits, of_levels = nll / (math.prod(run.model.event_shape) * math.log(2)), ""
    if support in ("unit", "real") and run.facts["binarization"] == "none" and split.examples[0].dtype == np.uint8:
        # A density over [0, 1] as one over the 256 levels, which are 1/255 apart; where the support ends at 0 and 1,
        # the cells of levels 0 and 255 are half as wide.
        bits += math.log2(255) + (share_at_ends(split) if support == "unit" else 0.0)
        words = "density of values in [0, 1]"
        of_levels = (
            "; bits per dimension are of the 256 levels, each cell with the density at its level (no dequantization "
            "noise: not a bound on the discrete likelihood)"
        )
    given = "" if run.context is None else ", given its label"
    return {"bits_per_dim": bits, "convention": f"log {words}, nats per datapoint{given}{of_levels}"}


def downstream_of(folder: epath.Path, which: dict[str, Any]) -> dict[str, Any] | None:
    """What an evaluation before this one told of the codes, if it was of the same weights."""
    path = folder / "evaluation.json"
    before = workdir.read_json(path) if path.exists() else {}
    return before.get("downstream") if which.items() <= before.items() else None


def share_at_ends(split: data.Split) -> float:
    """The share of the bytes of a split that are 0 or 255."""
    return float(np.mean([np.isin(split.examples[i], (0, 255)).mean() for i in range(len(split.examples))]))


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    folder = workdir.at(cli.required("workdir", "runs/digits"))
    split_name = flags.FLAGS.split
    if split_name not in build.SPLITS:
        raise InputError(f"--split is {split_name!r}: choose one of {', '.join(build.SPLITS)}")
    if flags.FLAGS.estimator not in (None, *ESTIMATORS):
        raise InputError(f"--estimator is {flags.FLAGS.estimator!r}: choose one of {', '.join(ESTIMATORS)}")
    run = build.build(workdir.read_config(folder))
    estimator = flags.FLAGS.estimator or run.evaluation["estimator"]
    check_estimator(run, estimator)
    if estimator == "none" and flags.FLAGS.num_samples:
        raise InputError("--num_samples is for estimators of log p(x), and an autoencoder has none: leave it out")
    if flags.FLAGS.downstream:
        usefulness.check(run, split_name, flags.FLAGS.max_examples)
    params, which = checkpointed.restore(run, folder)
    num_samples = flags.FLAGS.num_samples or (0 if estimator == "none" else ESTIMATORS[estimator][1])
    result = evaluate(run, params, split_name, num_samples, flags.FLAGS.max_examples, estimator) | which
    if flags.FLAGS.downstream:
        print("judging codes and reconstructions", file=sys.stderr, flush=True)
        result["downstream"] = usefulness.judge(run, params, split_name, flags.FLAGS.max_examples, flags.FLAGS.cache)
        if "representations" not in result["downstream"]:
            print(f"{run.dataset.name} has no classes to judge codes by: restorations alone", file=sys.stderr)
    elif kept := downstream_of(folder, which):
        result["downstream"] = kept
    workdir.write_json(folder / "evaluation.json", result)
    report.write(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_string("split", "test", "train, validation or test.")
    flags.DEFINE_string("estimator", None, f"Of log p(x): {', '.join(ESTIMATORS)}; the run's own unless given.")
    flags.DEFINE_integer(
        "num_samples",
        None,
        "Importance samples, posterior samples or chains; 5000, 50 or 16 unless given.",
        lower_bound=1,
    )
    flags.DEFINE_bool("downstream", False, "Also what codes and reconstructions are good for, beside pixels and PCA.")
    flags.DEFINE_string(
        "cache", None, "A folder that keeps what --downstream found of codes, for runs on the same data."
    )
    flags.DEFINE_integer("max_examples", None, "Evaluate the first so many; all unless given.", lower_bound=1)
    cli.run(main)
