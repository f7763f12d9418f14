"""Compare runs: one page with their numbers, curves and pictures side by side, and a table as CSV.

python -m experiments.compare runs/vae runs/deep_seed0 runs/deep_seed1 --out=comparison

Runs that differ in their seed only are one model, and stand together as its mean. A run that still trains is shown with
what it has.
"""

import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import catalogue, cli, compared, compared_figures, measured, pages
from experiments.catalogue import CATALOGUE
from experiments.compared import Model, Row, label
from experiments.measured import MODEL
from experiments.workdir import at, in_store, write_csv, write_text

PAGE, TABLE = "comparison.html", "comparison.csv"
CAPTIONS = {  # in the order of the page
    "learning_curves.png": "Learning curves on validation, a line a run. What cannot be compared has an axis of its "
    "own. Squared errors are sums over elements, those of masked patches means.",
    "reconstructions.png": "The same test images as each model gives them back, decoded from the code of each. What is "
    "blurred or lost, the code does not carry.",
    "label_efficiency.png": "Accuracy of a linear probe of the codes against the number of labels that it learns from. "
    "Open circles: the same encoder before training; grey: no encoder. Bars are one standard error.",
}
INTRODUCTIONS = {
    catalogue.LIKELIHOOD: "Nats per datapoint.",
    catalogue.RECONSTRUCTION: "How clean examples come back from their codes, in squared units of the data.",
    catalogue.RESTORATION: "How near test images come back to the clean ones: as they are, after noise was put on "
    "them, and in a rectangle that was blackened. PSNR is of all images together.",
    catalogue.CODES: "What classifiers and clusters make of the codes of test examples, beside those of the encoder "
    "before training, raw pixels and PCA.",
}


def tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A table a group of numbers: columns, and rows with the best of each column marked."""
    found = []
    for name, introduction in INTRODUCTIONS.items():
        metrics = dict.fromkeys(metric for row in rows for metric in row.numbers)
        metrics = [metric for metric in sorted(metrics, key=catalogue.place) if _shown(metric, name)]
        having = [row for row in rows if any(metric in row.numbers for metric in metrics)]
        if not having:
            continue
        best = {metric: compared.best(having, metric) for metric in metrics}
        meanings = dict.fromkeys(CATALOGUE[catalogue.name_of(metric)].meaning for metric in metrics)
        meanings = "; ".join(meaning for meaning in meanings if meaning)
        found.append(
            {
                "name": name,
                "introduction": introduction,
                "meanings": meanings[:1].upper() + meanings[1:],
                "columns": [_column(metric) for metric in metrics],
                "rows": [
                    {
                        "name": label(row),
                        "kind": row.kind,
                        "density": name != catalogue.LIKELIHOOD or all(_density(run) for run in row.runs),
                        "cells": [_cell(row, metric, best[metric]) for metric in metrics],
                    }
                    for row in having
                ],
            }
        )
    return found


def _shown(metric: str, group: str) -> bool:
    told = CATALOGUE[catalogue.name_of(metric)]
    return told.group == group and bool(told.heading)


def _column(metric: str) -> dict[str, Any]:
    told = CATALOGUE[catalogue.name_of(metric)]
    return {"heading": catalogue.heading(metric), "unit": told.unit, "better": told.better}


def _cell(row: Row, metric: str, best: set[float]) -> dict[str, Any]:
    """A number as it is shown; nothing where there is none."""
    told, number = CATALOGUE[catalogue.name_of(metric)], row.numbers.get(metric)
    if number is None:
        return {"value": "", "stderr": "", "best": False}
    value, stderr = told.scale * number.value, told.scale * (number.stderr or 0.0)
    rounded = pages.decimal(stderr, told.digits) if round(stderr, told.digits) else f"{stderr:.1g}"
    stderr = rounded if stderr else ""
    return {"value": pages.decimal(value, told.digits), "stderr": stderr, "best": number.value in best}


def _density(run: measured.Run) -> bool:
    return run.evaluation.get("density", run.config.get("data.binarization") != "grey")


def overview(models: Sequence[Model], rows: Sequence[Row]) -> list[dict[str, str]]:
    """A row a model: what it is, and how far its training has come."""
    told = []
    for model, row in zip(models, [row for row in rows if row.kind == MODEL], strict=True):
        run = model.runs[0]
        sizes = [each.summary["num_parameters"] for each in model.runs if "num_parameters" in each.summary]
        seconds = row.train_seconds
        told.append(
            {
                "name": model.name,
                "dataset": run.config["dataset"],
                "learner": run.config["learner.name"],
                "code_size": f"{row.code_size:,}",
                "parameters": f"{sizes[0]:,}" if sizes else "",
                "seeds": ", ".join(str(each.seed) for each in model.runs),
                "time": "" if seconds is None else pages.duration(seconds),
                "status": "; ".join(dict.fromkeys(_status(each) for each in model.runs)),
            }
        )
    return told


def _status(run: measured.Run) -> str:
    """Whether a run has ended, and where it is if not."""
    if not run.summary:
        at = f"step {run.metrics[-1]['step']:,}" if run.metrics else "no step logged so far"
        return f"seed {run.seed} in training, {at}"
    words = str(run.summary.get("status", "finished")).replace("_", " ")
    return words if run.evaluation else f"{words}, not evaluated"


def conventions(models: Sequence[Model]) -> list[dict[str, str]]:
    """How the numbers of each model were made; those of which it is the same together."""
    said: dict[str, list[str]] = {}
    for model in models:
        for run in model.runs:
            told = run.evaluation
            if not told:
                continue
            sentence = (
                f"{told['num_examples']:,} examples of the {told['split']} split of {run.config['dataset']}, "
                f"binarization: {told['binarization']}, checkpoint: {told.get('checkpoint', 'last')}, weights: "
                f"{told['weights']}; {told['estimator']}; {told['convention']}."
            )
            names = said.setdefault(sentence, [])
            names += [] if model.name in names else [model.name]
    splits = dict.fromkeys(run.summary["splits"] for model in models for run in model.runs if "splits" in run.summary)
    whose = [{"names": compared.listed(names), "sentence": sentence} for sentence, names in said.items()]
    return whose + [{"names": "Splits", "sentence": f"{sentence}."} for sentence in splits]


def check(arguments: Sequence[str]) -> list[epath.Path]:
    """The folders that were named, each once.

    Raises:
      InputError: there are none, or one is named twice.
    """
    if not arguments:
        raise InputError("no run is named: give the folders of runs, for example runs/vae runs/deep --out=comparison")
    folders = [at(each) if in_store(each) else epath.Path(os.path.realpath(each)) for each in arguments]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise InputError(f"{arguments[place]} is named twice: name each run once")
    return folders


def write(models: Sequence[Model], out: epath.Path, num_images: int) -> epath.Path:
    """Write figures, table and page, each all or nothing; the page's path."""
    from aevb import figures

    rows = compared.rows(models)
    drawn = {
        "learning_curves.png": compared_figures.learning_curves(models),
        "reconstructions.png": compared_figures.reconstructions(models, num_images),
        "label_efficiency.png": compared_figures.label_efficiency(rows, models),
    }
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, (figure, sentences) in drawn.items():
        if figure is None:
            (out / name).unlink(missing_ok=True)  # of other runs
        else:
            figures.save(figure, out / name)
        if figure is not None or sentences:
            told = {"caption": CAPTIONS[name], "notes": sentences, "name": name.removesuffix(".png").replace("_", " ")}
            pictures.append(told | {"data": pages.inlined(out / name) if figure is not None else ""})
    write_csv(out / TABLE, compared.COLUMNS, compared.table(rows))
    datasets = dict.fromkeys(run.config["dataset"] for model in models for run in model.runs)
    page = pages.TEMPLATES.get_template("compare.html.jinja").render(
        title=f"{len(models)} models side by side · {compared.listed(list(datasets))}"
        if len(models) > 1
        else f"{models[0].name} · {next(iter(datasets))}",
        warning=compared.differences(models),
        overview=overview(models, rows),
        tables=tables(rows),
        pictures=pictures,
        conventions=conventions(models),
        commands=[row.command for row in rows if row.kind == MODEL and row.command],
        table=TABLE,
    )
    write_text(out / PAGE, page)
    return out / PAGE


def main(argv: list[str]) -> None:
    cli.refuse([argument for argument in argv if argument.startswith("-")])
    folders, out = check(argv), epath.Path(flags.FLAGS.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out={out} is a file: give a folder")
    models = compared.group([measured.read(folder) for folder in folders])
    print(f"look at {write(models, out, flags.FLAGS.num_images)}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", "comparison", "The folder to write to; made if it is not there.")
    flags.DEFINE_integer("num_images", 8, "Test images to reconstruct.", lower_bound=1, upper_bound=20)
    cli.run(main)
