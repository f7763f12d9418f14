"""What the codes and the reconstructions of a run are good for, never without what they are to be compared with.

The functions of downstream.py and restoration.py, handed a run: its encoder beside the same one before training, raw
pixels and PCA of as many components; its reconstructions beside PCA's. Every one of them sees the same clean examples
as they are stored, grey where they are grey, whatever the training made of them.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb import data, models, training
from aevb.data.binarization import make_preprocess
from aevb.data.corruption import CORRUPTIONS
from aevb.errors import InputError
from aevb.networks import vit
from experiments import downstream, numbers, reconstruct, restoration
from experiments.build import Run

# Of the noise that is to be taken away: for a range of 1, gaussian's standard deviation, masking's share of elements.
NOISES = (("gaussian", 0.1), ("gaussian", 0.25), ("gaussian", 0.5), ("masking", 0.25), ("masking", 0.5))
HIDDEN_SHARE = 0.25  # of the area of an image that is to be filled in
BATCH = 500
# Keep the keys of noise and patches apart from those of the splits: split(key)[i] is fold_in(key, i).
NOISE_STREAM, PATCH_STREAM = 2**16, 2**17
DRAWS = 16  # of the patches that a masked autoencoder is shown


def check(run: Run, split_name: str, max_examples: int | None = None) -> None:
    """Refuse a run whose codes, by themselves, say nothing, or whose data PCA cannot take.

    Raises:
      InputError: there is no encoder, the encoder is told the label, the data are not in memory or all of one value,
        the split is the one that is learned from, a split has no labels while the other has, or no two classes, or its
        first `max_examples` have none of the class that was held out.
    """
    if split_name == "train":
        raise InputError("--downstream learns from the codes of the train split: judge it on --split=test")
    if not run.learner.has_encoder:
        raise InputError(f"--downstream judges codes, and {run.facts['learner']} trains no encoder: leave it out")
    if run.context is not None:
        raise InputError(
            "--downstream judges codes, and those of a model that is told the label hold what is left beside it: train "
            "with --config.model.context=none"
        )
    if not isinstance(run.dataset.train.examples, np.ndarray):
        raise InputError(
            f"--downstream needs {run.dataset.name} in memory, for PCA: raise config.data.memory_limit_mb, which is "
            f"{run.config.data.memory_limit_mb}"
        )
    if reconstruct.one_value(run.dataset.train.examples):
        raise InputError(f"--downstream needs data that differ, and {run.dataset.name} has one value: leave it out")
    if _has_classes(run):
        judged = data.head(run.split(split_name), max_examples).labels
        for name, labels in (("train", run.dataset.train.labels), (split_name, judged)):
            num = 0 if labels is None else len(np.unique(labels))
            if num < 2:
                raise InputError(f"--downstream tells classes apart, and the {name} split has {num}: leave it out")
        stranger = run.config.data.held_out_class
        if stranger >= 0 and stranger not in judged:
            raise InputError(
                f"config.data.held_out_class is {stranger}, and the {split_name} split has none to find: judge another"
            )


def _has_classes(run: Run) -> bool:
    labels = run.dataset.train.labels
    return labels is not None and labels.ndim == 1


def judge(
    run: Run, params: Any, split_name: str, max_examples: int | None = None, cache: str | None = None
) -> dict[str, Any]:
    """Everything, of replicated parameters on a split: what evaluation.json holds as `downstream`.

    A folder as cache keeps what was found of codes, so that several runs judge the same pixels and PCA once.

    Returns:
      `representations`, of `downstream.table`, where the data has classes: of the model, the untrained encoder, pixels
      and PCA, learned from the codes of the training split; `anomalies`, where the `held_out_class` of training is one,
      and then the representations are judged without it; and `restoration` of the model and PCA. The seed is the run's.

    Raises:
      InputError: as in `check`, or the labels are not classes of at least 2 kinds.
      NonFiniteError: a code or a reconstruction is not finite.
    """
    check(run, split_name, max_examples)
    start = time.perf_counter()
    train, held_out = run.dataset.train, data.head(run.split(split_name), max_examples)
    x = {"train": reconstruct.values(train.examples), "held out": reconstruct.values(held_out.examples)}
    size = min(run.model.latent_dim, *x["train"].reshape(len(x["train"]), -1).shape)
    pca = restoration.PCA.fit(x["train"], size, run.config.seed)
    told: dict[str, Any] = {
        "split": split_name,
        "num_train": len(train.examples),
        "num_test": len(held_out.examples),
        "seed": run.config.seed,
        "restoration": {"model": restored(run, params, x), "PCA": restorations(run, pca.reconstruct, x)},
    }
    if _has_classes(run):
        untrained = training.replicate(run.init_state().params)
        codes = {
            "model": tuple(encode(run, params, split) for split in (train, held_out)),
            "untrained encoder": tuple(encode(run, untrained, split) for split in (train, held_out)),
            "pixels": tuple(each.reshape(len(each), -1) for each in x.values()),
            "PCA": tuple(pca.encode(each) for each in x.values()),
        }
        stranger = run.config.data.held_out_class
        strange = (held_out.labels == stranger) & (stranger >= 0)
        if stranger >= 0:
            told["held_out_class"] = stranger
            told["anomalies"] = anomalies(codes, restorers(run, params, pca), x["held out"], strange)
        codes = {name: (of_train, of_test[~strange]) for name, (of_train, of_test) in codes.items()}
        labels = train.labels, held_out.labels[~strange]
        told["representations"] = downstream.table(codes, *labels, run.config.seed, cache)
    return told | {"seconds": time.perf_counter() - start}


def restorers(run: Run, params: Any, pca: restoration.PCA) -> dict[str, restoration.ImageFn]:
    """What gives a whole image back: not a masked autoencoder, which says nothing of the patches that it sees."""
    others = {"PCA": pca.reconstruct}
    return (
        others if isinstance(run.model, models.MaskedAutoencoder) else {"model": reconstructing(run, params)} | others
    )


def anomalies(
    codes: dict[str, tuple[np.ndarray, np.ndarray]],
    restorers: dict[str, restoration.ImageFn],
    x: np.ndarray,
    strange: np.ndarray,
) -> dict[str, dict[str, float]]:
    """How well a class that was never seen in training is told from the rest, by two scores of a test example.

    Args:
      codes: of the training and the test examples, by representation.
      restorers: what gives images back, by representation.
      x: the test examples.
      strange: which of them are of that class, bool `[M]`.

    Returns:
      Of each representation the AUROC of the distance to the 5 nearest training codes, `neighbours_auroc`, and of the
      squared error of its reconstruction, `error_auroc`, with their standard errors; `num_strange`, how many there are.
    """
    told: dict[str, dict[str, float]] = {}
    scores = {(name, "neighbours"): downstream.strangeness(*each) for name, each in codes.items()}
    scores |= {(name, "error"): restoration.squared_errors(x, fn) for name, fn in restorers.items()}
    num = int(strange.sum())
    for (name, kind), score in scores.items():
        auroc = numbers.auroc(score, strange)
        stderr = numbers.auroc_stderr(auroc, num, len(strange) - num)
        told.setdefault(name, {"num_strange": num}).update({f"{kind}_auroc": auroc, f"{kind}_auroc_stderr": stderr})
    return told


def encode(run: Run, params: Any, split: data.Split) -> np.ndarray:
    """The codes of examples, means of the posterior: `[N, latent]`, of the examples as they are stored.

    A model that is told labels is told those of the examples.
    """

    def one(params: Any, point: data.Datapoint, key: jax.Array) -> jax.Array:
        del key
        return encode_one(run, params, point.x, point.context)

    mapped = training.map_examples(one, make_preprocess("none", context=run.context), BATCH)
    codes = training.collect(mapped(params, split, run.eval_key))
    numbers.check_finite(codes, f"the codes of {run.dataset.name}")
    return codes


def encode_one(run: Run, params: Any, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    """The code of what is seen `[*event]`, the mean of its posterior: `[latent]`."""
    model = run.model.bind({"params": params})
    return (model if context is None else model.given(context)).encode(x).mean


def restored(run: Run, params: Any, x: dict[str, np.ndarray]) -> dict[str, Any]:
    """How well the model gives back what it was shown, and what was hidden from it.

    A masked autoencoder is trained on hidden patches alone: of the patches that it sees it says nothing, so it fills in
    and does not take noise away; nor does one of normalised patches know the mean and the scale of a patch.
    """
    if not isinstance(run.model, models.MaskedAutoencoder):
        return restorations(run, reconstructing(run, params), x)
    hidden = restoration.centred_rectangle(*run.model.event_shape[:2], HIDDEN_SHARE)
    return {} if run.model.normalise else inpainted(run, filling(run, params, hidden), x)


def reconstructing(run: Run, params: Any) -> restoration.ImageFn:
    """The mean of p(x | z) at the code of what is seen; of replicated parameters."""
    model = run.model.bind({"params": training.unreplicate(params)})
    reconstruct = jax.jit(jax.vmap(lambda x: model.decode(model.encode(x).mean).mean))
    return lambda batch, indices: np.asarray(reconstruct(batch))


def restorations(run: Run, restore: restoration.ImageFn, x: dict[str, np.ndarray]) -> dict[str, Any]:
    """Reconstruction, the noises taken away, and, of images, the rectangle filled in."""
    width, clean = reconstruct.data_range(run), x["held out"]
    noise = {
        f"{name} {level:g}": restoration.denoising(clean, noisy(run, name, level, width), restore, width)
        for name, level in NOISES
    }
    filled = inpainted(run, restore, x) if clean.ndim > 2 else {}
    return restoration.reconstructing(clean, restore, width) | {"denoising": noise} | filled


def inpainted(run: Run, fill: restoration.ImageFn, x: dict[str, np.ndarray]) -> dict[str, Any]:
    """The rectangle filled in, beside the mean of the training images."""
    mean = x["train"].mean(axis=0, dtype=np.float64)
    return {"inpainting": restoration.inpainting(x["held out"], fill, HIDDEN_SHARE, reconstruct.data_range(run), mean)}


def noisy(run: Run, name: str, level: float, width: float) -> restoration.ImageFn:
    """Examples with noise, of a key an example; a gaussian's level is in units of the data's range."""
    corrupt = CORRUPTIONS[name](level * width if name == "gaussian" else level)
    key = jax.random.fold_in(run.eval_key, NOISE_STREAM + [each for each, _ in NOISES].index(name))
    keys = jax.jit(jax.vmap(lambda index: jax.random.fold_in(key, index)))
    corrupted = jax.jit(jax.vmap(corrupt))
    return lambda batch, indices: np.asarray(corrupted(keys(indices), batch))


def filling(run: Run, params: Any, hidden: np.ndarray) -> restoration.ImageFn:
    """Of a masked autoencoder: images with every patch that touches what is hidden `[H, W]` as it is predicted.

    A model that was trained on few visible patches errs where it is shown many, so a prediction is the mean of those
    from several draws of as many patches as in training, out of the visible ones.
    """
    model, params = run.model, training.unreplicate(params)
    each = vit.patches(jnp.float32(hidden[:, :, None]), model.patch_size, model.pad)
    masked = np.asarray(each.any(axis=1))
    key, visible = jax.random.fold_in(run.eval_key, PATCH_STREAM), np.flatnonzero(~masked)
    num = min(len(visible), vit.num_visible(model.num_patches, model.mask_ratio))
    keys = jax.random.split(key, DRAWS if num < len(visible) else 1)
    draws = jax.vmap(lambda key: jnp.sort(jax.random.permutation(key, visible)[:num]))(keys)

    def one(x: jax.Array) -> jax.Array:
        bound = model.bind({"params": params})
        mean = jax.lax.map(lambda draw: bound.restore(x, draw).predicted, draws).mean(axis=0)
        each = bound.patches(x)
        return bound.whole(models.Restored(mean, each, masked, jnp.ones(each.shape, bool)), x)

    filled = jax.jit(jax.vmap(one))
    return lambda batch, indices: np.asarray(filled(batch))
