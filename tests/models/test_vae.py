"""The VAE puts encoder, posterior, decoder and likelihood together; the oracle is NumPy on its own weights."""

import functools

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import linen as nn
from scipy.special import expit

from aevb import models
from aevb.networks import MLP


def test_the_posterior_is_the_exact_one_where_the_encoder_says_so():
    posterior = lg.MODEL.bind({"params": lg.params()}).encode(jnp.float32(lg.X))
    # Conditioning the joint Gaussian: cov(z, x) (W W^T + s^2 I)^-1.
    gain = lg.W.T @ np.linalg.inv(lg.W @ lg.W.T + lg.SCALE**2 * np.eye(lg.SIZE))
    covariance = np.eye(lg.LATENT) - gain @ lg.W
    np.testing.assert_allclose(posterior.mean, gain @ (lg.X - lg.B), rtol=1e-4)
    np.testing.assert_allclose(np.diag(posterior.variance), covariance, rtol=1e-4, atol=1e-7)
    assert posterior.event_shape == (lg.LATENT,)
    assert posterior.batch_shape == ()


def test_the_prior_is_standard_normal():
    prior = lg.MODEL.prior()
    assert prior.event_shape == (lg.LATENT,)
    np.testing.assert_array_equal(prior.mean, [0, 0])
    np.testing.assert_array_equal(prior.variance, [1, 1])


def test_the_first_head_is_the_mean_and_the_second_log_sigma_squared():
    posterior = models.DiagonalGaussian()
    assert posterior.output_shape(3) == (2, 3)
    q = posterior(jnp.array([[1.0, -2.0, 0.5], [0.0, -4.0, 1.4]]))
    np.testing.assert_allclose(q.mean, [1.0, -2.0, 0.5])
    np.testing.assert_allclose(q.variance, np.exp([0.0, -4.0, 1.4]), rtol=1e-5)


@pytest.mark.parametrize("event_shape", [(5,), (3, 4, 2)])
def test_encoding_and_decoding_are_the_networks_and_the_heads(event_shape):
    model = models.vae(event_shape, 2, network=functools.partial(MLP, hidden=(7,)))
    params = models.init(model, jax.random.key(0))
    x = np.random.default_rng(0).random(event_shape)

    def mlp(part, h):
        layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[part])
        h = np.tanh(h @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"])
        return h @ layers["output"]["kernel"] + layers["output"]["bias"]

    expected = expit(mlp("decoder", mlp("encoder", x.ravel())[:2])).reshape(event_shape)
    vae = model.bind({"params": params})
    got = vae.decode(vae.encode(jnp.float32(x)).mean)
    assert got.event_shape == event_shape
    np.testing.assert_allclose(got.mean, expected, rtol=1e-4)


def test_two_keys_give_other_weights_and_one_key_the_same():
    a, b, c = (models.init(lg.MODEL, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    kernels = [np.asarray(params["encoder"]["output"]["kernel"]) for params in (a, c)]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.7
    decoder = np.asarray(a["decoder"]["output"]["kernel"])
    assert not np.isin(np.round(decoder, 6), np.round(kernels[0], 6)).any()  # no weight is drawn twice


def test_generative_parameters_are_the_decoders_the_likelihoods_and_the_priors():
    params = {"encoder": 1, "posterior": 2, "decoder": 3, "likelihood": 4, "prior": 5}
    assert models.generative(params) == {"decoder": 3, "likelihood": 4, "prior": 5}
    assert set(models.generative(models.init(lg.MODEL, jax.random.key(0)))) == {"decoder"}


class Shifted(nn.Module):
    """A prior with a parameter."""

    @nn.compact
    def __call__(self):
        return dist.Normal(self.param("mean", nn.initializers.ones, (2,)), jnp.ones(2)).to_event(1)


def test_a_prior_may_have_parameters_and_the_posterior_need_not_know_its_mean():
    model = models.vae((5,), 2, prior=Shifted())
    params = models.init(model, jax.random.key(0))
    np.testing.assert_array_equal(params["prior"]["mean"], [1, 1])
    np.testing.assert_array_equal(model.bind({"params": params}).prior().mean, [1, 1])
    assert "prior" in models.generative(params)
