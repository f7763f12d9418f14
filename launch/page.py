"""The page of a sweep, which needs nothing but itself, and its table: sweep.html and results.csv."""

import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath

from experiments import pages
from experiments.catalogue import CATALOGUE
from experiments.workdir import write_csv, write_text
from launch import metrics, results
from launch.definition import LENGTH, Sweep
from launch.metrics import Metric
from launch.results import Mean, Result, Setting
from launch.trials import BEGUN, FAILED, FINISHED, STOPPED, WAITING, Trial

PAGE, TABLE = "sweep.html", "results.csv"
OTHERS = 3  # of the numbers of evaluation.json that stand beside the metric
TEMPLATES = pages.TEMPLATES.overlay(
    loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(pathlib.Path(__file__).parent), pages.TEMPLATES.loader])
)


def write(
    sweep: Sweep, metric: Metric, root: epath.Path, trials: Sequence[Trial], num: int, command: str
) -> epath.Path:
    """Write both from what the trials have left in their folders so far, each all or nothing; the page's path.

    Args:
      sweep, metric: that was swept, and judged by.
      root: the sweep's folder.
      trials: that are known.
      num: that there are to be.
      command: that goes on with the sweep.
    """
    found = [results.read(root, metric, trial) for trial in trials]
    settings = results.settings(found)
    best = results.best(settings, metric)
    write_csv(root / TABLE, *results.table(sweep, metric, found))
    page = TEMPLATES.get_template("sweep.html.jinja").render(
        title=_title(sweep, found),
        status=f"{sweep.config} · {_length(sweep)} a trial · judged by {metric.heading}",
        headline=_headline(metric, found, settings, best, num),
        pictures=_pictures(sweep, metric, found, settings, best),
        columns=_columns(sweep, metric, found),
        rows=_rows(sweep, metric, found, settings, best),
        trials=_trials(metric, found),
        several=any(len(each.results) > 1 for each in settings),
        failures=[each for each in found if each.state.status == FAILED],
        conventions=_conventions(sweep, metric, found, settings),
        best=_command(best),
        command=command,
        common=[f"{key} = {value}" for key, value in sweep.common.items()],
        config=sweep.config,
        table=TABLE,
    )
    write_text(root / PAGE, page)
    return root / PAGE


def _title(sweep: Sweep, found: Sequence[Result]) -> str:
    from launch.sweep_figures import label

    dataset = sweep.load({}).dataset if "dataset" not in sweep.keys else "several data sets"
    names = [label(key) for key in sweep.keys if key != "seed"] or ["seeds"]
    return f"{' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)} · {dataset}"


def _length(sweep: Sweep) -> str:
    return "its own number of epochs" if LENGTH in sweep.keys else f"{sweep.budget.num_epochs:g} epochs"


def _count(found: Sequence[Result], status: str) -> int:
    return sum(each.state.status == status for each in found)


def _status(found: Sequence[Result], num: int) -> str:
    """How many trials are where."""
    told = [(FINISHED, "finished"), (STOPPED, "stopped early"), (FAILED, "failed"), (BEGUN, "begun")]
    parts = [f"{_count(found, status)} {words}" for status, words in told if _count(found, status)]
    waiting = num - len(found) + _count(found, WAITING)
    parts += [f"{waiting} to do"] if waiting else []
    return ", ".join(parts)


def _shown(mean: Mean | None, digits: int) -> dict[str, str]:
    """A mean as it stands in a table; nothing where there is none."""
    if mean is None:
        return {"value": "", "half": ""}
    half = "" if mean.half is None else pages.decimal(mean.half, digits)
    if half and not float(half.replace(",", "")) and mean.half:
        half = f"{mean.half:.1g}"
    return {"value": pages.decimal(mean.value, digits), "half": half}


def _headline(
    metric: Metric, found: Sequence[Result], settings: Sequence[Setting], best: Setting | None, num: int
) -> list[dict[str, str]]:
    """The numbers on top."""
    from launch.sweep_figures import setting_name

    tiles = []
    if best is not None:
        shown = _shown(best.score, metric.digits)
        of = f"{best.score.num} seeds" if best.score.num > 1 else "one trial"
        half = f"± {shown['half']} " if shown["half"] else ""
        of += ", chosen on the test split" if metric.split == "test" and len(settings) > 1 else ""
        name = f"best {metric.heading}" if len(settings) > 1 else metric.heading
        tiles.append({"name": name, "value": shown["value"], "unit": f"{half}{metric.unit}", "note": of})
    if best is not None and len(settings) > 1:
        tiles.append({"name": "best setting", "value": setting_name(best), "unit": "", "note": _lead(settings, best)})
    done = results.ended(found)
    tiles.append({"name": "trials done", "value": str(done), "unit": f"of {num}", "note": _status(found, num)})
    seconds = sum(each.summary.get("total_seconds", 0.0) for each in found)
    if seconds and not _packed(found):
        note = "of all finished trials, with start and evaluation"
        tiles.append({"name": "time", "value": pages.duration(seconds), "unit": "", "note": note})
    return tiles


def _packed(found: Sequence[Result]) -> bool:
    """Whether trials were trained together, each of which tells the time of all."""
    return any(each.summary.get("packed_with") for each in found)


def _lead(settings: Sequence[Setting], best: Setting) -> str:
    """Whether the intervals of others overlap with the best one's, where all have one."""
    from launch.sweep_figures import setting_name

    others = [each for each in settings if each.score and each is not best]
    if any(each.score.half is None for each in [best, *others]):
        return f"of {len(others) + 1}"
    near = [
        setting_name(each)
        for each in others
        if abs(each.score.value - best.score.value) <= each.score.half + best.score.half
    ]
    return f"intervals overlap with {', '.join(near[:3])}{' …' * (len(near) > 3)}" if near else "no interval overlaps"


def _pictures(
    sweep: Sweep, metric: Metric, found: Sequence[Result], settings: Sequence[Setting], best: Setting | None
) -> list[dict[str, str]]:
    """The figures that can be drawn so far."""
    from launch import sweep_figures

    drawn = []
    keys = [key for key in sweep.keys if key != "seed"]
    keys = [key for key in keys if len({str(each.values[key]) for each in settings}) > 1]
    if best is not None and keys:
        name = f"{metric.heading} against what varies"
        whole = all(each.state.status == FINISHED for each in found)
        words = f"At the end of training{'' if whole else ', or as far as a trial came'}; {_side(metric)} is better."
        words += " Bars are the 95 % t interval of the mean over seeds." if best.score.half is not None else ""
        drawn.append((name, words, sweep_figures.against(settings, keys, metric, best)))
    of = results.curve_of(metric, found)
    figure = sweep_figures.curves(settings, of, best) if of else None
    if figure is not None:
        words = f"During training, a line a trial; {_side(of)} is better."
        drawn.append((f"{of.heading} in training", words, figure))
    return [{"name": name, "caption": words, "data": _inlined(figure)} for name, words, figure in drawn]


def _side(metric: Metric) -> str:
    return "higher" if metric.better > 0 else "lower"


def _inlined(figure: Any) -> str:
    from aevb import figures

    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / "figure.png"
        figures.save(figure, path)
        return pages.inlined(path)


def _others(metric: Metric, found: Sequence[Result]) -> list[str]:
    names = dict.fromkeys(name for each in found for name, value in each.evaluation.items() if value is not None)
    return metrics.others(names, metric)[:OTHERS]


def _columns(sweep: Sweep, metric: Metric, found: Sequence[Result]) -> dict[str, Any]:
    """The headings of the table of settings: what varies, then numbers with unit and better side."""
    from launch.sweep_figures import label

    split = next((each.evaluation["split"] for each in found if each.evaluation), "test")
    numbers = [{"heading": metric.heading, "unit": metric.unit, "better": metric.better}]
    for name in _others(metric, found):
        told = CATALOGUE[name]
        numbers.append({"heading": f"{split} {told.heading}", "unit": told.unit, "better": told.better})
    return {"keys": [label(key) for key in sweep.keys if key != "seed"], "numbers": numbers}


def _rows(
    sweep: Sweep, metric: Metric, found: Sequence[Result], settings: Sequence[Setting], best: Setting | None
) -> list[dict[str, Any]]:
    """A row a setting; those of a search with the best on top."""
    from launch.sweep_figures import said

    others = _others(metric, found)
    if sweep.distributions:
        worst = float("-inf")
        value = {id(each): metric.better * each.score.value if each.score else worst for each in settings}
        settings = sorted(settings, key=lambda each: (each.whole, value[id(each)]), reverse=True)
    rows = []
    for each in settings:
        seconds = [result.summary["train_seconds"] for result in each.results if "train_seconds" in result.summary]
        cells = [_shown(each.score, metric.digits)]
        cells += [_shown(each.mean(name), CATALOGUE[name].digits) for name in others]
        states = [result.state.status for result in each.results]
        odd = dict.fromkeys(status for status in states if status != FINISHED)
        alone = each.results[0] if len(states) == 1 else None
        seen = results.last(alone, metric) if alone and alone.score is None else None
        rows.append(
            {
                "values": [said(value) for value in each.values.values()],
                "finished": f"{states.count(FINISHED)} of {len(states)}",
                "best": each is best and len(settings) > 1,
                "cells": cells,
                "time": pages.duration(sum(seconds) / len(seconds)) if seconds else "",
                "seen": "" if seen is None else pages.decimal(seen, metric.digits),
                "status": _at(alone) if alone else ", ".join(f"{states.count(status)} {status}" for status in odd),
            }
        )
    return rows


def _at(result: Result) -> str:
    """What became of a trial that has not finished."""
    told, step = result.state.status, result.state.step
    return "" if told == FINISHED else f"{told}, step {step:,}" if step else told


def _trials(metric: Metric, found: Sequence[Result]) -> list[dict[str, str]]:
    """A row a trial."""
    rows = []
    for each in found:
        value = each.score if each.score is not None else results.last(each, metric)
        seconds = each.summary.get("train_seconds")
        rows.append(
            {
                "name": each.trial.name,
                "status": _at(each) or FINISHED,
                "value": "" if value is None else pages.decimal(value, metric.digits),
                "stderr": "" if each.stderr is None else pages.decimal(each.stderr, metric.digits),
                "epochs": f"{each.trial.config[LENGTH]:g}",
                "time": "" if seconds is None else pages.duration(seconds),
            }
        )
    return rows


def _conventions(sweep: Sweep, metric: Metric, found: Sequence[Result], settings: Sequence[Setting]) -> list[str]:
    """Sentences: how the numbers were made."""
    budget, told = sweep.budget, [f"Trials are judged by {metric.heading}: {_side(metric)} is better."]
    if any(len(each.results) > 1 for each in settings):
        told.append(
            "Seeds of a setting stand together as their mean, ± half of the 95 % t interval of that mean over seeds "
            "(t of n − 1 degrees of freedom, times s / √n): it is of training again, not of other examples. A setting "
            "of which a seed is missing is best only where none is whole."
        )
    if metric.split == "test" and len(settings) > 1:
        told.append("The best is chosen on the test split, so its own number there is too good.")
    early = (
        f"; from {budget.grace_epochs:g} epochs on, what is behind the best one in {budget.reduction} of those that "
        "came as far is stopped early (ASHA)"
    )
    told.append(f"Each trial trains for {_length(sweep)}{early if budget.grace_epochs else ''}.")
    if sweep.distributions:
        told.append(f"The values are drawn by {'Optuna’s TPE' if sweep.search == 'optuna' else 'chance'}.")
    if _packed(found):
        told.append("Trials were trained together, and each tells the time that all of its pack took.")
    evaluation = next((each.evaluation for each in found if each.evaluation), None)
    if evaluation:
        told.append(
            f"Numbers of the {evaluation['split']} split are of {evaluation['num_examples']:,} examples, binarization "
            f"{evaluation['binarization']}, {evaluation['estimator']}."
        )
        if not evaluation.get("density", True):
            told.append("They are not of a density: grey values under a Bernoulli.")
    machine = next((each.summary["hardware"] for each in found if "hardware" in each.summary), None)
    if machine:
        told.append(f"Trained on {machine['device_count']} {machine['device']} device(s), {machine['cpu']}.")
    return told


def _command(best: Setting | None) -> str:
    """What makes the first trial of the best setting."""
    if best is None:
        return ""
    return next((each.summary.get("command", "") for each in best.results if each.score is not None), "")
