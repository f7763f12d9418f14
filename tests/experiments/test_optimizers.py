"""Optimizers and schedules of a config, step by step."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import build, choices, settings


def load(*overrides: str) -> ConfigDict:
    return settings.load("experiments/configs/vae.py", [f"--config.{override}" for override in overrides])


def test_learning_rate():
    keys = load("optimizer.learning_rate=0.5", "optimizer.schedule=cosine", "optimizer.decay_steps=10").optimizer
    keys.warmup_steps = 4
    rate = choices.learning_rate(keys)
    assert [rate(step) for step in range(4)] == pytest.approx([0.5 * step / 4 for step in range(4)])
    expected = [0.25 * (1 + math.cos(math.pi * step / 10)) for step in range(11)]
    assert [rate(4 + step) for step in range(11)] == pytest.approx(expected, abs=1e-7)
    piecewise = ["optimizer.schedule=piecewise", "optimizer.boundaries=(2,5)", "optimizer.scales=(0.5,0.1)"]
    rate = choices.learning_rate(load("optimizer.learning_rate=0.001", *piecewise).optimizer)
    assert [rate(step) for step in (0, 1, 3, 6)] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-5])


def test_adagrad_gathers_squares_before_it_moves():
    keys = load("optimizer.name=adagrad", "optimizer.learning_rate=0.5", "optimizer.initial_accumulator=0").optimizer
    keys.hold_steps = 3
    optimizer, gradient = choices.make_optimizer(keys), np.array([2.0, -0.01])
    state, updates = optimizer.init(np.zeros(2)), []
    for _ in range(5):
        update, state = optimizer.update(gradient, state)
        updates.append(update)
    np.testing.assert_array_equal(updates[:3], np.zeros((3, 2)))
    # The sum of t equal squares: a step of 0.5 / sqrt(t) against the gradient's sign.
    expected = [-0.5 / math.sqrt(t) * np.sign(gradient) for t in (4, 5)]
    np.testing.assert_allclose(updates[3:], expected, rtol=1e-3)
    assert [choices.learning_rate(keys)(step) for step in (0, 2, 3)] == [0.0, 0.0, 0.5]
    keys.warmup_steps = 2
    assert [choices.learning_rate(keys)(step) for step in (2, 3, 4, 5)] == [0.0, 0.0, 0.25, 0.5]


def test_a_schedule_counts_steps_where_a_step_has_several_updates():
    config = load("learner.name=mcem", "learner.weight_updates=5", "optimizer.name=sgd", "optimizer.learning_rate=1")
    config.optimizer.hold_steps = 2
    made = []

    def learner(config, num_examples, optimizer, **common):
        made.append(optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(choices.LEARNERS, "mcem", learner)
        choices.make_learner(config, None, 10)
    state, rates = made[0].init(0.0), []
    for _ in range(12):
        update, state = made[0].update(-1.0, state)
        rates.append(float(update))
    assert rates == [0.0] * 10 + [1.0] * 2


def test_cosine_length_is_written_back():
    warmup = ("optimizer.warmup_steps=100", "optimizer.hold_steps=10")
    run = build.build(load("optimizer.schedule=cosine", "train.num_epochs=100", *warmup))
    assert run.num_steps == math.ceil(100 * 1258 / 100)
    assert run.config.optimizer.decay_steps == run.num_steps - 110
