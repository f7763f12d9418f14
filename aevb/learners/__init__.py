"""Learners: what climbs a bound. Each is one file with `learner(...) -> Learner`, a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct


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
      x: datapoints, `[M, *event]`.
      label: int32 `[M]`, or None.
      index: the place of each example in the global batch, int32 `[M]`: with the step, it is what keys derive from.
    """

    x: jax.Array
    label: jax.Array | None
    index: jax.Array


class Learner(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `key -> TrainState`.
      update: `(state, batch, step_key, axis_name) -> (state, metrics)`: one step. Metrics are scalars, `loss` and
        `grad_norm` among them; `axis_name` is the mapped axis to average over, None on one device.
      support: the values that the likelihood has a density or mass for, "binary", "unit" or "real".
    """

    init: Callable[[jax.Array], TrainState]
    update: Callable[[TrainState, Batch, jax.Array, str | None], tuple[TrainState, dict[str, jax.Array]]]
    support: str = "real"


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
