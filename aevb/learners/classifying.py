"""Classifiers: gradient descent on the cross-entropy of a linear head on the code of an encoder, both trained."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aevb import models
from aevb.data import Datapoint
from aevb.errors import InputError
from aevb.learners import Batch, Learner, TrainState, descend, first_state

HEAD = "head"  # the subtree of the parameters that the model itself looks past


def logits(model: models.VAE | models.MaskedAutoencoder) -> Callable[[Any, jax.Array], jax.Array]:
    """`(params, x) -> logits [classes]` of one x `[*event]`: `code W + b`, with the mean of q(z | x) as the code.

    Of a masked autoencoder the code is the mean of its patch codes, with nothing masked. Nothing is drawn.
    """

    def one(params: Any, x: jax.Array) -> jax.Array:
        code = model.bind({"params": params}).encode(x).mean
        return code @ params[HEAD]["kernel"] + params[HEAD]["bias"]

    return one


def encoder_params(model: models.VAE | models.MaskedAutoencoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters phi of the encoder and its posterior, out of those of any learner of this model."""
    names = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))
    return {name: params[name] for name in names if name not in models.generative(names)}


def learner(
    model: models.VAE | models.MaskedAutoencoder,
    optimizer: optax.GradientTransformation,
    *,
    num_classes: int,
    start: Mapping[str, Any] | None = None,
) -> Learner:
    """Minimise the cross-entropy of a linear head on the encoder's code, over the encoder and the head together.

    `loss = -(1/M) sum_i sum_k y_ik log softmax(W^T code(x_i) + b)_k`, nats per datapoint, at least 0. y_i, the context
    of datapoint i in the batch, is its class as one of K. x_i is what the encoder sees of it. Everything of the
    encoder is trained, a bound's decoder and prior are not there.

    W and b start at 0, whatever the scale of the code, so that the first loss is `log K`. The encoder is started from
    random weights or from those of a model that was trained without labels (fine-tuning: Hinton & Salakhutdinov, 2006;
    He et al., 2111.06377, where the head, too, is linear and on the mean of the patch codes).

    Args:
      model: whose encoder it is; one that is told no context.
      optimizer: any Optax transformation.
      num_classes: K, at least 2.
      start: parameters of the model that its encoder starts from; what else they hold is not read. Fresh ones of the
        state's key unless given.

    Returns:
      A `Learner` whose params are the encoder's, under the model's own names, and `head` (`kernel [latent, K]` and
      `bias [K]`); `logits` reads them. Its metrics are `accuracy`, the share of the batch whose largest logit is its
      class's, in [0, 1], `loss` and `grad_norm`. There is no bound.

    Raises:
      InputError: there are fewer than 2 classes, or the model is told a context; at trace time, when a batch does not
        come with one of K classes for each datapoint.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: a classifier tells at least 2 apart")
    if model.context_dim:
        raise InputError(
            f"the model is told a context of {model.context_dim} numbers, and a classifier's batch has the class that "
            "is to be found in its place: use a model without a context"
        )

    def init_params(key: jax.Array) -> dict[str, Any]:
        encoder = encoder_params(model, models.init(model, key) if start is None else start)
        head = {"kernel": jnp.zeros((model.latent_dim, num_classes)), "bias": jnp.zeros(num_classes)}
        return encoder | {HEAD: head}

    def of_datapoint(params: Any, point: Datapoint) -> dict[str, jax.Array]:
        shape = None if point.context is None else point.context.shape
        if shape != (num_classes,):
            raise InputError(f"a datapoint has a context of shape {shape}: give its class, as one of {num_classes}")
        told = logits(model)(params, point.seen)
        right = told.argmax() == point.context.argmax()
        return {"loss": optax.softmax_cross_entropy(told, point.context), "accuracy": right.astype(jnp.float32)}

    def loss_fn(params: Any, points: Datapoint) -> tuple[jax.Array, dict[str, jax.Array]]:
        mean = jax.tree.map(jnp.mean, jax.vmap(of_datapoint, in_axes=(None, 0))(params, points))
        return mean["loss"], mean

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        del step_key  # nothing is drawn
        loss = functools.partial(loss_fn, points=batch.points)
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Learner(
        lambda key: first_state(key, init_params, optimizer.init), update, model.likelihood.support, has_bound=False
    )
