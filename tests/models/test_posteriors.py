"""The reparameterized posteriors against SciPy: draws, densities, gradients of moments, KL and the bound.

Monte Carlo comparisons have fixed keys and allow about 4 standard errors, each computed from the draws.
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

NUM_DRAWS = 20_000
# Two rows of outputs for three latent dimensions; the second keeps scales below 1/2, since exp(-2 z) has to have an
# expectation for the KL to a Gumbel to have a standard error.
OUTPUTS = np.array([[0.4, -1.0, 2.0], [-0.8, -2.0, -1.0]])


def posterior_module(name):
    return models.DiagonalGaussian() if name == sf.NORMAL else models.FactorizedPosterior(name)


def prior_module(name, latent_dim):
    return models.StandardNormal(latent_dim) if name == sf.NORMAL else models.FactorizedPrior(name, latent_dim)


def outputs_of(name):
    return OUTPUTS[: sf.num_parameters(name)]


@functools.cache
def computed(name):
    """Draws at `OUTPUTS`, the gradient of z and z^2 of each with respect to the outputs, and the KL to each prior."""
    posterior = posterior_module(name)
    priors = [prior_module(prior, 3)() for prior in sf.fitting_priors(name)]

    def one(key, outputs):
        def moments(outputs):
            z = posterior(outputs).sample(key)
            return jnp.stack([z.sum(), (z**2).sum()]), z

        grads, z = jax.jacrev(moments, has_aux=True)(outputs)
        return z, grads

    @jax.jit
    def all_draws(keys, outputs):
        z, grads = jax.vmap(one, in_axes=(0, None))(keys, outputs)
        with jax.numpy_rank_promotion("allow"):  # NumPyro's KL of a Kumaraswamy and a beta broadcasts
            return z, grads, [bounds.kl_per_dim(posterior(outputs), prior, z) for prior in priors]

    outputs = jnp.asarray(outputs_of(name), jnp.float32)
    return jax.tree.map(np.asarray, all_draws(jax.random.split(jax.random.key(0), NUM_DRAWS), outputs))


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_draws_follow_the_distribution(name):
    z, _, _ = computed(name)
    for j, outputs in enumerate(outputs_of(name).T):
        assert stats.kstest(z[:, j], sf.POSTERIORS[name](*outputs).cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(z.T, rowvar=True) - np.eye(3)).max() < 0.06  # independent over the latent dimensions


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_the_log_density_is_scipys(name):
    outputs = outputs_of(name)
    expected = sf.POSTERIORS[name](*outputs)
    z = np.float32(expected.ppf(np.linspace(0.002, 0.998, 50)[:, None]))
    posterior = posterior_module(name)
    assert posterior.output_shape(3) == outputs.shape
    q = posterior(jnp.asarray(outputs, jnp.float32))
    assert (q.event_shape, q.batch_shape) == ((3,), ())
    np.testing.assert_allclose(jax.jit(jax.vmap(q.log_prob))(z), expected.logpdf(z).sum(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(q.mean, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(q.variance, expected.var(), rtol=1e-4)


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_the_gradient_of_a_draw_is_unbiased_for_the_gradient_of_the_moments(name):
    outputs, step = outputs_of(name), 1e-5
    _, grads, _ = computed(name)
    error = grads.std(axis=0, ddof=1) / np.sqrt(NUM_DRAWS)

    def moments(outputs):
        q = sf.POSTERIORS[name](*outputs)
        return np.stack([q.mean(), q.mean() ** 2 + q.var()])

    for row in range(len(outputs)):
        ahead, behind = outputs.copy(), outputs.copy()
        ahead[row] += step
        behind[row] -= step
        expected = (moments(ahead) - moments(behind)) / (2 * step)
        got = grads.mean(axis=0)[:, row]
        np.testing.assert_array_less(np.abs(got - expected), 4 * error[:, row] + 1e-4 * np.abs(expected) + 1e-6)
        informative = np.abs(expected) > 0  # the mean of a Laplace does not depend on its scale
        assert np.median(error[:, row][informative] / np.abs(expected[informative])) < 0.05


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_kl_per_dim_in_closed_form_and_from_draws_is_the_integral(name):
    z, _, kls = computed(name)
    q = sf.POSTERIORS[name](*outputs_of(name))
    for prior, kl in zip(sf.fitting_priors(name), kls, strict=True):
        p = sf.PRIORS[prior]
        expected = sf.expectation(q, lambda z, p=p: q.logpdf(z) - p.logpdf(z))
        assert kl.shape == (3,)
        if (name, prior) in sf.CLOSED_FORM:
            np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-5)
        else:
            each = q.logpdf(np.float64(z)) - p.logpdf(np.float64(z))
            error = each.std(axis=0, ddof=1) / np.sqrt(NUM_DRAWS)
            np.testing.assert_allclose(kl, each.mean(axis=0), rtol=1e-3, atol=1e-4)
            np.testing.assert_array_less(np.abs(kl - expected), 4 * error + 1e-4)


def test_kl_per_dim_without_a_closed_form_needs_draws():
    posterior, prior = (models.FactorizedPrior(name, 2)() for name in ("laplace", "logistic"))
    with pytest.raises(NotImplementedError):
        bounds.kl_per_dim(posterior, prior)
    with pytest.raises(NotImplementedError):
        bounds.kl(posterior, prior)


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_every_density_and_gradient_is_finite_for_extreme_outputs(name):
    values = [-100.0, -20.0, -5.0, 0.0, 5.0, 20.0, 100.0]
    if name == sf.NORMAL:
        values = values[1:-1]  # exp(50) and exp(-50) for a standard deviation are its own affair
    rows = np.array(list(itertools.product(values, repeat=sf.num_parameters(name)))).T
    posterior = posterior_module(name)
    # exp(-z) of a Gumbel prior leaves float32 at z = -88, where these posteriors have mass.
    priors = [prior_module(prior, rows.shape[1])() for prior in sf.fitting_priors(name) if prior != "gumbel"]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def one(key, outputs):
        def log_densities(outputs):
            q = posterior(outputs)
            z = q.sample(key)
            each = [q.base_dist.log_prob(z), *(prior.base_dist.log_prob(z) for prior in priors)]
            return sum(value.sum() for value in each), (z, jnp.stack(each))

        return jax.grad(log_densities, has_aux=True)(outputs)

    num_keys = -(-100_000 // rows.shape[1])
    grads, (z, log_densities) = one(jax.random.split(jax.random.key(1), num_keys), jnp.asarray(rows, jnp.float32))
    low, high = sf.PRIORS[name].support()
    assert z.size >= 100_000
    assert low < z.min() < z.max() < high
    assert np.isfinite(log_densities).all()
    assert np.isfinite(grads).all()
    q = posterior(jnp.asarray(rows, jnp.float32))
    assert np.isfinite(q.mean).all() and np.isfinite(q.variance).all()


X = np.array([1.2, -0.4, 0.3, 0.8])
SCALE = 0.8


def log_likelihood(decoder, z):
    """float64, from the definition: log N(x; mlp(z), scale^2) at z `[...]`."""
    hidden = np.tanh(z[..., None] * decoder["hidden_0"]["kernel"][0] + decoder["hidden_0"]["bias"])
    mean = hidden @ decoder["output"]["kernel"] + decoder["output"]["bias"]
    return stats.norm.logpdf(X, mean, SCALE).sum(-1)


@pytest.mark.parametrize("name", sf.POSTERIORS)
def test_sgvb_a_of_each_posterior_and_prior_is_the_integral_and_differentiable(name):
    priors = sf.fitting_priors(name)
    model = models.vae(
        (len(X),),
        1,
        network=functools.partial(MLP, hidden=(3,)),
        posterior=posterior_module(name),
        likelihood=models.Gaussian(scale=SCALE),
        prior=prior_module(priors[0], 1),
    )
    params = models.init(model, jax.random.key(2))
    output = params["encoder"]["output"]
    output["kernel"] *= 0.3
    output["bias"] += jnp.array([0.3, -1.0])[: sf.num_parameters(name)]

    def elbos(params, key):
        vae = model.bind({"params": params})
        samples = bounds.draw(key, jnp.float32(X), vae.encode(jnp.float32(X)), vae.prior(), vae.decode, NUM_DRAWS)
        each = []
        for prior in priors:
            log_prior = jax.vmap(prior_module(prior, 1)().log_prob)(samples.z)
            each.append(samples._replace(log_prior=log_prior))
        bound = jnp.stack([bounds.sgvb_a(samples, None, None).elbo for samples in each])
        return bound, (bound, jnp.stack([samples.log_weights for samples in each]), vae.encoder(jnp.float32(X)))

    grads, (bound, log_weights, outputs) = jax.jit(jax.jacrev(elbos, has_aux=True))(params, jax.random.key(3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    decoder = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["decoder"])
    q = sf.POSTERIORS[name](*np.asarray(outputs, np.float64))
    error = np.std(log_weights, axis=1, ddof=1) / np.sqrt(NUM_DRAWS)
    for index, prior in enumerate(priors):
        p = sf.PRIORS[prior]
        expected = sf.expectation(q, lambda z, p=p: log_likelihood(decoder, z) + p.logpdf(z) - q.logpdf(z))
        assert error[index] < 0.03
        assert abs(bound[index] - expected[0]) < 4 * error[index] + 1e-4
