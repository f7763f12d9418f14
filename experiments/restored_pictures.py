"""Pictures of what was spoilt and of what a model makes of it: noise taken away, hidden regions filled in.

Examples are shown to the encoder as they are stored, grey where they are grey, whatever the training made of them, and
a conditional model is told the label of each; the code is the mean of the posterior. Nothing is chosen by its result:
they are the first of the split, or of the files given.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb import models
from aevb.data.corruption import CORRUPTIONS
from aevb.errors import InputError
from aevb.networks import vit
from experiments import given_files, reconstruct, restoration, usefulness
from experiments.artist import Arrays, Artist

USUAL_NOISE, USUAL_LEVEL = "gaussian", 0.25  # of a run that was trained with none; gaussian's, of the data's range
NOISE_STREAM = 2**31  # keeps the keys of noise apart from those of samples: split(key)[i] is fold_in(key, i)
HIDDEN_GREY = 0.5  # in the picture, of what the encoder is not shown


def denoise(
    artist: Artist, num: int, noise: str | None = None, level: float | None = None, files: Sequence[str] | None = None
) -> tuple[Any, Arrays]:
    """The first `num` examples, what is seen of them, and the mean of p(x | z) at its code.

    Args:
      artist: of a model that decodes codes.
      num: how many.
      noise: a name of `CORRUPTIONS`; that of the training, or gaussian, unless given.
      level: as in `config.data.corruption_level`, gaussian's in units of the data; that of the training if it is the
        same noise, or a quarter, gaussian's of the data's range.
      files: noisy images to draw in the place of examples; there is no clean one then.

    Raises:
      InputError: the level cannot be, or a file.
    """
    from aevb import figures

    if files is not None:
        if noise is not None or level is not None:
            raise InputError("--files are noisy themselves: leave --noise and --level out, or --files")
        given, contexts = _given(artist, num, files)
        seen, clean, spoilt = given.x, {}, "given"
    else:
        x, contexts = _examples(artist, num)
        name, level = _noise(artist, noise, level)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(artist.key, NOISE_STREAM), i))(
            np.arange(len(x))
        )
        seen = np.asarray(jax.vmap(CORRUPTIONS[name](level))(keys, x))
        words = name.replace("_", " ").replace(" and ", " and\n")
        clean, spoilt = {"x": x}, f"{words}\n{level:.3g}"
    z = artist.codes(seen, contexts)
    arrays = clean | {"seen": seen, "context": contexts, "z": z, "mean": artist.decode(z, contexts)}
    rows = ({"data": "x"} if clean else {}) | {spoilt: "seen", "model": "mean"}
    shown = np.stack([artist.shown(arrays[name]) for name in rows.values()])
    return figures.classes(shown, list(rows), ""), arrays


def inpaint(
    artist: Artist, num: int, share: float = usefulness.HIDDEN_SHARE, files: Sequence[str] | None = None
) -> tuple[Any, Arrays]:
    """The first `num` images, what is seen of them with their centre hidden, and the same with the centre filled in.

    What is hidden is 0 where the encoder looks; of a masked autoencoder, whole patches are left out, those that touch
    it. Either is grey in the picture. Every visible pixel comes back as it is, and each hidden one as decoded.

    Args:
      artist: of a model of images.
      num: how many.
      share: of the area, about, that the hidden rectangle takes, in (0, 1); see `restoration.centred_rectangle`.
      files: images to draw in the place of examples; of one with transparency, what is not wholly opaque is hidden.

    Raises:
      InputError: the share cannot be, or a file.
    """
    from aevb import figures

    model = artist.run.model
    rectangle = restoration.centred_rectangle(*model.event_shape[:2], share)
    if files is not None:
        given, contexts = _given(artist, num, files)
        x, hidden = given.x, given.hidden(rectangle)
    else:
        x, contexts = _examples(artist, num)
        hidden = np.broadcast_to(rectangle, (len(x), *rectangle.shape))
    channels = (..., *[None] * (x.ndim - hidden.ndim))
    if isinstance(model, models.MaskedAutoencoder):
        filled, unseen = _filled_by_patches(artist, x, hidden)
    else:
        z = artist.codes(np.where(hidden[channels], np.float32(0), x), contexts)
        filled, unseen = artist.decode(z, contexts), hidden
    arrays = {"x": x, "context": contexts, "hidden": hidden, "mean": np.where(hidden[channels], filled, x)}
    seen = np.where(unseen[channels], HIDDEN_GREY, artist.shown(x))
    shown = np.stack([artist.shown(x), seen, artist.shown(arrays["mean"])])
    return figures.classes(shown, ["data", "seen", "model"], ""), arrays


def _examples(artist: Artist, num: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The first examples of the artist's split, and what the model is told of each."""
    if artist.label is not None:
        raise InputError("--label is of files, and examples have labels of their own: give --files, or leave it out")
    return artist.examples(num)


def _given(artist: Artist, num: int, files: Sequence[str]) -> tuple[given_files.Given, np.ndarray | None]:
    """The first images of the files, and what the model is told of each."""
    if artist.run.context is not None and artist.label is None:
        raise InputError("--files have no labels, and the model is told one of each datapoint: give --label, a class")
    given = given_files.read(files, artist.run.model.event_shape).head(num)
    return given, artist.contexts(len(given.x))


def _noise(artist: Artist, name: str | None, level: float | None) -> tuple[str, float]:
    """The name and level of the noise that was asked for, as far as it was."""
    trained = artist.run.corruption or (USUAL_NOISE, None)
    name = name or trained[0]
    if level is None and name == trained[0]:
        level = trained[1]
    if level is None:
        level = USUAL_LEVEL * (reconstruct.data_range(artist.run) if name == "gaussian" else 1)
    return name, level


def _filled_by_patches(artist: Artist, x: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a masked autoencoder: whole images `[N, *event]`, and the pixels of the patches left out, bool `[N, H, W]`."""
    model, filled, unseen = artist.run.model, np.empty_like(x), np.empty_like(hidden)
    masks, which = np.unique(hidden, axis=0, return_inverse=True)
    for index, mask in enumerate(masks):  # of a centre there is one
        rows = np.flatnonzero(which.reshape(-1) == index)
        filled[rows] = usefulness.filling(artist.run, artist.replicated, mask)(x[rows], rows)
        each = vit.patches(jnp.float32(mask[..., None]), model.patch_size, model.pad)
        touched = jnp.broadcast_to(each.any(axis=1, keepdims=True), each.shape)
        unseen[rows] = vit.unpatched(touched, (*mask.shape, 1), model.patch_size)[..., 0]
    return filled, unseen
