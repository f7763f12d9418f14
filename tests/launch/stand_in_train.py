"""A stand-in for experiments.train without JAX: the same arguments, files, exit codes and manners, in no time.

What it does is in its config's `data.dir`: `fine`, `slow` (half a second a step), `non_finite`, `wrong` (a wrong call),
`crash_once` (exit code 1 at its first start), `killed` (by SIGKILL at every start). Each step that is made is a line of
`DIR.steps`, beside the folder, so that a test sees what was repeated.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from experiments import settings

NUM_STEPS = 8
stopped = []


def leave(sentence, code):
    print(sentence, file=sys.stderr, flush=True)
    sys.exit(code)


def main():
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    folder = Path(arguments["workdir"])
    overrides = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    config = settings.load(arguments["config"], overrides).to_dict()
    kind, saved = config["data"]["dir"], folder / "saved"
    if kind == "wrong":
        leave("config.data.dir is wrong: give another", 2)
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        leave(f"another process is training in {folder}", 2)
    (folder / "config.json").write_text(json.dumps(config))
    first = int(saved.read_text()) if saved.exists() else 0
    with open(f"{folder}.steps", "a") as steps, open(folder / "metrics.jsonl", "a") as rows:
        for step in range(first + 1, NUM_STEPS + 1):
            steps.write(f"{step}\n")
            steps.flush()
            time.sleep(0.5 if kind == "slow" else 0.01)
            if step == 4 and kind == "non_finite":
                leave("step 4 has loss nan: the run stops here", 3)
            if step == 4 and kind == "crash_once" and first < 3:
                saved.write_text("3")
                leave("RuntimeError: it crashed", 1)
            if step == 4 and kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            row = {"step": step, "split": "validation", "examples_seen": 100 * step, "elbo": value(config, step)}
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            saved.write_text(str(step))
            if stopped:
                leave(f"stopped at step {step}, saved", 75)
    time.sleep(0.5 if kind == "slow" else 0)  # evaluation, after which nothing is left to stop
    if stopped:
        leave("stopped: run the same command to go on", 75)
    told = {"split": "test", "num_examples": 10, "nll": -value(config, NUM_STEPS), "nll_stderr": 0.5, "elbo": -30.0}
    told |= {"binarization": "none", "estimator": "a stand-in", "density": True}
    (folder / "evaluation.json").write_text(json.dumps(told))
    summary = {"status": "finished", "train_seconds": 1.0, "total_seconds": 2.0, "command": "python -m made.this"}
    (folder / "summary.json").write_text(json.dumps(summary))


def value(config, step):
    """Nats: better with every step, with the latent dimension, and by seed."""
    return -30.0 + step / 10 + config["model"]["latent_dim"] / 2 + config["seed"] / 4


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.append(signum))
    main()
