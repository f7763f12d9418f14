"""The AEVB learner's objective, worked out by hand.

A decoder with a zero kernel ignores z, so its log-likelihood is the same for every draw, the KL of sgvb_b is a closed
form, and the whole loss is a number that needs no randomness. `optax.sgd(1)` makes an update minus the gradient.
"""

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from aevb import bounds, models
from aevb.learners import Batch, aevb, example_keys, global_norm

M, N = 4, 60
XS = np.random.default_rng(1).normal(size=(M, lg.SIZE))
PLACES = jnp.arange(M, dtype=jnp.int32)
BATCH = Batch(jnp.float32(XS), None, PLACES, PLACES)
STEP_KEY = jax.random.key(11)


def start(learner, params):
    return learner.init(jax.random.key(0)).replace(params=params)


def blind_params():
    params = lg.params(0.4, 1.3)
    params["decoder"]["output"]["kernel"] = jnp.zeros_like(params["decoder"]["output"]["kernel"])
    return params


def parts_by_hand():
    """Mean log-likelihood and mean KL of the four examples under `blind_params`."""
    log_likelihood = stats.norm.logpdf(XS, lg.B, lg.SCALE).sum(1).mean()
    mean = np.stack([lg.posterior_mean(x) for x in XS]) + 0.4 * lg.POSTERIOR_SCALE
    variance = (1.3 * lg.POSTERIOR_SCALE) ** 2
    return log_likelihood, 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1).mean()


@pytest.mark.parametrize("weight_prior_examples", [None, N])
@pytest.mark.parametrize(
    ("kl_weight", "warmup", "beta"),
    [(1.0, None, 1.0), (2.5, None, 2.5), (2.0, optax.linear_schedule(0.0, 1.0, 10), 0.6), (0.0, None, 0.0)],
)
def test_the_loss_by_hand_and_metrics_at_beta_one(kl_weight, warmup, beta, weight_prior_examples):
    learner = aevb.learner(
        lg.MODEL, optax.sgd(1.0), kl_weight=kl_weight, kl_schedule=warmup, weight_prior_examples=weight_prior_examples
    )
    params = blind_params()
    state = start(learner, params).replace(step=jnp.int32(3))
    _, metrics = jax.jit(learner.update)(state, BATCH, STEP_KEY)
    log_likelihood, kl = parts_by_hand()
    objective = log_likelihood - beta * kl
    log_prior = stats.norm.logpdf(lg.B).sum() + stats.norm.logpdf(np.zeros(lg.W.size)).sum()
    loss = -objective if weight_prior_examples is None else -(N / M * M * objective + log_prior) / N
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_weight"], beta, rtol=1e-6)
    np.testing.assert_allclose(metrics["log_likelihood"], log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], log_likelihood - kl, rtol=1e-5)


def test_the_weight_prior_pulls_the_decoder_only_by_theta_over_n():
    params = lg.params(0.4, 1.3)
    updated = []
    for weight_prior_examples in (None, N):
        learner = aevb.learner(lg.MODEL, optax.sgd(1.0), weight_prior_examples=weight_prior_examples)
        updated.append(jax.jit(learner.update)(start(learner, params), BATCH, STEP_KEY)[0].params)
    without, with_prior = updated
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), without["encoder"], with_prior["encoder"]
    )
    jax.tree.map(
        lambda a, b, theta: np.testing.assert_allclose(b - a, -theta / N, atol=2e-6),
        without["decoder"],
        with_prior["decoder"],
        params["decoder"],
    )
    assert np.abs(params["decoder"]["output"]["kernel"] / N).max() > 1e-2


def test_a_likelihoods_own_parameters_are_under_the_weight_prior():
    class LearnedScale(nn.Module):
        support = "real"

        def output_shape(self, event_shape):
            return (*event_shape, 1)

        @nn.compact
        def __call__(self, outputs):
            log_scale = self.param("log_scale", lambda key: jnp.full((1,), 0.5))
            return models.Gaussian(scale=1.0)(outputs / jnp.exp(log_scale)[None])

    model = models.vae((lg.SIZE,), 2, likelihood=LearnedScale())
    losses = []
    for examples in (None, N):
        learner = aevb.learner(model, optax.sgd(1.0), weight_prior_examples=examples)
        state = learner.init(jax.random.key(0))
        losses.append(jax.jit(learner.update)(state, BATCH, STEP_KEY)[1]["loss"])
    theta = np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves({k: v for k, v in state.params.items() if k != "encoder"})]
    )
    assert 0.5 in theta
    np.testing.assert_allclose(losses[1] - losses[0], -stats.norm.logpdf(theta).sum() / N, rtol=1e-4)


def test_an_update_goes_up_the_bound_by_its_closed_form_gradient():
    params, num = lg.params(0.4, 1.3), 4000
    places = jnp.arange(num * M, dtype=jnp.int32)
    batch = Batch(jnp.tile(BATCH.x, (num, 1)), None, places, places)
    learner = aevb.learner(lg.MODEL, optax.sgd(1.0))
    state, metrics = jax.jit(learner.update)(start(learner, params), batch, STEP_KEY)
    step = jax.tree.map(lambda new, old: new - old, state.params, params)
    expected = jax.grad(lambda p: jnp.mean(jax.vmap(lg.elbo, in_axes=(None, 0))(p, BATCH.x)))(params)
    # 16,000 draws of a gradient with a standard deviation of about 3 at most: a standard error below 0.025.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.1), step, expected)
    assert global_norm(expected) > 1
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(step)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert state.step == 1


def test_without_a_kl_weight_the_encoder_gets_no_gradient_from_the_kl():
    params = blind_params()
    for kl_weight in (0.0, 1.0):
        learner = aevb.learner(lg.MODEL, optax.sgd(1.0), kl_weight=kl_weight)
        encoder = jax.jit(learner.update)(start(learner, params), BATCH, STEP_KEY)[0].params["encoder"]
        change = jax.tree.map(lambda new, old: new - old, encoder, params["encoder"])
        mean = np.stack([lg.posterior_mean(x) for x in XS]) + 0.4 * lg.POSTERIOR_SCALE
        by_hand = -kl_weight * np.concatenate([mean.mean(0), 0.5 * ((1.3 * lg.POSTERIOR_SCALE) ** 2 - 1)])
        np.testing.assert_allclose(change["output"]["bias"], by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bound", [bounds.sgvb_a, bounds.sgvb_b])
def test_more_draws_a_datapoint_divide_the_variance(bound):
    params, keys = lg.params(0.4, 1.3), jax.random.split(jax.random.key(3), 3000)
    variances = []
    for num_samples in (1, 8):
        learner = aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bound, num_samples=num_samples)
        state = start(learner, params)
        elbos = jax.jit(jax.vmap(lambda key, learner=learner, s=state: learner.update(s, BATCH, key)[1]["elbo"]))(keys)
        variances.append(np.var(np.asarray(elbos, np.float64)))
    # The relative standard error of each variance is about sqrt(2 / 3000), of their ratio 0.037.
    assert abs(variances[0] / variances[1] / 8 - 1) < 4 * 0.037


def test_the_bound_asked_for_is_the_one_trained():
    # With the exact posterior sgvb_a has no variance and sgvb_b has.
    for bound, exact in ((bounds.sgvb_a, True), (bounds.sgvb_b, False)):
        learner = aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bound)
        _, metrics = jax.jit(learner.update)(start(learner, lg.params()), BATCH, STEP_KEY)
        log_marginal = np.mean([lg.log_marginal(x) for x in XS])
        assert (abs(metrics["elbo"] - log_marginal) < 1e-4) == exact


def test_noise_follows_the_place_in_the_global_batch_and_not_the_device():
    learner = aevb.learner(lg.MODEL, optax.sgd(1.0))
    state = start(learner, lg.params(0.4, 1.3))

    update = jax.jit(learner.update)

    def elbo(rows, step_key=STEP_KEY):
        batch = Batch(BATCH.x[rows], None, BATCH.index[rows], BATCH.index[rows])
        return float(update(state, batch, step_key)[1]["elbo"])

    whole = elbo(jnp.arange(M))
    np.testing.assert_allclose(np.mean([elbo(jnp.array([0, 1])), elbo(jnp.array([2, 3]))]), whole, rtol=1e-5)
    np.testing.assert_allclose(elbo(jnp.array([3, 1, 0, 2])), whole, rtol=1e-5)
    assert elbo(jnp.arange(M), jax.random.key(12)) != pytest.approx(whole, abs=1e-3)
    same = Batch(jnp.tile(BATCH.x[:1], (2, 1)), None, PLACES[:2], PLACES[:2])
    first = elbo(jnp.array([0]))
    assert float(update(state, same, STEP_KEY)[1]["elbo"]) != pytest.approx(first, abs=1e-3)


def test_keys_of_examples_are_distinct_and_each_is_of_its_own_index_only():
    keys = jax.random.key_data(example_keys(STEP_KEY, jnp.arange(1000)))
    assert len(np.unique(keys, axis=0)) == 1000
    some = np.array([700, 3])
    np.testing.assert_array_equal(jax.random.key_data(example_keys(STEP_KEY, jnp.asarray(some))), keys[some])


def test_init_consumes_the_init_key_once():
    learner = aevb.learner(lg.MODEL, optax.adam(1e-3), kl_weight=0.5)
    key = jax.random.key(4)
    state = learner.init(key)
    assert (jax.random.key_data(state.key) != jax.random.key_data(key)).any()
    reused = models.init(lg.MODEL, state.key)["encoder"]["output"]["kernel"]
    assert not np.array_equal(state.params["encoder"]["output"]["kernel"], reused)
    assert state.step == 0
    assert state.hyperparameters["kl_weight"] == 0.5


def test_global_norm_is_the_root_of_the_sum_of_all_squares():
    tree = {"a": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([12.0])}
    np.testing.assert_allclose(global_norm(tree), 13.0, rtol=1e-6)


def test_global_norm_takes_a_scalar_parameter():
    np.testing.assert_allclose(global_norm({"a": jnp.array([3.0]), "scale": jnp.array(4.0)}), 5.0, rtol=1e-6)


def test_the_importance_weighted_objective():
    """At the exact posterior every weight is p(x): the bound is exact for any number of draws; elsewhere it rises."""
    exact = np.mean([lg.log_marginal(x) for x in XS])
    for params, tight in ((lg.params(), True), (lg.params(0.8, 1.5), False)):
        losses = {}
        for k in (1, 5, 500):
            learner = aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bounds.iwae, num_samples=k)
            _, metrics = jax.jit(learner.update)(start(learner, params), BATCH, STEP_KEY)
            np.testing.assert_allclose(metrics["loss"], -metrics["iwae_bound"], rtol=1e-6)
            assert metrics["iwae_bound"] >= metrics["elbo"] - 1e-5
            losses[k] = float(metrics["loss"])
        if tight:
            np.testing.assert_allclose(list(losses.values()), -exact, rtol=1e-5)
        else:
            assert losses[1] > losses[5] > losses[500] > -exact - 0.1  # 500 weights leave a noise of some 0.03 nats
    elbo = aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bounds.sgvb_a)
    _, metrics = jax.jit(elbo.update)(start(elbo, params), BATCH, STEP_KEY)
    np.testing.assert_allclose(losses[1], metrics["loss"], rtol=1e-5)


def test_the_importance_weighted_gradient_by_hand():
    """`sum_k w_k / sum_j w_j grad log w_k` in the decoder's bias, whose grad log w_k is `(x - W z_k - b) / s^2`."""
    params, k = lg.params(0.8, 1.5), 7
    learner = aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bounds.iwae, num_samples=k)
    state, _ = jax.jit(learner.update)(start(learner, params), BATCH, STEP_KEY)
    moved = state.params["decoder"]["output"]["bias"] - params["decoder"]["output"]["bias"]

    def one(x, key):
        vae = lg.MODEL.bind({"params": params})
        draws = bounds.draw(key, x, vae.encode(x), vae.prior(), vae.decode, k)
        return draws.z, draws.log_weights

    z, log_weights = jax.vmap(one)(BATCH.x, example_keys(STEP_KEY, PLACES))
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    residual = XS[:, None] - np.asarray(z) @ lg.W.T - lg.B
    by_hand = (weights[..., None] * residual).sum(axis=1).mean(axis=0) / lg.SCALE**2
    np.testing.assert_allclose(moved, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bound", [bounds.sgvb_a, bounds.sgvb_b, bounds.iwae], ids=lambda bound: bound.__name__)
def test_a_corrupted_input_is_the_encoders_and_x_the_likelihoods(bound):
    """A decoder that is blind to z makes the log-likelihood a closed form of x, and the KL one of what was seen."""
    seen = XS + 0.7
    metrics = {}
    for name, batch in (("seen", BATCH._replace(corrupted=jnp.float32(seen))), ("clean", BATCH)):
        learner = aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bound)
        _, metrics[name] = jax.jit(learner.update)(start(learner, blind_params()), batch, STEP_KEY)
    log_likelihood, _ = parts_by_hand()
    np.testing.assert_allclose(metrics["seen"]["log_likelihood"], log_likelihood, rtol=1e-5)
    if bound is bounds.sgvb_b:
        mean = np.stack([lg.posterior_mean(x) for x in seen]) + 0.4 * lg.POSTERIOR_SCALE
        variance = (1.3 * lg.POSTERIOR_SCALE) ** 2
        kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1).mean()
        np.testing.assert_allclose(metrics["seen"]["kl"], kl, rtol=1e-5)
    assert abs(metrics["seen"]["kl"] - metrics["clean"]["kl"]) > 0.05
