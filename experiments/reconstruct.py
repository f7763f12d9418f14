"""Evaluate an autoencoder: how its codes give the data back, what they are like, and how PCA does with as many."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aevb import data, models, training
from aevb.learners import autoencoding
from aevb.networks import vit
from experiments import numbers, restoration
from experiments.build import Run


def of_split(run: Run, name: str) -> Callable:
    """`map_examples` of how one example comes back and its code, for `run.once`.

    A masked autoencoder restores it from what a mask leaves, a mask for each example and the same each time.
    """

    def restored(params: Any, point: data.Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        bound = run.model.bind({"params": params})
        return {"masked_error": bound(point.x, key).error, "code": bound.encode(point.x).mean}

    if isinstance(run.model, models.MaskedAutoencoder):
        return run.map_split(restored, name, batches=10)
    one = autoencoding.reconstruction(run.model)

    def with_code(params: Any, point: data.Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        del key
        code = run.model.bind({"params": params}).given(point.context).encode(point.seen).mean
        return one(params, point)._asdict() | {"code": code}

    return run.map_split(with_code, name, batches=10)


def curve_row(run: Run, params: Any, name: str, max_examples: int | None = None) -> dict[str, Any]:
    """How the clean examples of a split come back, means over them: nats, and squared units of x, per datapoint.

    Raises:
      NonFiniteError: a reconstruction is not finite.
    """
    split = data.head(getattr(run.dataset, name), max_examples)
    each = training.collect(run.once(of_split, name)(params, split, run.split_key(name)))
    numbers.check_finite(each, f"the reconstruction of the {name} split")
    told = {key: float(values.mean(dtype=np.float64)) for key, values in each.items() if key != "code"}
    return told | {"num_examples": len(each["code"])}


def evaluate(run: Run, params: Any, split_name: str, max_examples: int | None = None) -> dict[str, Any]:
    """Evaluate replicated parameters on a split; the dictionary of evaluation.json, without step and checkpoint."""
    start = time.perf_counter()
    split = data.head(run.split(split_name), max_examples)
    each = training.collect(run.once(of_split, split_name)(params, split, run.split_key(split_name)))
    numbers.check_finite(each, f"the reconstruction of the {split_name} split")
    if isinstance(run.model, models.MaskedAutoencoder):
        found = of_masked(run, each["masked_error"])
    else:
        error = each["squared_error"] / math.prod(run.model.event_shape)
        found = of_code(each["code"]) | against_pca(run, params, split, error)
        found |= errors(error, data_range(run)) | {
            "log_likelihood": float(each["log_likelihood"].mean(dtype=np.float64)),
            "log_likelihood_stderr": numbers.standard_error(each["log_likelihood"]),
            "convention": "log p(x | z) at the code of the clean x, nats per datapoint, no bound on log p(x); the "
            "squared error is a mean over elements, in squared units of x, and PSNR is of that mean, at the range of "
            "the data",
        }
    return {
        "split": split_name,
        "binarization": run.facts["binarization"],
        "num_examples": len(each["code"]),
        "estimator": "the code of each example",
        "learner": run.facts["learner"],
        "weights": run.facts["weights"],
        **found,
        "latent_dim": run.model.latent_dim,
        "density": run.facts["density"],
        "seed": run.facts["seed"],
        "evaluate_seconds": time.perf_counter() - start,
    }


def of_masked(run: Run, error: np.ndarray) -> dict[str, Any]:
    """Of the mean squared errors of the masked patches `[N]`."""
    units = "of each patch's own standard deviation" if run.model.normalise else "of x, and PSNR is of that mean"
    told = errors(error, data_range(run)) | ({"psnr": None} if run.model.normalise else {})
    visible = vit.num_visible(run.model.num_patches, run.model.mask_ratio)
    return told | {
        "mask_ratio": run.model.mask_ratio,
        "estimator": "the visible patches of each example, by one mask",
        "convention": "the squared error is a mean over the elements of the masked patches, "
        f"{run.model.num_patches - visible} of {run.model.num_patches}, one mask an example, in squared units {units}; "
        "no bound on log p(x)",
    }


def data_range(run: Run) -> float:
    """The width of the range of the training data: 1 of bytes, of others the largest value less the smallest.

    Of a set that is not in memory the first 1000 examples tell.
    """
    examples = run.dataset.train.examples
    if not isinstance(examples, np.ndarray):
        examples = training.read_rows(examples, np.arange(min(len(examples), 1000)))
    return 1.0 if examples.dtype == np.uint8 else float(examples.max() - examples.min())


def one_value(examples: np.ndarray) -> bool:
    """Whether all elements of all examples are equal, so that there is nothing to tell of them."""
    return bool(examples.min() == examples.max())


def errors(mse: np.ndarray, width: float) -> dict[str, float | None]:
    """`restoration.told` of mean squared errors `[N]`; data that are all of one value have a range of 0 and no PSNR."""
    return restoration.told(mse, width) if width > 0 else restoration.told(mse, 1.0) | {"psnr": None}


def of_code(codes: np.ndarray) -> dict[str, Any]:
    """The share of elements that are not 0, and how many elements are 0 in every code of `[N, latent]`."""
    return {"active": float((codes != 0).mean()), "dead_units": int((codes == 0).all(axis=0).sum())}


def against_pca(run: Run, params: Any, split: data.Split, error: np.ndarray) -> dict[str, float]:
    """The mean squared error of PCA with as many components, learned on the training split, on the same examples.

    Beside it `above_pca`, the mean of the model's errors `[N]` less PCA's, with its standard error over the pairs; and,
    of a decoder that is linear in the code alone, the largest angle between its subspace and PCA's, in degrees, and
    `train_mse`, the mean squared error of the training examples, with the least there is, `eigenvalue_tail`: the sum of
    the eigenvalues of their covariance after the first `latent_dim`, over the number of elements. PCA is of values as
    they are, so there is none where they are binarized, nor of more components than dimensions, nor of data that are
    all of one value, are not in memory, or would not be as float64.
    """
    examples, limit = run.dataset.train.examples, run.config.data.memory_limit_mb * 2**20
    most = min(len(examples), math.prod(run.model.event_shape))
    if run.facts["binarization"] != "none" or run.model.latent_dim > most or not isinstance(examples, np.ndarray):
        return {}
    if examples.size * np.float64().nbytes > limit or one_value(examples):
        return {}
    from scipy.linalg import subspace_angles

    train, held_out = (values(each.examples) for each in (run.dataset.train, split))
    pca = restoration.PCA.fit(train, run.model.latent_dim, run.config.seed)
    of_pca = restoration.squared_errors(held_out, pca.reconstruct)
    above = error - of_pca
    found = {"pca_mse": float(of_pca.mean()), "above_pca": float(above.mean(dtype=np.float64))}
    found["above_pca_stderr"] = numbers.standard_error(above)
    decoder = training.unreplicate(params)["decoder"]
    if set(decoder) == {"output"} and _decodes_means(run):
        kernel = np.asarray(decoder["output"]["kernel"], np.float64)
        angles = subspace_angles(kernel.T, pca.components.T)
        each = training.collect(run.once(of_split, "train")(params, run.dataset.train, run.split_key("train")))
        found["largest_angle_to_pca"] = float(np.degrees(angles.max()))
        found["train_mse"] = float(each["squared_error"].mean(dtype=np.float64)) / math.prod(run.model.event_shape)
        found["eigenvalue_tail"] = float(restoration.squared_errors(train, pca.reconstruct).mean())
    return found


def _decodes_means(run: Run) -> bool:
    """Whether what the decoder's network puts out is the mean of p(x | z), and nothing else, and it is told z alone."""
    likelihood = run.model.likelihood
    plain = isinstance(likelihood, models.Gaussian) and not likelihood.sigmoid_mean and likelihood.scale is not None
    return plain and run.context is None


def values(examples: np.ndarray) -> np.ndarray:
    """Stored examples as float32, bytes as value / 255."""
    return np.float32(examples) / np.float32(255) if examples.dtype == np.uint8 else np.float32(examples)
