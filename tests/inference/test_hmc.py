"""HMC against posteriors that are known: Gaussians, a conjugate gamma, and two modes of known mass.

Chains are independent, so the spread of their averages is the standard error; tolerances are 4 of it.
"""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
from quick_jit import quick_jit

from aevb.inference import hmc

NUM_CHAINS = 300


@functools.partial(quick_jit, static_argnums=0)
def run(log_density, z0, step_size=0.3):
    return hmc.sample(jax.random.key(1), z0, log_density, 30, 100, 4, step_size=step_size)


def starts(dim, scale=2.0):
    return scale * jax.random.normal(jax.random.key(2), (NUM_CHAINS, dim))


def check_moments(z, mean, covariance, precision):
    """Mean and covariance of draws `[draws, chains, latent]`, with standard errors below `precision` of the scale."""
    z = np.asarray(z, np.float64)
    deviations = z - mean
    first = deviations.mean(0)
    second = np.einsum("tci,tcj->cij", deviations, deviations) / len(z) - covariance
    scale = np.sqrt(np.diag(covariance))
    for error, unit in ((first, scale), (second, scale[:, None] * scale)):
        stderr = error.std(0, ddof=1) / np.sqrt(NUM_CHAINS)
        assert (stderr < precision * unit).all()
        assert (np.abs(error.mean(0)) < 4 * stderr).all()


def test_a_correlated_gaussian():
    mean = np.array([1.0, -2.0, 0.5])
    covariance = np.array([[1.0, 0.6, -0.3], [0.6, 0.5, 0.0], [-0.3, 0.0, 0.8]])
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    chain = run(lambda z: -0.5 * (z - mean) @ precision @ (z - mean), starts(3))
    check_moments(chain.z, mean, covariance, 0.03)
    assert chain.divergent == 0
    # Burn-in tuned to 0.9 and left the step size alone afterwards.
    assert abs(chain.acceptance - 0.9) < 0.02
    deviations = np.asarray(chain.z) - mean
    np.testing.assert_allclose(
        chain.log_density, -0.5 * np.einsum("tci,ij,tcj->tc", deviations, precision, deviations), rtol=1e-3, atol=1e-3
    )


def test_the_posterior_of_a_linear_gaussian_model_from_any_first_step_size():
    vae = lg.MODEL.bind({"params": lg.params()})
    log_density, _ = hmc.joint_log_density(jnp.asarray(lg.X, jnp.float32), vae.prior(), vae.decode)
    chains = [run(log_density, starts(2), step_size) for step_size in (0.2, 1.0)]
    for chain in chains:
        check_moments(chain.z, lg.posterior_mean(), np.diag(lg.POSTERIOR_SCALE**2), 0.03)
        assert abs(chain.acceptance - 0.9) < 0.02
    np.testing.assert_allclose(chains[0].step_size, chains[1].step_size, rtol=0.15)


def test_the_step_size_is_tuned_in_burn_in_only():
    def step_size(num_samples):
        sample = quick_jit(lambda z0: hmc.sample(jax.random.key(1), z0, lambda z: -8 * (z @ z), num_samples, 3, 2))
        return sample(starts(1)).step_size

    np.testing.assert_allclose(step_size(1), step_size(20), rtol=1e-6)


def test_a_positive_latent_has_its_jacobian():
    # Gamma(a, b) prior and Poisson counts: the posterior is Gamma(a + sum x, b + n). Without the Jacobian it would be
    # Gamma(a - 1 + sum x, b + n), 0.4 standard deviations off.
    counts = jnp.array([1.0, 0.0, 2.0, 1.0])
    prior = dist.Gamma(jnp.full(1, 2.0), jnp.full(1, 1.5)).to_event(1)

    def decode(z):
        return dist.Poisson(jnp.broadcast_to(z, (4,))).to_event(1)

    log_density, transform = hmc.joint_log_density(counts, prior, decode)
    z = jax.vmap(jax.vmap(transform))(run(log_density, starts(1, 0.5)).z)
    assert (z > 0).all()
    check_moments(z, np.array([6 / 5.5]), np.array([[6 / 5.5**2]]), 0.035)


def test_a_transition_takes_one_gradient_and_one_a_leapfrog_step():
    calls = []

    def log_density(z):
        jax.debug.callback(lambda: calls.append(None))
        return -0.5 * (z**2).sum()

    moved = quick_jit(lambda key: hmc.transition(key, jnp.ones(2), log_density, 0.3, 7))(jax.random.key(0))
    jax.block_until_ready(moved)
    jax.effects_barrier()
    assert len(calls) == 1 + 7


@pytest.mark.parametrize(("num_leapfrog", "step_size"), [(4, 2**0.5), (10, 0.618034)])
def test_no_step_size_brings_trajectories_back_to_their_start(num_leapfrog, step_size):
    # On N(0, 1) a transition turns (z, momentum) by L arccos(1 - step^2 / 2), here a multiple of 2 pi: without jitter z
    # stays. With it the correlation is the mean of the cosine; 0.05 for what is rejected.
    z = jax.random.normal(jax.random.key(0), (2000, 1))

    def one(key, z):
        return hmc.transition(key, z, lambda z: -0.5 * (z @ z), step_size, num_leapfrog).z

    moved = quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(1), len(z)), z)
    correlation = np.corrcoef(z[:, 0], moved[:, 0])[0, 1]
    steps = step_size * np.linspace(1 - hmc.JITTER, 1 + hmc.JITTER, 1001)
    expected = np.cos(num_leapfrog * np.arccos(1 - steps**2 / 2)).mean()
    assert abs(correlation - expected) < 4 / np.sqrt(len(z)) + 0.05
    assert correlation < 0.75
    assert abs(moved.std() - 1) < 4 / np.sqrt(2 * len(z))


@pytest.mark.parametrize("outside", [jnp.nan, -jnp.inf])
def test_a_proposal_off_the_reals_is_rejected_and_counts_as_divergent(outside):
    def log_density(z):
        return jnp.where(jnp.abs(z[0]) < 1, -0.5 * z[0] ** 2, outside)

    start = jnp.array([0.5])
    moved = quick_jit(lambda key: hmc.transition(key, start, log_density, 1e3, 2))(jax.random.key(0))
    np.testing.assert_array_equal(moved.z, start)
    assert moved.acceptance == 0
    assert moved.is_divergent


def test_adapt_moves_the_log_step_by_the_gain_times_what_is_lacking():
    step = jnp.log(0.2)
    np.testing.assert_allclose(hmc.adapt(step, jnp.array([1.0, 0.9, 0.8]), 0.9, 0.5), step, atol=1e-6)
    np.testing.assert_allclose(hmc.adapt(step, jnp.array(1.0), 0.9, 0.5), step + 0.05, rtol=1e-6)
    np.testing.assert_allclose(hmc.adapt(step, jnp.array([0.0, 1.0]), 0.9, 0.5), step - 0.2, rtol=1e-6)


ONE = jnp.ones(1)
PRIORS = {
    "gamma": dist.Gamma(2.0 * ONE, 1.5 * ONE),
    "log_normal": dist.LogNormal(0.3 * ONE, 0.8 * ONE),
    "beta": dist.Beta(2.0 * ONE, 3.0 * ONE),
    "kumaraswamy": dist.Kumaraswamy(1.5 * ONE, 2.5 * ONE),
    "uniform": dist.Uniform(-ONE, 2.0 * ONE),
}


@pytest.mark.parametrize("name", PRIORS)
def test_an_unconstrained_prior_is_a_density_of_the_same_z(name):
    prior = PRIORS[name].to_event(1)
    unconstrained, transform = hmc.unconstrained(prior)
    u = np.linspace(-30, 30, 6001, dtype=np.float32)[:, None]
    z, log_prob = quick_jit(lambda u: (jax.vmap(transform)(u), jax.vmap(unconstrained.log_prob)(u)))(u)
    density = np.exp(np.asarray(log_prob, np.float64))
    np.testing.assert_allclose(np.trapezoid(density, u[:, 0]), 1, rtol=1e-4)
    np.testing.assert_allclose(np.trapezoid(density * np.asarray(z)[:, 0], u[:, 0]), prior.mean[0], rtol=1e-3)
    key = jax.random.key(3)
    np.testing.assert_allclose(transform(unconstrained.sample(key)), prior.sample(key), rtol=1e-5)


def test_a_prior_over_the_reals_is_left_as_it_is():
    prior = lg.MODEL.bind({"params": lg.params()}).prior()
    unconstrained, transform = hmc.unconstrained(prior)
    assert unconstrained is prior
    z = jnp.arange(2.0)
    assert transform(z) is z


def test_annealing_shares_chains_out_over_modes_by_mass():
    # Modes at -2 and 2 with 0.8 and 0.2 of the mass, and prior draws in even halves on either side: HMC never crosses.
    def log_likelihood(z):
        return jnp.logaddexp(
            jnp.log(0.8) + dist.Normal(-2.0, 0.1).log_prob(z[0]), jnp.log(0.2) + dist.Normal(2.0, 0.1).log_prob(z[0])
        )

    prior = dist.Normal(jnp.zeros(1), 1.0).to_event(1)

    def one(key):
        start_key, key = jax.random.split(key)
        u = jax.random.normal(start_key, (20, 1))
        betas = 1e-3 ** jnp.linspace(1.0, 0.0, 21)
        u, step_sizes = hmc.anneal(key, u, prior.log_prob, log_likelihood, betas, 3, 0.9, 0.5)
        return (u < 0).mean(), jnp.abs(jnp.abs(u) - 2).mean(), step_sizes

    left, distance, step_sizes = quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 200))
    stderr = left.std(ddof=1) / np.sqrt(200)
    assert stderr < 0.025
    assert abs(left.mean() - 0.8) < 4 * stderr
    np.testing.assert_allclose(distance.mean(), 0.1 * np.sqrt(2 / np.pi), rtol=0.1)
    assert step_sizes.shape == (200, 21)
    assert (step_sizes[:, -1] < 0.3).all()  # the target narrowed tenfold, and the steps followed
