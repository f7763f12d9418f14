"""Full variational Bayes against two models that are solved exactly.

x_i = W z_i + b + s noise, z_i ~ N(0, I), W and s known and only the offset b ~ N(0, I) a weight. So
log p(X) is a Gaussian's, each feature of the data set correlated through b and each datapoint through its z_i. With
W = 0 the best q is the exact posterior and the bound is tight; with W of `linear_gaussian` the best q(b) q(z) is known,
and its gap to log p(X) too.
"""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from aevb import models, training
from aevb.data import Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory
from aevb.errors import InputError
from aevb.learners import Batch, aevb, example_keys, full_vb
from aevb.networks import MLP

N = 8
XS = np.random.default_rng(2).normal(lg.B, 1.0, size=(N, lg.SIZE))
PLACES = jnp.arange(N, dtype=jnp.int32)
BATCH = Batch(jnp.float32(XS), None, PLACES, PLACES)
STEP_KEY = jax.random.key(5)


class Offset(nn.Module):
    """W z + b, with b the only weight."""

    w: tuple[tuple[float, ...], ...]

    @nn.compact
    def __call__(self, z):
        b = self.param("bias", nn.initializers.normal(1.0), (len(self.w),))
        return (jnp.asarray(self.w) @ z + b)[:, None]


def make_model(w):
    return models.VAE(
        encoder=MLP((2, lg.LATENT), hidden=()),
        posterior=models.DiagonalGaussian(),
        decoder=Offset(tuple(map(tuple, w))),
        likelihood=models.Gaussian(scale=lg.SCALE),
        prior=models.StandardNormal(lg.LATENT),
        event_shape=(lg.SIZE,),
        latent_dim=lg.LATENT,
    )


BLIND, SEEING = make_model(np.zeros_like(lg.W)), make_model(lg.W)


def log_evidence(w):
    """log p(X) in nats, X flattened: the datapoints are independent but for the b that they share."""
    covariance = np.kron(np.eye(N), w @ w.T + lg.SCALE**2 * np.eye(lg.SIZE)) + np.kron(np.ones((N, N)), np.eye(lg.SIZE))
    return stats.multivariate_normal(np.zeros(N * lg.SIZE), covariance).logpdf(XS.ravel())


@jax.jit
def exact_bound(params, w):
    """The bound on log p(X) of q(z | x) q(b), nats, by its closed form; differentiable."""
    mean, log_variance = params["decoder"]["bias"], params["weights_log_variance"]["decoder"]["bias"]
    variance = jnp.exp(log_variance)
    shifted = {"encoder": params["encoder"], "decoder": {"output": {"kernel": w.T, "bias": mean}}}
    at_mean = jax.vmap(lg.elbo, in_axes=(None, 0))(shifted, BATCH.x).sum()
    return at_mean - N * variance.sum() / (2 * lg.SCALE**2) - kl_by_hand(mean, variance)


def kl_by_hand(mean, variance):
    return 0.5 * (variance + mean**2 - 1 - jnp.log(variance)).sum()


def make_params(encoder, mean, variance):
    tree = {
        "encoder": encoder,
        "decoder": {"bias": mean},
        "weights_log_variance": {"decoder": {"bias": np.log(variance)}},
    }
    return jax.tree.map(jnp.float32, tree)


def ignoring_encoder():
    """q(z | x) = p(z)."""
    return jax.tree.map(jnp.zeros_like, lg.params()["encoder"])


VARIANCE = np.full(lg.SIZE, 1 / (1 + N / lg.SCALE**2))  # of q(b), the best in both models


def best_blind():
    return make_params(ignoring_encoder(), VARIANCE * XS.sum(0) / lg.SCALE**2, VARIANCE)


def best_seeing():
    """Coordinate ascent's fixed point: q(z_i) is the exact posterior at E b, E b the exact mean given every E z_i."""
    mean, to_z = np.zeros(lg.SIZE), lg.W / lg.SCALE**2 / lg.PRECISION
    for _ in range(500):
        mean = VARIANCE * (XS - (XS - mean) @ to_z @ lg.W.T).sum(0) / lg.SCALE**2
    output = {
        "kernel": np.concatenate([to_z, np.zeros_like(lg.W)], axis=1),
        "bias": np.concatenate([-mean @ to_z, -np.log(lg.PRECISION)]),
    }
    return make_params({"output": output}, mean, VARIANCE)


def somewhere(seed):
    """Parameters far from the best ones."""
    generator = np.random.default_rng(seed)
    encoder = jax.tree.map(lambda leaf: 0.5 * generator.normal(size=leaf.shape), lg.params()["encoder"])
    return make_params(encoder, generator.normal(size=lg.SIZE), np.exp(generator.normal(-2, 1, size=lg.SIZE)))


@functools.cache
def make_learner(model):
    return full_vb.learner(model, optax.sgd(1.0), num_examples=N)


@functools.cache
def updates(model):
    """`(params, keys) -> (gradients of the loss, metrics)`, a row a key."""
    learner = make_learner(model)
    start = jax.jit(learner.init)(jax.random.key(0))

    def one(params, key):
        state, metrics = learner.update(start.replace(params=params), BATCH, key)
        return jax.tree.map(jnp.subtract, params, state.params), metrics

    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


NUM = 20_000
KEYS = jax.random.split(jax.random.key(1), NUM)


def mean_and_stderr(values):
    values = np.asarray(values, np.float64)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("model", "w"), [(BLIND, np.zeros_like(lg.W)), (SEEING, lg.W)])
def test_the_bound_is_below_the_exact_evidence_by_its_closed_form_gap(model, w, seed):
    params = somewhere(seed)
    _, metrics = updates(model)(params, KEYS)
    mean, stderr = mean_and_stderr(metrics["dataset_bound"])
    assert stderr < 0.02 * abs(mean)
    assert abs(mean - exact_bound(params, w) / N) < 4 * stderr
    assert mean + 4 * stderr < log_evidence(w) / N


def test_the_bound_is_the_exact_evidence_at_the_exact_posterior():
    _, metrics = updates(BLIND)(best_blind(), KEYS)
    mean, stderr = mean_and_stderr(metrics["dataset_bound"])
    evidence = log_evidence(np.zeros_like(lg.W)) / N
    assert stderr < 0.005
    assert abs(mean - evidence) < 4 * stderr
    np.testing.assert_allclose(exact_bound(best_blind(), np.zeros_like(lg.W)) / N, evidence, rtol=1e-5)


@pytest.mark.parametrize(("model", "best", "gap"), [(BLIND, best_blind, 0.0), (SEEING, best_seeing, None)])
def test_training_reaches_the_best_factorized_posterior(model, best, gap):
    w = np.zeros_like(lg.W) if model is BLIND else lg.W
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 3000))
    learner = full_vb.learner(model, optimizer, num_examples=N, num_samples=4)
    step = jax.jit(lambda state: jax.lax.scan(
        lambda s, _: learner.update(s, BATCH, jax.random.fold_in(s.key, s.step)), state, None, length=3000
    ))  # fmt: skip
    state, metrics = step(learner.init(jax.random.key(3)))
    found, expected = (jax.device_get(tree) for tree in (state.params, best()))
    sigma = np.sqrt(VARIANCE)
    # The last steps are small, so the noise of q's mean is some percent of its standard deviation.
    np.testing.assert_allclose(found["decoder"]["bias"], expected["decoder"]["bias"], atol=0.1 * sigma.max())
    log_variance = found["weights_log_variance"]["decoder"]["bias"]
    np.testing.assert_allclose(log_variance, np.log(VARIANCE), atol=0.15)
    optimum, evidence = exact_bound(expected, w) / N, log_evidence(w) / N
    reached = exact_bound(found, w) / N
    assert 0 <= optimum - reached < 0.01
    assert reached - metrics["dataset_bound"][0] > 1
    assert (optimum < evidence - 0.05) if gap is None else abs(optimum - evidence) < 1e-4


def test_the_gradient_reaches_means_log_variances_and_encoder():
    params = somewhere(7)
    gradients, _ = updates(SEEING)(params, KEYS)
    expected = jax.jit(jax.grad(lambda p: -exact_bound(p, lg.W) / N))(params)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for gradient, exact in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        mean, stderr = mean_and_stderr(gradient)
        # 4.5, for the number of comparisons; the floor is float32's rounding of params - (params - gradient).
        assert (np.abs(mean - exact) < 4.5 * stderr + 1e-5).all()
        assert stderr.max() < 0.1 * np.abs(exact).max()
        assert np.abs(exact).max() > 0.05


def test_the_weights_kl_by_hand_and_by_sampling():
    params = somewhere(3)
    mean, variance = params["decoder"]["bias"], jnp.exp(params["weights_log_variance"]["decoder"]["bias"])
    kl = full_vb.weight_kl(params)
    np.testing.assert_allclose(kl, kl_by_hand(mean, variance), rtol=1e-5)
    draws = np.random.default_rng(0).normal(mean, np.sqrt(variance), size=(100_000, lg.SIZE))
    log_ratio = stats.norm.logpdf(draws, mean, np.sqrt(variance)).sum(1) - stats.norm.logpdf(draws).sum(1)
    estimate, stderr = mean_and_stderr(log_ratio)
    assert stderr < 0.02
    assert abs(kl - estimate) < 4 * stderr


def test_the_metrics_and_the_loss_are_parts_of_one_sum():
    _, metrics = updates(SEEING)(somewhere(1), KEYS)
    np.testing.assert_allclose(metrics["elbo"], metrics["log_likelihood"] - metrics["kl"], rtol=1e-5)
    np.testing.assert_allclose(metrics["dataset_bound"], metrics["elbo"] - metrics["weight_kl"] / N, rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"], -metrics["dataset_bound"])


NETWORK = models.vae((6,), 2, network=functools.partial(MLP, hidden=(5,)))


def network_params():
    return full_vb.learner(NETWORK, optax.sgd(1.0), num_examples=20, init_weight_scale=0.3).init(STEP_KEY).params


def test_the_model_bound_to_the_parameters_is_the_one_at_the_means():
    params = network_params()
    means = {name: params[name] for name in ("encoder", "decoder")}
    assert set(params) == {"encoder", "decoder", "weights_log_variance"}
    x, z = jnp.ones(6), jnp.array([0.3, -1.0])
    plug_in, expected = NETWORK.bind({"params": params}), NETWORK.bind({"params": means})
    np.testing.assert_array_equal(plug_in.decode(z).mean, expected.decode(z).mean)
    np.testing.assert_array_equal(plug_in.encode(x).mean, expected.encode(x).mean)
    jax.tree.map(np.testing.assert_array_equal, models.generative(params), {"decoder": means["decoder"]})


def test_drawn_weights_have_the_mean_and_the_variance_of_q():
    params = network_params()
    draws = jax.jit(jax.vmap(lambda key: full_vb.sample_weights(params, key)))(KEYS)
    assert set(draws) == {"encoder", "decoder"}
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[0], one), draws["encoder"], params["encoder"])
    flat = np.concatenate([np.reshape(leaf, (NUM, -1)) for leaf in jax.tree.leaves(draws["decoder"])], axis=1)
    means = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params["decoder"])])
    # 51 weights, 20,000 draws: standard errors 0.3 / 141 = 0.0021 of a mean, 0.3 / 200 = 0.0015 of a deviation.
    np.testing.assert_allclose(flat.mean(0), means, atol=4.5 * 0.0021)
    np.testing.assert_allclose(flat.std(0), 0.3, atol=4.5 * 0.0015)
    # Of two weights' draws: 1 / 141 of a correlation.
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 5.5 / np.sqrt(NUM)


def test_it_starts_at_the_weights_that_aevb_starts_at():
    learner = full_vb.learner(NETWORK, optax.adam(1e-3), num_examples=20, init_weight_scale=0.3)
    ours, theirs = learner.init(STEP_KEY), aevb.learner(NETWORK, optax.adam(1e-3)).init(STEP_KEY)
    for name in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, ours.params[name], theirs.params[name])
    log_variance = ours.params["weights_log_variance"]
    assert jax.tree.structure(log_variance) == jax.tree.structure({"decoder": theirs.params["decoder"]})
    for leaf in jax.tree.leaves(log_variance):
        np.testing.assert_allclose(leaf, 2 * np.log(0.3), rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(InputError, match="init_weight_scale is"):
        full_vb.learner(NETWORK, optax.sgd(1.0), num_examples=20, init_weight_scale=scale)


def test_all_examples_of_a_step_share_the_drawn_weights():
    learner = make_learner(BLIND)
    state = jax.jit(learner.init)(jax.random.key(0)).replace(params=somewhere(2))

    @jax.jit
    def log_likelihood(place, step_key):
        batch = Batch(BATCH.x[:1], None, place[None], place[None])
        return learner.update(state, batch, step_key)[1]["log_likelihood"]

    # z is not looked at, so only theta is random: the same for every place of the batch, another in another step.
    here, there = ([float(log_likelihood(place, key)) for place in PLACES] for key in (STEP_KEY, jax.random.key(6)))
    np.testing.assert_allclose(here, here[0], rtol=1e-6)
    assert abs(here[0] - there[0]) > 1e-2


def test_the_weights_noise_is_no_examples_noise(monkeypatch):
    used = {}
    original = full_vb.sample_weights

    def keep(name, key):
        jax.debug.callback(lambda data: used.update({name: np.asarray(data)}), jax.random.key_data(key))
        return key

    monkeypatch.setattr(full_vb, "sample_weights", lambda params, key: original(params, keep("weights", key)))
    monkeypatch.setattr(full_vb, "example_keys", lambda key, index: keep("examples", example_keys(key, index)))
    learner = full_vb.learner(BLIND, optax.sgd(1.0), num_examples=N)
    jax.block_until_ready(jax.jit(learner.update)(learner.init(jax.random.key(0)), BATCH, STEP_KEY))
    jax.effects_barrier()
    keys = [jax.random.key_data(STEP_KEY)[None], used["weights"][None], used["examples"]]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 1 + 1 + N


@functools.cache
def trained(devices):
    """The parameters after 20 steps on so many devices, and every step's metrics."""
    learner = full_vb.learner(SEEING, optax.adam(0.02), num_examples=N, init_weight_scale=0.3)
    feed = InMemory(Split(np.asarray(BATCH.x), None), 4, jax.random.key(1))
    ((state, metrics),) = training.train(
        learner, jax.jit(learner.init)(jax.random.key(0)), feed, make_preprocess("none"), num_steps=20,
        devices=jax.devices()[:devices],
    )  # fmt: skip
    return jax.device_get(training.unreplicate(state).params), metrics


@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_trains_the_same_model(devices):
    (one, metrics_one), (many, metrics_many) = trained(1), trained(devices)
    for name in metrics_one:
        np.testing.assert_allclose(metrics_many[name], metrics_one[name], rtol=2e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, many)
    assert np.abs(one["weights_log_variance"]["decoder"]["bias"] - 2 * np.log(0.3)).max() > 0.05
