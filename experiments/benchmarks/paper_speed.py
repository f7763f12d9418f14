"""How fast the experiments of the paper's Fig. 3 run: its three learners, and the estimator of appendix D.

    python -m experiments.benchmarks.paper_speed

The model is 784-100-3-100-784 on 50,000 images, batch 100, as experiments/configs/paper.py has it; the marginal
likelihoods are of 1,000 images with 50 posterior samples each. The matrix products of AEVB alone, at the best float32
rate that the machine reaches in the same run, stand beside them.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import jax
from absl import flags

from aevb import data, training
from experiments import build, cli, evaluate, settings
from experiments.benchmarks.train_speed import images, matrix_products

PIXELS, HIDDEN, LATENT = 784, 100, 3
CONFIG = "experiments/configs/paper.py:mnist,"
MODEL = [
    f"--config.model.latent_dim={LATENT}",
    f"--config.model.hidden={HIDDEN}",
    "--config.data.binarization=static",
]
STEPS = 200  # a call


def products_per_example() -> int:
    """Multiplications and additions of AEVB's matrix products: three a layer, but none for the input's gradient."""
    layers = PIXELS * HIDDEN + HIDDEN * 2 * LATENT + LATENT * HIDDEN + HIDDEN * PIXELS
    return 2 * (3 * layers - PIXELS * HIDDEN)


def made_up_run(learner: str) -> build.Run:
    """The run of a config, on images with MNIST's share of ink, whose values cost the same as real ones."""
    config = settings.load(CONFIG + learner, MODEL)
    examples = images()
    splits = [data.Split(part, None) for part in (examples[:50_000], examples[50_000:51_000], examples[51_000:52_000])]
    made_up = data.Dataset("made up", (28, 28, 1), *splits, splits="made up")
    return build.build(config, made_up)


def calls(run: build.Run, num: int) -> Iterator[float]:
    """Examples a second of each of `num` calls of a run, after one that compiles and lets chains settle."""
    steps = training.train(
        run.learner,
        run.init_state(),
        run.feed,
        run.preprocess["train"],
        num_steps=(num + 1) * STEPS,
        steps_per_call=STEPS,
    )
    next(steps)
    for _ in range(num):
        started = time.perf_counter()
        next(steps)
        yield STEPS * run.batch_size / (time.perf_counter() - started)


def appendix_d(run: build.Run, num: int) -> Iterator[float]:
    """Seconds for the 1,000 test images, after a first time that compiles."""
    params = training.replicate(run.init_state().params)
    for _ in range(num + 1):
        started = time.perf_counter()
        evaluate.split_marginal(run, params, "test")
        yield time.perf_counter() - started


def report(name: str, rates: list[float], words: Callable[[float], str], best: Callable = max) -> None:
    print(f"{name}: best {words(best(rates))}, median {words(statistics.median(rates))}", flush=True)


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    num = flags.FLAGS.calls
    rate = matrix_products()()
    print(f"{jax.local_devices()[0].device_kind} x {jax.local_device_count()}, jax {jax.__version__}, batch 100")
    print(f"AEVB's matrix products alone, at {rate / 1e9:.0f} GFLOP/s: {rate / products_per_example():,.0f} examples/s")
    runs = {learner: made_up_run(learner) for learner in ("aevb", "wake_sleep", "mcem")}
    for learner, run in runs.items():
        report(learner, list(calls(run, num)), lambda value: f"{value:,.0f} examples/s")
    seconds = list(appendix_d(runs["mcem"], num))[1:]
    report("appendix D, 1,000 points, 50 samples", seconds, lambda value: f"{value:.2f} s", min)


if __name__ == "__main__":
    flags.DEFINE_integer("calls", 5, "Measured calls of each.", lower_bound=1)
    cli.run(main)
