"""What tests of sweeps have in common: a small sweep, and what a run leaves in its folder."""

import dataclasses
import json
import pathlib

from experiments import settings
from launch import results, trials
from launch.definition import Budget, Choice, LogUniform, Sweep, Uniform

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "experiments/configs/vae.py:digits"
LR = "optimizer.learning_rate"


def sweep(**changes):
    given = {"config": CONFIG, "metric": "validation elbo", "budget": Budget(num_epochs=30)}
    return Sweep(**given | changes)


def drawn(search="random", num=200, **changes):
    distributions = {LR: LogUniform(1e-4, 1e-1), "model.latent_dim": Uniform(2, 5)}
    distributions |= {"model.activation": Choice(["tanh", "relu"]), "bound.kl_weight": Uniform(0.5, 1.5)}
    given = {"distributions": distributions, "search": search, "budget": Budget(30, num_trials=num)}
    return sweep(**given | changes)


def result_of(trial, score=None, status=trials.FINISHED, reason="", **changes):
    empty = results.Result(trial, trials.State(status, 8, reason, True), score, None, [], {}, {})
    return dataclasses.replace(empty, **changes)


def leave(folder, trial, **files):
    """What a run leaves: a JSON file a keyword, and its config."""
    folder.mkdir(parents=True)
    config = settings.conform(trial.config, "--config").to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    for name, value in files.items():
        if name == "metrics":
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in value))
        else:
            (folder / f"{name}.json").write_text(json.dumps(value))


def rows(*values):
    return [{"step": 10 * (i + 1), "split": "validation", "examples_seen": 1000 * (i + 1), "elbo": value}
            for i, value in enumerate(values)]  # fmt: skip
