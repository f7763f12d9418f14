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

# What is left of an image at 30 % masked convolutions fill in from next to it, and their codes stay local.
CONV = (
    "model.network=conv",
    "model.channels=(32, 64)",
    "data.corruption_level=0.75",
    "optimizer.warmup_steps=500",
    "train.num_epochs=10",
)
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
    some = set(only.split(",")) if only else set(RUNS)
    if some - set(RUNS):
        raise InputError(f"--only={only} names a run that is none: the runs are {', '.join(RUNS)}")
    return [name for name in RUNS if name in some]


def judged(folder: epath.Path, max_examples: int | None) -> bool:
    """Whether the codes of a run were judged, with the weights that it ended with and as many test examples."""
    path = folder / "evaluation.json"
    told, summary = (workdir.read_json(each) if each.exists() else {} for each in (path, folder / "summary.json"))
    if "downstream" not in told:
        return False
    ended = summary["evaluation"]
    wanted = min(max_examples or ended["num_examples"], ended["num_examples"])
    return told["step"] == ended["step"] and told["downstream"]["num_test"] == wanted


def tuned(folder: epath.Path) -> bool:
    """Whether the encoder of a run was fine-tuned on as few labels, from the weights that it ended with."""
    path = folder / "finetuning.json"
    told, summary = (workdir.read_json(each) if each.exists() else {} for each in (path, folder / "summary.json"))
    return bool(told) and (told["num_labels"], told["step"]) == (FEW, summary["evaluation"]["step"])


def jobs(root: epath.Path, name: str, seed: int, max_examples: int | None) -> list[side_by_side.Job]:
    """What is still to be measured of a run."""
    folder, left = root / f"{name}_seed{seed}", []
    if not judged(folder, max_examples):
        few = () if max_examples is None else (f"--max_examples={max_examples}",)
        samples = ("--num_samples=1000",) if name == "vae" else ()
        told = ("--downstream", f"--cache={root / 'judged'}", *samples, *few)
        command = ["experiments.evaluate", f"--workdir={folder}", *told]
        left.append(side_by_side.Job(f"judge {folder.name}", command, f"{folder}.judge.log"))
    if name in FINE_TUNED and not tuned(folder):
        command = ["experiments.finetune", f"--workdir={folder}", f"--num_labels={FEW}", f"--seed={seed}"]
        left.append(side_by_side.Job(f"fine-tune {folder.name}", command, f"{folder}.tune.log"))
    return left


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    root, given = epath.Path(flags.FLAGS.workdir), flags.FLAGS
    length = () if given.num_epochs is None else (f"train.num_epochs={given.num_epochs}",)
    # Seed after seed, so that the first of each is what is drawn.
    runs = [(name, seed) for seed in range(given.num_seeds) for name in names(given.only)]
    trainings = [
        side_by_side.training(f"{name}_seed{seed}", RUNS[name][0], (*RUNS[name][1], *length, f"seed={seed}"))
        for name, seed in runs
    ]
    side_by_side.train(trainings, root, given.jobs)
    for each in trainings:
        side_by_side.check_length(each, root)
    side_by_side.run([job for run in runs for job in jobs(root, *run, given.max_examples)], given.jobs)
    out = epath.Path(given.out or root / "comparison")
    command = ["experiments.compare", *(str(root / each.name) for each in trainings), f"--out={out}"]
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
