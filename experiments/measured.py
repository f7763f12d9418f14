"""What a run has left in its folder, and the numbers in it with all that they depend on; files only, no JAX."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from aevb.errors import InputError
from experiments.catalogue import CATALOGUE, CODES, LIKELIHOOD, RECONSTRUCTION, name_of
from experiments.pages import read_if_there
from experiments.report import worth_more
from experiments.workdir import flatten, read_metrics

# Whose numbers they are: the model's, or those of what it is measured beside.
MODEL, UNTRAINED, SCRATCH, PIXELS, PCA = "model", "untrained encoder", "from scratch", "pixels", "PCA"
NOISY, MEAN_IMAGE = "noisy input", "mean image"


class Number(NamedTuple):
    """A value in the metric's unit, its standard error (None where there is none), and the seeds it is a mean of."""

    value: float
    stderr: float | None = None
    seeds: int = 1


Numbers = dict[str, Number]  # by metric


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a run has left in its folder so far.

    Attributes:
      folder: of the run.
      config: flat, by dotted key.
      metrics: the rows of metrics.jsonl.
      summary, evaluation, downstream, finetuning: of the files of these names; empty while they are not there.
      numbers: of the model itself and of what it is measured beside, by `MODEL`, `UNTRAINED`, ...
      sizes: of the codes behind these.
    """

    folder: epath.Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    downstream: dict[str, Any]
    finetuning: dict[str, Any]
    numbers: dict[str, Numbers]
    sizes: dict[str, int]

    @property
    def masked(self) -> bool:
        """Whether it is a masked autoencoder, whose errors are of masked patches alone."""
        return self.config["learner.name"] == "masked"

    @property
    def seed(self) -> int:
        return self.config["seed"]


def read(folder: epath.Path) -> Run:
    """Read a run.

    Raises:
      InputError: the folder is not a run's, or a file in it is not understood.
    """
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} is no run, for it has no config.json: give folders that experiments.train made")
    config = flatten(read_if_there(folder / "config.json"))
    missing = [
        key for key in ("seed", "dataset", "learner.name", "model.likelihood", "model.latent_dim") if key not in config
    ]
    if missing:
        raise InputError(
            f"{folder / 'config.json'} lacks the key {missing[0]}: give folders that experiments.train made"
        )
    summary, by_hand = read_if_there(folder / "summary.json"), read_if_there(folder / "evaluation.json")
    at_the_end = summary.get("evaluation") or {}
    evaluation = worth_more(by_hand, at_the_end)
    path = folder / "evaluation.json"
    told = [each for each in (evaluation, by_hand, at_the_end) if each.get("downstream")]
    downstream = _part(told[0], "downstream", path) if told else {}
    finetuning = read_if_there(folder / "finetuning.json")
    found: dict[str, Numbers] = {MODEL: _evaluated(evaluation, path)}
    for who, numbers in (*_downstream(downstream, path), *_finetuned(finetuning, folder / "finetuning.json")):
        found[who] = found.get(who, {}) | numbers
    width = "vit.width" if config["learner.name"] == "masked" else "model.latent_dim"
    size = evaluation.get("latent_dim") or config[width]
    sizes = {MODEL: size, UNTRAINED: size, SCRATCH: size, PCA: size}
    representations = _part(downstream, "representations", path)
    sizes |= {who: each["code_size"] for who, each in representations.items() if "code_size" in each}
    return Run(folder, config, read_metrics(folder), summary, evaluation, downstream, finetuning, found, sizes)


# --- The numbers of one run ---------------------------------------------------------------------------------


def _part(told: dict[str, Any], name: str, path: epath.Path) -> dict[str, Any]:
    """The dictionary under a name, empty where there is none.

    Raises:
      InputError: it is no dictionary.
    """
    part = told.get(name, {})
    if not isinstance(part, dict):
        raise InputError(f"{path}: {name} is {part!r}, where numbers by name belong: make that file again")
    return part


def _pick(told: Any, names: dict[str, str], where: epath.Path) -> Numbers:
    """Those numbers of a dictionary that have a value, under their names here, with their standard errors.

    Raises:
      InputError: it is no dictionary, or such a value is no number.
    """
    if not isinstance(told, dict):
        raise InputError(f"{where} holds {told!r}, where numbers by name belong: make that file again")
    numbers = {}
    for theirs, ours in names.items():
        value, stderr = told.get(theirs), told.get(f"{theirs}_stderr")
        for each in (value, stderr):
            if each is not None and (isinstance(each, bool) or not isinstance(each, (int, float))):
                raise InputError(f"{where}: {theirs} is {each!r} and should be a number: make that file again")
        if value is not None:
            numbers[ours] = Number(value, stderr)
    return numbers


def _evaluated(evaluation: dict[str, Any], path: epath.Path) -> Numbers:
    """Of evaluation.json; errors of masked patches have names of their own, for they are no errors of images."""
    names = {name: name for name, metric in CATALOGUE.items() if metric.group in (LIKELIHOOD, RECONSTRUCTION)}
    if "mask_ratio" in evaluation:
        names |= {"mse": "masked_mse", "psnr": "masked_psnr"}
    return _pick(evaluation, names, path)


def _downstream(told: dict[str, Any], path: epath.Path) -> Iterator[tuple[str, Numbers]]:
    """Of what codes and reconstructions are good for: who, and its numbers."""
    names = {name: name for name, metric in CATALOGUE.items() if metric.group == CODES}
    for who, numbers in _part(told, "representations", path).items():
        yield who, _pick(numbers, names, path)
    anomalies = _part(told, "anomalies", path)
    for who in anomalies:
        yield who, _pick(anomalies[who], {name: name for name in ("neighbours_auroc", "error_auroc")}, path)
    restoration = _part(told, "restoration", path)
    for who in restoration:
        numbers = _part(restoration, who, path)
        yield who, _pick(numbers, {name: name for name in ("reconstruction_mse", "reconstruction_psnr")}, path)
        for noise, denoised in _part(numbers, "denoising", path).items():
            yield who, _pick(denoised, {name: f"{name} {noise}" for name in ("denoising_mse", "denoising_psnr")}, path)
            yield NOISY, _pick(denoised, {"noisy_psnr": f"denoising_psnr {noise}"}, path)
        filled = _part(numbers, "inpainting", path)
        yield who, _pick(filled, {name: name for name in ("inpainting_mse", "inpainting_psnr")}, path)
        yield MEAN_IMAGE, _pick(filled, {"mean_image_mse": "inpainting_mse"}, path)


def _finetuned(told: dict[str, Any], path: epath.Path) -> Iterator[tuple[str, Numbers]]:
    """Of finetuning.json: the accuracy from the run's encoder, and from one that starts afresh."""
    if not told:
        return
    starts, num = told.get("starts"), told.get("num_labels")
    if not isinstance(starts, dict) or "pretrained" not in starts or not isinstance(num, (int, type(None))):
        raise InputError(
            f"{path} is not understood, for it has no accuracy of a pretrained encoder, or num_labels is no number: "
            "make it again with experiments.finetune"
        )
    name = "finetuned_accuracy" + (f" {num} labels" if num else "")
    for theirs, who in (("pretrained", MODEL), ("from scratch", SCRATCH)):
        numbers = _pick(starts.get(theirs, {}), {"accuracy": name}, path)
        if theirs in starts and not numbers:
            raise InputError(f"{path} has no accuracy of {theirs}: make it again with experiments.finetune")
        yield who, numbers


# --- What can be compared -----------------------------------------------------------------------------------


def facts(run: Run) -> dict[str, Any]:
    """What has to be equal for numbers to be compared; what is not known yet, or does not matter, is absent."""
    keys, evaluation, downstream = run.config, run.evaluation, run.downstream
    own = keys["dataset"] in ("arrays", "folder")
    told = {
        "data set": keys["dataset"] + (f" of {keys.get('data.dir')}" if own else ""),
        "division": ", ".join(
            f"{name} {keys.get(f'data.{key}')}"
            for name, key in (("seed", "seed"), ("validation", "validation_size"), ("test", "test_size"))
        ),
        "binarization": keys.get("data.binarization"),
        "likelihood": None if run.masked else keys["model.likelihood"],
        "evaluated split": evaluation.get("split"),
        "number of evaluated examples": evaluation.get("num_examples"),
        "estimator of log p(x)": evaluation["estimator"] if "nll" in evaluation else None,
        "share that is masked": evaluation.get("mask_ratio"),
        "target of a masked patch": ("normalised" if keys.get("vit.normalise") else "as it is") if run.masked else None,
        "split that codes are judged on": downstream.get("split"),
        "class that is held out": downstream.get("held_out_class"),
        "number of examples that probes learn from": downstream.get("num_train"),
        "number of examples that codes are judged on": downstream.get("num_test"),
    }
    return {name: value for name, value in told.items() if value is not None}


_JUDGED = ("data set", "division", "evaluated split", "number of evaluated examples", "binarization")
_BASES = {
    LIKELIHOOD: (*_JUDGED, "likelihood"),
    RECONSTRUCTION: (*_JUDGED, "share that is masked", "target of a masked patch"),
}
_OF_CODES = (
    "data set",
    "division",
    "split that codes are judged on",
    "class that is held out",
    "number of examples that probes learn from",
    "number of examples that codes are judged on",
)


def basis(run: Run, metric: str) -> tuple:
    """What two runs have to share for this number of theirs to be compared."""
    name = name_of(metric)
    names = _BASES.get(CATALOGUE[name].group, _OF_CODES)
    told = facts(run)
    also = {
        "nll": told.get("estimator of log p(x)"),
        "bits_per_dim": told.get("estimator of log p(x)"),
        "log_likelihood": "kl" in run.evaluation,  # of draws of z, or at the code
        "finetuned_accuracy": tuple(run.finetuning.get(key) for key in ("split", "num_examples", "num_steps")),
    }
    # The codes are of stored examples, and those of static binarization are drawn before training.
    drawn = names is _OF_CODES and run.config.get("data.binarization") == "static"
    return (*(told.get(each) for each in names), also.get(name), drawn)
