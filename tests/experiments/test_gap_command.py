"""The command that takes the gap of the bound apart, on a small run."""

import json
import pathlib
import shutil


def test_the_gap_of_a_run(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    run = shutil.copytree(finished, tmp_path / "run")
    ended = command.ok("gap", f"--workdir={run}", "--num=20", "--epochs=1")
    told = json.loads((run / "gap.json").read_text())
    assert json.loads(ended.out) == told
    assert (told["split"], told["num_examples"]) == ("test", 20)
    value = {name: part["mean"] for name, part in told.items() if isinstance(part, dict)}
    error = {name: part["monte_carlo_stderr"] for name, part in told.items() if isinstance(part, dict)}
    # log p(x) >= the best of the family >= the encoder's, but for the noise of the estimates.
    assert value["log_marginal"] > value["optimal_elbo"] - 4 * error["optimal_elbo"]
    assert value["optimal_elbo"] > value["elbo"] - 4 * error["elbo"]
    whole = value["log_marginal"] - value["elbo"]
    assert abs(value["approximation_gap"] + value["amortization_gap"] - whole) < 1e-3
    for name in ("from_posterior", "from_prior"):
        assert len(told[name]) == len(told["num_draws"])
    # Draws from the posterior are the better proposal, above all with few of them.
    assert told["from_posterior"][0]["mean"] > told["from_prior"][0]["mean"]
    assert (told["num_samples"], told["binarization"]) == (5000, "dynamic")
    assert 1 < told["effective_sample_size"] <= 5000
    assert told["encoder_alone"][0]["examples_seen"] == 0
    assert abs(told["encoder_alone"][0]["elbo"] - value["elbo"]) < 1e-6
    assert told["encoder_alone"][-1]["examples_seen"] > 0
    for name in ("gap.png", "proposals.png"):
        assert (run / "figures" / name).stat().st_size > 10_000
    page = (run / "report.html").read_text()
    assert "what the bound lacks to log p(x)" in page
    assert "Two estimators of log p(x)" in page
