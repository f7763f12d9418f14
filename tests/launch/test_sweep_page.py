"""Means of seeds, the best, the page and its table."""

import csv
import json
import math

import numpy as np
import pytest
from etils import epath
from scipy import stats
from sweep_world import drawn, leave, result_of, rows, sweep

from launch import metrics, page, results, trials


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [-24.5, -24.1], list(np.random.default_rng(0).normal(size=9))])
def test_interval_is_scipys(values):
    told = results.mean(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert told.value == pytest.approx(np.mean(values), rel=1e-12)
    assert (told.value - told.half, told.value + told.half) == pytest.approx((low, high), rel=1e-9)
    assert told.num == len(values)


def test_interval_covers_the_mean_19_times_in_20():
    draws = np.random.default_rng(1).normal(3.0, 2.0, (2000, 3))
    told = [results.mean(list(row)) for row in draws]
    covered = sum(abs(each.value - 3.0) <= each.half for each in told)
    assert abs(covered / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)  # 3 standard errors
    assert results.mean([5.0]) == (5.0, None, 1)


def test_the_best_is_not_the_one_whose_bad_seeds_are_missing():
    found = trials.known(sweep(grid={"model.latent_dim": [2, 4, 8], "seed": [0, 1]}))
    scores = [-30.0, -28.0, -20.0, None, -27.0, -27.5]
    told = [result_of(*pair, status=trials.FAILED if pair[1] is None else trials.FINISHED)
            for pair in zip(found, scores, strict=True)]  # fmt: skip
    settings_ = results.settings(told)
    assert [each.score.value for each in settings_] == [-29.0, -20.0, -27.25]
    higher, lower = metrics.Metric("validation", "elbo", 1), metrics.Metric("test", "nll", -1)
    assert results.best(settings_, higher).values == {"model.latent_dim": 8}
    assert results.best(settings_, lower).values == {"model.latent_dim": 2}
    assert results.best(settings_[1:2], higher).values == {"model.latent_dim": 4}
    assert results.best(results.settings([result_of(found[0], None, trials.WAITING)]), higher) is None


def write_page(tmp_path, found, told, scores, **changes):
    for trial, value in zip(found, scores, strict=True):
        if value is None:
            continue
        evaluation = {"split": "test", "num_examples": 359, "binarization": "dynamic", "estimator": "1,000 samples",
                      "nll": -value - 0.5, "elbo": value, "density": True}  # fmt: skip
        summary = {"status": "finished", "train_seconds": 61.0, "total_seconds": 70.0,
                   "command": f"python -m experiments.train --workdir={trial.name}"}  # fmt: skip
        leave(trials.folder(epath.Path(tmp_path), trial), trial, metrics=rows(value - 1, value),
              evaluation=evaluation, summary=summary)  # fmt: skip
    metric = metrics.parse(told.metric)
    path = page.write(told, metric, epath.Path(tmp_path), found, len(found), "python -m launch.sweep --again")
    with open(tmp_path / "results.csv") as file:
        return path.read_text(), list(csv.DictReader(file))


def test_page_and_table_tell_what_there_is(tmp_path):
    told = sweep(grid={"model.latent_dim": [2, 4, 8], "seed": [0, 1]})
    found = trials.known(told)
    trials.record(epath.Path(tmp_path), found[4], trials.FAILED, "step 4 has loss <nan>", True)
    scores = [-30.0, -29.0, -25.0, -25.5, None, None]
    text, table = write_page(tmp_path, found, told, scores)
    half = results.mean([-25.0, -25.5]).half
    assert "4 finished, 1 failed, 1 to do" in text
    assert "−25.25" in text
    assert f"± {half:.2f}" in text
    assert "--workdir=latent_dim4_seed0" in text
    assert "step 4 has loss &lt;nan&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text.replace("http-equiv", "")
    assert [row["trial"] for row in table] == [each.name for each in found]
    assert [row["validation elbo"] for row in table] == ["-30.0", "-29.0", "-25.0", "-25.5", "", ""]
    assert [row["test nll"] for row in table[:4]] == ["29.5", "28.5", "24.5", "25.0"]
    assert [row["status"] for row in table] == ["finished"] * 4 + ["failed", "waiting"]
    assert (table[2]["model.latent_dim"], table[4]["reason"]) == ("4", "step 4 has loss <nan>")


def test_page_of_a_search_with_many_and_of_nothing_yet(tmp_path):
    told = drawn(num=12)
    found = trials.known(told)
    text, table = write_page(tmp_path / "many", found, told, [-30.0 + i for i in range(11)] + [-1e6])
    assert text.count("data:image/png;base64,") == 2
    assert len(table) == 12
    assert text.index(">−20.00<") < text.index(">−21.00<")  # the best on top
    # Packed trials share their times, which are not summed.
    assert "of all finished trials" in text
    for path in (tmp_path / "many").glob("trials/*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"packed_with": 11}))
    text = page.write(told, metrics.parse(told.metric), epath.Path(tmp_path / "many"), found, 12, "again").read_text()
    assert "of all finished trials" not in text
    assert "each tells the time that all of its pack took" in text
    (tmp_path / "none").mkdir()
    text, table = write_page(tmp_path / "none", found, told, [None] * 12)
    assert "12 to do" in text
    assert "data:image" not in text
