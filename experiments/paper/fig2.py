"""Figure 2: the lower bound against training points seen, AEVB and wake-sleep, train and test.

python -m experiments.paper.fig2 --training_points=1e7
"""

from experiments import cli
from experiments.paper import runs
from experiments.paper.compare import compare

TRAINING_POINTS = 1e8  # the last number on the paper's axis; its curves of MNIST go on to 2.5e8
SIZES = {"mnist": (3, 5, 10, 20, 200), "frey": (2, 5, 10, 20)}  # latent dimensions


def jobs() -> list[runs.Job]:
    """A run a curve."""
    return [
        runs.Job("2", f"Nz={size}", dataset, algorithm, size)
        for dataset, sizes in SIZES.items()
        for size in sizes
        for algorithm in ("aevb", "wake-sleep")
    ]


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    some = runs.chosen(jobs())
    runs.run(some)
    compare("2", some)


if __name__ == "__main__":
    runs.define_flags(TRAINING_POINTS)
    cli.run(main)
