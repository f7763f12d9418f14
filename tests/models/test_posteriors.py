"""The reparameterized posteriors against SciPy, each in a small VAE: draws, densities, gradients, KL and the bound.

The encoder is a bias, so that it holds any outputs; the decoder is affine, so that the expected log-likelihood follows
from the posterior's mean and variance. Monte Carlo comparisons have fixed keys and allow 4 standard errors, each
computed from the draws.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy_families as sf
from scipy import stats

from aevb import bounds, models
from aevb.networks import MLP

NUM_DRAWS, LATENT, SCALE = 2048, 7, 0.8
X = np.array([1.2, -0.4, 0.3, 0.8])
W = np.random.default_rng(0).normal(size=(LATENT, len(X))) / 3
B = np.array([0.2, 0.0, -0.5, 0.1])
OUTPUTS = np.array([[0.4, -1.0, 2.0, 0.0, 1.1, -0.3, 0.7], [0.2, 0.9, -0.5, 1.5, -1.0, 0.0, 0.6]])
# For the KL to a Gumbel to have a standard error, exp(-2 z) needs a mean: these scales are below 1/2.
LOCATION_SCALE = np.array([OUTPUTS[0], [-0.8, -2.0, -1.0, -1.4, -0.9, -3.0, -1.1]])
EXTREMES = [-100.0, -20.0, -5.0, 0.0, 5.0, 20.0, 100.0]


def posterior_module(name):
    return models.DiagonalGaussian() if name == sf.NORMAL else models.FactorizedPosterior(name)


def prior_module(name):
    return models.StandardNormal(LATENT) if name == sf.NORMAL else models.FactorizedPrior(name, LATENT)


def outputs_of(name):
    low, _ = sf.PRIORS[name].support()
    return LOCATION_SCALE if low < 0 or name == "log_normal" else OUTPUTS[: sf.num_parameters(name)]


@functools.cache
def program(name):
    """Compiled once a family, since a sampler by rejection takes seconds: all that the tests below want of outputs.

    Returns a function of the outputs. Its `grads` hold, for each draw, the gradients of the sum of z, of the sum of
    z^2 and of the bound under each prior.
    """
    names = sf.fitting_priors(name)
    model = models.vae(
        (len(X),),
        LATENT,
        network=functools.partial(MLP, hidden=()),
        posterior=posterior_module(name),
        likelihood=models.Gaussian(scale=SCALE),
        prior=prior_module(names[0]),
    )
    x, priors = jnp.float32(X), [prior_module(prior)() for prior in names]

    def one(params, key):
        vae = model.bind({"params": params})
        q = vae.encode(x)
        samples = bounds.draw(key, x, q, vae.prior(), vae.decode)
        z = samples.z[0]
        # A Gumbel prior's exp(-z) leaves float32 at z = -88, where only the test of extreme outputs comes to.
        kept = jnp.maximum(z, -80.0)
        log_priors = [
            p.base_dist.log_prob(kept if name == "gumbel" else z) for name, p in zip(names, priors, strict=True)
        ]
        log_densities = jnp.stack([q.base_dist.log_prob(z), *log_priors])
        weighed = [samples._replace(log_prior=value[None]) for value in log_densities[1:].sum(1)]
        elbos = jnp.stack([bounds.sgvb_a(each, q, vae.prior()).elbo for each in weighed])
        values = jnp.concatenate([jnp.stack([z.sum(), (z**2).sum()]), elbos])
        return values, {"z": z, "log_densities": log_densities, "elbos": elbos}

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # twice as fast to compile
    def run(params, keys):
        grads, each = jax.vmap(jax.jacrev(one, has_aux=True), in_axes=(None, 0))(params, keys)
        q = model.bind({"params": params}).encode(x)
        kls = [bounds.kl_per_dim(q, prior, each["z"]) for prior in priors]
        return each | {"grads": grads, "kls": kls, "mean": q.mean, "variance": q.variance}

    def of_outputs(outputs):
        params = {
            "encoder": {"output": {"kernel": np.zeros((len(X), outputs.size)), "bias": outputs.ravel()}},
            "decoder": {"output": {"kernel": W, "bias": B}},
        }
        keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
        return jax.tree.map(np.asarray, run(jax.tree.map(jnp.float32, params), keys))

    return of_outputs


@functools.cache
def computed(name):
    return program(name)(outputs_of(name))


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_draws_follow_the_distribution(name):
    z = computed(name)["z"]
    for j, outputs in enumerate(outputs_of(name).T):
        assert stats.kstest(z[:, j], sf.POSTERIORS[name](*outputs).cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(z.T) - np.eye(LATENT)).max() < 0.1  # independent over the latent dimensions


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_the_log_density_and_the_moments_are_scipys(name):
    outputs, found = outputs_of(name), computed(name)
    assert posterior_module(name).output_shape(LATENT) == outputs.shape
    expected, z = sf.POSTERIORS[name](*outputs), np.float64(found["z"])
    inner = np.abs(expected.cdf(z) - 0.5) < 0.495  # next to an end of (0, 1), 1 - z^a has lost its digits
    got = found["log_densities"][:, 0]
    np.testing.assert_allclose(got[inner], expected.logpdf(z)[inner], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["mean"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["variance"], expected.var(), rtol=1e-4)


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_the_gradient_of_a_draw_is_unbiased_for_the_gradient_of_the_moments(name):
    outputs, step = outputs_of(name), 1e-5
    bias_grads = computed(name)["grads"]["encoder"]["output"]["bias"].reshape(NUM_DRAWS, -1, *outputs.shape)
    got, error = mean_and_error(bias_grads[:, :2])

    def moments(outputs):
        q = sf.POSTERIORS[name](*outputs)
        return np.stack([q.mean(), q.mean() ** 2 + q.var()])

    for row in range(len(outputs)):
        ahead, behind = outputs.copy(), outputs.copy()
        ahead[row] += step
        behind[row] -= step
        expected = (moments(ahead) - moments(behind)) / (2 * step)
        tolerance = 4 * error[:, row] + 1e-4 * np.abs(expected) + 1e-6
        np.testing.assert_array_less(np.abs(got[:, row] - expected), tolerance)
        assert (error[:, row] < 0.1 * np.abs(expected).max()).all()


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_kl_per_dim_in_closed_form_and_from_draws_is_the_integral(name):
    found = computed(name)
    q = sf.POSTERIORS[name](*outputs_of(name))
    for index, prior in enumerate(sf.fitting_priors(name)):
        p, kl = sf.PRIORS[prior], found["kls"][index]
        expected = sf.expectation(q, lambda z, p=p: q.logpdf(z) - p.logpdf(z))
        assert kl.shape == (LATENT,)
        if (name, prior) in sf.CLOSED_FORM:
            np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=2e-5)
        else:
            mean, error = mean_and_error(found["log_densities"][:, 0] - found["log_densities"][:, 1 + index])
            np.testing.assert_allclose(kl, mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_less(np.abs(kl - expected), 4 * error + 1e-4)


def test_kl_per_dim_without_a_closed_form_needs_draws():
    q, p = models.FactorizedPrior("laplace", 2)(), models.FactorizedPrior("logistic", 2)()
    for kl in (bounds.kl, bounds.kl_per_dim):
        with pytest.raises(NotImplementedError):
            kl(q, p)


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_sgvb_a_under_each_prior_is_the_exact_bound(name):
    found = computed(name)
    q = sf.POSTERIORS[name](*outputs_of(name))
    residual = X - q.mean() @ W - B
    expected_square = residual @ residual + q.var() @ (W**2).sum(1)
    log_likelihood = -0.5 * expected_square / SCALE**2 - 0.5 * len(X) * np.log(2 * np.pi * SCALE**2)
    elbos, errors = mean_and_error(found["elbos"])
    for prior, elbo, error in zip(sf.fitting_priors(name), elbos, errors, strict=True):
        p = sf.PRIORS[prior]
        kl = sf.expectation(q, lambda z, p=p: q.logpdf(z) - p.logpdf(z)).sum()
        assert error < 0.05 * max(1, abs(elbo))
        assert abs(elbo - (log_likelihood - kl)) < 4 * error + 1e-3
    assert np.isfinite(found["elbos"]).all()
    for leaf in jax.tree.leaves(found["grads"]):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_densities_and_gradients_are_finite_for_extreme_outputs(name):
    values = EXTREMES
    if name == sf.NORMAL:  # it bounds nothing: exp(50) is the largest of these whose square is a float32
        values = np.clip(EXTREMES, -20, 20)
    rows = np.array(list(itertools.product(values, repeat=sf.num_parameters(name)))).T
    low, high = sf.PRIORS[name].support()
    for start in range(0, rows.shape[1], LATENT):
        outputs = rows[:, start : start + LATENT]
        found = program(name)(outputs)
        assert low < found["z"].min() < found["z"].max() < high
        del found["kls"]  # means of the log densities, but without the care for a Gumbel prior
        for leaf in jax.tree.leaves(found):
            assert np.isfinite(leaf).all()
