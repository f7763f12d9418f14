"""The priors against SciPy, and which of them go with which posterior."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy_families as sf
from flax import linen as nn
from scipy import stats

from aevb import models
from aevb.errors import InputError
from aevb.models.families import StudentT, interval

FAMILIES = list(models.FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prior_is_scipys_standard_member(name):
    expected = sf.PRIORS[name]
    prior = models.FactorizedPrior(name, 2)()
    assert (prior.event_shape, prior.batch_shape) == ((2,), ())
    z = np.float32(expected.ppf(np.linspace(0.002, 0.998, 50)))
    got = jax.jit(jax.vmap(prior.log_prob))(np.stack([z, z[::-1]], axis=1))
    np.testing.assert_allclose(got, expected.logpdf(z) + expected.logpdf(z[::-1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_inverse_cdf_is_scipys(name):
    u = np.linspace(0.001, 0.999, 101)
    base = models.FactorizedPrior(name, 2)().base_dist
    got = jax.jit(jax.vmap(base.icdf))(jnp.asarray(np.stack([u, 1 - u], axis=1), jnp.float32))
    expected = sf.PRIORS[name].ppf(np.stack([u, 1 - u], axis=1))
    # NumPyro's CDF of a Student t sees z^2 beside 5, so that float32 cannot tell |z| < 5e-4 from 0.
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=6e-4 if name == "student_t" else 1e-5)


def test_the_inverse_cdf_by_bisection_follows_location_and_scale():
    u = np.array([1e-4, 0.3, 0.999])
    base = StudentT(5.0, np.array([40.0, -3.0, 2e3]), np.array([0.01, 20.0, 300.0]))
    got = jax.jit(base.icdf)(jnp.float32(u))
    np.testing.assert_allclose(got, stats.t(5, [40.0, -3.0, 2e3], [0.01, 20.0, 300.0]).ppf(u), rtol=1e-4)


@pytest.mark.parametrize("name", ["exponential", "weibull"])
def test_no_draw_is_exactly_zero(name):
    numpyros = {"exponential": dist.Exponential(1.0), "weibull": dist.Weibull(1.0, 2.0)}[name]
    family = models.FAMILIES[name]
    lowest = jax.jit(lambda d, key: d.sample(key, (2**20,)).min())
    assert lowest(numpyros, jax.random.key(4)) == 0
    assert lowest(family.distribution(*family.standard), jax.random.key(4)) > 1e-8


@pytest.mark.parametrize(("posterior", "prior"), list(itertools.product(FAMILIES, FAMILIES)))
def test_a_pair_is_refused_where_the_kl_is_infinite(posterior, prior):
    low, high = sf.PRIORS[posterior].support()
    prior_low, prior_high = sf.PRIORS[prior].support()
    fits = prior_low <= low and high <= prior_high and (posterior, prior) != ("student_t", "gumbel")
    pair = models.FactorizedPosterior(posterior), models.FactorizedPrior(prior, 3)
    if fits:
        models.check_pair(*pair, 3)
    else:
        with pytest.raises(InputError, match=r"^the posterior \(.*so their KL is infinite: choose another prior, or "):
            models.check_pair(*pair, 3)


def test_the_refusal_says_both_supports_and_what_would_fit():
    with pytest.raises(InputError) as error:
        models.vae((5,), 2, posterior=models.FactorizedPosterior("laplace"), prior=models.FactorizedPrior("gamma", 2))
    assert str(error.value) == (
        "the posterior (Laplace) has mass on (-inf, inf) but the prior (Gamma) only on (0, inf), so their KL is "
        "infinite: choose another prior, or a posterior with mass there only, such as exponential, weibull, "
        "log_normal, gamma"
    )


class Scaled(nn.Module):
    """A prior of the user's own, with a parameter."""

    @nn.compact
    def __call__(self):
        rate = nn.softplus(self.param("rate", nn.initializers.ones, (2,)))
        return dist.HalfNormal(rate).to_event(1)


def test_a_prior_of_ones_own_is_checked_too():
    models.check_pair(models.FactorizedPosterior("beta"), Scaled(), 2)
    with pytest.raises(InputError, match=r"\(Normal\) has mass on \(-inf, inf\) but the prior \(HalfNormal\) only on"):
        models.check_pair(models.DiagonalGaussian(), Scaled(), 2)


def test_the_ends_of_a_support():
    assert interval(dist.Normal(jnp.zeros((2, 3))).to_event(2).support) == (-np.inf, np.inf)
    assert interval(dist.HalfNormal(1.0).support) == (0, np.inf)
    assert interval(dist.constraints.less_than(2.0)) == (-np.inf, 2)
    assert interval(dist.Uniform(jnp.zeros(2), jnp.ones(2)).support) is None  # its parameters move them
    assert interval(dist.Dirichlet(jnp.ones(3)).support) is None


def test_which_pairs_have_a_kl_in_closed_form():
    found = {
        (q, p)
        for q, p in itertools.product(FAMILIES, FAMILIES)
        if models.has_closed_form_kl(models.FactorizedPosterior(q), models.FactorizedPrior(p, 2), 2)
    }
    assert found == sf.CLOSED_FORM - {(sf.NORMAL, sf.NORMAL)}
    assert models.has_closed_form_kl(models.DiagonalGaussian(), models.StandardNormal(2), 2)
    assert not models.has_closed_form_kl(models.DiagonalGaussian(), models.FactorizedPrior("laplace", 2), 2)
