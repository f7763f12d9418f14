"""Nonlinear PCA: a plane rolled up in space, given back from codes of two numbers by PCA and by autoencoders.

    python -m experiments.autoencoders.curved --workdir=runs/autoencoders --out=experiments/results/autoencoders

Trains linear and deep autoencoders of the Swiss roll, each in a folder of its own below --workdir; the same command
resumes them. Writes `swiss_roll.csv` and `swiss_roll.png`. A sigmoid on the code of a linear decoder gains nothing on
PCA (Bourlard & Kamp, 1988); layers on both sides do (Kramer, 1991).
"""

import numpy as np
from absl import flags
from etils import epath

from experiments import build, checkpointed, cli, restoration, side_by_side, usefulness, workdir

# A config, and what a run changes in it.
RUNS = {
    "linear": ("linear.py:swiss_roll", ("model.latent_dim=2",)),
    "sigmoid_code": ("linear.py:swiss_roll", ("model.latent_dim=2", "model.code=sigmoid")),
    "deep": ("deep.py:swiss_roll", ()),
}
COLUMNS = ("model", "code_size", "mse", "mse_stderr", "pca_mse", "num_test", "seed", "train_seconds")


def main(argv: list[str]) -> None:
    from aevb import figures
    from experiments.autoencoders import draw

    cli.refuse(argv)
    root, seed = epath.Path(flags.FLAGS.workdir), flags.FLAGS.seed
    trainings = {
        name: side_by_side.training(f"roll_{name}_seed{seed}", config, (*overrides, f"seed={seed}"))
        for name, (config, overrides) in RUNS.items()
    }
    side_by_side.train(list(trainings.values()), root, flags.FLAGS.jobs)
    rows = []
    for name, each in trainings.items():
        side_by_side.check_length(each, root)
        summary = workdir.read_json(root / each.name / "summary.json")
        told = summary["evaluation"]
        numbers = [float(f"{told[key]:.4g}") for key in ("mse", "mse_stderr", "pca_mse")]
        rows.append([name, told["latent_dim"], *numbers, told["num_examples"], seed, round(summary["train_seconds"])])
    folder = epath.Path(flags.FLAGS.out or root)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_csv(folder / "swiss_roll.csv", COLUMNS, rows)
    run = build.build(workdir.read_config(root / trainings["deep"].name))
    params, _ = checkpointed.restore(run, root / trainings["deep"].name)
    x = run.dataset.test.examples
    pca = restoration.PCA.fit(run.dataset.train.examples, run.model.latent_dim, seed)
    rebuilt = {
        "PCA, 2 components": pca.reconstruct(x),
        "deep autoencoder, 2 codes": usefulness.reconstructing(run, params)(x, np.arange(len(x))),
    }
    figures.save(draw.curved(x, rebuilt, run.dataset.test.labels), folder / "swiss_roll.png")
    print((folder / "swiss_roll.csv").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/autoencoders", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", None, "Where the table and the figure go; the workdir unless given.")
    flags.DEFINE_integer("seed", 0, "Of every run.", lower_bound=0)
    flags.DEFINE_integer("jobs", None, "Runs side by side; one a device, or one a core, unless given.", lower_bound=1)
    cli.run(main)
