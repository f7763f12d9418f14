"""The commands behind the textbook's results: every run can be made, and samples are judged rightly."""

import csv
import io
import json

import numpy as np
import pytest
from etils import epath
from scipy import linalg

from aevb import data
from aevb.errors import InputError
from experiments import checks, progress, settings, side_by_side
from experiments.textbook import beta, likelihoods, photos, sample_quality


@pytest.mark.parametrize("name", likelihoods.RUNS)
def test_every_run_has_a_config_that_can_be_used(name):
    training = likelihoods.training(name, seed=3, num_epochs=None)
    config = settings.load(training.arguments[0].removeprefix("--config="), training.arguments[1:])
    checks.check(config)
    assert (config.seed, config.train.num_epochs) == (3, training.num_epochs)
    assert config.bound.kl_weight == 1


def test_every_beta_has_a_run():
    trainings = [beta.training(weight, seed=0, num_epochs=2.0) for weight in beta.BETAS]
    assert len({training.name for training in trainings}) == len(beta.BETAS)
    for weight, training in zip(beta.BETAS, trainings, strict=True):
        config = settings.load(training.arguments[0].removeprefix("--config="), training.arguments[1:])
        checks.check(config)
        assert (config.bound.kl_weight, config.train.num_epochs) == (weight, 2.0)


def test_burdas_learning_rates():
    config = settings.load("experiments/configs/burda.py:mnist,iwae,5", [])
    assert (config.bound.name, config.bound.num_samples) == ("iwae", 5)
    ends = np.array([*config.optimizer.boundaries, 3280 * 3000])  # of 60,000 images in batches of 20
    np.testing.assert_array_equal(np.diff([0, *ends]), 3000 * 3 ** np.arange(8))
    np.testing.assert_allclose(np.prod(config.optimizer.scales), 0.1)


def test_a_run_is_a_line_of_the_table(tmp_path):
    folder = tmp_path / "gated_seed0"
    folder.mkdir()
    assert likelihoods.row(folder, "gated", []) is None
    hardware = {"platform": "cpu", "cores": 2, "cpu": "AMD EPYC", "device": "cpu", "device_count": 1}
    evaluation = {"num_samples": 5000, "num_examples": 10_000, "nll": 84.1234, "nll_stderr": 0.2, "elbo": -88.0}
    told = {"dataset": "mnist", "binarization": "dynamic", "bound": "sgvb_b", "seed": 0, "train_seconds": 12.6}
    (folder / "summary.json").write_text(json.dumps(told | {"evaluation": evaluation, "hardware": hardware}))
    row = likelihoods.row(folder, "gated", ["--config=a"])
    path = tmp_path / "likelihoods.csv"
    likelihoods.write(path, [row | {"model": "conv"}])
    likelihoods.write(path, [row | {"nll": 85}])
    likelihoods.write(path, [row])
    (first, second) = csv.DictReader(io.StringIO(path.read_text()))
    assert (first["model"], second["model"]) == ("gated", "conv")
    assert first["nll"] == "84.123"
    assert first["hardware"] == "2 cores of AMD EPYC"
    assert first["command"] == "python -m experiments.train --config=a --workdir=runs/gated"
    assert tuple(first) == likelihoods.COLUMNS


def test_the_frechet_distance_of_two_gaussians():
    rng = np.random.default_rng(0)
    first, second = (root @ root.T for root in rng.normal(size=(2, 4, 4)))
    shift = rng.normal(size=4)
    expected = shift @ shift + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    measured = sample_quality.frechet_distance(np.zeros(4), first, shift, second)
    np.testing.assert_allclose(measured, expected, rtol=1e-6)
    assert sample_quality.frechet_distance(shift, first, shift, first) == pytest.approx(0, abs=1e-6)
    # In one dimension it is the distance of the means and of the standard deviations.
    one = sample_quality.frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    np.testing.assert_allclose(one, 2**2 + (3 - 2) ** 2)


def test_worse_samples_are_further_away():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    images = np.clip(np.eye(3)[labels].repeat(4, axis=1) + 0.1 * rng.normal(size=(600, 12)), 0, 1).reshape(-1, 3, 4, 1)
    splits = [data.Split(images[part].astype("float32"), labels[part]) for part in (slice(300), slice(300, 600))]
    features = sample_quality.Features.learn(*splits)
    same, noisy = images[:300], np.clip(images[:300] + rng.normal(size=images[:300].shape), 0, 1)
    assert features.distance(splits[1].examples) == pytest.approx(0, abs=1e-5)
    assert features.distance(same) < 0.2 * features.distance(noisy)
    one_class = images[labels == 0]
    assert features.distance(same) < 0.2 * features.distance(one_class)
    np.testing.assert_allclose(features.distance(np.uint8(255 * same)), features.distance(same), atol=0.05)


def test_the_squares_of_a_photograph_are_its_pixels():
    photo = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    squares = photos.squares(photo, 2)
    assert squares.shape == (2 * 3, 2, 2, 3)
    np.testing.assert_array_equal(squares[0], photo[:2, :2])
    np.testing.assert_array_equal(squares[4], photo[2:4, 2:4])


@pytest.mark.parametrize("argument", ["mnist", "digits,iwae,5", "mnist,sgvb_a,5", "mnist,iwae,five"])
def test_burdas_config_names_what_it_does_not_know(argument):
    with pytest.raises(InputError, match=f"burda.py:{argument} names no run of this file"):
        settings.load(f"experiments/configs/burda.py:{argument}", [])


def made(folder, training, **changed):
    """The files that say what a finished run was."""
    folder.mkdir()
    config = settings.load(training.arguments[0].removeprefix("--config="), training.arguments[1:])
    for key, value in changed.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "summary.json").write_text("{}")


def test_a_longer_run_is_no_row_of_a_shorter_one(tmp_path):
    training = beta.training(2.0, seed=0, num_epochs=2.0)
    made(tmp_path / training.name, training, train__num_epochs=6.0)
    with pytest.raises(InputError, match="was trained for 6 epochs, not 2"):
        side_by_side.check_length(training, epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({}, True),
        ({"train__num_epochs": 6.0}, True),
        ({"train__num_epochs": 1.0}, False),
        ({"model__latent_dim": 3}, False),
    ],
)
def test_only_the_same_run_need_not_be_made_again(tmp_path, changed, alike):
    training = beta.training(2.0, seed=0, num_epochs=2.0)
    made(tmp_path / training.name, training, **changed)
    assert side_by_side._long_enough(epath.Path(tmp_path / training.name), training) == alike


def test_models_are_chosen_by_the_bound_that_is_trained():
    rows = [{"split": "validation", "elbo": -3.0, "iwae_bound": -2.0}, {"split": "train", "elbo": 0.0}]
    rows += [{"split": "validation", "elbo": -2.5, "iwae_bound": -2.2}]
    assert progress.validation_scores(rows) == [-2.0, -2.2]
    assert progress.validation_scores([{"split": "validation", "elbo": -1.0}]) == [-1.0]
