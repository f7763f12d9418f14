"""The loop: `pmap` over the devices of a `scan` over steps of a learner's update. The one place that says pmap."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aevb import processes
from aevb.data import Datapoint, Split
from aevb.data.arrays import converted
from aevb.data.binarization import Preprocess, check_values, prepare
from aevb.data.feeding import InMemory, Streaming
from aevb.errors import InputError, NonFiniteError, SamplingError
from aevb.learners import Batch, Learner, TrainState

DEVICE_AXIS = "device"
# Of the HMC transitions in one call; beyond these the chains do not sample. In the first steps their step size settles.
MIN_ACCEPTANCE, MAX_DIVERGENT, SETTLING = 0.01, 0.5, 100
Feed = InMemory | Streaming


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """A copy of each leaf for each device of this process, on a new leading axis `[devices, ...]`."""
    devices = devices or jax.local_devices()
    sharding = one_each(devices)

    def copies(leaf: Any) -> jax.Array:
        if isinstance(leaf, np.ndarray):  # a data set: never stacked on one device
            return jax.device_put(np.broadcast_to(leaf, (len(devices), *leaf.shape)), sharding)
        return jax.device_put(jnp.stack([leaf] * len(devices)), sharding)

    return jax.tree.map(copies, tree)


def one_each(devices: Sequence[jax.Device]) -> NamedSharding:
    """The first axis, `[devices, ...]`, laid out over the devices."""
    return NamedSharding(Mesh(np.asarray(devices), (DEVICE_AXIS,)), PartitionSpec(DEVICE_AXIS))


def unreplicate(tree: Any) -> Any:
    """The first device's copy of each leaf.

    Read from that device alone: `leaf[0]` would be a program with an all-reduce on every device, one for each leaf, and
    so many of them at once deadlock on CPU devices.
    """
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree)


def make_train_steps(
    learner: Learner,
    feed: Feed,
    preprocess: Preprocess,
    ema_decay: float,
    devices: Sequence[jax.Device],
    packed: bool = False,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """`(state, resident, fed) -> (state, metrics)`: as many steps as `fed` holds, in one call on every device.

    Everything has a leading axis of the devices of this process; the state is donated, and each metric is
    `[devices, steps]`. Where they are `packed`, state, fed and metrics have an axis of trials after it, and each trial
    is on one device alone (`aevb.packing`).
    """

    # Averaging over one device is not free: XLA copies every gradient.
    axis_name = DEVICE_AXIS if len(devices) > 1 and not packed else None

    def step(resident: Any, state: TrainState, fed: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        fed = feed.fetch(resident, fed)
        num = fed.example_id.shape[0]
        index = (0 if packed else jax.lax.axis_index(DEVICE_AXIS) * num) + jnp.arange(num)
        data_key, learner_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(data_key, index)
        x, context, corrupted = jax.vmap(preprocess)(fed.stored, fed.label, fed.example_id, keys)
        batch = Batch(x, context, index, fed.example_id, corrupted)
        state, metrics = learner.update(state, batch, learner_key, axis_name)
        if state.ema_params is not None:
            # Early on the average is over the steps there were: (1 + t) / (10 + t) rises to ema_decay.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, state.params)
            state = state.replace(ema_params=ema)
        return state, metrics

    def steps(state: TrainState, resident: Any, fed: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(functools.partial(step, resident), state, fed)

    each = jax.vmap(steps, in_axes=(0, None, 0)) if packed else steps
    return jax.pmap(each, axis_name=DEVICE_AXIS, donate_argnums=0, devices=devices)


def train(
    learner: Learner,
    state: TrainState,
    feed: Feed,
    preprocess: Preprocess,
    *,
    num_steps: int,
    steps_per_call: int = 100,
    ema_decay: float = 0.0,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[tuple[TrainState, dict[str, np.ndarray]]]:
    """Train from the state's step to `num_steps`, yielding at every multiple of `steps_per_call`.

    Args:
      learner: what to do in a step.
      state: where to start; unreplicated.
      feed: the training examples.
      preprocess: from a stored example to a datapoint.
      num_steps: the step to end at.
      steps_per_call: steps in one `scan`, between two looks from the host.
      ema_decay: of the average of the weights; read only if the state keeps one.
      devices: all of all processes unless given; those of one process stand beside each other.

    Yields:
      The state, replicated, valid until the next one is asked for (its memory is donated), and the metrics of each
      step since the last yield, `[steps]`.

    Raises:
      InputError: the batch does not divide over the devices.
      NonFiniteError: a loss or gradient was not finite; names the step. A checkpoint of the state yielded
        before is the last good one.
      SamplingError: the learner's chains hardly ever moved over a call, or most of their transitions diverged.
    """
    devices = devices or processes.all_devices()
    ours = _ours(devices)
    if feed.batch_size % len(devices):
        raise InputError(
            f"a batch of {feed.batch_size} does not divide over {len(devices)} devices: "
            f"set the batch size to a multiple of {len(devices)}"
        )
    step = int(state.step)
    train_steps = make_train_steps(learner, feed, preprocess, ema_decay, devices)
    resident = replicate(feed.resident, ours)
    state = replicate(state, ours)
    while step < num_steps:
        num = min(steps_per_call - step % steps_per_call, num_steps - step)
        state, metrics = train_steps(state, resident, split_over(len(ours), feed.steps(step, num)))
        # Waiting here also keeps the devices from running apart: unsynchronised CPU devices deadlock.
        metrics = jax.tree.map(np.asarray, unreplicate(metrics))
        check_call(metrics, step)
        step += num
        yield state, metrics


def _ours(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of the devices that are this process'."""
    return [device for device in devices if device.process_index == jax.process_index()]


def split_over(num_devices: int, fed: Any) -> Any:
    """Leaves `[steps, B, ...]` to `[devices, steps, M, ...]`: device d has places d M to (d + 1) M of this part."""

    def split(leaf: jax.Array) -> jax.Array:
        steps, batch, *rest = leaf.shape
        return leaf.reshape(steps, num_devices, batch // num_devices, *rest).swapaxes(0, 1)

    return jax.tree.map(split, fed)


def check_call(metrics: dict[str, np.ndarray], first_step: int) -> None:
    """See that the steps of a call, whose metrics are `[steps]`, are ones to go on from.

    Raises:
      NonFiniteError, SamplingError: as `train` does.
    """
    _check_finite(metrics, first_step)
    _check_chains(metrics, first_step)


def _check_finite(metrics: dict[str, np.ndarray], first_step: int) -> None:
    """Raise for the first step whose loss or gradient is not finite; nothing of such a call is ever saved."""
    bad = ~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
    if bad.any():
        i = int(np.argmax(bad))
        raise NonFiniteError(
            f"step {first_step + i + 1} has loss {metrics['loss'][i]} and gradient norm {metrics['grad_norm'][i]}: "
            "the run stops here and keeps the last good checkpoint; lower the learning rate, clip the gradient, "
            "or look at the data"
        )


def _check_chains(metrics: dict[str, np.ndarray], first_step: int) -> None:
    """Raise where the learner samples by HMC and its draws stand for nothing."""
    settling = max(SETTLING - first_step, 0)
    if "acceptance" not in metrics or settling >= len(metrics["loss"]):
        return
    means = {name: float(metrics[name][settling:].mean()) for name in ("acceptance", "divergent", "step_size")}
    if not (means["acceptance"] >= MIN_ACCEPTANCE and means["divergent"] <= MAX_DIVERGENT):  # so NaN is refused
        raise SamplingError(
            f"steps {first_step + settling + 1} to {first_step + len(metrics['loss'])} accepted "
            f"{means['acceptance']:.2%} of their HMC proposals and {means['divergent']:.2%} diverged, with steps of "
            f"{means['step_size']:.3g}: the run stops here and keeps the last good checkpoint; lower the learning "
            "rate, or look at the data"
        )


def map_examples(
    fn: Callable[[Any, Datapoint, jax.Array], Any],
    preprocess: Preprocess,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[Any, Split, jax.Array], Iterator[Any]]:
    """Map a function of one datapoint over a split, on every device, each example exactly once.

    Of several processes each reads and maps a part of every batch, and all have the whole result.

    Args:
      fn: `(params, point, key) -> tree of arrays`, for one datapoint.
      preprocess: from a stored example to a datapoint.
      batch_size: examples at once, over all devices; the last batch is padded, and the padding dropped from the result.
      devices: all of all processes unless given; those of one process stand beside each other.

    Returns:
      `(replicated params, split, key) -> iterator of trees`, leaves `[M, ...]`, NumPy, in the split's order. The key
      of example i is `fold_in(key, i)`, so that neither the batch size nor the devices change a result.
    """
    devices = devices or processes.all_devices()
    ours = _ours(devices)
    per_device = -(-batch_size // len(devices))
    batch_size = per_device * len(devices)
    here = slice(devices.index(ours[0]) * per_device, (devices.index(ours[0]) + len(ours)) * per_device)

    def one(params: Any, key: jax.Array, stored: jax.Array, label: jax.Array | None, example_id: jax.Array) -> Any:
        data_key, model_key = jax.random.split(jax.random.fold_in(key, example_id))
        return fn(params, preprocess(stored, label, example_id, data_key), model_key)

    def batched(*fed: Any) -> Any:
        out = jax.vmap(one, in_axes=(None, None, 0, 0, 0))(*fed)
        return out if len(ours) == len(devices) else jax.lax.all_gather(out, DEVICE_AXIS)

    mapped = jax.pmap(batched, axis_name=DEVICE_AXIS, in_axes=(0, None, 0, 0, 0), devices=devices)

    def run(params: Any, split: Split, key: jax.Array) -> Iterator[Any]:
        num_examples = len(split.examples)
        for start in range(0, num_examples, batch_size):
            ids = np.arange(start, start + batch_size)
            rows = np.minimum(ids, num_examples - 1)[here]
            labels = None if split.labels is None else split.labels[rows]
            fed = (read_rows(split.examples, rows), labels, rows.astype(np.int32))
            fed = jax.tree.map(lambda leaf: leaf.reshape(len(ours), per_device, *leaf.shape[1:]), fed)
            out = mapped(params, key, *fed)
            out = out if len(ours) == len(devices) else unreplicate(out)
            kept = min(batch_size, num_examples - start)
            yield jax.tree.map(lambda leaf: np.asarray(leaf).reshape(batch_size, *leaf.shape[2:])[:kept], out)  # noqa: B023

    return run


def read_rows(examples: Any, rows: np.ndarray) -> np.ndarray:
    """Stored examples at `rows`, `[M, *event]`, from an array or from a random access source."""
    return examples[rows] if isinstance(examples, np.ndarray) else np.stack([examples[int(i)] for i in rows])


def collect(batches: Iterator[Any]) -> Any:
    """The trees that `map_examples` yields, as one, leaves `[N, ...]`."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def fit(
    learner: Learner,
    examples: np.ndarray,
    contexts: np.ndarray | None = None,
    *,
    num_steps: int,
    batch_size: int = 100,
    binarization: str = "none",
    seed: int = 0,
) -> TrainState:
    """Train on an array, from the first step to the last.

    Args:
      learner: for example `aevb.learners.aevb.learner(model, optax.adam(1e-3))`.
      examples: `[N, *event]`; integers 0..255 stand for value / 255, booleans for 0 and 1, floats for themselves.
      contexts: what a conditional model is told beside each example, `[N, context]`.
      num_steps: updates to make.
      batch_size: over all devices.
      binarization: a name of `aevb.data.binarization.BINARIZATIONS`.
      seed: everything random derives from it.

    Returns:
      The final state, on one device; its `params` are what the model is bound to.

    Raises:
      InputError: the examples are none that the likelihood has a density for, or the batch does not divide over the
        devices.
      NonFiniteError: a loss or gradient was not finite.
    """
    examples = converted(np.asarray(examples), "the array of examples")
    check_values(examples, binarization, learner.support, "the array of examples")
    init_key, shuffle_key, static_key = jax.random.split(jax.random.key(seed), 3)
    context = None if contexts is None else jnp.float32
    split, preprocess = prepare(Split(examples, contexts), binarization, static_key, context)
    feed = InMemory(split, batch_size, shuffle_key)
    state = learner.init(init_key)
    for replicated, _ in train(learner, state, feed, preprocess, num_steps=num_steps):
        state = unreplicate(replicated)
    return state
