"""HMC, the estimator of appendix D and annealed importance sampling, against models whose answers are known.

The linear-Gaussian VAE has an exact posterior and an exact log p(x). A gamma prior under a Poisson likelihood has a
gamma posterior and a negative binomial evidence, and lives on z > 0, so a forgotten Jacobian shows. A Bernoulli MLP in
two dimensions is summed on a grid.
"""

import warnings

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

from aevb import models
from aevb.errors import InputError, SamplingError
from aevb.inference import hmc
from aevb.inference.annealed_importance import annealed_importance_estimate
from aevb.inference.marginal_likelihood import HMCEstimate, check_chains, hmc_estimate

X = jnp.asarray(lg.X, jnp.float32)
VAE = lg.MODEL.bind({"params": lg.params()})
KEYS = jax.random.split(jax.random.key(7), 200)
COUNT = jnp.float32([3.0])
GAMMA = dist.Gamma(jnp.float32([2.0]), jnp.float32([1.0])).to_event(1)


def poisson(z):
    return dist.Poisson(z).to_event(1)


def evidence_of_the_count() -> float:
    """z ~ Gamma(2, rate 1), x ~ Poisson(z): x is negative binomial with 2 successes of probability 1/2."""
    return float(stats.nbinom.logpmf(3, 2, 0.5))


def mean_of_chains(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `[draws, chains, ...]`: the mean, and its standard error from the independent chains."""
    each = values.mean(axis=0)
    return each.mean(axis=0), each.std(axis=0, ddof=1) / np.sqrt(len(each))


def test_chains_have_the_posteriors_mean_and_covariance():
    log_density, transform = hmc.joint_log_density(X, VAE.prior(), VAE.decode)
    start = jax.random.normal(jax.random.key(0), (400, lg.LATENT))
    chain = jax.jit(lambda: hmc.sample(jax.random.key(1), start, log_density, 50, 400, 4))()
    z = np.asarray(jax.vmap(jax.vmap(transform))(chain.z), np.float64)
    mean, error = mean_of_chains(z)
    np.testing.assert_array_less(np.abs(mean - lg.posterior_mean()), 4.5 * error)
    centred = z - lg.posterior_mean()
    covariance, error = mean_of_chains(centred[..., :, None] * centred[..., None, :])
    exact = np.diag(lg.POSTERIOR_SCALE**2)
    np.testing.assert_array_less(np.abs(covariance - exact), 4.5 * error)
    assert (error < 0.05 * exact.max()).all()
    assert chain.acceptance == pytest.approx(0.9, abs=0.05)
    assert chain.num_divergent == 0


def test_chains_on_the_positive_line_carry_the_jacobian():
    log_density, transform = hmc.joint_log_density(COUNT, GAMMA, poisson)
    chain = jax.jit(lambda: hmc.sample(jax.random.key(2), jnp.zeros((400, 1)), log_density, 50, 50, 4))()
    z = np.asarray(jax.vmap(jax.vmap(transform))(chain.z), np.float64)
    mean, error = mean_of_chains(z)
    np.testing.assert_array_less(np.abs(mean - 5 / 2), 4.5 * error)  # Gamma(2 + 3, rate 1 + 1)
    square, error = mean_of_chains(np.square(z - 5 / 2))
    np.testing.assert_array_less(np.abs(square - 5 / 4), 4.5 * error)


def test_a_prior_on_the_whole_line_is_left_as_it_is():
    prior = VAE.prior()
    assert hmc.unconstrained(prior)[0] is prior


def test_the_step_size_rises_above_the_target_and_falls_below():
    assert hmc.adapt(jnp.float32(0.0), jnp.float32([1.0, 1.0]), 0.9, 0.5) == pytest.approx(0.05, rel=1e-5)
    assert hmc.adapt(jnp.float32(0.0), jnp.float32([jnp.nan, 0.8]), 0.9, 0.5) == pytest.approx(-0.25, rel=1e-5)


ESTIMATORS = {
    "appendix D": hmc_estimate,
    "annealed": lambda *args: annealed_importance_estimate(*args, num_temperatures=50, num_leapfrog=3),
}
MODELS = {
    "linear-Gaussian": (X, VAE.prior(), VAE.decode, lg.log_marginal()),
    "gamma-Poisson": (COUNT, GAMMA, poisson, evidence_of_the_count()),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_is_the_exact_evidence_within_its_own_standard_error(estimator: str, model: str):
    """Over 200 keys: the mean is right, and the standard error that is reported is the spread that is seen."""
    x, prior, decode, exact = MODELS[model]
    made = jax.jit(jax.vmap(lambda key: ESTIMATORS[estimator](key, x, prior, decode)))(KEYS)
    error = np.asarray(made.log_marginal, np.float64) - exact
    stderr = np.asarray(made.stderr, np.float64)
    # log of an unbiased mean is low by half its squared standard error, the reciprocal's high by as much.
    bias = {"annealed": -0.5, "appendix D": 0.5}[estimator] * np.square(stderr).mean()
    assert abs(error.mean() - bias) < 4 * error.std(ddof=1) / np.sqrt(len(error)) + 0.01
    assert 0.7 < error.std(ddof=1) / np.sqrt(np.square(stderr).mean()) < 1.4
    assert 0.01 < stderr.mean() < 0.5


def test_annealing_works_where_the_estimator_of_appendix_d_does_not():
    """Twenty latent dimensions: exact log p(x) = log N(x; 0, W W^T + s^2 I)."""
    generator = np.random.default_rng(3)
    weights, x = generator.normal(size=(30, 20)) / np.sqrt(20), generator.normal(size=30)
    exact = stats.multivariate_normal(np.zeros(30), weights @ weights.T + 0.25 * np.eye(30)).logpdf(x)
    prior = dist.Normal(jnp.zeros(20), jnp.ones(20)).to_event(1)
    w, x = jnp.float32(weights), jnp.float32(x)

    def decode(z):
        return dist.Normal(w @ z, 0.5 * jnp.ones(30)).to_event(1)

    estimate = jax.jit(
        lambda key: annealed_importance_estimate(key, x, prior, decode, num_chains=50, num_temperatures=200)
    )
    made = jax.vmap(estimate)(KEYS[:10])
    error = np.asarray(made.log_marginal, np.float64) - exact
    assert abs(error.mean()) < 4 * error.std(ddof=1) / np.sqrt(10) + 0.05
    assert (made.effective_sample_size > 4).all()
    with pytest.raises(InputError, match="20 latent dimensions and fails above 10: use annealed"):
        hmc_estimate(KEYS[0], x, prior, decode)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_bernoulli_network_against_a_sum_over_a_grid(estimator: str):
    model = models.vae((12,), 2)
    params = jax.tree.map(lambda leaf: 2.0 * leaf, models.init(model, jax.random.key(4)))
    vae = model.bind({"params": params})
    x = vae.decode(jnp.float32([1.0, -0.5])).sample(jax.random.key(5))
    side = np.linspace(-7, 7, 281)
    grid = jnp.float32(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
    joint = jax.jit(jax.vmap(lambda z: vae.decode(z).log_prob(x) + vae.prior().log_prob(z)))(grid)
    exact = logsumexp(np.asarray(joint, np.float64)) + 2 * np.log(side[1] - side[0])
    made = jax.jit(jax.vmap(lambda key: ESTIMATORS[estimator](key, x, vae.prior(), vae.decode)))(KEYS[:100])
    error = np.asarray(made.log_marginal, np.float64) - exact
    # The fitted Gaussian is not the posterior here; half the squared error of about 0.1 is its bias.
    assert abs(error.mean()) < 4 * error.std(ddof=1) / 10 + 0.02


def test_above_five_dimensions_it_warns_and_below_it_does_not():
    def ask(latent_dim: int):
        prior = dist.Normal(jnp.zeros(latent_dim), jnp.ones(latent_dim)).to_event(1)
        ones = jnp.ones(latent_dim)
        return jax.eval_shape(
            lambda key: hmc_estimate(key, ones, prior, lambda z: dist.Normal(z, ones).to_event(1)), KEYS[0]
        )

    with pytest.warns(UserWarning, match="unreliable above 5 latent dimensions and has 6"):
        ask(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(5)


def test_chains_that_do_not_sample_halt_with_the_numbers():
    good = HMCEstimate(np.full(4, -90.0), np.full(4, 0.1), np.full(4, 0.9), np.zeros(4, int))
    check_chains(good)
    with pytest.raises(SamplingError, match=r"of 4 datapoints 0 had divergent transitions, 3 accepted less than 1%"):
        check_chains(good._replace(acceptance=np.array([0.0, 0.001, np.nan, 0.9])))
    with pytest.raises(SamplingError, match="of 4 datapoints 3 had divergent transitions"):
        check_chains(good._replace(num_divergent=np.array([1, 2, 3, 0])))
    with pytest.raises(SamplingError, match="1 have an estimate that is not finite"):
        check_chains(good._replace(log_marginal=np.array([-90.0, np.inf, -90.0, -90.0])))
