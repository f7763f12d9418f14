"""The study of full variational Bayes: calibration by closed forms, prediction in a solved model, and one small run."""

import csv

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
from experiments.paper import full_vb

GENERATOR = np.random.default_rng(0)


def test_reliability_by_hand():
    probability = np.array([[0.1, 0.12, 0.9], [0.14, 1.0, 0.0]])
    x = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    got = full_vb.reliability(probability, x, num_bins=5)
    # Four of six pixels in the first bin, mean 0.09 and a quarter ones; two in the last, mean 0.95 and all ones.
    np.testing.assert_allclose(got.predicted, [0.09, 0.95])
    np.testing.assert_allclose(got.observed, [0.25, 1.0])
    error, stderr = got.numbers["expected_calibration_error"]
    np.testing.assert_allclose(error, (4 * 0.16 + 2 * 0.05) / 6)
    assert stderr > 0


def test_reliability_of_calibrated_and_of_shifted_probabilities():
    probability = GENERATOR.uniform(size=(500, 400))
    x = (GENERATOR.uniform(size=probability.shape) < probability).astype(float)
    # Of 10,000 pixels in a bin the share has a standard error of 0.005 at most, and their mean is off by 0.0008.
    calibrated = full_vb.reliability(probability, x)
    np.testing.assert_allclose(calibrated.observed, calibrated.predicted, atol=4.5 * 0.005)
    assert calibrated.numbers["expected_calibration_error"][0] < 0.005
    given = np.full_like(probability, 0.3)
    error, stderr = full_vb.reliability(given, x).numbers["expected_calibration_error"]
    # One bin: the error is |mean of x - 0.3|, and the images are independent; 200 bootstraps know it to 5 %.
    np.testing.assert_allclose(error, x.mean() - 0.3)
    np.testing.assert_allclose(stderr, x.mean(1).std() / np.sqrt(len(x)), rtol=4 * 0.05)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_coverage_of_a_gaussian_that_is_too_narrow_or_right(scale):
    cdf = stats.norm.cdf(scale * GENERATOR.normal(size=(1000, 50)))
    got = full_vb.coverage(cdf)
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.5 + full_vb.LEVELS / 2) / scale) - 1
    stderr = 0.5 / np.sqrt(50_000)  # at most
    np.testing.assert_allclose(got.observed, expected, atol=4 * stderr)
    assert list(got.numbers) == ["share_within_50", "share_within_90"]
    for level, (share, error) in zip((0.5, 0.9), got.numbers.values(), strict=True):
        (place,) = np.flatnonzero(np.isclose(full_vb.LEVELS, level))
        np.testing.assert_allclose(share, got.observed[place], rtol=1e-9)
        np.testing.assert_allclose(error, np.sqrt(share * (1 - share) / 50_000), rtol=0.15)


class SolvedRun:
    """What `predict` reads of a run, of the solved model."""

    model = lg.MODEL

    def __init__(self, xs):
        self.xs = np.float32(xs)

    def split(self, name):
        return Split(self.xs, None)

    def map_split(self, fn, name):
        return training.map_examples(fn, make_preprocess("none"), 8)


def blind_params(variance):
    """q(theta) over b alone has a variance; the decoder ignores z, and q(z | x) = p(z)."""
    params = jax.tree.map(jnp.zeros_like, lg.params())
    output = {"kernel": jnp.full_like(lg.W.T, -60.0), "bias": jnp.full(lg.SIZE, np.log(variance))}
    params["decoder"]["output"]["bias"] = jnp.float32(lg.B)
    return jax.tree.map(jnp.float32, params | {learner.LOG_VARIANCE: {"decoder": {"output": output}}})


def test_the_predictive_likelihood_averages_over_the_weights():
    variance, num_draws = 0.02, 150
    params, xs = blind_params(variance), GENERATOR.normal(lg.B, lg.SCALE, size=(7, lg.SIZE))
    weights_keys, keys = jax.random.split(jax.random.key(1), (2, num_draws))
    sample = jax.jit(learner.sample_weights)
    draws = [training.replicate(sample(params, key)) for key in weights_keys]
    got = full_vb.predict(SolvedRun(xs), draws, "test", keys, full_vb.Effort(100, num_draws, 30))
    expected = stats.norm.logpdf(xs, lg.B, np.sqrt(lg.SCALE**2 + variance)).sum(1)
    at_mean = stats.norm.logpdf(xs, lg.B, lg.SCALE).sum(1)
    # The log of a draw's likelihood varies by about |x - b| sqrt(variance) / s^2, 0.5 here: a standard error of 0.04.
    np.testing.assert_allclose(got.log_predictive, expected, atol=4 * 0.04)
    assert np.abs(at_mean - expected).max() > 4 * 0.04
    np.testing.assert_allclose(got.x, xs, rtol=1e-6)
    cdf = stats.norm.cdf(xs, lg.B, np.sqrt(lg.SCALE**2 + variance))
    np.testing.assert_allclose(got.pixels, cdf, atol=4 * 0.08 / np.sqrt(num_draws))


def test_one_theta_again_and_again_is_the_plug_in():
    xs = np.stack([lg.X, -lg.X])
    draws, keys = [training.replicate(lg.params())] * 3, jax.random.split(jax.random.key(2), 3)
    got = full_vb.predict(SolvedRun(xs), draws, "test", keys, full_vb.Effort(1, 3, 50))
    assert 0 < got.stderr[0] < 0.4
    np.testing.assert_allclose(got.log_predictive, [lg.log_marginal()], atol=4 * got.stderr[0] / np.sqrt(3))


STUDY = full_vb.Study(
    "digits",
    300,
    (
        *("--config.data.binarization=static", "--config.model.hidden=(8,)", "--config.model.latent_dim=2"),
        *("--config.optimizer.hold_steps=0", "--config.eval.batch_size=40"),  # ten steps have to show
    ),
    "mnist_n1000_fig3_nz3_aevb",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return *full_vb.compare(STUDY, folder, 1000, 1, full_vb.Effort(40, 3, 30)), folder


def test_a_study_measures_three_methods(compared):
    rows, calibrations, folder = compared
    assert list(calibrations) == ["map", "full_vb", "full_vb_mean"]
    common = {"train_log_predictive", "test_log_predictive", "train_minus_test", "test_estimate_stderr"}
    common |= {"expected_calibration_error"}
    for method in calibrations:
        more = {"dataset_bound", "weight_kl_per_datapoint"} if method == "full_vb" else set()
        more |= set() if method == "map" else {"test_minus_map"}
        assert {row["metric"] for row in rows if row["method"] == method} == common | more
    for row in rows:
        assert tuple(sorted(row)) == tuple(sorted(full_vb.COLUMNS))
        assert (row["dataset"], row["num_train"], row["seed"], row["training_points"]) == ("digits", 300, 1, 1000)
    values = {(row["method"], row["metric"]): row["value"] for row in rows}
    assert values["full_vb", "dataset_bound"] < values["full_vb", "train_log_predictive"]
    difference = values["full_vb", "test_log_predictive"] - values["map", "test_log_predictive"]
    np.testing.assert_allclose(values["full_vb", "test_minus_map"], difference, rtol=1e-6)
    # 64 pixels, and a coin for each would give -64 log 2 = -44.
    assert -44 < values["map", "test_log_predictive"] < -20
    assert len(list(folder.iterdir())) == 2


def test_the_same_call_again_trains_nothing(compared):
    *_, folder = compared
    (place,) = folder.glob("*_full_vb_*")
    before = {path: path.stat().st_mtime_ns for path in place.glob("checkpoints/*/*")}
    run = full_vb.run_of(STUDY, "full_vb", 1000, 1)
    params, again = (full_vb.trained(run, place) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert {path: path.stat().st_mtime_ns for path in place.glob("checkpoints/*/*")} == before


def test_the_files(compared, tmp_path):
    rows, calibrations, _ = compared
    full_vb.write_rows(tmp_path / "full_vb.csv", rows)
    with open(tmp_path / "full_vb.csv") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == full_vb.COLUMNS
    np.testing.assert_allclose([float(row["value"]) for row in read], [row["value"] for row in rows], rtol=1e-5)
    for panels in ([(STUDY, calibrations)], [(STUDY, calibrations)] * 2):
        figures.save(full_vb.figure(panels), tmp_path / "full_vb.png")
        assert (tmp_path / "full_vb.png").stat().st_size > 10_000
