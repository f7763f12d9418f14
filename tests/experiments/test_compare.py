"""Runs side by side: against means and standard errors by hand, and against what evaluation measures."""

import csv
import json
import re
import shlex

import jax
import numpy as np
import pytest
from etils import epath
from test_report import Page

from aevb import data, training
from aevb.checkpoints import Checkpoints
from aevb.errors import InputError
from experiments import build, compare, compared, compared_figures, measured, reconstruct, settings, train, workdir
from experiments.configs import base, deep, mae, vae

EVALUATION = {
    "split": "test", "num_examples": 359, "binarization": "none", "weights": "point estimate", "density": True,
}  # fmt: skip
AUTOENCODER = EVALUATION | {
    "estimator": "the code of each example", "convention": "log p(x | z) at the code", "mse": 0.007,
    "mse_stderr": 0.0002, "psnr": 21.5, "pca_mse": 0.003, "log_likelihood": -37.0, "log_likelihood_stderr": 0.01,
    "active": 1.0, "dead_units": 0, "latent_dim": 30,
}  # fmt: skip
VARIATIONAL = EVALUATION | {
    "estimator": "1,000 importance samples", "convention": "log mass of binary values", "nll": 23.5, "nll_stderr": 0.21,
    "elbo": -24.25, "elbo_stderr": 0.22, "log_likelihood": -22.0, "kl": 2.25, "bits_per_dim": None, "active_units": 2,
    "latent_dim": 2, "binarization": "dynamic",
}  # fmt: skip
SUMMARY = {"status": "finished", "train_seconds": 10.0, "num_parameters": 1000, "command": "python -m made.this"}


def codes(size, accuracy):
    few = {f"accuracy_{num}_labels": accuracy - 0.1 for num in (10, 100, 1000)}
    return {"code_size": size, "probe_accuracy": accuracy, "probe_accuracy_stderr": 0.01, "kmeans_nmi": 0.5} | few


def downstream(size, accuracy, seed=0, num_test=359):
    """As `evaluate --downstream` writes it; what has no encoder differs by the seed, too."""
    restored = {
        "reconstruction_mse": 0.007, "reconstruction_mse_stderr": 0.001, "reconstruction_psnr": None,
        "denoising": {"gaussian 0.25": {"denoising_mse": 0.01, "denoising_psnr": 20.0 + seed, "noisy_psnr": 12.0}},
        "inpainting": {"inpainting_mse": 0.1, "inpainting_psnr": 10.0, "inpainting_share": 0.25, "mean_image_mse": 0.2},
    }  # fmt: skip
    whose = {"model": (size, accuracy), "untrained encoder": (size, 0.5), "pixels": (64, 0.9 + seed / 100),
             "PCA": (size, 0.8 + seed / 100)}  # fmt: skip
    return {
        "split": "test", "num_train": 1258, "num_test": num_test, "seed": seed,
        "representations": {name: codes(*each) for name, each in whose.items()},
        "restoration": {"model": restored, "PCA": restored},
    }  # fmt: skip


def folder(path, config, evaluation=None, summary=SUMMARY, rows=(), finetuning=None, **changes):
    """A run's folder, as experiments.train leaves it, but for checkpoints."""
    path.mkdir(parents=True)
    for key, value in changes.items():
        section, name = key.split("__") if "__" in key else (None, key)
        (config[section] if section else config)[name] = value
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, value in (("evaluation", evaluation), ("summary", summary), ("finetuning", finetuning)):
        if value is not None:
            (path / f"{name}.json").write_text(json.dumps(value))
    return path


def validation(measure, values):
    return [
        {"step": 100 * i + 100, "split": "validation", "examples_seen": 10_000 * (i + 1), measure: value}
        for i, value in enumerate(values)
    ]


def models_of(*paths):
    return compared.group([measured.read(epath.Path(path)) for path in paths])


def some_runs(root):
    """Two seeds of one autoencoder, a variational one, and one that still trains."""
    first, second = (AUTOENCODER | {"mse": mse, "downstream": downstream(30, accuracy, seed)}
                     for mse, accuracy, seed in ((0.007, 0.9, 0), (0.009, 0.96, 1)))  # fmt: skip
    variational = VARIATIONAL | {"downstream": downstream(2, 0.7)}
    tuned = {"num_labels": 100, "starts": {"pretrained": {"accuracy": 0.75}}}
    errors, bounds = validation("squared_error", (2.0, 0.5)), validation("elbo", (-30.0, -25.0))
    longer, no_command = SUMMARY | {"train_seconds": 20.0}, SUMMARY | {"command": ""}
    later = validation("squared_error", (2.5, 0.4))
    return [
        folder(root / "deep_seed0", deep.get_config(), first, rows=errors),
        folder(root / "deep_seed1", deep.get_config(), second, longer, later, seed=1),
        folder(root / "vae", vae.get_config(), variational, no_command, bounds, tuned),
        folder(root / "later", deep.get_config(), None, None, errors[:1], model__latent_dim=40),
    ]


def table_of(out):
    with open(out / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(compared.COLUMNS)
    assert len({(row["model"], row["code_size"], row["metric"]) for row in rows}) == len(rows)
    return {(row["model"], row["metric"]): row for row in rows} | {
        (row["model"], row["code_size"], row["metric"]): row for row in rows
    }


def page_of(out):
    source = (out / "comparison.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not page.open
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import|<script|<link", re.sub(r'base64,[^"]*"', "", source))
    return page, source


def test_the_table_against_means_and_standard_errors_by_hand(tmp_path):
    compare.write(models_of(*some_runs(tmp_path)), epath.Path(tmp_path / "out"), 8)
    rows = table_of(tmp_path / "out")

    def told(*key):
        row = rows[key]
        return [row["value"] and float(row["value"]), row["stderr"] and float(row["stderr"]), int(row["seeds"])]

    # sd of (0.007, 0.009) is 0.002 / sqrt(2), and over sqrt(2) seeds 0.001
    assert told("deep", "mse") == pytest.approx([0.008, 0.001, 2])
    assert told("deep", "probe_accuracy") == pytest.approx([0.93, 0.03, 2])
    assert told("deep (untrained encoder)", "probe_accuracy") == pytest.approx([0.5, 0, 2])
    assert told("vae", "nll") == [23.5, 0.21, 1]
    assert told("vae", "kl") == [2.25, "", 1]
    assert told("vae", "probe_accuracy") == [0.7, 0.01, 1]
    assert told("vae", "finetuned_accuracy 100 labels") == [0.75, "", 1]
    assert told("deep", "denoising_psnr gaussian 0.25") == pytest.approx([20.5, 0.5, 2])
    assert told("noisy input", "denoising_psnr gaussian 0.25") == [12.0, "", 1]
    assert told("mean image", "inpainting_mse") == [0.2, "", 1]
    # Of raw pixels there is one code, of PCA one of each size: those that were told first.
    assert told("pixels", "64", "probe_accuracy") == [0.9, 0.01, 1]
    assert told("PCA", "30", "probe_accuracy") == told("PCA", "2", "probe_accuracy") == [0.8, 0.01, 1]
    assert ("vae", "bits_per_dim") not in rows and ("deep", "reconstruction_psnr") not in rows
    assert {row["model"] for row in rows.values()} == {
        "deep", "deep (untrained encoder)", "vae", "vae (untrained encoder)", "pixels", "PCA", "noisy input",
        "mean image",
    }  # fmt: skip
    row = rows["deep", "mse"]
    assert (row["code_size"], row["train_seconds"], row["command"]) == ("30", "15.0", "python -m made.this")
    assert rows["vae", "nll"]["command"] == ""
    assert rows["PCA", "30", "probe_accuracy"]["train_seconds"] == ""


def test_the_page_has_the_numbers_and_stands_alone(tmp_path):
    out = epath.Path(tmp_path / "out")
    assert compare.write(models_of(*some_runs(tmp_path)), out, 8) == out / "comparison.html"
    page, source = page_of(out)
    for words in (
        "3 models side by side · digits",
        "squared error",
        "0.00800 ± 0.00100",
        "23.50 ± 0.21",
        "★ 93.0, best ± 3.0",
        "fine-tuned, 100 labels",
        "PCA, 30",
        "pixels, 64",
        "deep, untrained 50.0 40.0",
        "gaussian 0.25 noise",
        "seed 0 in training, step 100",
        "deep: 359 examples of the test split of digits, binarization: none",
        "Not all of these numbers can be compared, for the runs differ: binarization none (deep and later) or dynamic "
        "(vae); likelihood gaussian (deep and later) or bernoulli (vae).",
        "No reconstructions by vae: ",
        "python -m made.this",
    ):
        assert words in page.text, words
    assert len(page.addresses) == 2  # no reconstructions, for there are no checkpoints
    assert "not a density" not in page.text and source.count('<span class="star" aria-hidden="true">★</span> <s') > 3
    assert {path.name for path in out.iterdir()} == {
        "comparison.csv", "comparison.html", "learning_curves.png", "label_efficiency.png"
    }  # fmt: skip


def test_runs_are_one_model_if_the_seed_alone_differs(tmp_path):
    paths = [
        folder(tmp_path / "a/deep_seed0", deep.get_config()),
        folder(tmp_path / "a/deep_seed12", deep.get_config(), seed=12),
        folder(tmp_path / "a/deep-seed1", deep.get_config()),  # the same seed once more
        folder(tmp_path / "b/deep", deep.get_config(), model__latent_dim=5),
    ]
    models = models_of(*paths)
    assert [(model.name, [run.seed for run in model.runs]) for model in models] == [
        ("a/deep", [0, 12]), ("a/deep-seed1", [0]), ("b/deep", [0]),
    ]  # fmt: skip
    assert [model.name for model in models_of(*paths[:3])] == ["deep", "deep-seed1"]
    same = (
        folder(tmp_path / "c/deep_seed0", base.get_config()),
        folder(tmp_path / "c/deep_seed1", base.get_config(), seed=1),
    )
    assert [model.name for model in models_of(paths[3], *same)] == ["b/deep", "c/deep"]


def best_of(models, metric):
    return compared.best(compared.rows(models), metric)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({"num_examples": 100}, {}, "number of evaluated examples 359 (one) or 100 (two)"),
        ({"split": "validation"}, {}, "evaluated split test (one) or validation (two)"),
        ({}, {"data__binarization": "threshold"}, "binarization none (one) or threshold (two)"),
        ({}, {"dataset": "mnist"}, "data set digits (one) or mnist (two)"),
        ({}, {"data__test_size": 0.5}, "test 0.2 (one) or seed 0, validation 0.1, test 0.5 (two)"),
    ],
)
def test_what_cannot_be_compared_is_said_and_has_no_best(tmp_path, change, config, words):
    one = folder(tmp_path / "one", deep.get_config(), AUTOENCODER)
    two = folder(tmp_path / "two", deep.get_config(), AUTOENCODER | {"mse": 0.001} | change, **config)
    models = models_of(one, two)
    assert words in compared.differences(models)
    assert best_of(models, "mse") == set()
    alike = folder(tmp_path / "alike", deep.get_config(), AUTOENCODER | {"mse": 0.001}, model__latent_dim=3)
    assert compared.differences(models_of(one, alike)) == ""
    assert best_of(models_of(one, alike), "mse") == {0.001}
    assert best_of(models_of(one, alike), "active") == set()  # of which neither more nor less is better
    assert best_of(models_of(one), "mse") == set()


def test_an_estimator_matters_for_the_nll_alone(tmp_path):
    other = VARIATIONAL | {"estimator": "50 importance samples", "elbo": -20.0}
    models = models_of(folder(tmp_path / "one", vae.get_config(), VARIATIONAL),
                       folder(tmp_path / "two", vae.get_config(), other, model__latent_dim=3))  # fmt: skip
    assert "estimator of log p(x) 1,000 importance samples (one) or 50" in compared.differences(models)
    assert (best_of(models, "nll"), best_of(models, "elbo")) == (set(), {-20.0})


def test_masked_errors_are_numbers_of_their_own(tmp_path):
    masked = {name: value for name, value in AUTOENCODER.items() if name in EVALUATION or "mse" in name} | {
        "estimator": "", "convention": "", "mask_ratio": 0.75, "latent_dim": 64,
    }  # fmt: skip
    models = models_of(folder(tmp_path / "mae", mae.get_config(), masked),
                       folder(tmp_path / "deep", deep.get_config(), AUTOENCODER))  # fmt: skip
    rows = compared.rows(models)
    assert rows[0].numbers["masked_mse"] == (0.007, 0.0002, 1) and "mse" not in rows[0].numbers
    assert (rows[0].code_size, compared.best(rows, "mse")) == (64, set())


def test_what_is_no_density_says_so(tmp_path):
    grey = VARIATIONAL | {"binarization": "grey", "density": False}
    models = models_of(folder(tmp_path / "grey", vae.get_config(), grey, data__binarization="grey"),
                       folder(tmp_path / "drawn", vae.get_config(), VARIATIONAL))  # fmt: skip
    (likelihood,) = compare.tables(compared.rows(models))
    assert [(row["name"], row["density"]) for row in likelihood["rows"]] == [("grey", False), ("drawn", True)]


def test_pixels_of_other_data_have_a_name_of_their_own(tmp_path):
    judged = [AUTOENCODER | {"downstream": downstream(30, 0.9, num_test=num)} for num in (359, 100)]
    found = {"model": {"error_auroc": 0.8, "error_auroc_stderr": 0.01, "neighbours_auroc": 0.9}}
    judged.append(AUTOENCODER | {"downstream": downstream(30, 0.9) | {"held_out_class": 3, "anomalies": found}})
    paths = [
        folder(tmp_path / name, deep.get_config(), each, model__latent_dim=dim)
        for name, each, dim in zip(("one", "two", "less"), judged, (30, 3, 4), strict=True)
    ]
    models = models_of(*paths)
    rows = compared.rows(models)
    assert [row.name for row in rows if row.kind == "pixels"] == ["pixels", "pixels (of two)", "pixels (of less)"]
    assert rows[4].numbers["error_auroc"][:2] == (0.8, 0.01) and rows[4].numbers["neighbours_auroc"].value == 0.9
    models = models[:2]
    figure, (sentence,) = compared_figures.label_efficiency(compared.rows(models), models)
    assert "two (untrained encoder)" in sentence and figure is not None


def test_curves_are_those_of_the_logs(tmp_path):
    figure, sentences = compared_figures.learning_curves(models_of(*some_runs(tmp_path)))
    elbo, error = figure.axes
    assert (elbo.get_ylabel(), error.get_ylabel(), sentences) == ("ELBO (nats)", "squared error", [])
    drawn = [line.get_xydata().tolist() for line in error.lines if line.get_transform() == error.transData]
    assert drawn == [[[10_000, 2.0], [20_000, 0.5]], [[10_000, 2.5], [20_000, 0.4]], [[10_000, 2.0]]]
    assert [text.get_text() for text in error.texts] == ["deep", "later"]
    other = folder(
        tmp_path / "other", vae.get_config(), rows=validation("elbo", (800.0,)), model__likelihood="gaussian"
    )
    none = folder(tmp_path / "none", vae.get_config(), seed=3)
    figure, sentences = compared_figures.learning_curves(models_of(tmp_path / "vae", other, none))
    assert [axes.get_ylabel().split("\n")[1] for axes in figure.axes] == [
        "digits, dynamic, bernoulli",
        "digits, dynamic, gaussian",
    ]
    assert sentences == ["No learning curve on validation: none."]


def made(path, config, *overrides):
    """A run that was begun and saved, its parameters as they start."""
    config = settings.load(f"experiments/configs/{config}.py", [f"--config.{override}" for override in overrides])
    run = build.build(config)
    path.mkdir()
    workdir.write_json(epath.Path(path) / "config.json", run.config.to_dict())
    checkpoints = Checkpoints(epath.Path(path) / "checkpoints/last")
    checkpoints.save(0, run.init_state())
    checkpoints.close()
    return run


def test_reconstructions_are_those_that_evaluation_measures(tmp_path, monkeypatch):
    monkeypatch.chdir(train.__file__.rsplit("/", 2)[0])
    runs = {
        "deep": made(tmp_path / "deep", "deep", "model.hidden=8"),
        "vae": made(tmp_path / "vae", "vae", "model.hidden=8"),
        "mae": made(
            tmp_path / "mae", "mae", "vit.width=8", "vit.depth=1", "vit.decoder_width=8", "vit.decoder_depth=1"
        ),
        "shuffled": made(tmp_path / "shuffled", "deep", "model.hidden=8", "data.seed=5"),
    }
    models = models_of(*(tmp_path / name for name in runs))
    found, known = {}, {}
    for model in models[:3]:
        stored, name, found[model.name] = compared_figures.reconstructed(model, 6, known)
        assert name == (model.name if model.name != "mae" else "mae (25 % seen)")
        np.testing.assert_allclose(stored, runs["deep"].dataset.test.examples[:6] / 255, rtol=1e-6)
    assert len(known) == 1  # one data set, read once

    def measured_by(run, name):
        params = training.replicate(run.init_state().params)
        mapped = reconstruct.of_split(run, "test")(params, data.head(run.dataset.test, 6), run.split_key("test"))
        return training.collect(mapped)[name]

    squared = np.square(found["deep"] - stored).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(squared, measured_by(runs["deep"], "squared_error"), rtol=1e-5)
    # Digits have 16 patches of 2x2, 12 of them masked; the others are the data.
    masked = np.square(found["mae"] - stored).sum(axis=(1, 2, 3)) / (12 * 4)
    np.testing.assert_allclose(masked, measured_by(runs["mae"], "masked_error"), rtol=1e-5)
    run = runs["vae"]
    bound, key = run.model.bind({"params": run.init_state().params}), run.split_key("test")
    for i in range(6):
        point = run.preprocess["test"](
            run.dataset.test.examples[i], None, i, jax.random.split(jax.random.fold_in(key, i))[0]
        )
        expected = bound.decode(bound.encode(point.x).mean).mean
        assert set(np.unique(point.x)) == {0.0, 1.0}
        np.testing.assert_allclose(found["vae"][i], expected, atol=1e-6)

    figure, sentences = compared_figures.reconstructions(models, 6)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["data", "deep", "vae", "mae (25 % seen)"]
    assert sentences == [
        "No reconstructions by shuffled: its test images are not those of deep.",
        "Restored from the patches that are not masked, which are the data’s: mae.",
        "Shown a black-and-white draw of each image, as in evaluation: vae.",
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config", [1], "holds no keys and values"),
        ("config", {"seed": 0}, "lacks the key dataset"),
        ("evaluation", AUTOENCODER | {"mse": "small"}, "mse is 'small' and should be a number"),
        ("evaluation", AUTOENCODER | {"downstream": [1]}, r"downstream is \[1\], where numbers by name belong"),
        ("evaluation", AUTOENCODER | {"downstream": {"representations": {"model": 3}}}, "holds 3, where numbers"),
        ("finetuning", {"accuracy": 0.9}, "has no accuracy of a pretrained encoder"),
        ("finetuning", {"starts": {"pretrained": {"error": 0.1}}}, "has no accuracy of pretrained"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path, name, content, words):
    path = folder(tmp_path / "run", deep.get_config(), AUTOENCODER)
    (path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        measured.read(epath.Path(path))


def test_wrong_calls_are_one_sentence(tmp_path, command):
    run = folder(tmp_path / "run", deep.get_config(), AUTOENCODER)
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ([], "no run is named: give the folders of runs"),
        ([str(tmp_path)], "is no run, for it has no config.json"),
        ([str(run), f"{tmp_path}/../{tmp_path.name}/run"], "is named twice: name each run once"),
        ([str(run), f"--out={tmp_path / 'file'}"], "is a file: give a folder"),
        ([str(run), "--num=3"], "'--num=3' is not understood"),
    ):
        ended = command("compare", *arguments)
        assert (ended.code, ended.err.count("\n"), ended.out) == (2, 1, "")
        assert words in ended.err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file"}


def test_foreign_files_stay_and_old_figures_of_ours_go(tmp_path, command):
    run, out = folder(tmp_path / "run", deep.get_config(), AUTOENCODER), tmp_path / "out"
    out.mkdir()
    for name in ("theirs.txt", "label_efficiency.png"):
        (out / name).write_text("old")
    ended = command.ok("compare", str(run), f"--out={out}")
    assert ended.out == f"look at {out / 'comparison.html'}\n"
    assert {path.name for path in out.iterdir()} == {"theirs.txt", "comparison.html", "comparison.csv"}
    assert page_of(out)[0].text.startswith("run · digits")


def test_the_command_that_a_run_keeps_can_be_given_to_a_shell():
    arguments = ["--config.data.dir=my data", "--config.model.hidden=(300,300)"]
    line = train.command("configs/vae.py:mnist", arguments, epath.Path("runs/a b"))
    expected = ["--config=configs/vae.py:mnist", *arguments, "--workdir=runs/a b"]
    assert shlex.split(line) == ["python", "-m", "experiments.train", *expected]
