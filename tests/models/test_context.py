"""Conditional models: what a context is, that a constant one changes nothing, and priors of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aevb import bounds, data, models
from aevb.data import Datapoint, Dataset, Split
from aevb.errors import InputError
from aevb.learners.aevb import datapoint_bound
from aevb.networks import MLP

SIZE, LATENT, CONTEXT = 5, 2, 3
NETWORK = functools.partial(MLP, hidden=(4,))
LIKELIHOOD = models.Gaussian(scale=0.5)
X = np.float32([0.9, -1.1, 0.4, 0.7, 0.2])


def test_a_constant_context_is_a_bias():
    """Given always the same context, a conditional model is the model whose first biases have taken it up."""
    told = models.vae((SIZE,), LATENT, network=NETWORK, likelihood=LIKELIHOOD, context_dim=CONTEXT)
    plain = models.vae((SIZE,), LATENT, network=NETWORK, likelihood=LIKELIHOOD)
    params = models.init(told, jax.random.key(0))
    context = jnp.float32([0.3, -2.0, 1.0])

    def absorbed(network: dict, size: int) -> dict:
        first = network["hidden_0"]
        kernel, of_context = first["kernel"][:size], first["kernel"][size:]
        return network | {"hidden_0": {"kernel": kernel, "bias": first["bias"] + context @ of_context}}

    without = {"encoder": absorbed(params["encoder"], SIZE), "decoder": absorbed(params["decoder"], LATENT)}
    key = jax.random.key(1)
    got = datapoint_bound(told, bounds.sgvb_b, 3)(params, Datapoint(X, context), key)
    expected = datapoint_bound(plain, bounds.sgvb_b, 3)(without, Datapoint(X), key)
    np.testing.assert_allclose(got.elbo, expected.elbo, rtol=1e-5)
    other = datapoint_bound(told, bounds.sgvb_b, 3)(params, Datapoint(X, -context), key)
    assert abs(other.elbo - got.elbo) > 0.1


@pytest.mark.parametrize(
    ("size", "context", "words"),
    [
        (3, None, "context of 3 numbers and was given none"),
        (3, np.zeros(2), r"given one of shape \[2\]"),
        (0, np.zeros(2), "context of 0 numbers"),
        (3, np.zeros((3, 1)), r"shape \[3, 1\]"),
    ],
)
def test_a_context_of_another_size_is_refused(size, context, words):
    model = models.vae((SIZE,), LATENT, network=NETWORK, likelihood=LIKELIHOOD, context_dim=size)
    params = models.init(model, jax.random.key(0))
    with pytest.raises(InputError, match=words):
        model.bind({"params": params}).given(context)


def test_a_conditional_prior_has_a_gaussian_for_each_class():
    prior = models.ConditionalGaussian(LATENT)
    model = models.vae((SIZE,), LATENT, network=NETWORK, likelihood=LIKELIHOOD, prior=prior, context_dim=CONTEXT)
    params = models.init(model, jax.random.key(0))
    assert "prior" in models.generative(params)
    start = model.bind({"params": params}).given(jax.nn.one_hot(1, CONTEXT)).prior()
    np.testing.assert_allclose([start.mean, start.variance], [[0, 0], [1, 1]], atol=0.05)
    means, log_variances = np.arange(6.0).reshape(3, 2), np.float32([[0.1, -0.3], [0.0, 0.4], [-1.0, 1.0]])
    kernel = np.concatenate([means, log_variances], axis=1)
    table = {"kernel": jnp.float32(kernel), "bias": jnp.zeros(4)}
    params = params | {"prior": {"network": {"output": table}}}
    for i in range(CONTEXT):
        told = model.bind({"params": params}).given(jax.nn.one_hot(i, CONTEXT))
        expected = stats.norm(means[i], np.exp(0.5 * log_variances[i]))
        z = np.float32([0.4, -0.7])
        np.testing.assert_allclose(told.prior().log_prob(z), expected.logpdf(z).sum(), rtol=1e-5)
        q = told.encode(X)
        ratio = q.variance / expected.var()
        kl = 0.5 * (ratio + (q.mean - means[i]) ** 2 / expected.var() - 1 - np.log(ratio)).sum()
        np.testing.assert_allclose(bounds.kl(q, told.prior()), kl, rtol=1e-4)


def dataset(train: np.ndarray | None, test: np.ndarray | None) -> Dataset:
    images = np.zeros((4, 2, 2, 1), np.uint8)
    empty = Split(images[:0], None)
    return Dataset("mine", (2, 2, 1), Split(images, train), empty, Split(images, test), "made up")


def test_labels_become_contexts():
    classes = data.label_context(dataset(np.int32([0, 2, 1, 1]), np.int32([2, 2, 0, 1])))
    assert (classes.size, classes.classes) == (3, True)
    np.testing.assert_array_equal(classes(jnp.int32(2)), [0, 0, 1])
    vectors = np.float32([[0.5, 1]] * 4)
    attributes = data.label_context(dataset(vectors, vectors))
    assert (attributes.size, attributes.classes) == (2, False)
    np.testing.assert_array_equal(attributes(vectors[0]), [0.5, 1])


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (None, None, "the train split of mine has no labels"),
        (np.int32([0, 1, 1, 0]), None, "the test split of mine has no labels"),
        (np.int32([0, 1, 1, 0]), np.int32([0, 1, 5, 0]), "has the label 5, but the training split only 0 to 1"),
        (np.int32([-1, 1, 1, 0]), np.int32([0, 1, 1, 0]), "has 3 classes, numbered from -1 to 1: number them from 0"),
        (np.int32([0, 2, 2, 0]), np.int32([0, 2, 2, 0]), "has 2 classes, numbered from 0 to 2: number them from 0"),
        (
            np.ones((4, 5), "float32"),
            np.ones((4, 3), "float32"),
            "vectors of 3, those of the training split vectors of 5",
        ),
        (np.ones((4, 5), "float32"), np.int32([0, 1, 1, 0]), "are classes, those of the training split vectors of 5"),
        (np.int32([0, 1, 1, 0]), np.ones((4, 5), "float32"), "are vectors of 5, those of the training split classes"),
    ],
)
def test_labels_that_make_no_context_are_refused(train, test, words):
    with pytest.raises(InputError, match=words):
        data.label_context(dataset(train, test))
