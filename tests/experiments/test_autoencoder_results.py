"""The commands behind the autoencoders' results: every run can be made, what is done is not repeated."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from scipy.stats import multivariate_normal

from aevb.errors import InputError
from experiments import checks, settings, side_by_side
from experiments.autoencoders import comparison, curved, score
from experiments.benchmarks import mask_speed


@pytest.mark.parametrize(("module", "name"), [(m, name) for m in (comparison, curved) for name in m.RUNS])
def test_every_run_has_a_config_that_can_be_used(module, name):
    config, overrides = module.RUNS[name]
    training = side_by_side.training(name, config, (*overrides, "seed=3"))
    loaded = settings.load(training.arguments[0].removeprefix("--config="), training.arguments[1:])
    checks.check(loaded)
    assert (loaded.seed, loaded.train.num_epochs) == (3, training.num_epochs)


def test_runs_are_named_whole():
    assert comparison.names("") == list(comparison.RUNS)
    assert comparison.names("vae,deep") == ["deep", "vae"]
    for only in ("dee", "deep,none"):
        with pytest.raises(InputError, match=f"--only={only} names a run that is none: the runs are linear,"):
            comparison.names(only)


def test_codes_are_judged_once_for_the_weights_that_a_run_ended_with(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "summary.json").write_text(json.dumps({"evaluation": {"step": 30, "num_examples": 900}}))
    assert not comparison.judged(folder, None) and not comparison.tuned(folder)
    whole, some = {"step": 30, "downstream": {"num_test": 900}}, {"step": 30, "downstream": {"num_test": 500}}
    for evaluation, most, done in (
        ({"step": 30}, None, False),
        (whole, None, True),
        (whole, 1000, True),
        (whole, 500, False),
        (some, 500, True),
        (some, None, False),
        (some, 800, False),
        (whole | {"step": 20}, None, False),
    ):
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        assert comparison.judged(folder, most) == done, (evaluation, most)
    for told, done in (({"num_labels": 1000, "step": 30}, True), ({"num_labels": 1000, "step": 20}, False)):
        (folder / "finetuning.json").write_text(json.dumps(told))
        assert comparison.tuned(folder) == done


def test_what_is_left_of_a_run_is_its_codes_and_a_deep_ones_fine_tuning(tmp_path):
    root = epath.Path(tmp_path)
    commands = [job.arguments for job in comparison.jobs(root, "masked", 2, None)]
    assert commands == [
        ["experiments.evaluate", f"--workdir={root}/masked_seed2", "--downstream", f"--cache={root}/judged"],
        ["experiments.finetune", f"--workdir={root}/masked_seed2", "--num_labels=1000", "--seed=2"],
    ]
    assert [job.name for job in comparison.jobs(root, "deep_2", 0, 100)] == ["judge deep_2_seed0"]


def test_a_failed_job_is_named_and_the_others_are_done(tmp_path):
    commands = {
        "good": ["timeit", "-n", "1", "print('done')"],
        "bad": ["timeit", "1 / 0"],
        "fine": ["timeit", "--none"],
    }
    jobs = [side_by_side.Job(name, command, f"{tmp_path}/{name}.log") for name, command in commands.items()]
    with pytest.raises(InputError, match=rf"1 of 3 runs failed: see {tmp_path}/bad.log"):
        side_by_side.run(jobs, 1, fine=(0, 2))
    assert "done" in (tmp_path / "good.log").read_text()
    side_by_side.run([], 1)


def test_the_score_of_the_mixture_is_the_gradient_of_its_density():
    noise, x = 0.4, np.random.default_rng(0).normal(size=(20, 2)) * 1.5
    covariances = score.COVARIANCES.astype(np.float64) + noise**2 * np.eye(2)
    parts = [multivariate_normal(m, c) for m, c in zip(score.CENTRES.astype(np.float64), covariances, strict=True)]
    densities = np.stack([part.pdf(x) for part in parts])
    pulls = np.stack(
        [-np.linalg.solve(c, (x - m).T).T for m, c in zip(score.CENTRES.astype(np.float64), covariances, strict=True)]
    )
    expected = (densities[..., None] * pulls).sum(axis=0) / densities.sum(axis=0)[:, None]
    np.testing.assert_allclose(score.true_score(noise)(np.float32(x)), expected, rtol=1e-3, atol=1e-3)
    assert score.relative_error(np.zeros_like(expected), expected) == (1, 0)
    assert score.relative_error(1.1 * expected, expected) == pytest.approx((0.1, 0))


def test_the_standard_error_of_the_relative_error_is_that_of_repeated_draws():
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        truth = rng.normal(size=(100, 2))
        found.append(score.relative_error(truth + 0.3 * rng.normal(size=truth.shape), truth))
    errors, stderrs = np.transpose(found)
    assert errors.mean() == pytest.approx(0.3, rel=0.02)
    assert stderrs.mean() == pytest.approx(errors.std(), rel=4 / np.sqrt(800))


def test_clean_points_are_of_the_mixture():
    points = score.points(20_000, jax.random.key(0))
    mean = score.CENTRES.mean(axis=0)
    spread = (score.COVARIANCES + np.einsum("ki,kj->kij", score.CENTRES - mean, score.CENTRES - mean)).mean(axis=0)
    np.testing.assert_allclose(points.mean(axis=0), mean, atol=4 * np.sqrt(np.diag(spread).max() / 20_000))
    np.testing.assert_allclose(np.cov(points.T), spread, atol=0.06)


def test_masked_patches_never_enter_the_encoder_that_is_timed(monkeypatch):
    monkeypatch.setattr(mask_speed, "BATCH", 2)
    for share, visible in ((0.02, 48), (0.75, 12)):
        encoder, _ = mask_speed.contenders(share)
        assert encoder().shape == (2, visible + 1, 64)
