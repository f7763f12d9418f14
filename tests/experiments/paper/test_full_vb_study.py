"""The study of full variational Bayes: prediction in a solved model, and the numbers of one small run."""

import csv
import math
import types

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from scipy import stats

from aevb import figures, training
from aevb.data import Split
from aevb.data.binarization import make_preprocess
from aevb.learners import full_vb as learner
from experiments import build, settings
from experiments.paper import full_vb, predictive

GENERATOR = np.random.default_rng(0)


class SolvedRun:
    """What `propose` reads of a run, of the solved model."""

    model = lg.MODEL

    def map_split(self, fn, name):
        return training.map_examples(fn, make_preprocess("none"), 8)


def proposed(params, xs, num_samples):
    return predictive.propose(SolvedRun(), params, Split(np.float32(xs), None), "test", num_samples, jax.random.key(4))


def test_the_likelihood_at_many_weights_from_one_proposal():
    xs = np.stack([lg.X, -lg.X, lg.B])
    moved = [(lg.W + step, lg.B - step) for step in (0.0, 0.1, -0.1)]
    thetas = [
        {**lg.params(), "decoder": {"output": {"kernel": jnp.float32(w.T), "bias": jnp.float32(b)}}} for w, b in moved
    ]
    logs, effective = predictive.log_marginals(lg.MODEL, thetas, proposed(lg.params(), xs, 500))
    exact = [stats.multivariate_normal(b, w @ w.T + lg.SCALE**2 * np.eye(lg.SIZE)).logpdf(xs) for w, b in moved]
    # Weights of an effective sample size n vary by sqrt(K / n - 1) of their mean.
    stderr = np.sqrt((500 / effective - 1) / 500)
    assert stderr.max() < 0.1
    np.testing.assert_array_less(np.abs(logs - exact), 4 * stderr)


def test_a_proposal_covers_modes_that_chains_do_not_share():
    modes = jnp.array([-5.0, 5.0]).repeat(5)
    z = modes[None, :, None] + 0.5 * jax.random.normal(jax.random.key(0), (40, 10, 1))
    grid = jnp.linspace(-20.0, 20.0, 4001)[:, None]
    density = np.exp(jax.vmap(predictive.fit(z).log_prob)(grid))
    np.testing.assert_allclose(density.sum() * 0.01, 1, rtol=1e-3)
    at_mode, between, beside = np.interp([5.0, 0.0, 5.83], grid[:, 0], density)
    assert at_mode > 5 * between > 0
    # Twice the variance within chains is that of a standard deviation of 0.71: half of a mode's density 0.83 from it.
    assert beside == pytest.approx(at_mode / 2, rel=0.15)


def blind_params(variance):
    """q(theta) over b alone has a variance; the decoder ignores z, and q(z | x) = p(z)."""
    params = jax.tree.map(jnp.zeros_like, lg.params())
    output = {"kernel": jnp.full_like(lg.W.T, -60.0), "bias": jnp.full(lg.SIZE, np.log(variance))}
    params["decoder"]["output"]["bias"] = jnp.float32(lg.B)
    return jax.tree.map(jnp.float32, params | {learner.LOG_VARIANCE: {"decoder": {"output": output}}})


def test_the_predictive_likelihood_averages_over_the_weights():
    variance, num_thetas = 0.1, 1000
    params, xs = blind_params(variance), lg.B + np.array([[0.0], [1.0], [-0.5]])
    run = types.SimpleNamespace(draw_key=jax.random.key(1))
    thetas = full_vb.Method(run, params, "full_vb", full_vb.Effort()).thetas(num_thetas)
    logs, _ = predictive.log_marginals(lg.MODEL, thetas, proposed(params, xs, 300))
    expected = stats.norm.logpdf(xs, lg.B, np.sqrt(lg.SCALE**2 + variance)).sum(1)
    at_mean = stats.norm.logpdf(xs, lg.B, lg.SCALE).sum(1)
    # The log of a draw's likelihood varies by up to sqrt(5 variance) / s^2 = 1.4, a standard error of 0.08; the
    # proposal, here the prior but for its width, adds 0.05.
    np.testing.assert_allclose(full_vb.log_mean(logs), expected, atol=4 * 0.095)
    assert np.abs(at_mean - expected).max() > 4 * 0.095
    assert full_vb.draws_error(logs) < 0.1


def test_the_error_from_draws_that_examples_share():
    logs = 0.5 * GENERATOR.normal(size=(1000, 1)) + np.zeros(20)
    # The mean of exp(0.5 e) has a relative variance of e^0.25 - 1 a draw; ten blocks know it to a quarter.
    expected = math.sqrt(math.expm1(0.25) / 1000)
    assert full_vb.draws_error(logs) == pytest.approx(expected, rel=0.7)
    assert full_vb.draws_error(logs[:1]) == 0


def test_pixels_average_over_weights_and_codes():
    variance, num_thetas = 0.02, 150
    params, xs = blind_params(variance), np.float32(GENERATOR.normal(lg.B, lg.SCALE, size=(7, lg.SIZE)))
    run = types.SimpleNamespace(draw_key=jax.random.key(1))
    thetas = full_vb.Method(run, params, "full_vb", full_vb.Effort()).thetas(num_thetas)
    keys = jax.random.split(jax.random.key(2), num_thetas)
    got = predictive.pixels(lg.MODEL, thetas, xs, keys, lambda likelihood, x: likelihood.base_dist.cdf(x))
    cdf = stats.norm.cdf(xs, lg.B, np.sqrt(lg.SCALE**2 + variance))
    np.testing.assert_allclose(got, cdf, atol=4 * 0.08 / np.sqrt(num_thetas))


@pytest.fixture(scope="module")
def compared():
    overrides = ("data.train_size=300", "data.binarization=static", "model.hidden=(8,)", "model.latent_dim=2")
    overrides += ("optimizer.hold_steps=0", "optimizer.learning_rate=0.1", "eval.batch_size=40", "seed=1")
    found = []
    for name in ("aevb", "full_vb"):
        given = [f"--config.{override}" for override in (*overrides, "train.num_epochs=10")]
        run = build.build(settings.load(f"experiments/configs/paper.py:digits,{name}", given))
        steps = training.train(run.learner, run.init_state(), run.feed, run.preprocess["train"], num_steps=30)
        found.append((run, training.unreplicate(list(steps)[-1][0].params)))
    return full_vb.compare(*found, full_vb.Effort(40, 20, 30))


def test_a_study_measures_three_methods(compared):
    rows, calibrations = compared
    assert list(calibrations) == ["map", "full_vb", "full_vb_mean"]
    common = {"train_log_predictive", "test_log_predictive", "train_minus_test", "effective_sample_size"}
    common |= {"expected_calibration_error"}
    more = {
        "map": set(),
        "full_vb": {"test_minus_map", "test_log_predictive_of_a_tenth", "dataset_bound", "weight_kl_per_datapoint"},
        "full_vb_mean": {"test_minus_map"},
    }
    for method in calibrations:
        assert {row["metric"] for row in rows if row["method"] == method} == common | more[method]
    for row in rows:
        assert tuple(sorted(row)) == tuple(sorted(full_vb.COLUMNS))
        assert (row["dataset"], row["num_train"], row["seed"], row["training_points"]) == ("digits", 300, 1, 3000)
    values = {(row["method"], row["metric"]): row["value"] for row in rows}
    assert values["full_vb", "dataset_bound"] < values["full_vb", "train_log_predictive"]
    assert values["full_vb", "test_log_predictive_of_a_tenth"] <= values["full_vb", "test_log_predictive"]
    difference = values["full_vb", "test_log_predictive"] - values["map", "test_log_predictive"]
    np.testing.assert_allclose(values["full_vb", "test_minus_map"], difference, rtol=1e-6)
    # 64 pixels, and a coin for each would give -64 log 2 = -44.
    assert -44 < values["map", "test_log_predictive"] < -20
    assert values["map", "effective_sample_size"] > 5


def test_the_files(compared, tmp_path):
    rows, calibrations = compared
    full_vb.write_rows(tmp_path / "full_vb.csv", rows)
    with open(tmp_path / "full_vb.csv") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == full_vb.COLUMNS
    np.testing.assert_allclose([float(row["value"]) for row in read], [row["value"] for row in rows], rtol=1e-5)
    for panels in ([("Digits", calibrations)], [("Digits", calibrations)] * 2):
        figures.save(full_vb.figure(panels), tmp_path / "full_vb.png")
        assert (tmp_path / "full_vb.png").stat().st_size > 10_000
