"""How the KL is weighed: schedules at known steps, free bits by hand, a beta whose place is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import optax
import pytest
from scipy import optimize

from aevb import bounds, models
from aevb.errors import InputError
from aevb.learners import Batch, aevb, kl_weights
from aevb.networks import MLP

XS = np.random.default_rng(1).normal(size=(4, lg.SIZE))
PLACES = jnp.arange(4, dtype=jnp.int32)
BATCH = Batch(jnp.float32(XS), None, PLACES, PLACES)


def test_schedules_at_known_steps():
    cosine = kl_weights.cosine_schedule(10)
    np.testing.assert_allclose([cosine(t) for t in (0, 2.5, 5, 10, 30)], [0, 0.5 - 0.5**1.5, 0.5, 1, 1], atol=1e-6)
    cyclical = kl_weights.cyclical_schedule(4, 10)
    np.testing.assert_allclose([cyclical(t) for t in (0, 1, 2, 4, 9, 10, 13, 27)], [0, 0.25, 0.5, 1, 1, 0, 0.75, 1])


KL_PER_DIM = np.array([[0.1, 2.0, 0.5], [0.3, 0.0, 0.5]])  # means 0.2, 1.0, 0.5


def test_free_bits_by_hand():
    def weighed(kl_per_dim: jax.Array) -> jax.Array:
        return kl_weights.freed(kl_per_dim, 0.4, None).mean()

    value, gradient = jax.value_and_grad(weighed)(jnp.float32(KL_PER_DIM))
    np.testing.assert_allclose(value, 0.4 + 1.0 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0.5, 0.5]] * 2)  # also where one datapoint alone is below


def test_free_bits_are_of_the_minibatch_of_all_devices():
    one = functools.partial(kl_weights.freed, free_bits=0.4, axis_name="device")
    each = jax.pmap(one, axis_name="device", devices=jax.devices()[:2])(jnp.float32(KL_PER_DIM)[:, None])
    np.testing.assert_allclose(each[:, 0], kl_weights.freed(jnp.float32(KL_PER_DIM), 0.4, None), rtol=1e-6)


@pytest.mark.parametrize("free_bits", [0.0, 0.3, 5.0])
def test_the_objective_with_free_bits(free_bits):
    """At the exact posterior, whose KL is a closed form in each dimension."""
    mean = np.stack([lg.posterior_mean(x) for x in XS])
    kl_per_dim = 0.5 * (mean**2 + 1 / lg.PRECISION - 1 + np.log(lg.PRECISION))
    weighed = np.maximum(kl_per_dim.mean(0), free_bits).sum()
    state = aevb.learner(lg.MODEL, optax.sgd(0.0)).init(jax.random.key(0)).replace(params=lg.params())
    learner = aevb.learner(lg.MODEL, optax.sgd(0.0), kl_weight=2.0, free_bits=free_bits)
    state = state.replace(hyperparameters={"kl_weight": jnp.float32(2.0)})
    _, metrics = jax.jit(learner.update)(state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], -(metrics["log_likelihood"] - 2 * weighed), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], kl_per_dim.sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], metrics["log_likelihood"] - metrics["kl"], rtol=1e-5)


def affine(posterior):
    network, likelihood = functools.partial(MLP, hidden=()), models.Gaussian(scale=1.0)
    return models.vae((lg.SIZE,), 2, network=network, posterior=posterior, likelihood=likelihood)


def stepped(model, params, **options):
    """The parameters after one step of plain gradient descent, and its metrics."""
    learner = aevb.learner(model, optax.sgd(1.0), **options)
    state = learner.init(jax.random.key(0)).replace(params=params)
    state, metrics = jax.jit(learner.update)(state, BATCH, jax.random.key(1))
    return state.params, metrics


def test_a_kl_estimated_from_draws_has_its_gradient_with_free_bits():
    """Where every dimension costs more than is free, free bits change nothing but the loss's place."""
    model = affine(models.FactorizedPosterior("laplace"))
    params = models.init(model, jax.random.key(3))
    params["encoder"]["output"]["bias"] += 1.0  # away from the prior in every dimension
    (plain, _), (free, _) = (
        stepped(model, params, bound=bounds.sgvb_a, free_bits=free_bits, num_samples=50) for free_bits in (0.0, 0.01)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), free, plain)
    with pytest.raises(InputError, match=r"free_bits is 0\.01, and with the score function"):
        aevb.learner(model, optax.sgd(1.0), bound=bounds.score_function, free_bits=0.01)


def test_a_posterior_of_full_covariance_has_the_free_bits_of_all_its_dimensions():
    model = affine(models.FullGaussian())
    params = models.init(model, jax.random.key(3))
    _, metrics = stepped(model, params, free_bits=50.0)
    np.testing.assert_allclose(metrics["loss"], -(metrics["log_likelihood"] - 2 * 50.0), rtol=1e-5)
    _, metrics = stepped(model, params, free_bits=1e-6)
    np.testing.assert_allclose(metrics["loss"], -metrics["elbo"], rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"kl_weight": 2.0}, {"free_bits": 0.1}, {"kl_schedule": lambda step: 1.0}, {"log_likelihood_target": -3.0}],
)
def test_the_importance_weighted_bound_has_no_kl_to_weigh(options):
    with pytest.raises(InputError, match="the bound iwae has no KL to weigh"):
        aevb.learner(lg.MODEL, optax.sgd(1.0), bound=bounds.iwae, **options)


def log_likelihood_at(beta: float) -> float:
    """E_q log p(x | z), the mean over XS, at the best encoder for beta: `q ~ p(z) p(x | z)^(1 / beta)`."""
    precision = 1 + (lg.W**2).sum(0) / lg.SCALE**2 / beta
    mean = (XS - lg.B) @ lg.W / lg.SCALE**2 / beta / precision
    square = ((XS - lg.B - mean @ lg.W.T) ** 2).sum(1) + ((lg.W**2).sum(0) / precision).sum()
    return float((-0.5 * square / lg.SCALE**2).mean() - 0.5 * lg.SIZE * np.log(2 * np.pi * lg.SCALE**2))


@pytest.mark.parametrize("beta", [0.4, 3.0])
def test_an_adaptive_beta_finds_its_place(beta):
    """The decoder stays; the encoder follows beta, and beta the target, from 1 to where the closed form has it."""
    target = log_likelihood_at(beta)
    assert optimize.brentq(lambda b: log_likelihood_at(b) - target, 1e-2, 1e2) == pytest.approx(beta)
    labels = {"encoder": "moves", "decoder": "stays"}
    optimizer = optax.multi_transform({"moves": optax.adam(1e-2), "stays": optax.set_to_zero()}, labels)
    learner = aevb.learner(lg.MODEL, optimizer, num_samples=32, log_likelihood_target=target, adaptation_rate=2e-2)
    params = lg.params()
    state = learner.init(jax.random.key(0)).replace(params=params, opt_state=optimizer.init(params))

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, key: learner.update(state, BATCH, key), state, keys)

    keys = jax.random.split(jax.random.key(2), 4000)
    state, metrics = run(state)
    # Ten sweeps of the draws' noise over 2000 correlated steps: 3 % is some four standard errors of log beta.
    np.testing.assert_allclose(np.log(metrics["kl_weight"][2000:]).mean(), np.log(beta), atol=0.03)
    np.testing.assert_allclose(metrics["log_likelihood"][2000:].mean(), target, atol=0.03)
    assert metrics["kl_weight"][0] == 1.0
    # Lower while reconstructions are worse than the target, higher once they are better.
    assert (metrics["kl_weight"][100] > 1.0) == (beta > 1)


def test_an_unreachable_target_ends_at_the_smallest_beta_and_stays_finite():
    hyperparameters = kl_weights.first_adaptive(1.0, 1e9)
    hyperparameters = {name: jnp.float32(value) for name, value in hyperparameters.items()}
    for _ in range(3):
        hyperparameters = kl_weights.adapt(hyperparameters, jnp.float32(-100.0), rate=1.0)
    np.testing.assert_allclose(hyperparameters["kl_weight"], kl_weights.SMALLEST)
