"""The loop: devices, resuming, keys, orders, non-finite numbers, and averaged weights."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aevb import models, training
from aevb.checkpoints import Checkpoints
from aevb.data import Datapoint, Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory
from aevb.errors import InputError, NonFiniteError, SamplingError
from aevb.learners import Learner, TrainState, aevb
from aevb.networks import MLP

PIXELS = np.random.default_rng(0).integers(0, 256, size=(20, 6), dtype=np.uint8)
BINARY = np.where(PIXELS > 127, 255, 0).astype(np.uint8)
RAW = make_preprocess("none")


@functools.cache
def make_learner():
    model = models.vae((6,), 2, network=functools.partial(MLP, hidden=(5,)))
    return aevb.learner(model, optax.adam(0.02), kl_schedule=optax.linear_schedule(0.0, 1.0, 15))


make_train_steps = functools.cache(training.make_train_steps)


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """Runs of the same learner, feed and devices share their programs: compiling is most of this file's time."""
    monkeypatch.setattr(training, "make_train_steps", lambda *args: make_train_steps(
        *(tuple(arg) if isinstance(arg, list) else arg for arg in args)))  # fmt: skip


def make_feed(examples=PIXELS, batch_size=8, seed=1):
    return InMemory(Split(examples, None), batch_size, jax.random.key(seed))


def first_state(learner, seed=0):
    state = learner.init(jax.random.key(seed))
    return state.replace(ema_params=state.params)


FEED, DYNAMIC = make_feed(), make_preprocess("dynamic")


def run(state, num_steps, *, devices=1, steps_per_call=5):
    """The state after `num_steps` and every step's metrics."""
    kept = []
    for replicated, metrics in training.train(
        make_learner(),
        state,
        FEED,
        DYNAMIC,
        num_steps=num_steps,
        steps_per_call=steps_per_call,
        ema_decay=0.9,
        devices=jax.devices()[:devices],
    ):
        state = jax.device_get(training.unreplicate(replicated))
        kept.append(metrics)
    return state, {name: np.concatenate([m[name] for m in kept]) for name in kept[0]}


@functools.cache
def uninterrupted(devices=1):
    return run(first_state(make_learner()), 20, devices=devices)


def numbers(state):
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, state
    )


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, numbers(a), numbers(b))


def recorder(update):
    """A learner whose parameters are whatever `update(params, batch, key)` returns, for looking at what it is given."""

    def step(state, batch, step_key, axis_name):
        params, metrics = update(state.params, batch, step_key, axis_name)
        zero = jnp.float32(0)
        return state.replace(step=state.step + 1, params=params), {"loss": zero, "grad_norm": zero} | metrics

    return Learner(init=None, update=step)


def recorder_state(params, ema_params=None):
    return TrainState(jnp.int32(0), jax.random.key(3), params, (), ema_params, {})


@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_trains_the_same_model(devices):
    (one, metrics_one), (many, metrics_many) = uninterrupted(), uninterrupted(devices)
    for name in metrics_one:
        np.testing.assert_allclose(metrics_many[name], metrics_one[name], rtol=2e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), numbers(one), numbers(many))


def test_training_moves_the_bound():
    # What makes the comparisons of this file mean something: weights and bound are far from where they started.
    state, metrics = uninterrupted()
    assert metrics["elbo"][-5:].mean() > metrics["elbo"][:5].mean() + 0.2
    start = first_state(make_learner()).params
    assert np.abs(state.params["decoder"]["output"]["kernel"] - start["decoder"]["output"]["kernel"]).max() > 0.1


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    steps = training.train(make_learner(), None, make_feed(batch_size=6), RAW, num_steps=1, devices=jax.devices()[:4])
    with pytest.raises(InputError, match=r"batch of 6 .* 4 devices"):
        next(steps)


@pytest.mark.parametrize("stops", [(10,), (7, 12), (5, 6)])
def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stops):
    state, kept = first_state(make_learner()), []
    for stop in (*stops, 20):
        state, metrics = run(state, stop)
        kept.append(metrics)
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(stop, state)
        checkpoints.close()
        # A new process: nothing but the file and a fresh state of the right shapes.
        state, step, passed_over = Checkpoints(tmp_path / "run").restore(first_state(make_learner(), seed=77))
        assert (step, passed_over) == (stop, [])
    expected, expected_metrics = uninterrupted()
    assert_same_bits(state, expected)
    for name, values in expected_metrics.items():
        np.testing.assert_array_equal(np.concatenate([m[name] for m in kept]), values, err_msg=name)


@pytest.mark.parametrize("steps_per_call", [3, 100])
def test_how_often_the_host_looks_changes_no_bit(steps_per_call):
    state, metrics = run(first_state(make_learner()), 20, steps_per_call=steps_per_call)
    expected, expected_metrics = uninterrupted()
    assert_same_bits(state, expected)
    for name, values in expected_metrics.items():
        np.testing.assert_array_equal(metrics[name], values, err_msg=name)


def test_one_step_a_call_differs_by_rounding_alone():
    # XLA takes the loop away around a single step, and may then round differently (seen with JAX 0.12).
    state, metrics = run(first_state(make_learner()), 20, steps_per_call=1)
    expected, expected_metrics = uninterrupted()
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-4, atol=1e-6)
    for name, values in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], values, rtol=1e-4, err_msg=name)


def test_metrics_come_for_every_step_and_at_multiples_of_steps_per_call():
    counter = recorder(lambda params, batch, key, axis_name: (params + 1, {"seen": params}))
    state = recorder_state(jnp.float32(7)).replace(step=jnp.int32(7))
    got = list(
        training.train(counter, state, make_feed(), RAW, num_steps=23, steps_per_call=5, devices=jax.devices()[:1])
    )
    np.testing.assert_array_equal(np.concatenate([metrics["seen"] for _, metrics in got]), np.arange(7, 23))
    assert [len(metrics["seen"]) for _, metrics in got] == [3, 5, 5, 3]


def test_a_finished_state_takes_no_step():
    state = recorder_state(jnp.float32(0)).replace(step=jnp.int32(5))
    assert list(training.train(recorder(None), state, make_feed(), RAW, num_steps=5)) == []


def test_the_state_is_donated_and_the_callers_is_not():
    learner = make_learner()
    state = first_state(learner)
    feed = make_feed(BINARY)
    steps = training.train(learner, state, feed, RAW, num_steps=4, steps_per_call=2, devices=jax.devices()[:1])
    first, _ = next(steps)
    next(steps)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
    assert np.isfinite(state.params["decoder"]["output"]["kernel"]).all()


@pytest.mark.parametrize("bad_row", [3, 11])
def test_nan_data_halts_at_the_step_that_saw_it(bad_row):
    examples = np.zeros((12, 6), np.float32)
    examples[bad_row] = np.nan
    feed = make_feed(examples, batch_size=2)
    (expected,) = np.flatnonzero((np.asarray(feed.steps(0, 6)) == bad_row).any(axis=1))
    assert expected > 0
    learner = make_learner()
    steps = training.train(learner, first_state(learner), feed, RAW, num_steps=6, devices=jax.devices()[:1])
    with pytest.raises(NonFiniteError, match=rf"^step {expected + 1} has loss nan"):
        list(steps)


@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_non_finite_step_is_named(metric, value):
    def update(params, batch, key, axis_name):
        return params + 1, {metric: jnp.where(params >= 8, value, 1.5)}

    steps = training.train(
        recorder(update), recorder_state(jnp.float32(0)), make_feed(), RAW, num_steps=20, steps_per_call=5
    )
    assert len(next(steps)[1]["loss"]) == 5
    with pytest.raises(NonFiniteError, match=r"^step 9 has"):
        next(steps)


def test_a_gradient_that_is_not_finite_halts_though_the_loss_is():
    class RootAtZero(nn.Module):
        output_shape: tuple[int, ...]

        @nn.compact
        def __call__(self, x):
            offset = self.param("offset", nn.initializers.zeros, (1,))
            return MLP(self.output_shape, hidden=())(x) + jnp.sqrt(offset).reshape((1,) * len(self.output_shape))

    learner = aevb.learner(models.vae((6,), 2, network=RootAtZero), optax.sgd(0.1))
    state = learner.init(jax.random.key(0))
    with pytest.raises(NonFiniteError, match=r"^step 1 has loss \d+\.\d+ and gradient norm (inf|nan)"):
        list(training.train(learner, state, make_feed(BINARY), RAW, num_steps=1))


def test_no_key_is_used_twice():
    def update(params, batch, key, axis_name):
        return params, {"learner_key": jax.random.key_data(key), "data_keys": batch.x}

    def give_key(stored, label, example_id, key):
        return Datapoint(jax.random.key_data(key))

    state = recorder_state(jnp.float32(0))
    kept = [
        metrics
        for _, metrics in training.train(
            recorder(update), state, make_feed(), give_key, num_steps=50, devices=jax.devices()[:1]
        )
    ]
    (metrics,) = kept
    assert metrics["data_keys"].shape == (50, 8, 2)
    own = learner_example_keys(metrics["learner_key"])
    everything = np.concatenate(
        [
            jax.random.key_data(state.key)[None],
            metrics["learner_key"].reshape(-1, 2),
            metrics["data_keys"].reshape(-1, 2),
            own.reshape(-1, 2),
        ]
    )
    assert len(np.unique(everything, axis=0)) == len(everything) == 1 + 50 + 400 + 400


def learner_example_keys(step_keys):
    """What the AEVB learner makes of each step's key, `[steps, 8, 2]`."""
    from aevb.learners import example_keys

    keys = jax.random.wrap_key_data(jnp.asarray(step_keys))
    return np.asarray(jax.random.key_data(jax.vmap(lambda key: example_keys(key, jnp.arange(8)))(keys)))


def test_the_keys_of_a_step_depend_on_the_step_and_not_on_the_devices():
    def update(params, batch, key, axis_name):
        every = batch.x if axis_name is None else jax.lax.all_gather(batch.x, axis_name).reshape(8, 2)
        return params, {"data_keys": every}

    def give_key(stored, label, example_id, key):
        return Datapoint(jax.random.key_data(key))

    seen = []
    for devices in (1, 2, 4):
        steps = training.train(
            recorder(update), recorder_state(jnp.float32(0)), make_feed(), give_key, num_steps=3,
            devices=jax.devices()[:devices],
        )  # fmt: skip
        seen.append(next(steps)[1]["data_keys"])
    np.testing.assert_array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[2], seen[0])


def test_fit_uses_one_key_for_each_purpose(monkeypatch):
    used = []

    def feed(split, batch_size, key):
        used.append(key)
        return InMemory(split, batch_size, key)

    def prepare(split, binarization, static_key, context):
        used.append(static_key)
        return split, make_preprocess(binarization, static_key)

    learner = recorder(lambda params, batch, key, axis_name: (params, {}))

    def init(key):
        used.append(key)
        return recorder_state(jnp.float32(0)).replace(key=key)

    monkeypatch.setattr(training, "InMemory", feed)
    monkeypatch.setattr(training, "prepare", prepare)
    for seed in (0, 1):
        training.fit(Learner(init, learner.update), BINARY, num_steps=1, batch_size=8, seed=seed)
        used.append(jax.random.key(seed))
    data = np.stack([jax.random.key_data(key) for key in used])
    assert len(data) == len(np.unique(data, axis=0)) == 8


def test_initial_weights_do_not_correlate_with_noise_of_the_training_key():
    model = models.vae((100,), 100, network=functools.partial(MLP, hidden=()))
    key = jax.random.key(0)
    state = aevb.learner(model, optax.sgd(0.1)).init(key)
    kernel = np.ravel(state.params["decoder"]["output"]["kernel"])
    # The weights that reuse would have drawn, of which the second must not be these.
    for other_key in (key, state.key, jax.random.fold_in(state.key, 0)):
        other = np.ravel(models.init(model, other_key)["decoder"]["output"]["kernel"])
        assert abs(np.corrcoef(kernel, other)[0, 1]) < 4 / np.sqrt(kernel.size)


def test_the_average_of_the_weights_by_its_formula():
    ramp = recorder(lambda params, batch, key, axis_name: (params + 1.0, {}))
    state = recorder_state(jnp.float32(10.0), ema_params=jnp.float32(10.0))
    got = [
        float(state.ema_params[0])
        for state, _ in training.train(ramp, state, make_feed(), RAW, num_steps=12, steps_per_call=1, ema_decay=0.5)
    ]
    expected, average = [], 10.0
    for t in range(1, 13):
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * (10.0 + t)
        expected.append(average)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (1 + 7) / (10 + 7) < 0.5 < (1 + 9) / (10 + 9)  # both branches of the minimum were taken


def counts_after(batch_size, num_steps, num_examples, devices=1, seed=1):
    """How often each example was seen."""

    def update(params, batch, key, axis_name):
        here = jnp.zeros(num_examples).at[batch.x[:, 0].astype(jnp.int32)].add(1)
        return params + (here if axis_name is None else jax.lax.psum(here, axis_name)), {}

    examples = np.arange(num_examples, dtype=np.float32)[:, None]
    state = recorder_state(jnp.zeros(num_examples))
    for replicated, _ in training.train(
        recorder(update), state, make_feed(examples, batch_size, seed), RAW, num_steps=num_steps, steps_per_call=3,
        devices=jax.devices()[:devices],
    ):  # fmt: skip
        counts = np.asarray(training.unreplicate(replicated.params))
    return counts


@pytest.mark.parametrize(
    ("batch_size", "num_steps", "num_examples", "devices"), [(4, 6, 12, 1), (4, 5, 10, 2), (8, 3, 12, 4), (12, 5, 5, 2)]
)
def test_training_sees_each_example_once_an_epoch(batch_size, num_steps, num_examples, devices):
    epochs, rest = divmod(batch_size * num_steps, num_examples)
    assert rest == 0
    np.testing.assert_array_equal(counts_after(batch_size, num_steps, num_examples, devices), epochs)


def test_no_example_is_seen_twice_before_every_other_was_seen():
    assert sorted(np.unique(counts_after(4, 2, 10))) == [0, 1]
    assert sorted(np.unique(counts_after(4, 3, 10))) == [1, 2]


def test_fit_is_a_function_of_its_seed():
    def update(params, batch, key, axis_name):
        return params + batch.x.sum(axis=0) + jax.random.normal(key, (6,)), {}

    learner = recorder(update)._replace(init=lambda key: recorder_state(jax.random.normal(key, (6,))).replace(key=key))
    a, b, c = (
        training.fit(learner, PIXELS, num_steps=3, batch_size=8, binarization="dynamic", seed=s) for s in (0, 0, 1)
    )
    assert_same_bits(a, b)
    assert a.step == 3
    assert np.abs(a.params - c.params).max() > 0.01


@pytest.mark.parametrize(
    ("acceptance", "divergent", "halts"), [(0.009, 0, True), (0.011, 0, False), (0.5, 0.51, True), (0.5, 0.49, False)]
)
def test_a_call_whose_chains_do_not_sample_halts(monkeypatch, acceptance, divergent, halts):
    monkeypatch.setattr(training, "SETTLING", 4)

    def update(step, batch, key, axis_name):  # it is the mean over a call that counts: half of its steps do nothing
        twice = 2.0 * (step % 2) * (step >= 4)
        reported = {"acceptance": twice * acceptance, "divergent": twice * divergent}
        return step + 1, reported | {"step_size": jnp.float32(0.25)}

    steps = training.train(recorder(update), recorder_state(jnp.float32(0)), FEED, RAW, num_steps=8, steps_per_call=4)
    next(steps)
    message = rf"^steps 5 to 8 accepted {acceptance:.2%} .* {divergent:.2%} diverged, with steps of 0\.25: "
    with pytest.raises(SamplingError, match=message) if halts else contextlib.nullcontext():
        next(steps)
