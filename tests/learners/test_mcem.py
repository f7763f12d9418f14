"""Monte Carlo EM: chains against known posteriors, the M-step by hand, and whose chain moves when.

`linear_gaussian` with a decoder whose columns are not orthogonal: its posterior is a Gaussian with correlations. For
positive z, in one dimension, the posterior is a quadrature. Chains of many copies of a datapoint are independent draws.
"""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from scipy import integrate, stats

from aevb import models, training
from aevb.checkpoints import Checkpoints
from aevb.data import Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory
from aevb.errors import SamplingError
from aevb.inference import hmc
from aevb.learners import Batch, example_keys, mcem
from aevb.networks import MLP

STEP_KEY = jax.random.key(11)
DECODER = lg.W.T + np.array([[0.6], [0.0]]) * lg.W.T[::-1]  # `[latent, event]`, rows not orthogonal
POSTERIOR_COVARIANCE = np.linalg.inv(np.eye(lg.LATENT) + DECODER @ DECODER.T / lg.SCALE**2)


def posterior_mean(xs):
    return (xs - lg.B) @ DECODER.T @ POSTERIOR_COVARIANCE / lg.SCALE**2


def make_params():
    return {"decoder": {"output": {"kernel": jnp.float32(DECODER), "bias": jnp.float32(lg.B)}}}


@functools.cache
def first_state(num_examples):
    learner = mcem.learner(lg.MODEL, optax.sgd(0.1), num_examples=num_examples)
    return jax.jit(learner.init)(jax.random.key(0)).replace(params=make_params())


def whole(xs):
    """All examples as one batch."""
    places = jnp.arange(len(xs), dtype=jnp.int32)
    return Batch(jnp.float32(xs), None, places, places)


def run(learner, state, batch, num_steps):
    """So many steps on one batch: the state, and every step's metrics."""

    @jax.jit
    def steps(state):
        def step(state, _):
            return learner.update(state, batch, jax.random.fold_in(state.key, state.step))

        return jax.lax.scan(step, state, None, length=num_steps)

    return steps(state)


COPIES = 500
CENTRES = np.random.default_rng(4).normal(lg.B, 1.0, size=(4, lg.SIZE))
GROUPS = np.random.default_rng(5).permutation(np.repeat(np.arange(4), COPIES))  # the datapoint of each example


@functools.cache
def settled(target=0.9):
    """2000 chains after 400 transitions at fixed weights, 500 for each of four datapoints."""
    learner = mcem.learner(
        lg.MODEL, optax.sgd(0.0), num_examples=len(GROUPS), weight_updates=1, target_acceptance=target
    )
    return run(learner, first_state(len(GROUPS)), whole(CENTRES[GROUPS]), 400)


def test_at_fixed_weights_each_chain_draws_from_the_posterior_of_its_datapoint():
    state, _ = settled()
    z = np.asarray(state.opt_state["chains"], np.float64)
    away = z - posterior_mean(CENTRES)[GROUPS]
    for group in range(4):
        stderr = np.sqrt(np.diag(POSTERIOR_COVARIANCE) / COPIES)
        assert (np.abs(away[group == GROUPS].mean(0)) < 4 * stderr).all()
    variances = np.outer(*[np.diag(POSTERIOR_COVARIANCE)] * 2)
    stderr = np.sqrt((variances + POSTERIOR_COVARIANCE**2) / len(z))
    assert (np.abs(away.T @ away / len(z) - POSTERIOR_COVARIANCE) < 4 * stderr).all()
    # What this would catch: the four posteriors and their correlation stand clear of the standard errors.
    assert np.abs(np.diff(posterior_mean(CENTRES), axis=0)).max() > 0.5
    assert abs(POSTERIOR_COVARIANCE[0, 1]) > 10 * stderr[0, 1]


def test_the_step_size_is_tuned_to_the_target_acceptance():
    _, metrics = settled()
    assert metrics["step_size"][0] == pytest.approx(0.1)
    assert metrics["acceptance"][0] > 0.99
    # 2000 chains measure it to about 0.004 a step; the last hundred steps hold 0.9 to 0.005.
    assert abs(metrics["acceptance"][-100:].mean() - 0.9) < 0.005
    assert (np.abs(metrics["acceptance"][-100:] - 0.9) < 0.02).all()
    assert (metrics["divergent"] == 0).all()
    moved = np.log(metrics["step_size"][-1] / metrics["step_size"][0])
    np.testing.assert_allclose(moved, 0.1 * (metrics["acceptance"][:-1] - 0.9).sum(), rtol=1e-3)


def test_another_target_is_reached_too():
    _, metrics = settled(0.6)
    assert abs(metrics["acceptance"][-100:].mean() - 0.6) < 0.01


NUM = 6
XS = np.random.default_rng(1).normal(size=(NUM, lg.SIZE))


@functools.cache
def make_update(weight_updates=5, weight_prior_examples=60):
    learner = mcem.learner(
        lg.MODEL,
        optax.sgd(0.1),
        num_examples=NUM,
        weight_updates=weight_updates,
        weight_prior_examples=weight_prior_examples,
    )
    return jax.jit(learner.update)


def batch_of(example_ids, index=None):
    example_ids = jnp.array(example_ids, jnp.int32)
    index = jnp.arange(len(example_ids), dtype=jnp.int32) if index is None else jnp.array(index, jnp.int32)
    return Batch(jnp.float32(XS)[example_ids], None, index, example_ids)


def log_joint_by_hand(kernel, bias, x, z):
    """Mean log p(x | z) and log p(z), and the gradient of their sum."""
    residual = x - z @ kernel - bias
    score = residual / lg.SCALE**2
    log_likelihood = stats.norm.logpdf(residual, 0, lg.SCALE).sum(1).mean()
    return log_likelihood, stats.norm.logpdf(z).sum(1).mean(), z.T @ score / len(x), score.mean(0)


@pytest.mark.parametrize(("weight_updates", "weight_prior_examples"), [(1, None), (5, 60)])
def test_the_m_step_by_hand(weight_updates, weight_prior_examples):
    rate = 0.1
    update = make_update() if weight_prior_examples else make_update(weight_updates, weight_prior_examples)
    state, metrics = update(first_state(NUM), batch_of([4, 0, 3, 1]), STEP_KEY)
    z, x = np.asarray(state.opt_state["chains"], np.float64)[[4, 0, 3, 1]], XS[[4, 0, 3, 1]]
    kernel, bias, kept = DECODER, lg.B, []
    for _ in range(weight_updates):
        log_likelihood, log_prior, *gradients = log_joint_by_hand(kernel, bias, x, z)
        loss = -log_likelihood - log_prior
        if weight_prior_examples:
            weights = np.concatenate([kernel.ravel(), bias])
            loss -= stats.norm.logpdf(weights).sum() / weight_prior_examples
            gradients = [g - theta / weight_prior_examples for g, theta in zip(gradients, (kernel, bias), strict=True)]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        kept.append((log_likelihood + log_prior, log_likelihood, loss, norm))
        kernel, bias = kernel + rate * gradients[0], bias + rate * gradients[1]
    np.testing.assert_allclose(state.params["decoder"]["output"]["kernel"], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["decoder"]["output"]["bias"], bias, rtol=1e-4, atol=1e-5)
    for name, expected in zip(("log_joint", "log_likelihood", "loss", "grad_norm"), kept[-1], strict=True):
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4, err_msg=name)
    assert state.step == 1


def test_a_chain_makes_one_transition_under_the_weights_before_the_update():
    state, ids, index = first_state(NUM), [4, 0, 5, 2], [7, 2, 3, 0]
    moved, _ = make_update()(state, batch_of(ids, index), STEP_KEY)

    @jax.jit
    @jax.vmap
    def by_hand(x, u, key):
        def log_density(z):
            residual = x - z @ jnp.float32(DECODER) - jnp.float32(lg.B)
            return -0.5 * (residual @ residual) / lg.SCALE**2 - 0.5 * z @ z

        return hmc.transition(key, u, log_density, 0.1, 10).z

    ids = jnp.array(ids)
    expected = by_hand(jnp.float32(XS)[ids], state.opt_state["chains"][ids], example_keys(STEP_KEY, jnp.array(index)))
    np.testing.assert_allclose(moved.opt_state["chains"][ids], expected, rtol=1e-4, atol=1e-5)


def test_only_the_chains_of_the_batchs_examples_move():
    state = first_state(NUM)
    assert len(np.unique(state.opt_state["chains"], axis=0)) == NUM
    for ids in ([4, 0, 2, 1], [2, 5, 3, 0]):
        before = np.asarray(state.opt_state["chains"])
        state, metrics = make_update()(state, batch_of(ids), STEP_KEY)
        assert metrics["acceptance"] > 0.9  # so that to stay is to be left alone
        moved = (np.asarray(state.opt_state["chains"]) != before).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(moved), sorted(ids))


def test_an_example_twice_in_a_batch_keeps_the_chain_of_its_first_place():
    # A batch that straddles two epochs may hold an example twice, and a scatter leaves open which of them stays.
    chains = []
    for ids in ([3, 1, 3, 3], [3, 1, 0, 2]):
        state, _ = make_update()(first_state(NUM), batch_of(ids), STEP_KEY)
        chains.append(state.opt_state["chains"][jnp.array([3, 1])])
    np.testing.assert_array_equal(*chains)


def test_an_example_beyond_the_chains_gives_no_number():
    # The loop halts at such a loss; clamped, all of them would share the last chain and nobody would know.
    _, metrics = make_update()(first_state(NUM), batch_of([3, 1, NUM, 2]), STEP_KEY)
    assert np.isnan(metrics["loss"])


def test_it_holds_no_encoder_and_says_so():
    learner = mcem.learner(lg.MODEL, optax.sgd(0.1), num_examples=NUM)
    assert learner.has_encoder is False
    assert learner.support == "real"
    params = jax.eval_shape(learner.init, jax.random.key(0)).params
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, make_params())


FEED = InMemory(Split(np.float32(np.concatenate([XS, XS[:4] + 0.5])), None), 4, jax.random.key(1))  # 10 examples
RAW = make_preprocess("none")


@functools.cache
def trainer():
    return mcem.learner(lg.MODEL, optax.adam(0.02), num_examples=10, weight_prior_examples=10)


@functools.cache
def trainer_state(seed):
    return jax.jit(trainer().init)(jax.random.key(seed))


make_train_steps = functools.cache(training.make_train_steps)


def train(state, num_steps, devices=1):
    kept = []
    with pytest.MonkeyPatch.context() as patch:  # runs on as many devices share one program
        patch.setattr(training, "make_train_steps", lambda *args: make_train_steps(*args[:-1], tuple(args[-1])))
        for replicated, metrics in training.train(
            trainer(), state, FEED, RAW, num_steps=num_steps, steps_per_call=5, devices=jax.devices()[:devices]
        ):
            state = jax.device_get(training.unreplicate(replicated))
            kept.append(metrics)
    return state, {name: np.concatenate([metrics[name] for metrics in kept]) for name in kept[0]}


@functools.cache
def trained(devices=1):
    return train(trainer_state(0), 20, devices)


@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_has_the_same_chains_and_weights(devices):
    (one, metrics_one), (many, metrics_many) = trained(), trained(devices)
    for name in metrics_one:
        np.testing.assert_allclose(metrics_many[name], metrics_one[name], rtol=5e-4, atol=1e-4, err_msg=name)
    for part in (lambda state: state.params, lambda state: state.opt_state):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), part(one), part(many))
    start = trainer_state(0).opt_state["chains"]
    assert (np.abs(one.opt_state["chains"] - start).max(axis=1) > 0.1).all()
    assert one.opt_state["optimizer"][0].count == 20 * 5  # the paper's 5 updates a step


def test_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    stop = 10
    state, before = train(trainer_state(0), stop)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(stop, state)
    checkpoints.close()
    # A new process: nothing but the file and a fresh state of the right shapes.
    state, step, _ = Checkpoints(tmp_path / "run").restore(trainer_state(77))
    assert step == stop
    state, after = train(state, 20)
    expected, expected_metrics = trained()
    for got, want in ((state.params, expected.params), (state.opt_state, expected.opt_state)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    for name, values in expected_metrics.items():
        np.testing.assert_array_equal(np.concatenate([before[name], after[name]]), values, err_msg=name)


def test_chains_that_cannot_move_halt_the_run_with_the_numbers():
    model = models.vae((lg.SIZE,), 2, network=functools.partial(MLP, hidden=()), likelihood=models.Gaussian(scale=1e-8))
    learner = mcem.learner(model, optax.sgd(0.0), num_examples=10)
    first, device = learner.init(jax.random.key(0)), jax.devices()[:1]
    steps = training.train(learner, first, FEED, RAW, num_steps=103, steps_per_call=103, devices=device)
    with pytest.raises(SamplingError, match=r"^steps 101 to 103 accepted 0\.00% .* 100\.00% diverged, with steps of "):
        next(steps)


SLOPE, OFFSET, X = np.array([0.8, -0.5]), np.array([0.1, 0.4]), np.array([0.6, 0.1])


@functools.cache
def positive_model(family):
    return models.vae(
        (2,),
        1,
        network=functools.partial(MLP, hidden=()),
        posterior=models.FactorizedPosterior(family),
        likelihood=models.Gaussian(scale=lg.SCALE),
        prior=models.FactorizedPrior(family, 1),
    )


DENSITIES = {"gamma": stats.gamma(2.0).pdf, "kumaraswamy": lambda z: 4 * z * (1 - z**2)}


def unnormalized(family, z):
    """p(z) p(x | z) at the one datapoint."""
    return DENSITIES[family](z) * np.prod(
        [stats.norm.pdf(X[i], SLOPE[i] * z + OFFSET[i], lg.SCALE) for i in range(2)], axis=0
    )


@pytest.mark.parametrize("family", DENSITIES)
def test_a_prior_off_the_real_line_draws_from_the_posterior_by_quadrature(family):
    copies, top = 2000, 1.0 if family == "kumaraswamy" else 20.0
    learner = mcem.learner(positive_model(family), optax.sgd(0.0), num_examples=copies, weight_updates=1)
    state = jax.jit(learner.init)(jax.random.key(0))
    params = {"decoder": {"output": {"kernel": jnp.float32(SLOPE)[None], "bias": jnp.float32(OFFSET)}}}
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    state, metrics = run(learner, state.replace(params=params), whole(np.tile(X, (copies, 1))), 150)
    chains = np.asarray(state.opt_state["chains"], np.float64)
    z = 1 / (1 + np.exp(-chains)) if family == "kumaraswamy" else np.exp(chains)
    assert (z > 0).all()
    assert (z < top).all()

    grid = np.linspace(1e-9, top, 40_001)
    density = unnormalized(family, grid)
    cdf = integrate.cumulative_simpson(density, x=grid, initial=0)

    def distance(cdf):
        return stats.kstest(z[:, 0], lambda at: np.interp(at, grid, cdf / cdf[-1])).statistic

    # Independent chains: the Kolmogorov distance is beyond 2 / sqrt(copies) once in 1500 keys.
    assert distance(cdf) < 2 / np.sqrt(copies)
    # Without the Jacobian the chains would be draws of density(z) / |dz/du|.
    jacobian = grid * (1 - grid) if family == "kumaraswamy" else grid
    assert distance(integrate.cumulative_simpson(density / (jacobian + 1e-6), x=grid, initial=0)) > 4 / np.sqrt(copies)
    # The metrics are of z, not of u: their mean over the posterior, with the standard error of one minibatch.
    log_joint = np.log(np.maximum(density, 1e-300))
    mean, square = (integrate.simpson(density * log_joint**power, x=grid) / cdf[-1] for power in (1, 2))
    assert abs(metrics["log_joint"][-1] - mean) < 4 * np.sqrt((square - mean**2) / copies)


class MovingPrior(nn.Module):
    """N(location, I)."""

    @nn.compact
    def __call__(self):
        location = self.param("location", nn.initializers.ones, (lg.LATENT,))
        return dist.Normal(location, jnp.ones(lg.LATENT)).to_event(1)


def test_a_prior_with_parameters_learns_by_the_gradient_of_its_density():
    model = models.vae(
        (lg.SIZE,), lg.LATENT, network=functools.partial(MLP, hidden=()), likelihood=models.Gaussian(scale=lg.SCALE),
        prior=MovingPrior(),
    )  # fmt: skip
    learner = mcem.learner(model, optax.sgd(1.0), num_examples=NUM, weight_updates=1)
    state, _ = jax.jit(learner.update)(learner.init(jax.random.key(0)), batch_of([2, 3]), STEP_KEY)
    z = np.asarray(state.opt_state["chains"])[[2, 3]]
    np.testing.assert_allclose(state.params["prior"]["location"], 1 + (z - 1).mean(0), atol=1e-5)
