"""What the codes of a run are good for: the right weights, of the right examples, and what cannot be judged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from aevb import data, training
from aevb.errors import InputError
from experiments import build, downstream, evaluate, restoration, settings, usefulness


def run_of(name: str, *overrides: str) -> build.Run:
    return build.build(settings.load(f"experiments/configs/{name}.py", [f"--config.{each}" for each in overrides]))


@pytest.fixture(scope="module")
def linear() -> build.Run:
    return run_of("linear", "model.latent_dim=6")


def unit(examples: np.ndarray) -> np.ndarray:
    return examples / 255 if examples.dtype == np.uint8 else examples


def pca_weights(run: build.Run) -> tuple[dict, restoration.PCA]:
    """Parameters of a linear autoencoder that make it PCA."""
    x = unit(run.dataset.train.examples)
    pca = restoration.PCA.fit(x, run.model.latent_dim, 0)
    params = jax.tree.map(np.asarray, run.init_state().params)
    bias = np.float32(pca.encode(np.zeros_like(x[:1]))[0])
    params["encoder"]["output"] = {"kernel": np.float32(pca.components.T), "bias": bias}
    params["decoder"]["output"] = {"kernel": np.float32(pca.components), "bias": np.float32(pca.mean)}
    return params, pca


def test_a_model_with_pcas_weights_is_judged_as_pca(linear: build.Run):
    params, _ = pca_weights(linear)
    told = usefulness.judge(linear, training.replicate(params), "test")
    model, pca = told["restoration"]["model"], told["restoration"]["PCA"]
    assert model["reconstruction_psnr"] == pytest.approx(pca["reconstruction_psnr"], abs=1e-3)
    assert list(model["denoising"]) == [f"{name} {level:g}" for name, level in usefulness.NOISES]
    for noise, found in model["denoising"].items():
        assert found["denoising_psnr"] == pytest.approx(pca["denoising"][noise]["denoising_psnr"], abs=1e-3)
        assert found["noisy_psnr"] == pca["denoising"][noise]["noisy_psnr"]
    assert model["inpainting"]["inpainting_psnr"] == pytest.approx(pca["inpainting"]["inpainting_psnr"], abs=1e-3)
    rows = told["representations"]
    assert list(rows) == ["model", "untrained encoder", "pixels", "PCA"]
    for name in ("probe_accuracy", "knn_accuracy", "anomaly_auroc"):
        assert rows["model"][name] == pytest.approx(rows["PCA"][name], abs=0.01), name
    assert rows["pixels"]["code_size"] == 64 and rows["PCA"]["code_size"] == 6
    assert (told["num_train"], told["num_test"]) == tuple(
        len(getattr(linear.dataset, name).examples) for name in ("train", "test")
    )


def test_each_representation_is_of_its_own_weights(linear: build.Run):
    params = jax.tree.map(lambda leaf: 0 * leaf, linear.init_state().params)
    rows = usefulness.judge(linear, training.replicate(params), "test")["representations"]
    labels = linear.dataset.test.labels
    commonest = np.bincount(linear.dataset.train.labels).argmax()
    assert rows["model"]["probe_accuracy"] == pytest.approx((labels == commonest).mean())  # a constant code
    fresh = linear.init_state().params["encoder"]["output"]
    codes = [
        unit(split.examples).reshape(len(split.examples), -1) @ np.asarray(fresh["kernel"])
        for split in (linear.dataset.train, linear.dataset.test)
    ]
    accuracy = downstream.knn_accuracy(codes[0], linear.dataset.train.labels, codes[1], labels)
    assert rows["untrained encoder"]["knn_accuracy"] == pytest.approx(accuracy, abs=1 / len(labels))
    pixels = [unit(s.examples).reshape(len(s.examples), -1) for s in (linear.dataset.train, linear.dataset.test)]
    accuracy = downstream.knn_accuracy(pixels[0], linear.dataset.train.labels, pixels[1], labels)
    assert rows["pixels"]["knn_accuracy"] == pytest.approx(accuracy, abs=1 / len(labels))


def test_a_class_held_out_of_training_is_found_by_its_errors_and_its_distances(linear: build.Run):
    """Against scikit-learn, with PCA's weights learned without it; what is known is judged without it, too."""
    run = run_of("linear", "model.latent_dim=6", "data.held_out_class=0")
    assert 0 not in run.dataset.train.labels and 0 not in run.dataset.validation.labels
    np.testing.assert_array_equal(run.dataset.test.labels, linear.dataset.test.labels)
    params, pca = pca_weights(run)
    told = usefulness.judge(run, training.replicate(params), "test")
    x, labels = unit(run.dataset.test.examples), run.dataset.test.labels
    errors = np.square(x - pca.reconstruct(x)).sum(axis=(1, 2, 3))
    codes = [pca.encode(unit(split.examples)) for split in (run.dataset.train, run.dataset.test)]
    distances = NearestNeighbors(n_neighbors=5).fit(codes[0]).kneighbors(codes[1])[0].mean(axis=1)
    for name in ("model", "PCA"):
        found = told["anomalies"][name]
        assert found["error_auroc"] == pytest.approx(roc_auc_score(labels == 0, errors), abs=1e-3)
        assert found["neighbours_auroc"] == pytest.approx(roc_auc_score(labels == 0, distances), abs=1e-3)
        assert found["num_strange"] == (labels == 0).sum()
    assert set(told["anomalies"]) == set(told["representations"])
    with pytest.raises(InputError, match="held_out_class is 0, and the validation split has none to find"):
        usefulness.check(run, "validation")
    before = int(np.argmax(labels == 0))
    with pytest.raises(InputError, match="the test split has none to find"):
        usefulness.check(run, "test", before)
    assert told["representations"]["pixels"]["num_test"] == (labels != 0).sum()


def test_codes_are_of_the_examples_as_they_are_stored():
    """Not of what training makes of them: neither corrupted nor drawn."""
    corrupted = run_of("denoising", "model.latent_dim=6", "data.corruption_level=0.9")
    params, _ = pca_weights(run_of("linear", "model.latent_dim=6"))
    codes = usefulness.encode(corrupted, training.replicate(params), corrupted.dataset.train)
    x = unit(corrupted.dataset.train.examples).reshape(len(codes), -1)
    kernel, bias = params["encoder"]["output"]["kernel"], params["encoder"]["output"]["bias"]
    np.testing.assert_allclose(codes, np.maximum(x @ kernel + bias, 0), atol=1e-4)
    drawn = run_of("vae", "train.num_epochs=1")
    replicated = training.replicate(drawn.init_state().params)
    one, other = (usefulness.encode(drawn, replicated, drawn.dataset.test) for _ in range(2))
    model = drawn.model.bind({"params": drawn.init_state().params})
    expected = jax.vmap(lambda x: model.encode(x).mean)(np.float32(unit(drawn.dataset.test.examples)))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, expected, atol=1e-5)


def test_noise_is_of_the_example_and_of_its_level(linear: build.Run):
    x = np.full((4000, 8, 8, 1), 0.5, np.float32)
    indices = np.arange(len(x))
    for name, level in usefulness.NOISES:
        noisy = usefulness.noisy(linear, name, level, 1.0)(x, indices)
        np.testing.assert_array_equal(
            noisy[100:102], usefulness.noisy(linear, name, level, 1.0)(x[:2], indices[100:102])
        )
        if name == "gaussian":
            assert (noisy - x).std() == pytest.approx(level, rel=4 / np.sqrt(2 * noisy.size))
        else:
            assert (noisy == 0).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / noisy.size))
    wide = usefulness.noisy(linear, "gaussian", 0.25, 8.0)(x, indices)
    assert (wide - x).std() == pytest.approx(2.0, rel=0.01)


def test_a_masked_autoencoder_fills_in_without_looking():
    run = run_of("mae", "train.num_epochs=1")
    params = run.init_state().params
    hidden = restoration.centred_rectangle(8, 8, usefulness.HIDDEN_SHARE)
    fill = usefulness.filling(run, training.replicate(params), hidden)
    x = np.float32(unit(run.dataset.test.examples[:5]))
    other = x.copy()
    other[:, hidden] = 0.7
    one, two = fill(x, np.arange(5)), fill(other, np.arange(5))
    np.testing.assert_array_equal(one[:, hidden], two[:, hidden])
    assert (one[:, hidden] != x[:, hidden]).all()
    touched = np.kron(hidden.reshape(4, 2, 4, 2).any(axis=(1, 3)), np.ones((2, 2))) > 0
    np.testing.assert_array_equal(one[:, ~touched], x[:, ~touched])
    model, visible = run.model.bind({"params": params}), np.flatnonzero(~touched[::2, ::2].reshape(-1))
    draws = [
        jnp.sort(jax.random.permutation(key, visible)[:4])  # of the 16 patches a quarter, as in training
        for key in jax.random.split(jax.random.fold_in(run.eval_key, usefulness.PATCH_STREAM), usefulness.DRAWS)
    ]
    expected = np.mean([model.image(model.restore(x[0], draw).predicted) for draw in draws], axis=0)
    np.testing.assert_allclose(one[0, hidden], expected[hidden], atol=1e-5)
    known = {"train": np.float32(unit(run.dataset.train.examples)), "held out": x}
    assert set(usefulness.restored(run, training.replicate(params), known)) == {"inpainting"}
    normalised = run_of("mae", "train.num_epochs=1", "vit.normalise=True")
    assert usefulness.restored(normalised, training.replicate(params), known) == {}


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("cvae", (), "told the label"),
        ("paper", ("train.num_epochs=1", "data.binarization=dynamic"), "trains no encoder"),
    ],
)
def test_what_cannot_be_judged_is_refused(name: str, overrides: tuple[str, ...], words: str):
    file = {"paper": "paper.py:digits,mcem"}.get(name, f"{name}.py")
    run = build.build(settings.load(f"experiments/configs/{file}", [f"--config.{each}" for each in overrides]))
    with pytest.raises(InputError, match=words):
        usefulness.check(run, "test")


def test_codes_are_judged_where_nothing_was_learned_and_with_classes(linear: build.Run):
    with pytest.raises(InputError, match="judge it on --split=test"):
        usefulness.check(linear, "train")
    one = dataclasses.replace(linear.dataset.test, labels=0 * linear.dataset.test.labels)
    run = dataclasses.replace(linear, dataset=dataclasses.replace(linear.dataset, test=one))
    with pytest.raises(InputError, match="the test split has 1"):
        usefulness.check(run, "test")
    bare = dataclasses.replace(linear.dataset.test, labels=None)
    run = dataclasses.replace(linear, dataset=dataclasses.replace(linear.dataset, test=bare))
    with pytest.raises(InputError, match="the test split has 0"):
        usefulness.check(run, "test")
    same = dataclasses.replace(linear.dataset.train, examples=0 * linear.dataset.train.examples)
    run = dataclasses.replace(linear, dataset=dataclasses.replace(linear.dataset, train=same))
    with pytest.raises(InputError, match="has one value"):
        usefulness.check(run, "test")


def test_what_is_not_in_memory_is_refused(linear: build.Run):
    streamed = dataclasses.replace(linear.dataset.train, examples=data.splits.Rows(linear.dataset.train.examples, [0]))
    run = dataclasses.replace(linear, dataset=dataclasses.replace(linear.dataset, train=streamed))
    with pytest.raises(InputError, match="in memory"):
        usefulness.check(run, "test")


def test_without_classes_there_are_restorations_alone(linear: build.Run):
    bare = {name: dataclasses.replace(getattr(linear.dataset, name), labels=None) for name in build.SPLITS}
    run = dataclasses.replace(linear, dataset=dataclasses.replace(linear.dataset, **bare))
    told = usefulness.judge(run, training.replicate(run.init_state().params), "test", 50)
    assert "representations" not in told and told["num_test"] == 50
    assert isinstance(data.head(run.split("test"), 50).examples, np.ndarray)


def test_what_was_told_of_the_same_weights_is_kept(tmp_path):
    from etils import epath

    from experiments import workdir

    which = {"checkpoint": "last", "step": 30}
    workdir.write_json(epath.Path(tmp_path) / "evaluation.json", which | {"nll": 1.0, "downstream": {"seed": 0}})
    assert evaluate.downstream_of(epath.Path(tmp_path), which) == {"seed": 0}
    assert evaluate.downstream_of(epath.Path(tmp_path), which | {"step": 31}) is None
    assert evaluate.downstream_of(epath.Path(tmp_path) / "none", which) is None
