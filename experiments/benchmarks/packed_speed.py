"""What packing saves: trials of the digits model that differ in their seed, as one program against one by one.

    python -m experiments.benchmarks.packed_speed

First the training alone: 100 steps of every trial, packed and one after another, in turn, so that a busy neighbour
slows both; rates are examples a second of all trials together. Then the whole commands, from the shell to the last
report: `experiments.train` for one trial after another, for as many side by side as there are cores, and
`experiments.packed`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from etils import epath

from aevb import packing, training
from experiments import build, cli, packed, settings, side_by_side
from experiments.build import Run

CONFIG, STEPS = "vae.py:digits", 100  # of experiments/configs; steps of a call


def make_runs(num: int) -> list[Run]:
    """The same run with so many seeds."""
    path = f"experiments/configs/{CONFIG}"
    first, *others = (settings.load(path, [f"--config.seed={seed}"]) for seed in range(num))
    run = build.build(first)
    return [run, *(build.variant(run, config) for config in others)]


def one_by_one(runs: list[Run]) -> Callable[[], None]:
    """A call of every trial, one after another, on one device, as experiments.train makes it."""
    run, device = runs[0], jax.local_devices()[:1]
    steps = training.make_train_steps(run.learner, run.feed, run.preprocess["train"], run.ema_decay, device)
    resident = training.replicate(run.feed.resident, device)
    states, feeds, at = [training.replicate(each.init_state(), device) for each in runs], [r.feed for r in runs], [0]

    def call() -> None:
        for i, feed in enumerate(feeds):
            states[i], metrics = steps(states[i], resident, training.split_over(1, feed.steps(at[0], STEPS)))
            np.asarray(metrics["loss"])
        at[0] += STEPS

    return call


def together(runs: list[Run]) -> Callable[[], object]:
    """A call of every trial, packed, on all devices, as experiments.packed makes it."""
    run = runs[0]
    calls = packing.train_packed(
        run.learner,
        [each.init_state() for each in runs],
        [each.feed for each in runs],
        run.preprocess["train"],
        num_steps=sys.maxsize,
        steps_per_call=STEPS,
        ema_decay=run.ema_decay,
    )
    return lambda: next(calls)


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def training_rates(runs: list[Run], calls: int) -> None:
    """Measure and print what training alone does."""
    contenders = {"one by one": one_by_one(runs), "packed": together(runs)}
    times = {name: [] for name in contenders}
    for call in contenders.values():
        seconds(call)  # compiles
    for _ in range(calls):
        for name, call in contenders.items():
            times[name].append(seconds(call))
    examples = len(runs) * STEPS * runs[0].batch_size
    for name, found in times.items():
        best, median = examples / min(found), examples / statistics.median(found)
        print(f"training, {name}: {best:,.0f} examples/s at best, median {median:,.0f}")
    alone, pack = times.values()
    ratios = min(alone) / min(pack), statistics.median(alone) / statistics.median(pack)
    print(f"training, packed is {ratios[0]:.2f} times as fast at best, {ratios[1]:.2f} in the median", flush=True)


def commands(num: int, root: epath.Path) -> dict[str, Callable[[], None]]:
    """The whole commands, with folders below a root."""
    listed = [
        {"workdir": str(root / "packed" / str(seed)), "overrides": [f"--config.seed={seed}"]} for seed in range(num)
    ]
    trials = {"config": f"experiments/configs/{CONFIG}", "overrides": [], "trials": listed}
    (root / "trials.json").write_text(json.dumps(trials))

    def lone(name: str, at_once: int | None) -> None:
        runs = [side_by_side.training(str(seed), CONFIG, [f"seed={seed}"]) for seed in range(num)]
        side_by_side.train(runs, root / name, at_once)

    def pack() -> None:
        command = [sys.executable, "-m", "experiments.packed", f"--trials={root / 'trials.json'}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return {
        "one by one": lambda: lone("one by one", 1),
        "side by side, one a core": lambda: lone("side by side", None),
        "packed": pack,
    }


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    num = flags.FLAGS.trials
    packed.use_cores(num)
    print(
        f"{num} seeds of {CONFIG}, {jax.local_device_count()} {jax.local_devices()[0].device_kind} device(s)",
        flush=True,
    )
    training_rates(make_runs(num), flags.FLAGS.calls)
    if flags.FLAGS.commands:
        with tempfile.TemporaryDirectory() as folder:
            times = {name: seconds(make) for name, make in commands(num, epath.Path(folder)).items()}
        for name, found in times.items():
            print(f"whole commands, {name}: {found:.1f} s, packed is {found / times['packed']:.2f} times as fast")


if __name__ == "__main__":
    flags.DEFINE_integer("trials", 8, "Trials, one a seed.", lower_bound=1)
    flags.DEFINE_integer("calls", 20, "Measured calls of each.", lower_bound=1)
    flags.DEFINE_bool("commands", True, "Measure the whole commands, too.")
    cli.run(main)
