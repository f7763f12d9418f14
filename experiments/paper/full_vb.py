"""Full variational Bayes (appendix F) against MAP: the experiment that the paper derives and does not report.

    python -m experiments.paper.full_vb --training_points=1e6

Both have the protocol of experiments/configs/paper.py: MNIST, static binarization, 100 hidden units and 3
latents, from 1,000 and from 50,000 images; Frey Face, 200 hidden units and 5 latents. There are three ways to predict:

- `map`: AEVB with the prior N(0, I) on the weights, at the weights it found;
- `full_vb`: averaged over draws of the weights from q(theta);
- `full_vb_mean`: the same run at the mean of q(theta).

Each is asked the same number of times, so that all have equal numbers of draws of z. Writes full_vb.png, MAP's and full
VB's calibration on the test split, and full_vb.csv, whose `num_samples` counts all draws of z for an example:

- `train_log_predictive`, `test_log_predictive`, `train_minus_test`: log p(x | theta) by the estimator of appendix D,
  averaged over draws as `log mean p`; nats per datapoint. No encoder has a part in it, which would be another one for
  each method, and overfits 1,000 images. `test_estimate_stderr` is its standard error for one image and one theta.
- `test_minus_map`: what the test predictive has above MAP's; its standard error is of the differences by image, so far
  below those of the two.
- `expected_calibration_error` of the probability given to a 1 in test images, seen through q(z | x); for Frey Face
  `share_within_50` and `share_within_90`, of test pixels in the central predictive intervals of those percentages.
- `dataset_bound`: the bound on log p(X), X the whole training set, nats per datapoint; `weight_kl_per_datapoint` of it
  is KL(q(theta) || p(theta)) / N. MAP has no such bound.

The same command with the same --workdir goes on where it was stopped.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import logsumexp

from aevb import data, figures, training
from aevb.figures import BLUE, FONT, GREY, INK, ORANGE
from aevb.inference.marginal_likelihood import HMCEstimate, check_chains, hmc_estimate
from aevb.learners import full_vb
from experiments import build, cli, evaluate, settings, train, workdir
from experiments.build import Run
from experiments.paper import runs

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent / "configs" / "paper.py"
COLUMNS = (
    *("dataset", "num_train", "method", "metric", "value", "stderr"),
    *("num_examples", "num_samples", "seed", "training_points"),
)
NUM_BINS = 20
TITLES = {"mnist": "MNIST", "frey_face": "Frey Face"}
DRAWN = {"map": "MAP", "full_vb": "full VB"}
LEVELS = np.arange(1, NUM_BINS) / NUM_BINS  # of central predictive intervals


@dataclasses.dataclass(frozen=True)
class Study:
    """A training set and the model of it.

    Attributes:
      dataset: of `experiments.train`.
      num_train: trained on the first so many examples.
      overrides: of the paper's config.
      kind: the run of figures 2 and 3 whose step size it takes, for both learners.
    """

    dataset: str
    num_train: int
    overrides: tuple[str, ...]
    kind: str


@dataclasses.dataclass(frozen=True)
class Effort:
    """What the predictions are estimated with.

    Attributes:
      num_examples: of each split, its first ones.
      num_draws: of the weights.
      num_samples: posterior samples of z for each draw of the weights.
    """

    num_examples: int = 1000
    num_draws: int = 10
    num_samples: int = 50


MNIST = ("--config.model.hidden=(100,)", "--config.model.latent_dim=3", "--config.data.binarization=static")
STUDIES = (
    Study("mnist", 1000, MNIST, "mnist_n1000_fig3_nz3_aevb"),
    Study("mnist", 50000, MNIST, "mnist_n50000_fig3_nz3_aevb"),
    Study("frey_face", 1572, ("--config.model.hidden=(200,)", "--config.model.latent_dim=5"), "frey_nz5_aevb"),
)


def run_of(study: Study, learner: str, training_points: float, seed: int) -> Run:
    """The run of a study by "aevb" (which is MAP) or "full_vb"."""
    return build.build(
        settings.load(
            f"{CONFIG}:{study.dataset},{learner}",
            (
                *study.overrides,
                f"--config.data.train_size={study.num_train}",
                f"--config.optimizer.learning_rate={runs.chosen_step_size(study.kind)}",
                f"--config.train.num_epochs={training_points / study.num_train!r}",
                "--config.train.log_every_steps=500",
                "--config.train.eval_growth=0",
                "--config.eval.curve_examples=1000",
                f"--config.seed={seed}",
            ),
        )
    )


def trained(run: Run, folder: epath.Path) -> Any:
    """The parameters at the end of the run in the folder, on one device; trains what is not trained yet."""
    train.check_workdir(folder, run)
    with train.opened(run, folder):
        state, _, _ = train.train(run, folder)
    return training.unreplicate(evaluate.evaluated_params(state))


# --- Predictions ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a method says of n examples of a split.

    Attributes:
      log_predictive: log of the mean over draws of p(x | theta), nats, `[n]`.
      stderr: Monte Carlo standard error of log p(x | theta) at one theta, their mean, nats, `[n]`.
      x: the pixels, `[n, pixels]`.
      pixels: the mean over draws of (theta, z), z from q(z | x), of p(x_d = 1) for binary pixels, and of the
        predictive distribution's CDF at x_d for others; `[n, pixels]`.
    """

    log_predictive: np.ndarray
    stderr: np.ndarray
    x: np.ndarray
    pixels: np.ndarray


def datapoint_prediction(run: Run, num_samples: int) -> Callable[[Any, jax.Array, jax.Array], tuple]:
    """An estimate of log p(x | theta), x and `Predictions.pixels` of one datapoint, at one theta."""
    binary = run.model.likelihood.support == "binary"

    def one(params: Any, x: jax.Array, key: jax.Array) -> tuple[HMCEstimate, jax.Array, jax.Array]:
        vae = run.model.bind({"params": params})
        estimate_key, z_key = jax.random.split(key)
        estimate = hmc_estimate(estimate_key, x, vae.prior(), vae.decode, num_samples=num_samples)
        likelihood = vae.decode(vae.encode(x).sample(z_key))
        pixels = likelihood.mean if binary else likelihood.base_dist.cdf(x)
        return estimate, x.reshape(-1), pixels.reshape(-1)

    return one


@functools.cache
def predictions_of_split(run: Run, name: str, num_samples: int) -> Callable:
    """`map_examples` of `datapoint_prediction`, compiled once a run and split."""
    return run.map_split(datapoint_prediction(run, num_samples), name)


def predict(run: Run, draws: Iterable[Any], name: str, keys: jax.Array, effort: Effort) -> Predictions:
    """Average over parameters, one key each: over draws of q(theta), or over one theta again and again."""
    split = data.head(run.split(name), effort.num_examples)
    mapped = predictions_of_split(run, name, effort.num_samples)
    each = [training.collect(mapped(params, split, key)) for params, key in zip(draws, keys, strict=True)]
    for estimate, _, _ in each:
        check_chains(estimate)
    estimates, x, pixels = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    return Predictions(
        logsumexp(estimates.log_marginal.astype(np.float64), axis=0) - math.log(len(each)),
        estimates.stderr.mean(axis=0),
        x[0],
        pixels.mean(axis=0, dtype=np.float64),
    )


def dataset_bound(run: Run, draws: Iterable[Any], keys: jax.Array, weight_kl: float) -> tuple[float, float]:
    """The bound on log p(X) per datapoint, nats, over the whole training set, and its standard error over draws."""
    elbos = [
        training.collect(run.bound_of_split("train")(params, run.dataset.train, key)).elbo.mean(dtype=np.float64)
        for params, key in zip(draws, keys, strict=True)
    ]
    return float(np.mean(elbos)) - weight_kl / len(run.dataset.train.examples), evaluate.standard_error(np.array(elbos))


# --- Calibration ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """A curve that a calibrated method has on the diagonal, and numbers that sum it up: `name: (value, stderr)`.

    Attributes:
      predicted: the mean predicted probability in each bin, or the level of each interval.
      observed: the share of pixels that are 1, or that lie inside.
    """

    predicted: np.ndarray
    observed: np.ndarray
    numbers: dict[str, tuple[float, float]]


def reliability(probability: np.ndarray, x: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """How often pixels are 1, against the probability that was given for it, in bins of equal width.

    The expected calibration error is the mean over pixels of |share of ones - mean probability| of their bin; its
    standard error is by the bootstrap over images, whose pixels belong together.

    Args:
      probability: of a 1, `[n, pixels]`.
      x: binary, `[n, pixels]`.
      num_bins: of which empty ones are left out of the curve.
    """
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    places = bins + num_bins * np.arange(len(x))[:, None]

    def sums(values: np.ndarray) -> np.ndarray:
        """By image and bin, `[n, bins]`."""
        return np.bincount(places.ravel(), values.ravel(), num_bins * len(x)).reshape(len(x), num_bins)

    counts, given, ones = sums(np.ones_like(probability)), sums(probability), sums(x)
    times = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), size=200)
    again = np.abs(times @ (ones - given)).sum(axis=1) / (times @ counts).sum(axis=1)
    error = float(np.abs((ones - given).sum(axis=0)).sum() / counts.sum())
    count, given, ones = (parts.sum(axis=0)[counts.any(axis=0)] for parts in (counts, given, ones))
    return Calibration(given / count, ones / count, {"expected_calibration_error": (error, float(again.std(ddof=1)))})


def coverage(cdf: np.ndarray) -> Calibration:
    """The share of pixels inside the central predictive interval of each level, standard error over images.

    Args:
      cdf: the predictive distribution's at each pixel, `[n, pixels]`; uniform where the model is calibrated.
    """
    shares = (np.abs(2 * cdf - 1)[..., None] <= LEVELS + 1e-9).mean(axis=1)
    numbers = {}
    for level in (50, 90):
        share = shares[:, level * NUM_BINS // 100 - 1]
        numbers[f"share_within_{level}"] = (float(share.mean()), evaluate.standard_error(share))
    return Calibration(LEVELS, shares.mean(axis=0), numbers)


# --- A study --------------------------------------------------------------------------------------------------


class Table:
    """Rows of full_vb.csv about one method on one training set."""

    def __init__(self, run: Run, method: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self._common = {
            "dataset": run.dataset.name,
            "num_train": len(run.dataset.train.examples),
            "method": method,
            "seed": run.config.seed,
            "training_points": run.num_steps * run.batch_size,
        }

    def add(self, metric: str, value: float, stderr: float, num_examples: int, num_samples: int) -> None:
        number = {"metric": metric, "value": value, "stderr": stderr}
        self.rows.append(self._common | number | {"num_examples": num_examples, "num_samples": num_samples})


def measure(
    run: Run, params: Any, method: str, effort: Effort, of_map: np.ndarray | None
) -> tuple[list[dict[str, Any]], Calibration, np.ndarray]:
    """The rows of a method, its calibration on the test split, and the log predictive of each test example, nats.

    Args:
      of_map: the same of the same examples by MAP, to compare with; None for MAP itself.
    """
    weights_key, *other_keys = jax.random.split(run.draw_key, 4)
    train_keys, test_keys, bound_keys = (jax.random.split(key, effort.num_draws) for key in other_keys)
    draws = [params] * effort.num_draws
    if method == "full_vb":
        draw_weights = jax.jit(full_vb.sample_weights)
        draws = [draw_weights(params, key) for key in jax.random.split(weights_key, effort.num_draws)]
    draws = [training.replicate(weights) for weights in draws]
    table, in_all = Table(run, method), effort.num_draws * effort.num_samples

    means, errors = {}, {}
    for name, keys in (("train", train_keys), ("test", test_keys)):
        predictions = predict(run, draws, name, keys, effort)
        values = predictions.log_predictive
        means[name], errors[name] = float(values.mean()), evaluate.standard_error(values)
        table.add(f"{name}_log_predictive", means[name], errors[name], len(values), in_all)
    gap_error = math.hypot(errors["train"], errors["test"])
    table.add("train_minus_test", means["train"] - means["test"], gap_error, len(values), in_all)
    if of_map is not None:
        better = values - of_map  # of the test split, the last
        table.add("test_minus_map", float(better.mean()), evaluate.standard_error(better), len(better), in_all)
    errors = predictions.stderr
    table.add("test_estimate_stderr", float(errors.mean()), evaluate.standard_error(errors), len(errors), in_all)
    binary = run.model.likelihood.support == "binary"
    calibration = reliability(predictions.pixels, predictions.x) if binary else coverage(predictions.pixels)
    for metric, (value, stderr) in calibration.numbers.items():
        table.add(metric, value, stderr, len(predictions.x), effort.num_draws)

    if method == "full_vb":
        weight_kl, whole = float(full_vb.weight_kl(params)), len(run.dataset.train.examples)
        table.add("dataset_bound", *dataset_bound(run, draws, bound_keys, weight_kl), whole, effort.num_draws)
        table.add("weight_kl_per_datapoint", weight_kl / whole, 0.0, whole, 0)
    return table.rows, calibration, values


def compare(
    study: Study, folder: epath.Path, training_points: float, seed: int, effort: Effort
) -> tuple[list[dict[str, Any]], dict[str, Calibration]]:
    """Train both learners where they are not yet, and measure the three methods."""
    rows, calibrations, of_map = [], {}, None
    for learner, methods in (("aevb", ("map",)), ("full_vb", ("full_vb", "full_vb_mean"))):
        run = run_of(study, learner, training_points, seed)
        params = trained(run, folder / f"{study.dataset}_n{study.num_train}_calibration_{learner}_seed{seed}")
        for method in methods:
            more, calibrations[method], values = measure(run, params, method, effort, of_map)
            of_map = values if method == "map" else of_map
            rows += more
    return rows, calibrations


# --- Files ----------------------------------------------------------------------------------------------------


def write_rows(path: epath.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the CSV, whole or not at all."""
    rows = [row | {name: f"{row[name]:.6g}" for name in ("value", "stderr")} for row in rows]
    workdir.write_csv(path, COLUMNS, ([row[name] for name in COLUMNS] for row in rows))


def panel(axes: Axes, study: Study, calibrations: dict[str, Calibration]) -> None:
    """MAP's and full VB's calibration on one test split; on the diagonal, what is said is what happens."""
    axes.set_title(f"{TITLES.get(study.dataset, study.dataset)}, $N$ = {study.num_train:,}", fontsize=FONT, color=INK)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 2)), label="calibrated")
    style = {"marker": "o", "markersize": 3.5, "linewidth": 1.4, "clip_on": False}
    for (method, label), colour in zip(DRAWN.items(), (ORANGE, BLUE), strict=True):
        curve = calibrations[method]
        axes.plot(curve.predicted, curve.observed, color=colour, label=label, **style)
    binary = "expected_calibration_error" in curve.numbers
    axes.set_xlabel("probability given to a 1" if binary else "level of the interval", fontsize=FONT, color=INK)
    axes.set_ylabel("share of pixels that are 1" if binary else "share of pixels inside", fontsize=FONT, color=INK)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks)
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_yticklabels([f"{tick:g}" for tick in ticks])
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def figure(panels: Sequence[tuple[Study, dict[str, Calibration]]]) -> Figure:
    """A panel a study, two a row, and the legend in the place after the last, or above where there is none."""
    rows = math.ceil(len(panels) / 2)
    drawn = Figure(figsize=(figures.WIDTH, 3.4 * rows), dpi=figures.DPI, layout="constrained")
    grid = drawn.subplots(rows, 2, squeeze=False).flatten()
    for axes, (study, calibrations) in zip(grid, panels, strict=False):
        panel(axes, study, calibrations)
    handles, labels = grid[0].get_legend_handles_labels()
    style = {"frameon": False, "fontsize": FONT, "labelcolor": INK}
    if len(panels) % 2:
        grid[-1].set_axis_off()
        grid[-1].legend(handles, labels, loc="center", **style)
    else:
        drawn.legend(handles, labels, loc="outside upper center", ncols=3, **style)
    return drawn


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    out, folder = epath.Path(flags.FLAGS.out), epath.Path(flags.FLAGS.workdir)
    out.mkdir(parents=True, exist_ok=True)
    rows, panels = [], []
    for study in STUDIES:
        more, calibrations = compare(study, folder, flags.FLAGS.training_points, flags.FLAGS.seed, Effort())
        for row in more:
            name = f"{row['dataset']}, N = {row['num_train']:,}, {row['method']}: {row['metric']}"
            print(f"{name} {row['value']:.4g} +- {row['stderr']:.2g}", flush=True)
        rows += more
        panels.append((study, calibrations))
    write_rows(out / "full_vb.csv", rows)
    figures.save(figure(panels), out / "full_vb.png")
    print(f"look at {out / 'full_vb.csv'} and {out / 'full_vb.png'}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/paper", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", str(HERE / "results"), "Where the CSV and the figure go.")
    flags.DEFINE_float("training_points", 1e6, "Training points of each run.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of every run.", lower_bound=0)
    cli.run(main)
