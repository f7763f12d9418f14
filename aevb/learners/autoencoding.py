"""Autoencoders: gradient ascent on the log-likelihood of one code for each datapoint, less a penalty on the code."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from aevb import bounds, models
from aevb.data import Datapoint
from aevb.learners import Batch, Learner, TrainState, descend, first_state


class Reconstruction(NamedTuple):
    """How well one datapoint comes back from its code; scalars.

    Attributes:
      log_likelihood: log p(x | z), nats, of all elements of x together.
      squared_error: `|x - E[x | z]|^2`, in squared units of x, of all elements together.
      l1: `|z|_1`, of all elements of the code together.
      active: the share of the code's elements that are not 0.
    """

    log_likelihood: jax.Array
    squared_error: jax.Array
    l1: jax.Array
    active: jax.Array


def reconstruction(model: models.VAE) -> Callable[[Any, Datapoint], Reconstruction]:
    """`(params, point) -> Reconstruction`: the code is of what the encoder sees, and x itself is to come back from it.

    For a Gaussian of fixed scale s over D elements
    `log_likelihood = -squared_error / (2 s^2) - D log(s sqrt(2 pi))`: the mean squared error but for constants.
    """

    def one(params: Any, point: Datapoint) -> Reconstruction:
        autoencoder = model.bind({"params": params}).given(point.context)
        z = autoencoder.encode(point.seen).mean
        likelihood = autoencoder.decode(z)
        return Reconstruction(
            log_likelihood=bounds.log_likelihood(likelihood, point.x),
            squared_error=jnp.square(point.x - likelihood.mean).sum(),
            l1=jnp.abs(z).sum(),
            active=(z != 0).mean(),
        )

    return one


def learner(model: models.VAE, optimizer: optax.GradientTransformation, *, l1_weight: float = 0.0) -> Learner:
    """Maximise the log-likelihood of the code's reconstruction over encoder and decoder together.

    `loss = -(1/M) sum_i [log p(x_i | z_i) - l1_weight |z_i|_1]`, nats per datapoint, with
    `z_i = code(encoder(seen_i))`. What is seen is x (an autoencoder) or a corruption of it (a denoising one). With
    the L1 penalty codes become sparse, if their activation can be 0, such as a ReLU's. A decoder that grows while codes
    shrink evades it, unless its weights are held, for example by AdamW's decay.

    Args:
      model: of a `models.PointMass` posterior; its prior is not read.
      optimizer: any Optax transformation.
      l1_weight: lambda, nats a unit of activation, at least 0; carried in the state's hyperparameters.

    Returns:
      A `Learner` whose metrics are those of `Reconstruction`, `loss` and `grad_norm`. There is no bound.
    """
    batch_reconstruction = jax.vmap(reconstruction(model), in_axes=(None, 0))

    def loss_fn(params: Any, batch: Batch, weight: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        mean = jax.tree.map(jnp.mean, batch_reconstruction(params, batch.points))
        return weight * mean.l1 - mean.log_likelihood, mean._asdict()

    def update(
        state: TrainState, batch: Batch, step_key: jax.Array, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        del step_key  # nothing is drawn
        loss = functools.partial(loss_fn, batch=batch, weight=state.hyperparameters["l1_weight"])
        params, opt_state, metrics = descend(optimizer, loss, state.params, state.opt_state, axis_name)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Learner(
        lambda key: first_state(key, functools.partial(models.init, model), optimizer.init, {"l1_weight": l1_weight}),
        update,
        model.likelihood.support,
        has_bound=False,
    )
