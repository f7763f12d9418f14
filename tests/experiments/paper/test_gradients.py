"""The study of gradients: its exact gradient against SciPy, its variances against algebra, its biases against noise."""

import csv
import io

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from aevb import figures
from experiments.paper import gradients

LATENT, EVENT, BATCH, KEYS = 2, 4, 5, 4000


@pytest.fixture(scope="module")
def problem():
    return gradients.make_problem(jax.random.key(0), LATENT, EVENT, BATCH)


@pytest.fixture(scope="module")
def rows(problem):
    """One draw at each point, and three at the first."""
    keys = jax.random.split(jax.random.key(1), 3)
    first, near = gradients.POINTS
    cells = zip(((first, 1), (near, 1), (first, 3)), keys, strict=True)
    return [
        row
        for (point, num_samples), key in cells
        for row in gradients.measure(problem, point, num_samples, jax.random.split(key, KEYS))
    ]


def doubles(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def posterior(w, bias, x):
    """Mean and covariance of p(z | x), for unit noise and any W `[x, latent]`."""
    covariance = np.linalg.inv(np.eye(w.shape[1]) + w.T @ w)
    return covariance @ w.T @ (x - bias), covariance


def elbo(params, x):
    """log p(x) - KL(q || p(z | x)): the bound by another road than the script's."""
    encoder, decoder = params["encoder"]["output"], params["decoder"]["output"]
    w, bias = decoder["kernel"].T, decoder["bias"]
    log_marginal = stats.multivariate_normal(bias, w @ w.T + np.eye(len(x))).logpdf(x)
    mean, log_variance = np.split(x @ encoder["kernel"] + encoder["bias"], 2)
    exact_mean, covariance = posterior(w, bias, x)
    precision, away = np.linalg.inv(covariance), exact_mean - mean
    log_ratio = np.linalg.slogdet(covariance)[1] - log_variance.sum()
    return log_marginal - 0.5 * (
        np.trace(precision * np.exp(log_variance)) + away @ precision @ away - len(mean) + log_ratio
    )


@pytest.mark.parametrize("point", gradients.POINTS)
def test_the_exact_gradient_is_that_of_finite_differences(problem, point):
    params, xs = doubles(problem.params[point]), doubles(problem.xs)
    generator, step = np.random.default_rng(0), 1e-4
    gradient = gradients.exact_gradient(problem.params[point], problem.xs)
    for _ in range(30):
        direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), params)
        moved = [jax.tree.map(lambda leaf, d, sign=sign: leaf + sign * step * d, params, direction) for sign in (1, -1)]
        high, low = (np.mean([elbo(tree, x) for x in xs]) for tree in moved)
        along = doubles(gradients.groups(jax.tree.map(np.float32, direction)))
        want = sum(float(doubles(gradient[group]) @ along[group]) for group in gradient)
        np.testing.assert_allclose((high - low) / (2 * step), want, rtol=1e-4, atol=1e-4)


def test_the_posterior_near_the_optimum_is_the_exact_one_moved_and_widened(problem):
    params, xs = doubles(problem.params["near optimum"]), doubles(problem.xs)
    encoder, decoder = params["encoder"]["output"], params["decoder"]["output"]
    for x in xs:
        mean, covariance = posterior(decoder["kernel"].T, decoder["bias"], x)
        scale = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(covariance, np.diag(scale**2), atol=1e-6)
        np.testing.assert_allclose(scale**-2, gradients.PRECISIONS, rtol=1e-5)
        got_mean, got_log_variance = np.split(x @ encoder["kernel"] + encoder["bias"], 2)
        np.testing.assert_allclose(got_mean, mean + gradients.SHIFT * scale, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.exp(got_log_variance / 2), gradients.STRETCH * scale, rtol=1e-5)


def test_every_bias_is_within_four_standard_errors(rows):
    for row in rows:
        assert abs(row["bias_along"]) < 4 * row["bias_along_stderr"]
        assert row["bias_norm"] < 3 * row["bias_stderr"]  # a length whose root mean square is the error
        np.testing.assert_allclose(row["bias_stderr"], np.sqrt(row["variance"] / KEYS), rtol=1e-12)
        assert row["num_keys"] == KEYS


def test_a_wrong_estimator_is_seen_to_be_biased(problem):
    # The bound at half the weight of the KL.
    def half(samples, posterior, prior):
        bound = gradients.bounds.sgvb_b(samples, posterior, prior)
        return bound._replace(kl=bound.kl / 2)

    keys = jax.random.split(jax.random.key(2), KEYS)
    row, *_ = gradients.measure(problem, "initialisation", 1, keys, {"half": half})
    assert abs(row["bias_along"]) > 10 * row["bias_along_stderr"]
    assert row["bias_norm"] > 5 * row["bias_stderr"]


def variances(rows, point, num_samples, group):
    return {
        row["estimator"]: row["variance"]
        for row in rows
        if (row["point"], row["num_samples"], row["parameter_group"]) == (point, num_samples, group)
    }


@pytest.mark.parametrize("point", gradients.POINTS)
def test_the_score_function_varies_most_and_only_in_the_encoder(rows, point):
    for group in gradients.ENCODER:
        found = variances(rows, point, 1, group)
        assert found["score_function"] > 5 * found["sgvb_a"] > 5 * found["sgvb_b"]
    found = variances(rows, point, 1, "decoder")
    np.testing.assert_allclose(list(found.values()), found["sgvb_b"], rtol=1e-3)  # of the same draws


def test_three_draws_have_a_third_of_the_variance(rows):
    for group in gradients.GROUPS:
        one, three = (variances(rows, "initialisation", num_samples, group) for num_samples in (1, 3))
        for estimator, variance in one.items():
            np.testing.assert_allclose(three[estimator], variance / 3, rtol=0.15)


def test_variances_near_the_optimum_are_those_of_the_algebra(problem, rows):
    # z = m + d + s e with m the exact posterior's mean, P its precision, d = SHIFT / sqrt(P), s = STRETCH / sqrt(P).
    # In z, log p(x, z) has the gradient -P (z - m), and log p(x | z) has m - a (z - m) with a = P - 1. The mean moves z
    # by 1, the log-variance by s e / 2, and through the encoder's weights and biases by (x, 1) times that.
    xs = doubles(problem.xs)
    precision = np.array(gradients.PRECISIONS)[None]
    decoder = doubles(problem.params["near optimum"])["decoder"]["output"]
    m = np.stack([posterior(decoder["kernel"].T, decoder["bias"], x)[0] for x in xs])
    d, s, a = gradients.SHIFT * precision**-0.5, gradients.STRETCH * precision**-0.5, precision - 1
    per_latent = {
        ("sgvb_a", "encoder mean"): precision**2 * s**2 + 0 * m,
        ("sgvb_b", "encoder mean"): a**2 * s**2 + 0 * m,
        ("sgvb_a", "encoder log-variance"): (precision * d * s / 2) ** 2 + precision**2 * s**4 / 2 + 0 * m,
        ("sgvb_b", "encoder log-variance"): ((m - a * d) * s / 2) ** 2 + a**2 * s**4 / 2,
    }
    for (estimator, group), values in per_latent.items():
        want = ((xs**2).sum(1) + 1) @ values.sum(1) / BATCH**2
        np.testing.assert_allclose(variances(rows, "near optimum", 1, group)[estimator], want, rtol=0.1)


def test_all_is_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "LATENT_DIMS", (2,))
    monkeypatch.setattr(gradients, "SHOWN_DIM", 2)
    monkeypatch.setattr(gradients, "NUM_KEYS", {1: 6, 10: 4})
    make = gradients.make_problem
    monkeypatch.setattr(gradients, "make_problem", lambda key, latent_dim: make(key, latent_dim, EVENT, BATCH))
    rows = gradients.measure_all(seed=3)
    assert len(rows) == 2 * 2 * 3 * 3
    read = list(csv.DictReader(io.StringIO(gradients.to_csv(rows))))
    for row, written in zip(rows, read, strict=True):
        assert written.keys() == row.keys()
        assert written["estimator"] == row["estimator"]
        assert written["seed"] == "3"
        np.testing.assert_allclose(float(written["variance"]), row["variance"], rtol=1e-5)
    # Drawn from the numbers alone: the noise over signal of SGVB-B, with both parts of the encoder.
    figure = gradients.draw(rows)
    line = next(line for line in figure.axes[1].lines if line.get_color() == figures.BLUE)
    near = [row for row in rows if row["point"] == "near optimum"]
    cells = [
        [
            row
            for row in near
            if (row["estimator"], row["num_samples"]) == ("sgvb_b", n) and "encoder" in row["parameter_group"]
        ]
        for n in (1, 10)
    ]
    want = [np.sqrt(sum(r["variance"] for r in cell) / sum(r["exact_norm"] ** 2 for r in cell)) for cell in cells]
    np.testing.assert_allclose(line.get_ydata(), want, rtol=1e-6)
    figures.save(figure, tmp_path / "gradients.png")
    with Image.open(tmp_path / "gradients.png") as picture:
        assert picture.width == figures.WIDTH * figures.DPI
    assert all(np.isfinite(float(row["bias_along_stderr"])) for row in read)
    assert len(gradients.table(rows).splitlines()) == 2 + 2 + 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--ouut=x"], "--out?"), (["--seed=-1"], "seed"), (["--out=setup.cfg"], "setup.cfg"), (["stray"], "'stray'")],
)
def test_a_wrong_call_is_one_sentence(command, arguments, word):
    ended = command("paper.gradients", *arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert word in ended.err
