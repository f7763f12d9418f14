"""Adagrad's step size for each run of the paper's figures: the best of its three on the training set, early on.

    python -m experiments.paper.step_sizes --out=experiments/paper
    python -m experiments.paper.step_sizes --out=experiments/paper --training_points=1e6 --only=mnist_n1000,mnist_n50000

Each run is started with each of them and stopped after 300,000 training points; what counts is the bound on the last
tenth of these (for full variational Bayes that on the whole data set's likelihood). Figure 3's and MNIST's of
appendix F, with the second line, are stopped after a million, for wake-sleep stands still before that; what
counts in figure 3 is the marginal likelihood of training data then. Writes `step_sizes.csv`, which the other
commands read where it lies beside them; a step size whose run ended in numbers that are not finite has none there.
"""

import csv
import dataclasses
import io

import numpy as np
from absl import flags
from etils import epath

from experiments import cli, workdir
from experiments.paper import fig2, fig3, fig4, fig5, full_vb, runs

TRAINING_POINTS = 3e5
COLUMNS = ("run", "step_size", "train_nats", "training_points", "seed")
TRIED = (0.01, 0.02, 0.1)  # the paper's section 5
QUICK = ("eval.num_samples=1", "eval.max_examples=1")  # nothing is read from the evaluation at a trial's end


def jobs() -> list[runs.Job]:
    """Three trials of each run of the figures."""
    distinct = {job.kind: job for figure in (fig2, fig3, fig4, fig5, full_vb) for job in figure.jobs()}
    return [trial(job, step_size) for job in distinct.values() for step_size in TRIED]


def trial(job: runs.Job, step_size: float) -> runs.Job:
    quick = () if job.figure == "3" else QUICK
    return dataclasses.replace(job, step_size=step_size, overrides=(*job.overrides, *quick))


def train_nats(rows: list[dict], points: float) -> float | None:
    """What a trial reached on the training set, nats per datapoint; None if it did not come to its end."""
    rows = [row for row in rows if row["split"] == "train"]
    if not rows or rows[-1]["examples_seen"] < points:
        return None
    if "log_marginal" in rows[-1]:
        return rows[-1]["log_marginal"]
    bounds = [row.get("dataset_bound", row["elbo"]) for row in rows if row["examples_seen"] > 0.9 * points]
    return float(np.mean(bounds))


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    some = runs.chosen(jobs())
    runs.run(some, may_diverge=True)
    path = runs.out_folder() / runs.STEP_SIZES.name
    table = {}
    if path.exists():
        table = {(row["run"], float(row["step_size"])): row for row in csv.DictReader(io.StringIO(path.read_text()))}
    seed, points = flags.FLAGS.seed, flags.FLAGS.training_points
    for job in some:
        rows = workdir.read_metrics(epath.Path(flags.FLAGS.workdir) / job.name(seed))
        nats = train_nats(rows, points)
        row = {"run": job.kind, "step_size": job.step_size, "train_nats": "" if nats is None else f"{nats:.2f}"}
        table[job.kind, job.step_size] = row | {"training_points": f"{points:.0f}", "seed": seed}
    workdir.write_csv(path, COLUMNS, ([row[name] for name in COLUMNS] for row in table.values()))
    print(f"wrote {path}")


if __name__ == "__main__":
    runs.define_flags(TRAINING_POINTS)
    cli.run(main)
