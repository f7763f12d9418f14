"""One page for a run, which needs nothing but itself, also offline.

    python -m experiments.report --workdir=DIR

writes DIR/report.html. It reads only files, so it works while the training runs, and again after it.
"""

import math
import shlex

from absl import flags
from etils import epath

from experiments import cli
from experiments.captions import CAPTIONS
from experiments.pages import TEMPLATES, decimal, duration, inlined, read_if_there
from experiments.workdir import at, flatten, read_json, read_metrics, write_text


def write(workdir: epath.PathLike, summary: dict | None = None) -> epath.Path:
    """Writes report.html from what a run has left in its folder so far, all or nothing.

    Args:
        workdir: holds config.json, and maybe metrics.jsonl, evaluation.json, figures/*.png and, unless given, summary.

    Returns:
        The page's path.

    Raises:
        InputError: if the folder is not a run's, or a file in it is not JSON.
    """
    workdir = epath.Path(workdir)
    config = read_json(workdir / "config.json")
    metrics = read_metrics(workdir)
    summary = read_if_there(workdir / "summary.json") if summary is None else summary
    by_hand = read_if_there(workdir / "evaluation.json")
    evaluation = worth_more(by_hand, summary.get("evaluation") or {})
    grey = config["data"]["binarization"] == "grey"
    page = TEMPLATES.get_template("report.html.jinja").render(
        title=f"{_kind(config['model'])} ({config['model']['network']}) · {config['dataset']}",
        status=_status(summary, metrics),
        density=evaluation.get("density", summary.get("density", not grey)),
        headline=_headline(summary, evaluation, metrics),
        conventions=_conventions(config, metrics, summary, evaluation)
        + _gap(read_if_there(workdir / "gap.json"))
        + _tuned(read_if_there(workdir / "finetuning.json")),
        pictures=_pictures(workdir / "figures"),
        bounds=_bounds(summary, metrics),
        downstream=_downstream(by_hand.get("downstream", {})),
        draw="latents" if config["model"]["posterior"] == "point_mass" else "samples",
        settings=flatten(config),
        machine=flatten({**summary.get("versions", {}), **summary.get("hardware", {})}),
        workdir=shlex.quote(str(workdir)),
    )
    path = workdir / "report.html"
    write_text(path, page)
    return path


def worth_more(by_hand: dict, at_the_end: dict) -> dict:
    """The evaluation that the page is about: the last one, unless it tells of less than that at the end of the run."""
    if not at_the_end or not by_hand:
        return by_hand or at_the_end
    of_less = by_hand["num_examples"] < at_the_end["num_examples"] or ("elbo" in at_the_end and "elbo" not in by_hand)
    return at_the_end if by_hand["split"] != "test" or of_less else by_hand


# --- Numbers ------------------------------------------------------------------------------------------------


def _kind(model: dict) -> str:
    if model["posterior"] != "point_mass":
        return "VAE"
    return "Masked autoencoder" if model["network"] == "vit" else "Autoencoder"


def _bound_name(name: str) -> str:
    return name.upper().replace("_", "-")


def _status(summary: dict, metrics: list[dict]) -> str:
    if not summary:
        return f"training, step {metrics[-1]['step']:,} so far" if metrics else "training, no step logged so far"
    parts = [
        summary["status"].replace("_", " "),
        f"{summary['step']:,} of {summary['num_steps']:,} steps",
        f"{summary['examples_seen']:,} examples seen",
        f"{summary['num_parameters']:,} parameters",
        f"seed {summary['seed']}",
    ]
    return " · ".join(parts)


def _headline(summary: dict, evaluation: dict, metrics: list[dict]) -> list[dict]:
    """The numbers on top, with unit and convention; `probability` marks those that need a density."""
    tiles = []

    def add(name: str, value: str | None, unit: str, note: str, probability: bool = False) -> None:
        if value is not None:
            tile = {"name": name, "value": value, "unit": unit, "note": note, "probability": probability}
            tiles.append(tile)

    def shown(key: str, digits: int = 2) -> str | None:
        return None if evaluation.get(key) is None else decimal(evaluation[key], digits)

    def nats(key: str) -> str:
        error = evaluation.get(f"{key}_stderr")
        return "nats" if error is None else f"± {decimal(error)} nats"

    validation = [row for row in metrics if row["split"] == "validation"]
    if evaluation:
        split, samples = evaluation["split"], evaluation["estimator"]
        of_what = "masked patches" if "mask_ratio" in evaluation else "elements and examples"
        add(f"{split} NLL", shown("nll"), nats("nll"), samples, True)
        add(f"{split} squared error", shown("mse", 5), f"± {shown('mse_stderr', 5)}", f"mean over {of_what}")
        add("PSNR", shown("psnr"), "dB", "of that error, at the range of the data")
        paired = f"the model's less PCA's is {shown('above_pca', 5)} ± {shown('above_pca_stderr', 5)}"
        add("PCA's squared error", shown("pca_mse", 5), f"of {evaluation['latent_dim']:,} components", paired)
        tail = f"the eigenvalue tail of PCA is {shown('eigenvalue_tail', 5)}"
        add("train squared error", shown("train_mse", 5), "", tail)
        add("angle to PCA's subspace", shown("largest_angle_to_pca"), "°", "the largest principal angle")
        add(f"{split} ELBO", shown("elbo"), nats("elbo"), "a lower bound of log p(x)", True)
        add(f"{split} KL", shown("kl"), nats("kl"), "posterior from prior")
        add("bits per dimension", shown("bits_per_dim", 3), "bits", samples, True)
        of = f"of {evaluation['latent_dim']:,}"
        add("active units", shown("active_units", 0), of, "latent dimensions in use")
        add("dead units", shown("dead_units", 0), of, "elements that are 0 in every code")
        if "active" in evaluation:
            add(f"{split} log-likelihood", shown("log_likelihood"), nats("log_likelihood"), "of x given its code", True)
            add("active", decimal(100 * evaluation["active"], 1), "%", "of the codes’ elements are not 0")
    elif validation and "elbo" in validation[0]:
        best = max(validation, key=lambda row: row["elbo"])
        add("validation ELBO", decimal(best["elbo"]), "nats", f"best so far, step {best['step']:,}", True)
        add("validation KL", decimal(best["kl"]), "nats", f"step {best['step']:,}")
    speeds = [row["examples_per_second"] for row in metrics if "examples_per_second" in row] or [None]
    speed = summary.get("examples_per_second", speeds[-1])
    device = summary.get("hardware", {}).get("device")
    add("speed", speed and decimal(speed, 0), "examples/s", "in training" + (f", {device}" if device else ""))
    if summary:
        total = f"{duration(summary['total_seconds'])} with start and evaluation"
        add("training time", duration(summary["train_seconds"]), "", total)
        memory = summary.get("peak_memory_gib")
        add("peak memory", memory and decimal(memory), "GiB", "of training")
    return tiles


def _conventions(config: dict, metrics: list[dict], summary: dict, evaluation: dict) -> list[str]:
    """Sentences: how the numbers were made."""
    text = [
        "Bounds are nats per datapoint. ELBO = log-likelihood − KL is a lower bound of log p(x): higher is "
        "better. NLL = −log p(x): lower is better."
    ]
    if "mse" in evaluation:
        text = [f"Higher log-likelihood and PSNR are better. {evaluation['convention']}"]
    if evaluation:
        text += [
            f"Evaluated on {evaluation['num_examples']:,} examples of the {evaluation['split']} split "
            f"(binarization: {evaluation['binarization']}), checkpoint: {evaluation['checkpoint']}, "
            f"step {evaluation['step']:,}, weights: {evaluation['weights']}; ± is one standard error over these "
            "examples.",
            *_estimated(evaluation),
            *_floor(evaluation),
            *_code(evaluation),
        ]
    if summary:
        text += [
            f"Trained by {_bound_name(summary['learner'])}{_trained_on(summary, config['bound'])} with a "
            f"{summary['likelihood']} likelihood (binarization: {summary['binarization']})" + _parts(config["model"]),
            *_weighed(config["bound"], metrics),
            *_changed(config),
            *[f"Times and rates are shared with other packed trials: {n}" for n in [summary.get("packed_with")] if n],
            summary["splits"],
        ]
    return [sentence[0].upper() + sentence[1:].removesuffix(".") + "." for sentence in text]


def _estimated(evaluation: dict) -> list[str]:
    """How log p(x) was estimated, where there is one."""
    if "nll" not in evaluation:
        return []
    how = f"The NLL is estimated with {evaluation['estimator']} a datapoint"
    return [how + _effective(evaluation) + _bias(evaluation), evaluation["convention"]]


def _gap(gap: dict) -> list[str]:
    """What experiments.gap found."""
    if not gap:
        return []
    parts = {
        name: f"{decimal(gap[name]['mean'])} ± {decimal(gap[name]['monte_carlo_stderr'])}"
        for name in ("log_marginal", "approximation_gap", "amortization_gap")
    }
    return [
        f"The gap is that of the first {gap['num_examples']:,} {gap['split']} examples at step {gap['step']:,}, from "
        f"{gap['num_samples']:,} draws each: log p(x) = {parts['log_marginal']} nats, approximation gap "
        f"{parts['approximation_gap']}, amortization gap {parts['amortization_gap']}; ± is the standard error of the "
        "draws."
    ]


def _tuned(told: dict) -> list[str]:
    """What experiments.finetune found."""
    if not told:
        return []
    each = [
        f"{decimal(100 * one['accuracy'])} ± {decimal(100 * one['accuracy_stderr'])} % {name}"
        for name, one in told["starts"].items()
    ]
    return [
        f"With a linear head, trained with the encoder on {told['num_labels']:,} labels for "
        f"{told['num_steps']:,} steps, {' and '.join(each)} "
        f"of the {told['num_examples']:,} {told['split']} examples are classified correctly."
    ]


def _trained_on(summary: dict, bound: dict) -> str:
    """The bound, where the learner climbs or measures one."""
    several = f", {bound['num_samples']} draws of z a datapoint" * (bound["num_samples"] > 1)
    return f" (bound: {_bound_name(summary['bound'])}{several})" if summary["bound"] else ""


def _parts(model: dict) -> str:
    """What the model has in another place than a diagonal Gaussian, a standard normal, and no context."""
    usual = {"posterior": "diagonal_gaussian", "prior": "standard_normal", "context": "none"}
    return "".join(f", {part}: {model[part].replace('_', ' ')}" for part in usual if model[part] != usual[part])


def _weighed(bound: dict, metrics: list[dict]) -> list[str]:
    """How training weighed the KL, where that is not as the bound has it."""
    schedule, weights = bound["kl_schedule"], [row["kl_weight"] for row in metrics if "kl_weight" in row]
    free = f"{bound['free_bits']:g} nats of the KL of each latent dimension were free" if bound["free_bits"] else ""
    if schedule == "adaptive":
        last = f", at the end {weights[-1]:.3g}" if weights else ""
        told = f"beta was moved to hold a log-likelihood of {decimal(bound['log_likelihood_target'])} nats{last}"
    elif schedule != "constant":
        told = f"beta rose to {bound['kl_weight']:g} along a {schedule} schedule of {bound['kl_warmup_steps']:,} steps"
    else:
        told = f"beta was {bound['kl_weight']:g}" if bound["kl_weight"] != 1 else ""
    told = " and ".join(part for part in (told, free) if part)
    return [f"In training {told}; every number here is at beta = 1"] if told else []


def _changed(config: dict) -> list[str]:
    """What training made of its inputs, and what it asked of codes beside giving the data back."""
    keys, weight = config["data"], config.get("learner", {}).get("l1_weight", 0)
    noise = keys.get("corruption", "none")
    told = [f"The loss has {weight:g} |z|_1 added, summed over the elements of the code"] if weight else []
    if noise != "none":
        told.append(
            f"In training the encoder saw examples with {noise.replace('_', ' ')} noise ({keys['corruption_level']:g}) "
            "and the target was the clean one: the training curve is of these, every other number of clean examples"
        )
    return told


def _floor(evaluation: dict) -> list[str]:
    """Whether learned scales collapsed onto the floor under them."""
    share = evaluation.get("scales_at_floor")
    if share is None:
        return []
    words = f"{100 * share:.1f} % of the learned scales are at the floor that config.model.min_scale puts under them"
    return [words + (", so the density says what that floor is" if share > 0.01 else "")]


def _code(evaluation: dict) -> list[str]:
    """What the code says of the data."""
    if "mutual_information" not in evaluation:
        return []
    # An estimate of what is at least 0 may lie below.
    information, marginal = (decimal(max(evaluation[name], 0)) for name in ("mutual_information", "marginal_kl"))
    num = evaluation["information_examples"]
    # Where the estimate is at its ceiling, what it lacks is counted as distance from the prior.
    full = evaluation["mutual_information"] > math.log(num) - 0.5
    ceiling = "; the first may be larger, and the second smaller by as much" if full else ""
    collapse = "Posterior collapse: " if evaluation["collapsed"] else ""
    return [
        f"The codes of {num:,} examples say I(x; z) = {information} nats of them (at most log {num:,} = "
        f"{decimal(math.log(num))} can be seen), and all codes together are {marginal} nats from the prior{ceiling}",
        f"{collapse}{evaluation['advice']}",
    ]


def _effective(evaluation: dict) -> str:
    """How many of the weighted samples count."""
    size = evaluation.get("effective_sample_size")
    return "" if size is None else f" (effective sample size {decimal(size, 1)} on average)"


def _bias(evaluation: dict) -> str:
    """On which side of the truth an estimate of the NLL lies."""
    if "posterior" in evaluation["estimator"]:
        return "; it has no known sign of error, and holds for a few latent dimensions only."
    return ": on average it is too high, and more samples lower it."


def _bounds(summary: dict, metrics: list[dict]) -> list[dict]:
    """Rows of the table: the summary's, or while it is missing what the log has."""
    if "bounds" in summary:
        found = [(split, which, row) for split, pair in summary["bounds"].items() for which, row in pair.items()]
    else:
        rows = [row for row in metrics if "elbo" in row]
        logged = {split: [row for row in rows if row["split"] == split] for split in ("train", "validation", "test")}
        found = [(split, "latest", rows[-1]) for split, rows in logged.items() if rows]
    numbers = ("elbo", "log_likelihood", "kl")
    return [
        {"split": split, "which": which, "step": f"{row['step']:,}"} | {key: decimal(row[key]) for key in numbers}
        for split, which, row in found
    ]


# What codes and reconstructions are good for: of each number its column, its factor and its digits.
_CODES = {
    "code_size": ("code size", 1, 0),
    "probe_accuracy": ("linear probe, %", 100, 2),
    "knn_accuracy": ("5 neighbours, %", 100, 2),
    "accuracy_10_labels": ("probe of 10 labels, %", 100, 1),
    "accuracy_100_labels": ("of 100, %", 100, 1),
    "accuracy_1000_labels": ("of 1,000, %", 100, 1),
    "kmeans_nmi": ("k-means NMI", 1, 3),
    "kmeans_ari": ("k-means ARI", 1, 3),
    "anomaly_auroc": ("anomaly AUROC", 1, 3),
}


def _downstream(told: dict) -> dict:
    """The two tables of `evaluate --downstream`, and how they were made; nothing where it was not run."""
    if not told:
        return {}
    rows = told.get("representations", {})
    columns = [key for key in _CODES if any(key in row for row in rows.values())]
    codes = {
        "columns": [_CODES[key][0] for key in columns],
        "rows": {
            name: [decimal(row[key] * _CODES[key][1], _CODES[key][2]) if key in row else "" for key in columns]
            for name, row in rows.items()
        },
    }
    restored = {name: _restored(row) for name, row in told["restoration"].items() if row}
    images = {
        "columns": list(next(iter(restored.values()), {})),
        "rows": {name: list(row.values()) for name, row in restored.items()},
    }
    without = " (in the table of codes without the class held out)" if rows and "anomalies" in told else ""
    return {
        "note": f"Learned from the codes of {told['num_train']:,} training examples, measured on {told['num_test']:,} "
        f"of the {told['split']} split{without}; every encoder is shown the clean examples as they are stored. "
        "Clusters and restorations are of the latter alone. Hidden pixels are 0 where an encoder or PCA looks; a "
        "masked autoencoder is not shown their patches. Anomalies are a class whose codes the detector never saw, "
        "though the encoder did. dB are of the PSNR at the range of the data; higher is better in every column of "
        "numbers.",
        "codes": codes if rows else None,
        "images": images if restored else None,
        "strange": _strange(told),
    }


def _strange(told: dict) -> dict | None:
    """How well each representation tells a class apart that was held out of training, where one was."""
    if "anomalies" not in told:
        return None
    keys = {"neighbours_auroc": "AUROC by 5 neighbours", "error_auroc": "by squared error"}
    rows = {
        name: [f"{decimal(row[key], 3)} ± {decimal(row[f'{key}_stderr'], 3)}" if key in row else "" for key in keys]
        for name, row in told["anomalies"].items()
    }
    return {"label": told["held_out_class"], "columns": list(keys.values()), "rows": rows}


def _restored(row: dict) -> dict[str, str]:
    """A row of PSNR by column."""
    found = {"reconstruction, dB": row["reconstruction_psnr"]} if "reconstruction_psnr" in row else {}
    for noise, each in row.get("denoising", {}).items():
        found[f"{noise} (noisy: {decimal(each['noisy_psnr'], 1)}), dB"] = each["denoising_psnr"]
    if "inpainting" in row:
        share = row["inpainting"]["inpainting_share"]
        found[f"hidden centre, {100 * share:.0f} %, dB"] = row["inpainting"]["inpainting_psnr"]
    return {name: "exact" if value is None else decimal(value, 1) for name, value in found.items()}


def _pictures(folder: epath.Path) -> list[dict]:
    order = {name: place for place, name in enumerate(CAPTIONS)}
    paths = folder.glob("*.png") if folder.exists() else []
    paths = sorted(paths, key=lambda path: (order.get(path.name, len(order)), path.name))
    return [
        {"data": inlined(path), "caption": CAPTIONS.get(path.name, path.name)}
        for path in paths
        if not path.name.startswith(".")  # a figure that is being written
    ]


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    print(write(at(cli.required("workdir", "runs/digits"))))


if __name__ == "__main__":
    # Here and not above: other commands have a --workdir of their own and import this module.
    flags.DEFINE_string("workdir", None, "The folder of a run.")
    cli.run(main)
