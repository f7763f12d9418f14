"""Packed trials against the same trials alone: metrics, parameters, orders, and the one that leaves the numbers."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aevb import models, packing, training
from aevb.data import Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory, Streaming
from aevb.errors import InputError, NonFiniteError
from aevb.learners import aevb
from aevb.networks import MLP

PIXELS = np.random.default_rng(0).integers(0, 256, size=(20, 6), dtype=np.uint8)
SPLIT, DYNAMIC = Split(PIXELS, None), make_preprocess("dynamic")
STEPS, CALL = 12, 5
# Seed, learning rate, weight decay and beta of each trial; the second leaves the numbers.
NUMBERS = [(0, 0.02, 0.0, 1.0), (1, 1e30, 0.0, 1.0), (2, 0.005, 0.3, 0.25)]
LOST = 1


@pytest.fixture(autouse=True, scope="module")
def quick_compiling() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def make_learner(rate: float, decay: float, beta: float):
    model = models.vae((6,), 2, network=functools.partial(MLP, hidden=(5,)))
    adamw = optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=decay)
    factor = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.5, 10))
    schedule = optax.linear_schedule(0.0, 1.0, 8)
    return aevb.learner(model, optax.chain(adamw, factor), kl_weight=beta, kl_schedule=schedule)


@functools.cache
def first_state(seed: int, *numbers: float):
    state = jax.jit(make_learner(*numbers).init)(jax.random.key(seed))
    return state.replace(ema_params=state.params)


def make_feed(seed: int) -> InMemory:
    return InMemory(SPLIT, 8, jax.random.key(100 + seed))


def plain(state: Any) -> Any:
    """Everything that training carries, as NumPy."""
    return jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))


def together(numbers: list[tuple], devices: int, start: list | None = None):
    """The last states, the metrics of every step, and the errors of every call, of each trial."""
    kept, errors = [[] for _ in numbers], []
    for packed, metrics, failed in packing.train_packed(
        make_learner(*numbers[0][1:]),
        start or [first_state(*each) for each in numbers],
        [make_feed(seed) for seed, *_ in numbers],
        DYNAMIC,
        num_steps=STEPS,
        steps_per_call=CALL,
        ema_decay=0.9,
        devices=jax.devices()[:devices],
    ):
        states = packing.unpack(packed, len(numbers))
        errors.append(failed)
        for rows, of_trial in zip(kept, metrics, strict=True):
            rows.append(of_trial)
    merged = [{name: np.concatenate([row[name] for row in rows]) for name in rows[0]} for rows in kept]
    return states, merged, errors


@functools.cache
def alone(seed: int, *numbers: float):
    """The last state and the metrics of every step of `training.train`."""
    kept = []
    for replicated, metrics in training.train(
        make_learner(*numbers),
        first_state(seed, *numbers),
        make_feed(seed),
        DYNAMIC,
        num_steps=STEPS,
        steps_per_call=CALL,
        ema_decay=0.9,
        devices=jax.devices()[:1],
    ):
        kept.append(metrics)
        state = plain(training.unreplicate(replicated))
    return state, {name: np.concatenate([row[name] for row in kept]) for name in kept[0]}


def assert_as_alone(state, metrics, numbers):
    expected, expected_metrics = alone(*numbers)
    assert metrics.keys() == expected_metrics.keys()
    for name, values in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], values, rtol=2e-4, atol=1e-5, err_msg=name)
    state = plain(state)
    np.testing.assert_array_equal(state.key, expected.key)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2])  # two do not divide three trials
def test_each_trial_is_the_one_alone_and_a_lost_one_disturbs_no_other(devices):
    states, metrics, errors = together(NUMBERS, devices)
    for i in (0, 2):
        assert_as_alone(states[i], metrics[i], NUMBERS[i])
    # At the steps 5, 10 and 12, in the words of training.train.
    assert [[error is not None for error in call] for call in errors] == [[False, True, False]] * 3
    with pytest.raises(NonFiniteError, match=r"^step 2 has loss (inf|nan) and gradient norm"):
        raise errors[0][LOST]
    # What makes the comparison mean something: trials differ by far more than its tolerance.
    assert np.abs(metrics[2]["elbo"] - metrics[0]["elbo"]).max() > 0.05
    np.testing.assert_allclose(metrics[2]["kl_weight"][-1], 0.25)
    assert states[2].opt_state[0].hyperparams["weight_decay"] == np.float32(0.3)


def test_packed_states_are_the_states():
    states = [first_state(*each) for each in NUMBERS]
    packed = packing.pack(states, jax.devices()[:2])
    assert packed.step.shape == (2, 2)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(packed)} == {2}
    for state, back in zip(states, packing.unpack(packed, 3), strict=True):
        jax.tree.map(np.testing.assert_array_equal, plain(back), plain(state))


def test_what_is_no_one_program_is_refused():
    states = [first_state(*each) for each in NUMBERS[:2]]
    behind = [states[0].replace(step=jnp.int32(5)), states[1]]
    with pytest.raises(InputError, match=r"the steps \[0, 5\]"):
        together(NUMBERS[:2], 1, behind)
    other = InMemory(Split(PIXELS.copy(), None), 8, jax.random.key(0))
    stream = Streaming(Split([PIXELS[0]] * 20, None), 8, jax.random.key(0), 0)
    for feed in (other, stream):
        steps = packing.train_packed(
            make_learner(*NUMBERS[0][1:]), states, [make_feed(0), feed], DYNAMIC, num_steps=1
        )  # fmt: skip
        with pytest.raises(InputError, match="same examples in memory"):
            next(steps)
