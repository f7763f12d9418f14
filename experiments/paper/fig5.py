"""Figure 5: random samples of models of MNIST with 2, 5, 10 and 20 latent dimensions: means of p(x | z), z from p(z).

python -m experiments.paper.fig5 --training_points=1e7
"""

from experiments import cli, pictures
from experiments.paper import runs

TRAINING_POINTS = 1e8  # the paper does not state them
SIZES = (2, 5, 10, 20)  # latent dimensions
NUM = 100  # samples of each


def jobs() -> list[runs.Job]:
    """A model a size; three of them are figure 2's."""
    return [runs.Job("", "", "mnist", "aevb", size) for size in SIZES]


def main(argv: list[str]) -> None:
    from aevb import figures
    from experiments.paper import draw

    cli.refuse(argv)
    some = runs.chosen(jobs())
    runs.run(some)
    samples = {job.latent_dim: pictures.samples(runs.artist(job), NUM)[1]["mean"] for job in some}
    path = runs.out_folder() / "fig5.png"
    figures.save(draw.fig5(samples), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    runs.define_flags(TRAINING_POINTS)
    cli.run(main)
