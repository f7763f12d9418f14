"""Autoencoders from their configs: what they measure, against NumPy and scikit-learn, and what they refuse."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from aevb import training
from aevb.errors import InputError
from experiments import build, reconstruct, settings

CONFIGS = ("linear", "deep", "sparse", "denoising")


def run_of(name: str, *overrides: str) -> build.Run:
    name = {"paper": "paper.py:digits,wake_sleep"}.get(name, f"{name}.py")
    arguments = [f"--config.{override}" for override in overrides]
    return build.build(settings.load(f"experiments/configs/{name}", arguments))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_moves_every_config(name: str):
    run = run_of(name, "train.batch_size=4")
    state = run.init_state()
    devices = jax.local_devices()[:1]
    steps = training.train(
        run.learner, state, run.feed, run.preprocess["train"], num_steps=2, ema_decay=run.ema_decay, devices=devices
    )
    ended, metrics = next(steps)
    assert all(np.isfinite(values).all() for values in metrics.values())
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, training.unreplicate(ended).params)
    assert any(jax.tree.leaves(moved))


def test_what_is_told_of_a_split_is_numpys():
    run = run_of("sparse", "model.latent_dim=12", "model.fixed_scale=0.3")
    params = run.init_state().params
    told = reconstruct.evaluate(run, training.replicate(params), "test", max_examples=50)
    x = run.dataset.test.examples[:50].reshape(50, -1)
    x = x / 255 if x.dtype == np.uint8 else x
    encoder, decoder = (jax.tree.map(np.asarray, params[part]["output"]) for part in ("encoder", "decoder"))
    code = np.maximum(x @ encoder["kernel"] + encoder["bias"], 0)
    error = ((x - code @ decoder["kernel"] - decoder["bias"]) ** 2).mean(axis=1)
    np.testing.assert_allclose(told["mse"], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(told["mse_stderr"], error.std(ddof=1) / np.sqrt(50), rtol=1e-4)
    np.testing.assert_allclose(told["psnr"], -10 * np.log10(error.mean()), rtol=1e-5)
    expected = -64 * (error.mean() / (2 * 0.3**2) + np.log(0.3 * np.sqrt(2 * np.pi)))
    np.testing.assert_allclose(told["log_likelihood"], expected, rtol=1e-5)
    np.testing.assert_allclose(told["active"], (code > 0).mean())
    assert told["dead_units"] == (code == 0).all(axis=0).sum()
    row = reconstruct.curve_row(run, training.replicate(params), "test", 50)
    np.testing.assert_allclose(row["l1"], np.abs(code).sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(row["squared_error"] / 64, told["mse"], rtol=1e-5)


def test_a_linear_autoencoder_with_pcas_weights_is_pca():
    run = run_of("linear", "model.latent_dim=5")
    train, test = (
        np.float64(split.examples).reshape(len(split.examples), -1) / 255
        for split in (run.dataset.train, run.dataset.test)
    )
    pca = PCA(5).fit(train)
    mix = np.random.default_rng(0).normal(size=(5, 5))  # any basis of the subspace is as good
    params = {
        "encoder": {"kernel": pca.components_.T @ mix, "bias": -pca.mean_ @ pca.components_.T @ mix},
        "decoder": {"kernel": np.linalg.inv(mix) @ pca.components_, "bias": pca.mean_},
    }
    params = {part: {"output": jax.tree.map(jnp.float32, leaves)} for part, leaves in params.items()}
    told = reconstruct.evaluate(run, training.replicate(params), "test")
    expected = ((test - pca.inverse_transform(pca.transform(test))) ** 2).mean()
    np.testing.assert_allclose([told["mse"], told["pca_mse"]], expected, rtol=1e-4)
    assert told["largest_angle_to_pca"] < 0.01
    tail = np.linalg.eigvalsh(np.cov(train, rowvar=False, ddof=0))[:-5].sum() / 64
    np.testing.assert_allclose([told["train_mse"], told["eigenvalue_tail"]], tail, rtol=1e-4)
    other = params | {"decoder": {"output": params["decoder"]["output"] | {"kernel": jnp.eye(64)[:5]}}}
    turned = reconstruct.evaluate(run, training.replicate(other), "test")
    angle = np.degrees(subspace_angles(np.eye(64)[:5].T, pca.components_.T).max())
    np.testing.assert_allclose(turned["largest_angle_to_pca"], angle, rtol=1e-4)
    np.testing.assert_allclose(turned["above_pca"], turned["mse"] - turned["pca_mse"], rtol=1e-4)
    assert turned["above_pca"] > 5 * turned["above_pca_stderr"] > 0
    assert abs(told["above_pca"]) < 1e-7 > told["above_pca_stderr"]


@pytest.mark.parametrize("override", ["model.scale=learned", "model.context=label", "model.sigmoid_mean=True"])
def test_only_a_decoder_of_means_alone_has_the_subspace(override: str):
    fixed = () if "learned" not in override else ("model.fixed_scale=0.1",)  # which a learned scale does not read
    run = run_of("linear", "model.latent_dim=5", override, *fixed)
    told = reconstruct.evaluate(run, training.replicate(run.init_state().params), "test")
    assert told["pca_mse"] > 0 and "largest_angle_to_pca" not in told


def test_pca_needs_data_that_differ_and_fit():
    run = run_of("linear", "model.latent_dim=5")
    train, params = run.dataset.train, training.replicate(run.init_state().params)
    for changed, limit in ((np.zeros_like(train.examples), 2048), (train.examples, 0)):
        config = ConfigDict(run.config)
        config.data.memory_limit_mb = limit
        dataset = dataclasses.replace(run.dataset, train=dataclasses.replace(train, examples=changed))
        other = dataclasses.replace(run, dataset=dataset, config=config)
        assert reconstruct.against_pca(other, params, run.dataset.test, np.zeros(1)) == {}


def test_data_of_one_value_have_no_psnr():
    errors = np.float32([0.1, 0.3])
    assert reconstruct.errors(errors, 0.0) == pytest.approx({"mse": 0.2, "mse_stderr": 0.1, "psnr": None})
    assert reconstruct.errors(errors, 2.0)["psnr"] == pytest.approx(10 * np.log10(4 / 0.2))


def test_only_training_sees_the_corruption():
    run = run_of("denoising", "data.corruption_level=0.5")
    stored = run.dataset.train.examples[0]
    points = {
        name: preprocess(stored, None, jnp.int32(0), jax.random.key(0)) for name, preprocess in run.preprocess.items()
    }
    assert points["train"].corrupted is not None
    assert points["validation"].corrupted is points["test"].corrupted is None


def test_a_run_from_the_command_line(command, tmp_path: pathlib.Path):
    small = ("--config.train.num_epochs=2", "--config.model.latent_dim=8", "--config.train.ema_decay=0")
    ended = command.ok("train", "--config=experiments/configs/linear.py", *small, f"--workdir={tmp_path}")
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert f"squared error {told['mse']:.5f} (PCA {told['pca_mse']:.5f})" in ended.out
    assert "nll" not in told and "elbo" not in told
    pictures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert pictures == {"learning_curves", "reconstructions", "interpolations", "latents", "filters"}
    page = re.sub(r"base64,[^\"]*", "", (tmp_path / "report.html").read_text())  # letters of a picture spell anything
    for words in ("PSNR", "squared error", "angle to PCA", "the eigenvalue tail of PCA is 0.0", "no bound on log p(x)"):
        assert words in page, words
    assert "ELBO" not in page and "NLL" not in page
    again = command.ok("evaluate", f"--workdir={tmp_path}")
    assert json.loads(again.out)["mse"] == told["mse"]
    for what, words in (("samples", "an autoencoder has none"), ("traversals", "an autoencoder has none")):
        ended = command("generate", f"--workdir={tmp_path}", f"--what={what}")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert words in ended.err


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("deep", ["learner.name=aevb"], "config.learner.name is aevb, but config.model.posterior is point_mass"),
        ("deep", ["eval.estimator=ais"], "use --config.eval.estimator=none"),
        ("deep", ["eval.curve_measure=bound"], "use --config.eval.curve_measure=reconstruction"),
        ("vae", ["learner.name=autoencoding"], "which is for autoencoders: set --config.model.posterior=point_mass"),
        ("vae", ["eval.estimator=none"], "which is for autoencoders"),
        ("vae", ["model.code=relu"], "the posterior diagonal_gaussian does not read it"),
        ("sparse", ["learner.l1_weight=-1"], "l1_weight is -1.0: it must not be negative"),
        ("sparse", ["model.code=top_k", "model.code_k=2000"], "code_k is 2000, but the code has 1024 elements"),
        ("sparse", ["model.code_k=5"], "the code relu does not read it: leave it 10"),
        ("deep", ["data.corruption_level=0.5"], "the corruption none does not read it: leave it 0.3"),
        ("mae", ["data.corruption=masking"], "the learner masked does not read it: leave it none"),
        ("paper", ["data.corruption=masking", "data.binarization=dynamic"], "does not read it: leave it none"),
        ("mae", ["model.latent_dim=32"], "latent_dim is 32, but the network vit does not read it: leave it 20"),
        ("mae", ["model.context=label"], "context is label, but the network vit does not read it: leave it none"),
        ("mae", ["model.likelihood=laplace"], "but the network vit does not read it: leave it gaussian"),
        ("deep", ["model.prior=laplace"], "prior is laplace, but an autoencoder does not read it"),
        ("mae", ["vit.mask_ratio=0.02"], "a mask ratio of 0.02 hides none of 16 patches"),
        ("mae", ["vit.mask_ratio=1.0"], r"vit.mask_ratio is 1\.0: it must be in \[0, 1\)"),
        ("mae", ["vit.mask_ratio=-0.1"], r"vit.mask_ratio is -0\.1: it must be in \[0, 1\)"),
        ("mae", ["vit.patch_size=3"], "8 x 8 pixels.* patch size 3: choose"),
        ("denoising", ["data.corruption=dust"], "config.data.corruption is 'dust': choose one of none, masking"),
        ("denoising", ["data.corruption_level=1.5"], r"the level of masking noise is 1\.5: .* must be in \[0, 1\)"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, overrides: list[str], words: str):
    with pytest.raises(InputError, match=words):
        run_of(name, *overrides)
