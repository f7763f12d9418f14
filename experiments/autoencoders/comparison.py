"""Every autoencoder on MNIST beside PCA, raw pixels and its own untrained encoder: comparison.csv and a page.

    python -m experiments.autoencoders.comparison --workdir=runs/autoencoders --out=experiments/results/autoencoders

Each is trained with each seed in a folder of its own below --workdir, judged by `experiments.evaluate --downstream`,
fine-tuned on 1,000 labels where its encoder is deep, and drawn on one page by
`experiments.compare`; as many side by side as there are cores or GPUs (`--jobs`). The same command resumes, and repeats
nothing that is done.
"""

from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import cli, side_by_side, workdir

CONV = ("model.network=conv", "model.channels=(32, 64)")
# A config, and what a run changes in it. Codes have 30 elements where nothing else is said.
RUNS = {
    "linear": ("linear.py:mnist", ()),
    "linear_sigmoid": ("linear.py:mnist", ("model.code=sigmoid",)),
    "deep": ("deep.py:mnist", ()),
    "deep_2": ("deep.py:mnist", ("model.latent_dim=2",)),
    "sparse": ("sparse.py:mnist", ()),
    "k_sparse": ("sparse.py:mnist", ("model.code=top_k", "model.code_k=25", "learner.l1_weight=0.0")),
    "denoising": ("denoising.py:mnist", ()),
    "denoising_conv": ("denoising.py:mnist", CONV),
    "masked": ("mae.py:mnist", ()),
    "vae": ("vae.py:mnist", ("model.latent_dim=30",)),
}
FINE_TUNED = ("deep", "denoising_conv", "masked", "vae")
FEW = 1000  # labels


def names(only: str) -> list[str]:
    """The runs that --only names.

    Raises:
      InputError: it names none.
    """
    some = [name for name in RUNS if not only or name in only.split(",")]
    if not some or len(some) < len(only.split(",")) * bool(only):
        raise InputError(f"--only={only} names a run that is none: the runs are {', '.join(RUNS)}")
    return some


def judged(folder: epath.Path, max_examples: int | None) -> bool:
    """Whether the codes of a run were judged, with the weights that it ended with and as many test examples."""
    path = folder / "evaluation.json"
    told, summary = (workdir.read_json(each) if each.exists() else {} for each in (path, folder / "summary.json"))
    wanted = min(max_examples or told.get("num_examples", 0), told.get("num_examples", 0))
    return "downstream" in told and told["step"] == summary["evaluation"]["step"] and told["num_examples"] == wanted


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    root, given = epath.Path(flags.FLAGS.workdir), flags.FLAGS
    some = names(given.only)
    length = () if given.num_epochs is None else (f"train.num_epochs={given.num_epochs}",)
    trainings = [
        side_by_side.training(f"{name}_seed{seed}", RUNS[name][0], (*RUNS[name][1], *length, f"seed={seed}"))
        for seed in range(given.num_seeds)
        for name in some
    ]
    side_by_side.train(trainings, root, given.jobs)
    folders = [root / each.name for each in trainings]
    for each in trainings:
        side_by_side.check_length(each, root)
    few = () if given.max_examples is None else (f"--max_examples={given.max_examples}",)
    jobs = [
        side_by_side.Job(
            f"judge {folder.name}",
            ["experiments.evaluate", f"--workdir={folder}", "--downstream", *few],
            f"{folder}.judge.log",
        )
        for folder in folders
        if not judged(folder, given.max_examples)
    ]
    jobs += [
        side_by_side.Job(
            f"fine-tune {folder.name}",
            ["experiments.finetune", f"--workdir={folder}", f"--num_labels={FEW}"],
            f"{folder}.tune.log",
        )
        for folder in folders
        if folder.name.startswith(FINE_TUNED) and not (folder / "finetuning.json").exists()
    ]
    side_by_side.run(jobs, given.jobs)
    out = epath.Path(given.out or root / "comparison")
    # Seed after seed, so that the first of each is what is drawn.
    command = ["experiments.compare", *map(str, folders), f"--out={out}"]
    side_by_side.run([side_by_side.Job("compare", command, f"{root}/comparison.log")], 1)
    print(f"look at {out / 'comparison.html'}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/autoencoders", "Holds a folder a run; the same command again resumes them.")
    flags.DEFINE_string("out", None, "Where the page and comparison.csv go; in the workdir unless given.")
    flags.DEFINE_string("only", "", "Only these runs, separated by commas.")
    flags.DEFINE_integer("num_seeds", 3, "Seeds 0, 1, ... of every run.", lower_bound=1)
    flags.DEFINE_float("num_epochs", None, "Of every run; its config's own unless given.", lower_bound=0.01)
    flags.DEFINE_integer("max_examples", None, "Judge on the first so many of test; all unless given.", lower_bound=1)
    flags.DEFINE_integer("jobs", None, "Runs side by side; one a device, or one a core, unless given.", lower_bound=1)
    cli.run(main)
