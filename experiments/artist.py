"""What pictures of a trained model are drawn by: its codes, what it decodes of them, and its contexts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb import bounds, data, models, training
from aevb.errors import InputError
from experiments import evaluate, reconstruct, usefulness
from experiments.build import Run

Arrays = dict[str, np.ndarray]


class Artist:
    """A trained model, ready to be drawn from; its pictures show the test split, or train where that is empty.

    A conditional model draws in the contexts of the datapoints of that split, one after another, or in that of one
    label.

    Raises:
      InputError: the model knows no such label.
    """

    def __init__(self, run: Run, params: Any, label: int | None = None) -> None:
        self.run = run
        self.replicated = params
        self.params = training.unreplicate(params)
        self.split_name = "test" if len(run.dataset.test.examples) else "train"
        self.split = run.split(self.split_name)
        self.key = run.draw_key
        self.label = label
        check_label(run, label)
        self.white = 1.0
        if run.model.likelihood.support == "counts" and len(run.model.event_shape) > 1:
            self.white = max(float(np.max(run.dataset.train.examples[:1000])), 1.0)
        self._decode, self._codes = run.once(_decoder), run.once(_codes)
        self._encode = run.once(_encoder_of_split, self.split_name)

    def given(self, context: jax.Array | None) -> models.Given:
        """The model that was told a context."""
        return self.run.model.bind({"params": self.params}).given(context)

    def contexts(self, num: int) -> np.ndarray | None:
        """The contexts of `num` pictures, `[num, context]`; None for a model without."""
        if self.run.context is None:
            return None
        if self.label is not None:
            return self.contexts_of(np.full(num, self.label))
        return self.contexts_of(np.resize(self.split.labels[:num], (num, *self.split.labels.shape[1:])))

    def one_context(self) -> np.ndarray | None:
        """The first context, `[context]`."""
        contexts = self.contexts(1)
        return None if contexts is None else contexts[0]

    def contexts_of(self, labels: np.ndarray) -> np.ndarray:
        """The contexts that labels make, `[num, context]`."""
        return np.asarray(jax.vmap(self.run.context)(labels))

    def decode(self, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The mean of p(x | z) of each z `[..., latent]`, as `[..., *event]`, in one context or one for each z."""
        if context is not None:
            context = jnp.broadcast_to(context, (*z.shape[:-1], context.shape[-1])).reshape(-1, context.shape[-1])
        flat = self._decode(self.params, jnp.asarray(z).reshape(-1, z.shape[-1]), context)
        return np.asarray(flat).reshape(*z.shape[:-1], *self.run.model.event_shape)

    def prior_quantiles(self, u: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """The inverse CDF of the prior, `[num, latent]`, at u in (0, 1), `[num]` for all dimensions or for each."""
        prior = self.given(context).prior()
        u = np.broadcast_to(u.reshape(len(u), -1), (len(u), self.run.model.latent_dim))
        return np.asarray(jax.vmap(prior.base_dist.icdf)(jnp.asarray(u, jnp.float32)))

    def shown(self, x: np.ndarray) -> np.ndarray:
        """x in units of a picture's white: 1, or of images of counts the most that there is in the training data."""
        return x / self.white

    def encode(self, num: int) -> Arrays:
        """The first `num` datapoints and their contexts, with the mean and KL per dimension of their posteriors."""
        return training.collect(
            self._encode(self.replicated, data.head(self.split, num), self.run.split_key(self.split_name))
        )

    def examples(self, num: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first `num` examples as they are stored, float32 `[num, *event]`, bytes as value / 255; their contexts.

        There are fewer where the split has fewer.
        """
        stored = data.head(self.split, num)
        x = reconstruct.values(training.read_rows(stored.examples, np.arange(len(stored.examples))))
        return x, None if self.run.context is None else self.contexts_of(stored.labels)

    def codes(self, x: np.ndarray, contexts: np.ndarray | None) -> np.ndarray:
        """The posterior means of what is seen `[num, *event]`, in the contexts of each: `[num, latent]`."""
        return np.asarray(self._codes(self.params, x, contexts))


def _decoder(run: Run) -> Callable:
    """`(params, z, context) -> mean of p(x | z)` of many z."""

    def one(params: Any, z: jax.Array, context: jax.Array | None) -> jax.Array:
        return run.model.bind({"params": params}).given(context).decode(z).mean

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def _codes(run: Run) -> Callable:
    """`(params, x, context) -> posterior mean` of many x."""
    return jax.jit(jax.vmap(functools.partial(usefulness.encode_one, run), (None, 0, 0)))


def _encoder_of_split(run: Run, name: str) -> Callable:
    """`map_examples` of what an example is encoded to."""

    def one(params: Any, point: data.Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        if isinstance(run.model, models.MaskedAutoencoder):
            return {"context": None, "mean": run.model.bind({"params": params}).encode(point.x).mean}
        vae = run.model.bind({"params": params}).given(point.context)
        posterior = vae.encode(point.x)
        if not run.learner.has_bound:
            return {"x": point.x, "context": point.context, "mean": posterior.mean}
        z = jax.vmap(posterior.sample)(jax.random.split(key, evaluate.KL_SAMPLES))
        kl_per_dim = bounds.kl_per_dim(posterior, vae.prior(), z)
        return {"x": point.x, "context": point.context, "mean": posterior.mean, "kl_per_dim": kl_per_dim}

    return run.map_split(one, name)


def check_label(run: Run, label: int | None) -> None:
    """Refuse a label that the model was not told of in training.

    Raises:
      InputError: the model has no context, one of vectors, or not this class.
    """
    if label is None:
        return
    if run.context is None or not run.context.classes:
        was = "nothing" if run.context is None else "vectors"
        raise InputError(
            f"--label is {label}, but the model was told {was} of a datapoint: train with --config.model.context=label "
            "on data with classes"
        )
    if not 0 <= label < run.context.size:
        raise InputError(f"--label is {label}, and the classes of {run.dataset.name} are 0 to {run.context.size - 1}")
