"""Learners: what climbs a bound. Each is one file with `learner(...) -> Learner`, a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from aevb import bounds
from aevb.data import Datapoint


@struct.dataclass
class TrainState:
    """All that training carries from one step to the next; a run is a function of its first state and the data.

    Attributes:
      step: updates made, int32 `[]`.
      key: the run's PRNG key; the key of step t is `fold_in(key, t)`, so it never changes.
      params: the model's parameters.
      opt_state: whatever the learner's optimizers carry.
      ema_params: an exponential moving average of `params`; None when none is kept.
      hyperparameters: numbers that keep shapes (float32 `[]`), so that runs that differ in them are one program.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any
    hyperparameters: dict[str, jax.Array]


class Batch(NamedTuple):
    """The part of a minibatch that one device sees.

    Attributes:
      x: what the likelihood is asked about, `[M, *event]`.
      context: what the model is told beside it, `[M, context]`; None for models without.
      index: the place of each example in the global batch, int32 `[M]`: with the step, it is what keys derive from.
      example_id: the place of each example in the training split, int32 `[M]`: what a chain of its own is found by.
      corrupted: what the encoder sees in the place of x, `[M, *event]`; None where it sees x.
    """

    x: jax.Array
    context: jax.Array | None
    index: jax.Array
    example_id: jax.Array
    corrupted: jax.Array | None = None

    @property
    def points(self) -> Datapoint:
        """The datapoints, leaves `[M, ...]`."""
        return Datapoint(self.x, self.context, self.corrupted)


class Learner(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `key -> TrainState`.
      update: `(state, batch, step_key, axis_name) -> (state, metrics)`: one step. Metrics are scalars, `loss` and
        `grad_norm` among them; `axis_name` is the mapped axis to average over, None on one device.
      support: the values that the likelihood has a density or mass for, "binary", "unit", "real", "levels" or
        "counts".
      has_encoder: whether its parameters hold an encoder.
      has_bound: whether there is a bound on log p(x) that its encoder makes.
    """

    init: Callable[[jax.Array], TrainState]
    update: Callable[[TrainState, Batch, jax.Array, str | None], tuple[TrainState, dict[str, jax.Array]]]
    support: str = "real"
    has_encoder: bool = True
    has_bound: bool = True


def first_state(
    key: jax.Array,
    init_params: Callable[[jax.Array], Any],
    init_opt_state: Callable[[Any], Any],
    hyperparameters: dict[str, float] | None = None,
) -> TrainState:
    """The state before the first step; `init_params` takes a key, `init_opt_state` the parameters."""
    init_key, state_key = jax.random.split(key)
    params = init_params(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=state_key,
        params=params,
        opt_state=init_opt_state(params),
        ema_params=None,
        hyperparameters={name: jnp.asarray(value, jnp.float32) for name, value in (hyperparameters or {}).items()},
    )


def descend(
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    opt_state: Any,
    axis_name: str | None,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One step of an optimizer down `loss_fn: params -> (loss, metrics)`, the mean over the devices.

    Returns:
      Parameters, the optimizer's state, and the metrics with `loss` and `grad_norm`.
    """
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, metrics, grads = device_mean((loss, metrics, grads), axis_name)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    metrics = metrics | {"loss": loss, "grad_norm": global_norm(grads)}
    return optax.apply_updates(params, updates), opt_state, metrics


def map_loss(objective: jax.Array, theta: Any, weight_prior_examples: int | None) -> jax.Array:
    """What is minimised, nats per datapoint: `-(1/N) [N/M sum_i objective_i + log N(theta; 0, I)]`.

    Args:
      objective: of each datapoint of the minibatch, nats, up is better, `[M]`.
      theta: the parameters that the paper's prior is on.
      weight_prior_examples: N, the size of the training set; None leaves the prior out.
    """
    if weight_prior_examples is None:
        return -objective.mean()
    whole = bounds.minibatch_estimate(objective, weight_prior_examples)
    return -(whole + bounds.log_weight_prior(theta)) / weight_prior_examples


def example_keys(step_key: jax.Array, index: jax.Array) -> jax.Array:
    """One key an example, `[M]`, from the step's key and the place in the global batch: the same on any devices."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)


def device_mean(tree: Any, axis_name: str | None) -> Any:
    """The mean of a tree over the devices of a mapped axis; the tree itself where there is no such axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together: `optax.global_norm`, but quicker on a CPU.

    XLA runs a sum over rows over all cores and fuses it with the square, and does neither for a reduction to a scalar;
    so one barrier keeps the two sums apart. The other keeps the squares apart from those that Adam makes: shared, they
    would be written out and read twice.
    """
    leaves = [jnp.atleast_1d(leaf) for leaf in jax.tree.leaves(jax.lax.optimization_barrier(tree))]
    rows = jax.lax.optimization_barrier([jnp.square(leaf).sum(axis=-1) for leaf in leaves])
    return jnp.sqrt(sum(row.sum() for row in rows))
