"""Packed trials: runs that differ in numbers alone, trained as one program, a `vmap` over trials of the step of one.

What may differ is what the state carries as arrays (parameters, keys, learning rate, weight decay, beta: see
`TrainState.hyperparameters` and `optax.inject_hyperparams`), and the order of the examples. Devices share the trials
among them and never talk to each other.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb import training
from aevb.data.binarization import Preprocess
from aevb.data.feeding import InMemory
from aevb.errors import InputError, NonFiniteError, SamplingError
from aevb.learners import Learner, TrainState


def train_packed(
    learner: Learner,
    states: Sequence[TrainState],
    feeds: Sequence[InMemory],
    preprocess: Preprocess,
    *,
    num_steps: int,
    steps_per_call: int = 100,
    ema_decay: float = 0.0,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[tuple[Any, list[dict[str, np.ndarray]], list[Exception | None]]]:
    """Train trials together from their states' step to `num_steps`, yielding at every multiple of `steps_per_call`.

    Each trial comes to what `training.train` would make of it alone, but for rounding. One that leaves the numbers goes
    on as it is and disturbs no other.

    Args:
      learner: what to do in a step; of any of the trials, for what they differ in is in their states.
      states: where each trial starts, all at the same step; unreplicated.
      feeds: of each trial, of the same examples in its own order.
      preprocess: from a stored example to a datapoint.
      num_steps: the step to end at.
      steps_per_call: steps in one `scan`, between two looks from the host.
      ema_decay: of the average of the weights; read only if the states keep one.
      devices: that the trials are dealt out to; all local ones unless given.

    Yields:
      The states, packed, for `unpack`, valid until the next are asked for (their memory is donated); the metrics of
      each trial for each step since the last yield, `[steps]`; and for each trial the error that `training.train`
      would have raised over them, or None.

    Raises:
      InputError: the states stand at different steps, or the feeds are not of the same examples in memory.
    """
    _check(states, feeds)
    devices = (devices or jax.local_devices())[: len(states)]
    step = int(states[0].step)
    train_steps = training.make_train_steps(learner, feeds[0], preprocess, ema_decay, devices, packed=True)
    resident = training.replicate(feeds[0].resident, devices)
    packed = pack(states, devices)
    while step < num_steps:
        num = min(steps_per_call - step % steps_per_call, num_steps - step)
        fed = np.stack(_dealt([np.asarray(feed.steps(step, num)) for feed in feeds], len(devices)))
        packed, metrics = train_steps(packed, resident, fed.reshape(len(devices), -1, *fed.shape[1:]))
        metrics = {name: np.asarray(values).reshape(-1, num) for name, values in metrics.items()}
        each = [{name: values[i] for name, values in metrics.items()} for i in range(len(states))]
        errors = [_error(of_trial, step) for of_trial in each]
        step += num
        yield packed, each, errors


def pack(states: Sequence[TrainState], devices: Sequence[jax.Device]) -> TrainState:
    """States as one, leaves `[devices, trials of a device, ...]`; the last one fills up what does not divide."""
    sharding = training.one_each(devices)

    def stack(*leaves: jax.Array | np.ndarray) -> jax.Array:
        if _is_key(leaves[0]):
            data = stack(*(jax.random.key_data(leaf) for leaf in leaves))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaves[0]))
        stacked = np.stack([np.asarray(leaf) for leaf in leaves])  # on the host: nothing is compiled, leaf by leaf
        return jax.device_put(stacked.reshape(len(devices), -1, *stacked.shape[1:]), sharding)

    return jax.tree.map(stack, *_dealt(states, len(devices)))


def unpack(packed: TrainState, num: int) -> list[TrainState]:
    """The first `num` of packed states, copied to the host, NumPy but for the keys."""
    host = jax.tree.map(lambda leaf: np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf), packed)

    def of_trial(i: int) -> TrainState:
        def leaf_of_trial(leaf: jax.Array, values: np.ndarray) -> jax.Array | np.ndarray:
            own = np.asarray(values.reshape(-1, *values.shape[2:])[i])
            return jax.random.wrap_key_data(own, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else own

        return jax.tree.map(leaf_of_trial, packed, host)

    return [of_trial(i) for i in range(num)]


def _is_key(leaf: Any) -> bool:
    """Whether a leaf holds PRNG keys, which NumPy does not know."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _dealt(items: Sequence[Any], num_devices: int) -> list[Any]:
    """The items, and the last of them again until as many come to each device."""
    return [*items, *[items[-1]] * (-len(items) % num_devices)]


def _error(metrics: dict[str, np.ndarray], first_step: int) -> NonFiniteError | SamplingError | None:
    """What `training.train` would have raised over the steps of a call."""
    try:
        training.check_call(metrics, first_step)
    except (NonFiniteError, SamplingError) as error:
        return error
    return None


def _check(states: Sequence[TrainState], feeds: Sequence[InMemory]) -> None:
    """Refuse what cannot be one program over the same examples."""
    steps = sorted({int(state.step) for state in states})
    if len(steps) != 1:
        raise InputError(
            f"packed states stand at the steps {steps}: train those that lag behind up to the others first"
        )
    if not all(isinstance(feed, InMemory) and feed.resident.stored is feeds[0].resident.stored for feed in feeds):
        raise InputError("packed trials need feeds of the same examples in memory: make each InMemory of one split")
