"""Why the bound has a gap: log p(x) minus the elbo, taken apart on examples of a trained model.

    python -m experiments.gap --workdir=runs/mnist --num=100

For each of the first --num test examples the best posterior of the family is searched with the decoder as it is. What
its elbo lacks to log p(x) is the approximation gap, of the family; what the encoder's lacks to that one the
amortization gap, of sharing one encoder (Cremer et al., 1801.03558). Then the encoder alone is trained on, for
--epochs of the training split: EM's E-step would close the gap, and this cannot, for it leaves the family and the
sharing. Its curve is of the test examples, and may fall where it overfits the training ones. Writes gap.json and two
figures, which are on the report from then on: the gap, and draws from q(z | x) against draws from p(z) as
estimators of log p(x).
"""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from aevb import data, models, training
from aevb.inference.gap import InferenceGap, ProposalComparison, compare_proposals, inference_gap, optimal_posterior
from aevb.learners import aevb
from experiments import build, checkpointed, cli, evaluate, numbers, report, workdir
from experiments.build import Run

PARTS = ("log_marginal", "optimal_elbo", "elbo", "approximation_gap", "amortization_gap")
MARGINAL_SAMPLES = 5000  # behind log p(x) and both bounds
NUM_SAMPLES = (1, 3, 10, 30, 100, 300, 1000)  # of the two estimators of log p(x)
POINTS, STEP_SIZE = 10, 1e-3  # of the encoder's curve, and of Adam for it, which falls to 0
EMA_DECAY = 0.999  # of the average of the weights that the curve is of
BOUND_SAMPLES = 200  # draws of z a datapoint, for its bound on that curve


def take_apart(run: Run, params: Any, num: int) -> tuple[InferenceGap, ProposalComparison]:
    """The gap of each of the first test examples, and what two proposals make of log p(x); leaves `[N, ...]`."""

    def one(params: Any, point: data.Datapoint, key: jax.Array) -> tuple[InferenceGap, ProposalComparison]:
        vae = run.model.bind({"params": params}).given(point.context)
        outputs, prior = vae.outputs(point.x), vae.prior()
        search_key, gap_key, proposal_key = jax.random.split(key, 3)
        optimal, _ = optimal_posterior(search_key, point.x, vae.to_posterior, outputs, prior, vae.decode)
        given = vae.to_posterior, outputs, optimal, prior, vae.decode
        gap = inference_gap(gap_key, point.x, *given, num_samples=MARGINAL_SAMPLES)
        posterior = vae.to_posterior(outputs)
        return gap, compare_proposals(proposal_key, point.x, posterior, prior, vae.decode, NUM_SAMPLES)

    split = data.head(run.split("test"), num)
    return training.collect(run.map_split(one, "test")(params, split, run.split_key("test")))


def encoder_alone(run: Run, params: Any, num: int, epochs: float) -> list[dict[str, float]]:
    """The elbo of the same examples while the encoder is trained on and the decoder is not: points of a curve."""
    params = {name: params[name] for name in jax.eval_shape(functools.partial(models.init, run.model), run.init_key)}
    labels = {name: "theta" if name in models.generative(params) else "phi" for name in params}
    num_steps = math.ceil(epochs * len(run.dataset.train.examples) / run.batch_size)
    adam = optax.adam(optax.cosine_decay_schedule(STEP_SIZE, num_steps))
    optimizer = optax.multi_transform({"phi": adam, "theta": optax.set_to_zero()}, labels)
    learner = aevb.learner(run.model, optimizer, bound=run.elbo)
    # From the run's last step: an average that starts at step 0 follows the first, noisy weights.
    start = learner.init(run.init_key).replace(
        step=jnp.int32(run.num_steps), params=params, ema_params=params, opt_state=optimizer.init(params)
    )
    steps = training.train(
        learner,
        start,
        run.feed,
        run.preprocess["train"],
        num_steps=run.num_steps + num_steps,
        steps_per_call=max(num_steps // POINTS, 1),
        ema_decay=EMA_DECAY,
    )
    mapped = run.map_split(aevb.datapoint_bound(run.model, run.elbo, BOUND_SAMPLES), "test")
    split, key = data.head(run.split("test"), num), run.split_key("test")

    def point(seen: int, replicated: Any) -> dict[str, float]:
        elbo = training.collect(mapped(replicated, split, key)).elbo
        numbers.check_finite(elbo, "the bound of the encoder that is trained alone")
        return {"examples_seen": seen, "elbo": float(elbo.mean(dtype=np.float64))}

    curve = [point(0, training.replicate(params))]
    for replicated, metrics in steps:
        seen = curve[-1]["examples_seen"] + len(metrics["loss"]) * run.batch_size
        curve.append(point(seen, replicated.ema_params))
    return curve


def mean(values: np.ndarray, stderr: np.ndarray) -> dict[str, float]:
    """Over examples: the mean, its standard error between them, and the part of that from draws of z."""
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "stderr": numbers.standard_error(values),
        "monte_carlo_stderr": float(np.sqrt(np.square(stderr, dtype=np.float64).sum()) / len(stderr)),
    }


def columns(proposals: ProposalComparison, name: str) -> list[dict[str, float]]:
    """`mean` of the estimates of one proposal for each number of draws."""
    estimates, stderr = getattr(proposals, name), getattr(proposals, f"{name}_stderr")
    return [mean(estimates[:, i], stderr[:, i]) for i in range(len(NUM_SAMPLES))]


def main(argv: list[str]) -> None:
    from aevb import figures

    cli.refuse(argv)
    folder = workdir.at(cli.required("workdir", "runs/mnist"))
    run = build.build(workdir.read_config(folder))
    evaluate.check_estimator(run, "importance")
    params, which = checkpointed.restore(run, folder)
    num = min(flags.FLAGS.num, len(run.split("test").examples))
    gap, proposals = take_apart(run, params, num)
    numbers.check_finite((gap, proposals), "the gap")
    told = {name: mean(getattr(gap, name), getattr(gap, f"{name}_stderr")) for name in PARTS}
    curve = encoder_alone(run, training.unreplicate(params), num, flags.FLAGS.epochs)
    above = told["elbo"]["mean"] - curve[0]["elbo"]  # by the noise of its fewer draws, the same at each point
    curve = [point | {"elbo": point["elbo"] + above} for point in curve]
    estimators = {name: columns(proposals, name) for name in ("from_posterior", "from_prior")}
    facts = {name: run.facts[name] for name in ("dataset", "binarization", "bound", "context", "seed")}
    result = {"split": "test", "num_examples": num, "convention": "nats per datapoint", **facts, **which}
    result |= {"num_samples": MARGINAL_SAMPLES, **told}
    result |= {"effective_sample_size": float(gap.effective_sample_size.mean())}
    result |= {"num_draws": list(NUM_SAMPLES), **estimators, "encoder_alone": curve}
    workdir.write_json(folder / "gap.json", result)
    levels = {name: told[name]["mean"] for name in ("log_marginal", "optimal_elbo", "elbo")}
    drawn = figures.gap(levels, [point["examples_seen"] for point in curve], [point["elbo"] for point in curve])
    figures.save(drawn, folder / "figures" / "gap.png")
    below = {name: [levels["log_marginal"] - part["mean"] for part in parts] for name, parts in estimators.items()}
    of_reference = told["log_marginal"]["monte_carlo_stderr"]
    errors = {
        name: [math.hypot(part["monte_carlo_stderr"], of_reference) for part in parts]
        for name, parts in estimators.items()
    }
    figures.save(figures.proposals(NUM_SAMPLES, below, errors), folder / "figures" / "proposals.png")
    report.write(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_integer("num", 100, "Test examples.", lower_bound=2)
    flags.DEFINE_float("epochs", 10.0, "That the encoder is trained on alone.", lower_bound=0.01)
    cli.run(main)
