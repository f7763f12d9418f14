"""Masked autoencoders: gradient descent on the squared error of the patches that a mask hid."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aevb import models
from aevb.errors import InputError
from aevb.learners import Batch, Learner, TrainState, descend, example_keys, first_state
from aevb.networks import vit


def learner(model: models.MaskedAutoencoder, optimizer: optax.GradientTransformation) -> Learner:
    """Minimise the mean squared error over the elements of the masked patches (He et al., 2111.06377).

    `loss = (1/M) sum_i mean_{p masked} |predicted_ip - target_ip|^2 / P`, in squared units of the target: of x, or of
    each patch's own standard deviation where the model is trained on normalised patches. Each datapoint has a mask of
    its own, drawn with its key.

    Args:
      model: what to train.
      optimizer: any Optax transformation.

    Returns:
      A `Learner` whose metrics are `masked_error`, which is the `loss`, and `grad_norm`. There is no bound.

    Raises:
      InputError: the mask ratio hides no patch, so that there is nothing to learn.
    """
    visible = jax.eval_shape(lambda: vit.sample_mask(jax.random.key(0), model.num_patches, model.mask_ratio))
    if visible.size == model.num_patches:
        raise InputError(
            f"a mask ratio of {model.mask_ratio} hides none of {model.num_patches} patches: raise it, or make patches "
            "smaller"
        )

    def loss_fn(params: Any, batch: Batch, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        bound = model.bind({"params": params})
        error = jax.vmap(lambda x, key: bound(x, key).error)(batch.x, keys).mean()
        return error, {"masked_error": error}

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss = functools.partial(loss_fn, batch=batch, keys=example_keys(step_key, batch.index))
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def init(key: jax.Array) -> TrainState:
        x, mask_key = jnp.zeros(model.event_shape), jax.random.key(0)  # the mask changes no parameter
        return first_state(key, lambda key: model.init(key, x, mask_key)["params"], optimizer.init)

    return Learner(init, update, model.likelihood.support, has_bound=False)
