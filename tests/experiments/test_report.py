import base64
import html.parser
import json
import re
import subprocess
import sys

import pytest
from etils import epath

from aevb.errors import InputError
from experiments import report

CONFIG = {
    "dataset": "mnist",
    "data": {"binarization": "dynamic"},
    "model": {
        "network": "mlp", "latent_dim": 20, "posterior": "diagonal_gaussian", "prior": "standard_normal",
        "context": "none",
    },
    "bound": {
        "num_samples": 1, "kl_weight": 1.0, "kl_schedule": "constant", "kl_warmup_steps": 0, "free_bits": 0.0,
        "log_likelihood_target": 0.0,
    },
    "note": "<script>&",
}  # fmt: skip
EVALUATION = {
    "split": "test", "binarization": "stochastic", "num_examples": 10000, "num_samples": 5000,
    "estimator": "5,000 importance samples", "bound":
    "sgvb_b", "elbo": -1101.341, "elbo_stderr": 0.214, "log_likelihood": -1076.1, "kl": 25.241, "nll":
    1097.322, "nll_stderr": 0.209, "bits_per_dim": 0.1791, "convention": "Each pixel is drawn once",
    "active_units": 12, "effective_sample_size": 120.3, "latent_dim": 20, "kl_per_dim": [1.0] * 20,
    "density": True, "step": 75000, "checkpoint": "best", "weights": "point estimate", "seed": 0,
    "evaluate_seconds": 20.0,
}  # fmt: skip
BOUND = {"elbo": -1102.5, "log_likelihood": -1077.25, "kl": 25.25, "step": 99500}
SUMMARY = {
    "status": "early_stopped", "dataset": "mnist", "splits": "The last 10,000 are the validation split",
    "binarization": "stochastic", "likelihood": "bernoulli", "learner": "aevb", "density": True, "step": 99500,
    "num_steps": 100000, "examples_seen": 9950000, "num_examples": {"train": 50000, "validation": 10000,
    "test": 10000}, "num_parameters": 684240, "seed": 0, "bound": "sgvb_a", "evaluation": EVALUATION,
    "bounds": {split: {"final": BOUND, "best": BOUND} for split in ("train", "validation", "test")},
    "versions": {"python": "3.11.9", "jax": "0.10.2"}, "hardware": {"device": "NVIDIA H200", "cores":
    16}, "train_seconds": 4012.3, "total_seconds": 4300.0, "first_step_seconds": 8.2, "peak_memory_gib": 1.25,
    "examples_per_second": 51234.6,
}  # fmt: skip
METRICS = [
    {
        "step": step,
        "split": split,
        "elbo": elbo,
        "log_likelihood": elbo + 20,
        "kl": 20.0,
        "examples_seen": 100 * step,
    }
    | ({"examples_per_second": 4321.4} if split == "train" else {})
    for step, split, elbo in (
        (100, "train", -150.0),
        (100, "validation", -140.5),
        (200, "validation", -141.5),
    )
]
MARK = "not a density: grey values under a Bernoulli"


class Page(html.parser.HTMLParser):
    """The text of the page and of each tile, the addresses it names, and the elements left open."""

    def __init__(self, source):
        super().__init__()
        self.text, self.tiles, self.addresses, self.open = "", [], [], []
        self.feed(source)
        self.text = " ".join(self.text.split())
        self.tiles = [" ".join(tile.split()) for tile in self.tiles]

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if self.open[-2:] == ["dl", "div"]:
            self.tiles.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.text += " "

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "dl" in self.open and self.tiles:
            self.tiles[-1] += data


def page_of(folder, config=CONFIG, metrics=METRICS, **files):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    path = report.write(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    return page


def test_what_was_trained_is_told(tmp_path):
    model = CONFIG["model"] | {"posterior": "full_gaussian", "prior": "conditional_gaussian", "context": "label"}
    bound = CONFIG["bound"] | {
        "num_samples": 5,
        "kl_schedule": "adaptive",
        "log_likelihood_target": -80,
        "free_bits": 0.5,
    }
    metrics = [*METRICS, METRICS[0] | {"kl_weight": 1.4712}]
    page = page_of(tmp_path, CONFIG | {"model": model, "bound": bound}, metrics, summary=SUMMARY)
    for words in (
        "(bound: SGVB-A, 5 draws of z a datapoint)",
        ", posterior: full gaussian, prior: conditional gaussian, context: label.",
        "In training beta was moved to hold a log-likelihood of −80.00 nats, at the end 1.47 and 0.5 nats of the KL of "
        "each latent dimension were free; every number here is at beta = 1.",
    ):
        assert words in page.text, words
    bound = CONFIG["bound"] | {"kl_weight": 4.0, "kl_schedule": "linear", "kl_warmup_steps": 2000}
    page = page_of(tmp_path, CONFIG | {"bound": bound}, summary=SUMMARY)
    assert "In training beta rose to 4 along a linear schedule of 2,000 steps; every number" in page.text
    page = page_of(tmp_path, CONFIG | {"bound": CONFIG["bound"] | {"kl_weight": 0.5}}, summary=SUMMARY)
    assert "In training beta was 0.5; every number" in page.text
    assert "In training" not in page_of(tmp_path, summary=SUMMARY).text


def test_the_gap_is_told_with_its_errors(tmp_path):
    parts = {"log_marginal": -83.0, "approximation_gap": 1.25, "amortization_gap": 2.5}
    gap = {name: {"mean": mean, "monte_carlo_stderr": 0.02} for name, mean in parts.items()}
    gap |= {"num_examples": 100, "split": "test", "step": 7500, "num_samples": 5000}
    assert (
        "The gap is that of the first 100 test examples at step 7,500, from 5,000 draws each: log p(x) = −83.00 ± 0.02 "
        "nats, approximation gap 1.25 ± 0.02, amortization gap 2.50 ± 0.02; ± is"
    ) in page_of(tmp_path, summary=SUMMARY, gap=gap).text


def test_fine_tuning_is_told_beside_training_from_scratch(tmp_path):
    one = {"accuracy": 0.97123, "accuracy_stderr": 0.002}
    told = {"num_labels": 1000, "num_steps": 2000, "num_examples": 10_000, "split": "test"}
    told["starts"] = {"pretrained": one, "from scratch": one | {"accuracy": 0.9}}
    assert (
        "trained with the encoder on 1,000 labels for 2,000 steps, 97.12 ± 0.20 % pretrained and "
        "90.00 ± 0.20 % from scratch of the 10,000 test examples"
    ) in page_of(tmp_path, summary=SUMMARY, finetuning=told).text


def test_information_at_its_ceiling_is_told_so(tmp_path):
    told = {"information_examples": 1000, "marginal_kl": 20.0, "collapsed": False, "advice": "all carry information"}
    words = "20.00 nats from the prior; the first may be larger, and the second smaller by as much"
    for information, full in ((6.9, True), (5.0, False)):  # log 1000 = 6.91
        page = page_of(
            tmp_path, summary=SUMMARY | {"evaluation": EVALUATION | told | {"mutual_information": information}}
        )
        assert "20.00 nats from the prior" in page.text
        assert (words in page.text) == full


def test_what_codes_are_good_for_is_told_in_two_tables(tmp_path):
    noisy = {"denoising_mse": 0.01, "denoising_psnr": 20.04, "noisy_psnr": 12.06}
    restored = {
        "reconstruction_psnr": 24.96,
        "denoising": {"gaussian 0.25": noisy},
        "inpainting": {"inpainting_psnr": 14.55, "inpainting_share": 0.25},
    }
    codes = {"code_size": 30, "probe_accuracy": 0.97123, "kmeans_nmi": 0.5125}
    told = {
        "split": "test",
        "num_train": 50_000,
        "num_test": 10_000,
        "restoration": {"model": restored, "PCA": restored | {"reconstruction_psnr": None}},
        "representations": {"model": codes, "pixels": codes | {"code_size": 784, "accuracy_10_labels": 0.5}},
    }
    text = page_of(tmp_path, summary=SUMMARY, evaluation=SUMMARY["evaluation"] | {"downstream": told}).text
    for words in (
        "Learned from the codes of 50,000 training examples, measured on 10,000 of the test split",
        "gaussian 0.25 (noisy: 12.1), dB",
        "hidden centre, 25 %, dB",
    ):
        assert words in text, words
    text = " ".join(text.split())
    table = "k-means NMI model 30 97.12 0.512 pixels 784 97.12 50.0 0.512 restored by"  # of 10 labels it has none
    for row in (table, "model 25.0 20.0 14.6 PCA exact 20.0 14.6"):
        assert row in text, row
    scores = {"neighbours_auroc": 0.91234, "neighbours_auroc_stderr": 0.004}
    found = {
        "held_out_class": 3,
        "anomalies": {"model": scores, "PCA": scores | {"error_auroc": 0.5, "error_auroc_stderr": 0.01}},
    }
    text = page_of(tmp_path, summary=SUMMARY, evaluation=SUMMARY["evaluation"] | {"downstream": told | found}).text
    table = (
        "class 3 found by AUROC by 5 neighbours by squared error model 0.912 ± 0.004 PCA 0.912 ± 0.004 0.500 ± 0.010"
    )
    assert table in " ".join(text.split())
    assert "of the test split (in the table of codes without the class held out); every" in text
    bare = {name: told[name] for name in told if name != "representations"}
    text = page_of(tmp_path, summary=SUMMARY, evaluation=SUMMARY["evaluation"] | {"downstream": bare}).text
    assert "linear probe" not in text and "hidden centre" in text
    assert "What the codes" not in page_of(tmp_path, summary=SUMMARY, evaluation=SUMMARY["evaluation"]).text


def test_each_number_stands_with_its_convention(tmp_path):
    page = page_of(tmp_path, summary=SUMMARY, evaluation=EVALUATION)
    assert page.text.startswith("VAE (mlp) · mnist VAE (mlp) · mnist early stopped · 99,500 of 100,000 steps")
    assert page.tiles == [
        "test NLL 1,097.32 ± 0.21 nats 5,000 importance samples",
        "test ELBO −1,101.34 ± 0.21 nats a lower bound of log p(x)",
        "test KL 25.24 nats posterior from prior",
        "bits per dimension 0.179 bits 5,000 importance samples",
        "active units 12 of 20 latent dimensions in use",
        "speed 51,235 examples/s in training, NVIDIA H200",
        "training time 1 h 6 min 1 h 11 min with start and evaluation",
        "peak memory 1.25 GiB of training",
    ]
    for convention in (
        "10,000 examples of the test split (binarization: stochastic), checkpoint: best, step 75,000, "
        "weights: point estimate",
        "effective sample size 120.3",
        "± is one standard error",
        "5,000 importance samples a datapoint",
        "Each pixel is drawn once.",
        "Trained by AEVB (bound: SGVB-A) with a bernoulli likelihood",
        "The last 10,000 are the validation split.",
        "test final −1,102.50 −1,077.25 25.25 99,500",
        "model.latent_dim = 20",
        "jax = 0.10.2",
        f"python -m experiments.evaluate --workdir={tmp_path}",
        f"python -m experiments.generate --workdir={tmp_path}",
    ):
        assert convention in page.text, convention
    assert MARK not in page.text


def test_evaluation_is_preferred_to_the_summary_and_optional(tmp_path):
    assert "97.00" in page_of(tmp_path, summary=SUMMARY | {"evaluation": EVALUATION | {"nll": 97.0}}).tiles[0]
    later = EVALUATION | {"nll": 96.0, "nll_stderr": None, "bits_per_dim": None, "active_units": None}
    tiles = page_of(tmp_path, summary=SUMMARY, evaluation=later).tiles
    assert tiles[0] == "test NLL 96.00 nats 5,000 importance samples"
    assert not any("bits" in tile or "active" in tile for tile in tiles)


@pytest.mark.parametrize(
    "lesser",
    [{"num_examples": 50}, {"split": "validation"}, {"elbo": None}],
    ids=["fewer", "another split", "no bound"],
)
def test_an_evaluation_of_less_leaves_the_page_alone(tmp_path, lesser):
    by_hand = {key: value for key, value in (EVALUATION | {"nll": 9.0} | lesser).items() if value is not None}
    tiles = page_of(tmp_path, summary=SUMMARY | {"evaluation": EVALUATION}, evaluation=by_hand).tiles
    assert tiles[0] == "test NLL 1,097.32 ± 0.21 nats 5,000 importance samples"


def test_what_is_not_a_density_says_so_beside_each_number(tmp_path):
    page = page_of(tmp_path, summary=SUMMARY, evaluation=EVALUATION | {"density": False})
    marked = [tile.split(" ")[:2] for tile in page.tiles if MARK in tile]
    assert marked == [["test", "NLL"], ["test", "ELBO"], ["bits", "per"]]
    assert page.text.count(MARK) == 4  # and above the table of bounds


def test_a_run_on_grey_values_is_marked_while_it_trains(tmp_path):
    page = page_of(tmp_path, config=CONFIG | {"data": {"binarization": "grey"}})
    assert [MARK in tile for tile in page.tiles] == [True, False, False]


def test_a_run_that_still_trains_shows_its_log(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "no step logged so far" in Page(report.write(tmp_path).read_text(encoding="utf-8")).text
    page = page_of(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "spl')
    assert Page(report.write(tmp_path).read_text(encoding="utf-8")).text == page.text
    assert "training, step 200 so far" in page.text
    assert page.tiles == [
        "validation ELBO −140.50 nats best so far, step 100",
        "validation KL 20.00 nats step 100",
        "speed 4,321 examples/s in training",
    ]


def test_figures_are_inlined_in_reading_order_and_nothing_is_fetched(tmp_path):
    names = ["zebra.png", "samples.png", "learning_curves.png", "kl_per_dim.png", ".samples.9.png"]
    (tmp_path / "figures").mkdir()
    for name in names:
        (tmp_path / "figures" / name).write_bytes(b"\x89PNG" + name.encode())
    page = page_of(tmp_path, summary=SUMMARY)
    prefix = "data:image/png;base64,"
    found = [base64.b64decode(address.removeprefix(prefix))[4:].decode() for address in page.addresses]
    assert found == ["learning_curves.png", "samples.png", "kl_per_dim.png", "zebra.png"]
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.CAPTIONS["samples.png"] in page.text and 'alt="zebra.png"' in source
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link", source.replace(prefix, ""))


def test_config_values_are_text_and_not_markup(tmp_path):
    page = page_of(tmp_path, config=CONFIG | {"dataset": "<b>x</b>"}, summary=SUMMARY)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "note = <script>&" in page.text and page.text.startswith("VAE (mlp) · <b>x</b> VAE")
    assert "<script>" not in source and "<b>" not in source


def test_wrong_folders_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is not there: give the --workdir"):
        report.write(tmp_path / "missing")
    with pytest.raises(InputError, match=r"config\.json is not there: give the --workdir"):
        report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"config\.json cannot be read as JSON"):
        report.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    page_of(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def half(path, *_, **__):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        report.write(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl", "report.html"]


def test_the_command_answers_a_wrong_folder_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "experiments.report", f"--workdir={tmp_path}"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    assert "config.json is not there: give the --workdir" in refused.stderr
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    assert (tmp_path / "report.html").is_file()
