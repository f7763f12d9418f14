"""Full variational Bayes (appendix F) against MAP: the experiment that the paper derives and does not report.

    python -m experiments.paper.full_vb --training_points=3e6

Both have the protocol of experiments/configs/paper.py: MNIST, static binarization, 100 hidden units and 3
latents, from 1,000 and from 50,000 images; Frey Face, 200 hidden units and 5 latents. There are three ways to predict:

- `map`: AEVB with the prior N(0, I) on the weights, at the weights it found;
- `full_vb`: averaged over draws of the weights from q(theta);
- `full_vb_mean`: the same run at the mean of q(theta).

Writes full_vb.png, MAP's and full VB's calibration on the test split, and full_vb.csv, with `num_thetas` draws of the
weights and `num_samples` draws of z for each of them:

- `train_log_predictive`, `test_log_predictive`, `train_minus_test`: `log mean p(x | theta)`, nats per datapoint, by
  `predictive.py`. The mean over weights is what a few of them say: its logarithm is too low in expectation, and
  `test_log_predictive_of_a_tenth`, the same of a tenth of the draws, shows how it rises.
- `test_minus_map`: what the test predictive has above MAP's; its standard error is of the differences by image, so far
  below those of the two.
- `effective_sample_size`: of the draws of z for a test image, on average over images and weights.
- `expected_calibration_error` of the probability given to a 1 in test images that are seen through q(z | x), so of
  reconstructions; for Frey Face `share_within_50` and `share_within_90`, of their pixels in the central predictive
  intervals of those percentages.
- `dataset_bound`: the bound on log p(X), X the whole training set, nats per datapoint; `weight_kl_per_datapoint` of it
  is KL(q(theta) || p(theta)) / N. MAP has no such bound.

Standard errors are over examples; for log predictives they hold the error from the draws of the weights, too, which all
examples share. The same command with the same --workdir goes on where it was stopped.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
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
from aevb.learners import full_vb
from experiments import build, checkpointed, cli, numbers, workdir
from experiments.build import Run
from experiments.paper import predictive, runs
from experiments.paper.calibration import Calibration, coverage, reliability

COLUMNS = (
    *("dataset", "num_train", "method", "metric", "value", "stderr"),
    *("num_examples", "num_thetas", "num_samples", "seed", "training_points"),
)
TRAINING_POINTS = 3e6
PREDICTION_POINTS = 4e6  # training points that take as long as the predictions of a run do
TITLES = {"mnist": "MNIST", "frey": "Frey Face"}
DRAWN = {"map": "MAP", "full_vb": "full VB"}
BLOCKS = 10  # of draws of the weights, whose spread says how much the draws matter


@dataclasses.dataclass(frozen=True)
class Effort:
    """What the numbers are estimated with.

    Attributes:
      num_examples: of each split, its first ones.
      num_thetas: draws of the weights, a multiple of `BLOCKS`.
      num_samples: draws of z for each of them.
    """

    num_examples: int = 1000
    num_thetas: int = 300
    num_samples: int = 50


CURVE = ("train.eval_growth=0", "eval.curve_examples=1000")
MNIST = (*CURVE, "model.hidden=(100,)", "data.binarization=static")
# Data set, images trained on (0 is all), latent dimensions, and what is changed in the paper's config.
STUDIES = (("mnist", 1000, 3, MNIST), ("mnist", 50000, 3, MNIST), ("frey", 0, 5, CURVE))


def jobs() -> list[runs.Job]:
    """Both learners on each training set."""
    return [
        runs.Job("F", "", dataset, algorithm, latent_dim, train_size=size, overrides=overrides)
        for dataset, size, latent_dim, overrides in STUDIES
        for algorithm in ("aevb", "full-vb")
    ]


# --- A method -------------------------------------------------------------------------------------------------


def log_mean(logs: np.ndarray) -> np.ndarray:
    """The logarithm of the mean over the first axis."""
    return logsumexp(logs.astype(np.float64), axis=0) - math.log(len(logs))


def draws_error(logs: np.ndarray) -> float:
    """The standard error of the mean of `log_mean` over examples that comes from the draws, from blocks of them.

    Args:
      logs: `[thetas, n]`; one theta alone is exact.
    """
    if len(logs) == 1:
        return 0.0
    return numbers.standard_error(np.array([log_mean(block).mean() for block in np.split(logs, BLOCKS)]))


class Method:
    """The weights that a method predicts with, and the rows of full_vb.csv about it.

    Args:
      run: of its learner.
      params: that the learner found, on one device.
      name: "map", "full_vb" or "full_vb_mean".
      effort: of its estimates.
    """

    def __init__(self, run: Run, params: Any, name: str, effort: Effort) -> None:
        self.run, self.params, self.name, self.effort = run, params, name, effort
        self.proposal_key, self.weights_key, self.pixel_key, self.bound_key = jax.random.split(run.draw_key, 4)
        self.rows: list[dict[str, Any]] = []

    def thetas(self, num: int) -> Iterator[Any]:
        """So many draws of the weights; of a method with weights of its own the same ones again."""
        draw = jax.jit(full_vb.sample_weights)
        for key in jax.random.split(self.weights_key, num):
            yield draw(self.params, key) if self.name == "full_vb" else self.params

    def add(
        self, metric: str, value: float, stderr: float, num_examples: int, num_thetas: int, num_samples: int
    ) -> None:
        self.rows.append(
            {
                "dataset": self.run.dataset.name,
                "num_train": len(self.run.dataset.train.examples),
                "method": self.name,
                "metric": metric,
                "value": value,
                "stderr": stderr,
                "num_examples": num_examples,
                "num_thetas": num_thetas,
                "num_samples": num_samples,
                "seed": self.run.config.seed,
                "training_points": self.run.num_steps * self.run.batch_size,
            }
        )

    def log_predictives(self) -> np.ndarray:
        """log p(x) of each test example, nats; adds what it says of both splits."""
        num = self.effort.num_thetas if self.name == "full_vb" else 1
        means, errors = {}, {}
        for name in ("train", "test"):
            split = data.head(self.run.split(name), self.effort.num_examples)
            proposed = predictive.propose(
                self.run, self.params, split, name, self.effort.num_samples, self.proposal_key
            )
            logs, effective = predictive.log_marginals(self.run.model, self.thetas(num), proposed)
            numbers.check_finite(logs, f"the log predictive of the {name} split")
            values, counts = log_mean(logs), (len(split.examples), num, self.effort.num_samples)
            means[name] = float(values.mean())
            errors[name] = math.hypot(numbers.standard_error(values), draws_error(logs))
            self.add(f"{name}_log_predictive", means[name], errors[name], *counts)
        self.add("train_minus_test", means["train"] - means["test"], math.hypot(*errors.values()), *counts)
        if num > 1:
            tenth = float(np.mean([log_mean(block).mean() for block in np.split(logs, BLOCKS)]))
            self.add("test_log_predictive_of_a_tenth", tenth, errors["test"], counts[0], num // BLOCKS, counts[2])
        self.add("effective_sample_size", float(effective.mean()), numbers.standard_error(effective.mean(0)), *counts)
        self.x, self.error_from_draws = proposed["x"], draws_error(logs)
        return values

    def calibration(self) -> Calibration:
        """Of the test examples that `log_predictives` saw; adds the numbers that sum it up."""
        binary, num = self.run.model.likelihood.support == "binary", self.effort.num_thetas
        of = (lambda likelihood, x: likelihood.mean) if binary else (lambda likelihood, x: likelihood.base_dist.cdf(x))
        keys = jax.random.split(self.pixel_key, num)
        pixels = predictive.pixels(self.run.model, self.thetas(num), self.x, keys, of)
        curve = reliability(pixels, self.x.reshape(pixels.shape)) if binary else coverage(pixels)
        counts = (num, 1) if self.name == "full_vb" else (1, num)  # of the weights, and of z for each of them
        for metric, (value, stderr) in curve.numbers.items():
            self.add(metric, value, stderr, len(pixels), *counts)
        return curve

    def bound(self) -> None:
        """Adds the bound on log p(X) of the whole training set, and the part that the weights have in it."""
        split, num = self.run.dataset.train, BLOCKS
        elbos = [
            training.collect(self.run.bound_of_split("train")(training.replicate(theta), split, key)).elbo
            for theta, key in zip(self.thetas(num), jax.random.split(self.bound_key, num), strict=True)
        ]
        means = np.array([elbo.mean(dtype=np.float64) for elbo in elbos])
        per_datapoint = float(full_vb.weight_kl(self.params)) / len(split.examples)
        self.add(
            "dataset_bound",
            float(means.mean()) - per_datapoint,
            numbers.standard_error(means),
            len(split.examples),
            num,
            1,
        )
        self.add("weight_kl_per_datapoint", per_datapoint, 0.0, len(split.examples), 0, 0)


def compare(aevb: tuple[Run, Any], vb: tuple[Run, Any], effort: Effort) -> tuple[list[dict], dict[str, Calibration]]:
    """The rows and calibrations of the three methods, from the runs of both learners and what they found."""
    rows, calibrations, of_map = [], {}, None
    for (run, params), name in ((aevb, "map"), (vb, "full_vb"), (vb, "full_vb_mean")):
        method = Method(run, params, name, effort)
        values = method.log_predictives()
        if of_map is None:
            of_map = values
        else:
            better = values - of_map
            error = math.hypot(numbers.standard_error(better), method.error_from_draws)
            num = effort.num_thetas if name == "full_vb" else 1
            method.add("test_minus_map", float(better.mean()), error, len(better), num, effort.num_samples)
        calibrations[name] = method.calibration()
        if name == "full_vb":
            method.bound()
        rows += method.rows
    return rows, calibrations


# --- Files ----------------------------------------------------------------------------------------------------


def restore(job: runs.Job) -> tuple[Run, Any]:
    """The run of a job, and the weights it ended with, on one device."""
    folder = epath.Path(flags.FLAGS.workdir) / job.name(flags.FLAGS.seed)
    run = build.build(workdir.read_config(folder))
    return run, training.unreplicate(checkpointed.restore(run, folder)[0])


def write_rows(path: epath.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the CSV, whole or not at all."""
    rows = [row | {name: f"{row[name]:.6g}" for name in ("value", "stderr")} for row in rows]
    workdir.write_csv(path, COLUMNS, ([row[name] for name in COLUMNS] for row in rows))


def panel(axes: Axes, title: str, calibrations: dict[str, Calibration]) -> None:
    """MAP's and full VB's calibration on one test split; on the diagonal, what is said is what happens."""
    axes.set_title(title, fontsize=FONT, color=INK)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 2)), label="calibrated")
    style = {"marker": "o", "markersize": 3.5, "linewidth": 1.4, "clip_on": False}
    for (method, label), colour in zip(DRAWN.items(), (ORANGE, BLUE), strict=True):
        curve = calibrations[method]
        axes.plot(curve.predicted, curve.observed, color=colour, label=label, **style)
    binary = "expected_calibration_error" in curve.numbers
    axes.set_xlabel("reconstructed probability" if binary else "level of the interval", fontsize=FONT, color=INK)
    axes.set_ylabel("share of pixels that are 1" if binary else "share of pixels inside", fontsize=FONT, color=INK)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks)
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_yticklabels([f"{tick:g}" for tick in ticks])
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def figure(panels: Sequence[tuple[str, dict[str, Calibration]]]) -> Figure:
    """A panel a study, two a row, and the legend in the place after the last, or above where there is none."""
    rows = math.ceil(len(panels) / 2)
    drawn = Figure(figsize=(figures.WIDTH, 3.4 * rows), dpi=figures.DPI, layout="constrained")
    grid = drawn.subplots(rows, 2, squeeze=False).flatten()
    for axes, (title, calibrations) in zip(grid, panels, strict=False):
        panel(axes, title, calibrations)
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
    runs.run(jobs())
    rows, panels = [], []
    for aevb, vb in zip(jobs()[::2], jobs()[1::2], strict=True):
        restored = restore(aevb), restore(vb)
        more, calibrations = compare(*restored, Effort())
        num_train = len(restored[0][0].dataset.train.examples)
        for row in more:
            name = f"{row['dataset']}, N = {row['num_train']:,}, {row['method']}: {row['metric']}"
            print(f"{name} {row['value']:.4g} +- {row['stderr']:.2g}", flush=True)
        rows += more
        panels.append((f"{TITLES[aevb.dataset]}, $N$ = {num_train:,}", calibrations))
    out = runs.out_folder()
    write_rows(out / "full_vb.csv", rows)
    figures.save(figure(panels), out / "full_vb.png")
    print(f"look at {out / 'full_vb.csv'} and {out / 'full_vb.png'}", flush=True)


if __name__ == "__main__":
    runs.define_flags(TRAINING_POINTS, some=False)
    cli.run(main)
