"""Evaluation: each example once, the conventions named, and stdout another program can parse."""

import json
import math
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from test_configs import load

from aevb import data, models, training
from aevb.errors import NonFiniteError
from experiments import build, evaluate

KEYS = {
    "elbo", "nll", "nll_stderr", "bits_per_dim", "num_samples", "num_examples", "split", "binarization",
    "effective_sample_size", "active_units", "kl_per_dim", "elbo_stderr", "log_likelihood", "kl", "bound",
    "convention", "latent_dim", "density", "step", "checkpoint", "seed", "evaluate_seconds",
    "estimator", "learner", "weights", "mutual_information", "marginal_kl", "information_examples", "collapsed",
    "advice",
}  # fmt: skip


def evaluated(*overrides: str, num_samples: int = 20, max_examples: int | None = None) -> dict:
    run = build.build(load("model.hidden=8", *overrides))
    params = training.replicate(run.init_state().params)
    return evaluate.evaluate(run, params, "test", num_samples, max_examples)


def test_batch_size_changes_nothing():
    """359 examples: the last batch is a part one for 100 as for 64, and each example counts once."""
    first, second = (evaluated(f"eval.batch_size={size}") for size in (100, 64))
    assert first["num_examples"] == second["num_examples"] == 359
    for key in ("elbo", "nll", "nll_stderr", "effective_sample_size"):
        assert first[key] == pytest.approx(second[key], rel=1e-5)


def test_first_examples():
    run = build.build(load("model.hidden=8"))
    params = training.replicate(run.init_state().params)
    mapped = run.map_split(evaluate.importance(run, 5), "test")
    each = training.collect(mapped(params, run.split("test"), run.split_key("test")))
    first = evaluate.evaluate(run, params, "test", 5, max_examples=30)
    assert first["num_examples"] == 30
    assert first["nll"] == pytest.approx(-each["log_marginal"][:30].mean(), rel=1e-5)
    assert first["nll_stderr"] == pytest.approx(each["log_marginal"][:30].std(ddof=1) / math.sqrt(30), rel=1e-4)


def test_grey_is_not_a_density():
    result = evaluated("data.binarization=grey", max_examples=20)
    assert result["density"] is False
    assert result["bits_per_dim"] is None
    assert result["convention"].startswith("not a density")


def test_bits_per_dim():
    """Of a mass: nll / (D log 2). Of a density on [0, 1]: log2(255) more, for levels 1/255 apart."""
    run = build.build(load())
    mass = evaluate.bits_per_dim(run, run.split("test"), 64 * math.log(2))["bits_per_dim"]
    run = build.build(load("model.likelihood=gaussian", "data.binarization=none"))
    density = evaluate.bits_per_dim(run, run.split("test"), 64 * math.log(2))["bits_per_dim"]
    assert (mass, density) == pytest.approx((1, 1 + math.log2(255)))


@pytest.mark.parametrize("logit", [0.0, 5.0, -20.0, -100.0])
def test_bits_of_a_continuous_bernoulli_are_of_a_mass_that_sums_to_one(logit):
    """A row of images a level: the masses that the bits imply add up to 1, to the curvature within a level."""
    run = build.build(load("model.likelihood=continuous_bernoulli", "data.binarization=none"))
    likelihood, masses = models.ContinuousBernoulli()(jnp.full((1, 1), logit)), []
    for level in range(256):
        split = data.Split(np.full((1, 8, 8, 1), level, np.uint8), None)
        nll = -64 * float(likelihood.log_prob(jnp.full((1,), level / 255)))
        masses.append(2 ** -evaluate.bits_per_dim(run, split, nll)["bits_per_dim"])
    assert sum(masses) == pytest.approx(1, abs=0.02)


def test_chains_leave_the_bound_and_the_code_to_the_encoder():
    """Whatever estimates log p(x), the elbo is the encoder's, and so is what its code says."""
    run = build.build(load("model.hidden=8", "model.latent_dim=2"))
    params = training.replicate(run.init_state().params)
    chains = evaluate.evaluate(run, params, "test", 3, 20, "ais")
    usual = evaluate.evaluate(run, params, "test", evaluate.KL_SAMPLES, 20)
    for key in ("elbo", "kl", "kl_per_dim", "active_units", "mutual_information", "collapsed"):
        assert chains[key] == usual[key], key
    assert chains["nll"] != usual["nll"]


def test_where_iwae_is_trained_its_bound_is_measured_beside_the_elbo():
    run = build.build(load("model.hidden=8", "bound.name=iwae", "bound.num_samples=5"))
    row = evaluate.split_bound(run, training.replicate(run.init_state().params), "validation")
    assert row["num_samples"] == 5
    assert row["elbo"] < row["iwae_bound"] < 0
    plain = build.build(load("model.hidden=8"))
    assert "iwae_bound" not in evaluate.split_bound(plain, training.replicate(plain.init_state().params), "validation")


def test_not_finite():
    run = build.build(load("model.hidden=8"))
    params = run.init_state().params
    params["decoder"]["output"]["bias"] = params["decoder"]["output"]["bias"] + np.nan
    with pytest.raises(NonFiniteError, match="evaluation of the test split is not finite"):
        evaluate.evaluate(run, training.replicate(params), "test", 5, max_examples=8)


def test_stdout_is_the_json(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints/last/38.orbax-checkpoint-tmp-1").mkdir()  # of a trainer that is saving
    ended = command.ok("evaluate", f"--workdir={tmp_path}", "--split=validation", "--num_samples=7")
    result = json.loads(ended.out)
    assert set(result) == KEYS
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["split"], result["num_samples"], result["num_examples"]) == ("validation", 7, 180)
    assert (result["step"], result["checkpoint"], len(result["kl_per_dim"])) == (38, "last", 2)
    assert (tmp_path / "checkpoints/last/38.orbax-checkpoint-tmp-1").exists()


def test_same_as_at_the_end_of_training(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    result = json.loads(command.ok("evaluate", f"--workdir={tmp_path}", "--num_samples=20").out)
    at_end = json.loads((finished / "summary.json").read_text())["evaluation"]
    assert result | {"evaluate_seconds": 0} == at_end | {"evaluate_seconds": 0}


def test_damaged_checkpoint(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    flip_a_bit(tmp_path / "checkpoints/last/38")
    ended = command.ok("evaluate", f"--workdir={tmp_path}", "--num_samples=2", "--max_examples=5")
    assert json.loads(ended.out)["step"] == 30
    assert "38 is damaged" in ended.err
    assert ended.err.endswith("using step 30\n")
    os.truncate(largest_file(tmp_path / "checkpoints/last/30"), 10)
    ended = command("evaluate", f"--workdir={tmp_path}")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "no whole checkpoint is left" in ended.err


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)


def flip_a_bit(step: pathlib.Path) -> None:
    """Change one bit in the largest file of a checkpoint."""
    path = largest_file(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
