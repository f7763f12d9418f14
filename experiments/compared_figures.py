"""The figures of a comparison: what has to be read for each, and sentences on what cannot be drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aevb import data
from aevb.errors import InputError
from experiments import compared, measured
from experiments.compared import Model, Row, label
from experiments.measured import PCA, PIXELS, UNTRAINED
from experiments.workdir import read_config

# What learning curves are of, the first that a run has told: the axis, and whether it falls by factors.
MEASURES = {
    "log_marginal": ("log p(x) (nats)", False),
    "elbo": ("ELBO (nats)", False),
    "squared_error": ("squared error", True),
    "masked_error": ("error of masked patches", True),
}


def learning_curves(models: Sequence[Model]) -> tuple[Any | None, list[str]]:
    """The learning curves of all models, and sentences on what is missing."""
    from aevb import figures

    panels: dict[tuple, dict[str, list[np.ndarray]]] = {}
    missing = []
    for model in models:
        for run in model.runs:
            rows = [row for row in run.metrics if row["split"] == "validation"]
            measure = next((name for name in MEASURES if any(name in row for row in rows)), None)
            if measure is None:
                missing.append(run.folder.name)
                continue
            of = [run.config["dataset"], run.config.get("data.binarization", "")]
            if measure in ("log_marginal", "elbo"):
                of.append(run.config["model.likelihood"])
            points = np.array([(row["examples_seen"], row[measure]) for row in rows if measure in row])
            panels.setdefault((measure, *of), {}).setdefault(model.name, []).append(points)
    sentences = [f"No learning curve on validation: {compared.listed(missing)}."] if missing else []
    if not panels:
        return None, sentences
    drawn = []
    for measure, *of in sorted(panels, key=lambda key: list(MEASURES).index(key[0])):
        name, falls = MEASURES[measure]
        alone = sum(key[0] == measure for key in panels) == 1
        lines = panels[measure, *of]
        log = falls and all((curve[:, 1] > 0).all() for each in lines.values() for curve in each)
        drawn.append(figures.Panel(name if alone else f"{name}\n{', '.join(of)}", lines, log))
    return figures.compared_curves(drawn, [model.name for model in models]), sentences


def reconstructions(models: Sequence[Model], num: int) -> tuple[Any | None, list[str]]:
    """The first test images above what the first seed of each model makes of them, and sentences on what is missing."""
    from aevb import figures

    rows: list[tuple[str, np.ndarray]] = []
    sentences, known, notes = [], {}, {"masked": [], "binarized": []}
    for model in models:
        run = model.runs[0]
        try:
            stored, name, images = reconstructed(model, num, known)
        except InputError as error:
            reason = str(error).replace(str(run.folder), run.folder.name)
            sentences.append(f"No reconstructions by {model.name}: {reason}.")
            continue
        if rows and not np.array_equal(rows[0][1], stored):
            sentences.append(f"No reconstructions by {model.name}: its test images are not those of {rows[1][0]}.")
            continue
        rows += [(name, images)] if rows else [("data", stored), (name, images)]
        notes["masked"] += [model.name] if run.masked else []
        drawn = run.config["data.binarization"] in ("static", "dynamic", "threshold")
        notes["binarized"] += [model.name] if drawn else []
    for names, words in (
        (notes["masked"], "Restored from the patches that are not masked, which are the data’s"),
        (notes["binarized"], "Shown a black-and-white draw of each image, as in evaluation"),
    ):
        sentences += [f"{words}: {compared.listed(names)}."] if names else []
    if not rows:
        return None, sentences
    names, images = zip(*rows, strict=True)
    return figures.classes(np.stack(images), [figures.short(name) for name in names], ""), sentences


def reconstructed(model: Model, num: int, known: dict[str, data.Dataset]) -> tuple[np.ndarray, str, np.ndarray]:
    """The first test examples as they are stored, what the model's row is called, and what it makes of them.

    Raises:
      InputError: the run has no encoder or no checkpoint yet, or its data are not to be had.
    """
    from experiments import build, checkpointed, pictures  # JAX comes with them
    from experiments.artist import Artist

    folder = model.runs[0].folder
    config = read_config(folder)
    read = ("dir", "validation_size", "test_size", "held_out_class", "train_size", "seed", "memory_limit_mb")
    source = str((config.dataset, *(config.data[key] for key in read)))
    dataset = known.get(source) or known.setdefault(source, build.load_data(config))
    run = build.build(config, dataset)
    if not run.learner.has_encoder:
        raise InputError(f"{run.facts['learner']} trains no encoder")
    artist = Artist(run, checkpointed.restore(run, folder)[0])
    draw, name = pictures.reconstructions, model.name
    if model.runs[0].masked:
        draw, name = pictures.restorations, f"{model.name} ({100 - 100 * run.config.vit.mask_ratio:.0f} % seen)"
    _, arrays = draw(artist, num)
    stored, _ = artist.examples(num)
    return artist.shown(stored), name, artist.shown(arrays["mean"])


def label_efficiency(rows: Sequence[Row], models: Sequence[Model]) -> tuple[Any | None, list[str]]:
    """Accuracy against the number of labels, of the models whose codes were judged on the data of the first of them."""
    from aevb import figures

    having = [row for row in rows if "probe_accuracy" in row.numbers]
    if not having:
        return None, []
    bases = [measured.basis(_judged(row), "probe_accuracy") for row in having]
    apart = [row.name for row, each in zip(having, bases, strict=True) if each != bases[0]]
    num_all = _judged(having[0]).downstream["num_train"]
    series = {}
    for row in having:
        if row.name in apart:
            continue
        found = {num: row.numbers.get(f"accuracy_{num}_labels") for num in (10, 100, 1000)}
        found = {num: number for num, number in found.items() if number} | {num_all: row.numbers["probe_accuracy"]}
        accuracy, stderr = zip(*((number.value, number.stderr or 0.0) for number in found.values()), strict=True)
        like = None if row.kind in (PIXELS, PCA) else next(each.name for each in models if each.runs is row.runs)
        series[label(row)] = figures.Accuracies(list(found), accuracy, stderr, like, row.kind == UNTRAINED)
    sentences = [f"Not drawn, for their codes were judged on other data: {compared.listed(apart)}."] if apart else []
    return figures.label_efficiency(series, [model.name for model in models], num_all), sentences


def _judged(row: Row) -> measured.Run:
    return next(run for run in row.runs if run.downstream)
