"""Every learner from the command line: what a run of it leaves, what it can be asked, and what it refuses in words."""

import json
import math
import pathlib
import shutil

import pytest
from conftest import SMALL
from test_wrong_calls import refused

MCEM = ["--config.learner.name=mcem", "--config.eval.curve_measure=marginal", "--config.eval.estimator=hmc"]
LEARNERS = {
    "wake_sleep": ["--config.learner.name=wake_sleep"],
    "full_vb": ["--config.learner.name=full_vb"],
    "mcem": [*MCEM, "--config.eval.num_samples=50", "--config.eval.max_examples=50", "--config.eval.curve_examples=50"],
}


def rows(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=LEARNERS)
def trained(command, request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp(request.param)
    command.ok("train", *SMALL, *LEARNERS[request.param], f"--workdir={folder}")
    return request.param, folder


def test_what_a_run_leaves(trained):
    name, folder = trained
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["learner"]) == ("finished", name)
    assert summary["bound"] == (None if name == "mcem" else "sgvb_b")
    evaluation = summary["evaluation"]
    assert 15 < evaluation["nll"] < 60
    assert ("elbo" in evaluation) == (name != "mcem")
    if name != "mcem":
        assert evaluation["elbo"] < -evaluation["nll"] + 1e-3
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"samples", "manifold", "traversals", "learning_curves"} <= drawn
    assert ("reconstructions" in drawn) == (name != "mcem")
    page = (folder / "report.html").read_text()
    assert f"Trained by {name.upper().replace('_', '-')}" in page


def test_what_is_logged(trained):
    name, folder = trained
    train = [row for row in rows(folder) if row["split"] == "train" and "loss" in row]
    needed = {
        "wake_sleep": {"elbo", "wake_loss", "sleep_loss"},
        "full_vb": {"elbo", "weight_kl", "dataset_bound"},
        "mcem": {"log_joint", "acceptance", "divergent", "step_size"},
    }[name]
    assert all(needed <= set(row) and all(math.isfinite(row[key]) for key in needed) for row in train)
    if name == "full_vb":
        whole = train[0]["elbo"] - train[0]["weight_kl"] / 1258
        assert train[0]["dataset_bound"] == pytest.approx(whole, rel=1e-4)
    if name == "mcem":
        measured = [row for row in rows(folder) if "log_marginal" in row]
        assert {row["split"] for row in measured} == {"train", "validation"}
        assert all(row["num_examples"] == 50 for row in measured)


@pytest.mark.parametrize("trained", ["full_vb", "mcem"], indirect=True)
def test_two_estimators_agree(trained, command, tmp_path: pathlib.Path):
    """Annealed importance sampling and the estimator of appendix D, on the same 40 examples and the same weights."""
    folder = shutil.copytree(trained[1], tmp_path / "run")
    told = {}
    for estimator, num in (("hmc", 50), ("ais", 8)):
        args = [f"--workdir={folder}", f"--estimator={estimator}", f"--num_samples={num}", "--max_examples=40"]
        told[estimator] = json.loads(command.ok("evaluate", *args).out)
        assert told[estimator]["estimator"].startswith(f"{num} ")
    # Four standard errors of the difference of two means of 40, and the bias of the annealed one to first order.
    hmc, ais = told["hmc"]["stderr_of_one"], told["ais"]["stderr_of_one"]
    far = 4 * math.hypot(hmc, ais) / math.sqrt(40) + ais**2 / 2
    assert told["hmc"]["nll"] == pytest.approx(told["ais"]["nll"], abs=far)
    assert far < 0.5
    assert told["ais"]["effective_sample_size"] > 1
    own = json.loads(command.ok("evaluate", f"--workdir={folder}", "--num_samples=50", "--max_examples=4").out)
    assert own["estimator"].startswith("50 posterior" if trained[0] == "mcem" else "50 importance")


def test_mcem_in_many_dimensions(command, tmp_path: pathlib.Path):
    """Where the estimator of appendix D fails: nothing is measured on the way, annealing at the end."""
    measures = ["--config.eval.curve_measure=none", "--config.eval.estimator=ais", "--config.eval.max_examples=8"]
    args = [*SMALL, "--config.learner.name=mcem", *measures, "--config.model.latent_dim=12"]
    command.ok("train", *args, f"--workdir={tmp_path}")
    assert {row["split"] for row in rows(tmp_path)} == {"train"}
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["estimator"] == "20 annealed importance chains over 500 temperatures"
    assert 15 < evaluation["nll"] < 60


def test_what_needs_an_encoder_is_refused(trained, command, tmp_path: pathlib.Path):
    name, folder = trained
    asked = [("evaluate", "--estimator=importance", "--num_samples=5"), ("generate", "--what=reconstructions")]
    for module, *args in asked:
        if name == "mcem":
            refused(command, module, f"--workdir={folder}", *args, words=["mcem trains no", "use --"])
    refused(command, "evaluate", f"--workdir={folder}", "--estimator=magic", words=["'magic'", "importance, hmc, ais"])
