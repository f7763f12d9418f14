"""Figure 3: the marginal likelihood against training points seen, AEVB, wake-sleep and Monte Carlo EM.

python -m experiments.paper.fig3 --training_points=1e7
"""

from experiments import cli
from experiments.paper import runs
from experiments.paper.compare import compare

TRAINING_POINTS = 6e7  # the last number on the paper's axis; its curves of 50,000 images go on to 6.8e7
# 100 hidden units, 3 latent variables; marginal likelihoods of the first 1000 points of train and test, at every
# two million training points.
MODEL = (
    "data.binarization=static",  # a marginal likelihood is of a mass
    "model.hidden=(100,)",
    "eval.curve_measure=marginal",
    "eval.curve_examples=1000",
    "eval.max_examples=1000",
    "train.eval_every_steps=20000",
    "train.eval_growth=0",
)


def jobs() -> list[runs.Job]:
    """A run a curve."""
    return [
        runs.Job("3", f"Ntrain={size}", "mnist", algorithm, 3, train_size=size, overrides=MODEL)
        for size in (1_000, 50_000)
        for algorithm in ("aevb", "wake-sleep", "mcem")
    ]


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    some = runs.chosen(jobs())
    runs.run(some)
    compare("3", some)


if __name__ == "__main__":
    runs.define_flags(TRAINING_POINTS)
    cli.run(main)
