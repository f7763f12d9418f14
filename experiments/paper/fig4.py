"""Figure 4: the manifolds of two-dimensional models: a grid on the unit square, through the inverse CDF, decoded.

python -m experiments.paper.fig4 --training_points=1e7
"""

from experiments import cli, pictures
from experiments.paper import runs

TRAINING_POINTS = 1e8  # the paper does not state them
NUM = 20  # along each side


def jobs() -> list[runs.Job]:
    """A model a data set."""
    return [runs.Job("", "", dataset, "aevb", 2) for dataset in runs.DATASETS]


def main(argv: list[str]) -> None:
    from aevb import figures

    cli.refuse(argv)
    some = runs.chosen(jobs())
    runs.run(some)
    for job in some:
        path = runs.out_folder() / f"fig4_{job.dataset}.png"
        figures.save(pictures.manifold(runs.artist(job), NUM)[0], path)
        print(f"wrote {path}")


if __name__ == "__main__":
    runs.define_flags(TRAINING_POINTS)
    cli.run(main)
