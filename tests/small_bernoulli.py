"""A small Bernoulli decoder with random weights, whose log p(x) is a sum over a grid of z."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import logsumexp

HIDDEN, SIZE, NUM_X = 20, 30, 60


class Decoder(NamedTuple):
    hidden: np.ndarray  # `[latent, HIDDEN]`
    output: np.ndarray  # `[HIDDEN, SIZE]`
    x: jax.Array  # draws from the model, `[NUM_X, SIZE]`

    @property
    def prior(self) -> dist.Distribution:
        latent_dim = len(self.hidden)
        return dist.Normal(jnp.zeros(latent_dim), jnp.ones(latent_dim)).to_event(1)

    @property
    def decode(self) -> Callable:
        hidden, output = jnp.float32(self.hidden), jnp.float32(self.output)
        return lambda z: dist.BernoulliLogits(jnp.tanh(z @ hidden) @ output).to_event(1)


@functools.cache
def decoder(latent_dim: int) -> Decoder:
    rng = np.random.default_rng(latent_dim)
    hidden, output = rng.normal(size=(latent_dim, HIDDEN)), rng.normal(size=(HIDDEN, SIZE))
    logits = np.tanh(rng.normal(size=(NUM_X, latent_dim)) @ hidden) @ output
    x = rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))
    return Decoder(hidden, output, jnp.asarray(x, jnp.float32))


def quadrature(model: Decoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(x), `[NUM_X]`, and the mean and standard deviation of the posterior, `[NUM_X, latent]`, in float64."""
    latent_dim = len(model.hidden)
    axis = np.linspace(-4.5, 4.5, {2: 181, 3: 61}[latent_dim])
    z = np.stack(np.meshgrid(*[axis] * latent_dim, indexing="ij"), -1).reshape(-1, latent_dim)
    logits = np.tanh(z @ model.hidden) @ model.output
    log_joint = np.asarray(model.x, np.float64) @ logits.T
    log_joint += -np.logaddexp(0, logits).sum(1) - 0.5 * (z**2).sum(1) - 0.5 * latent_dim * np.log(2 * np.pi)
    total = logsumexp(log_joint, axis=1)
    weights = np.exp(log_joint - total[:, None])
    mean = weights @ z
    return total + latent_dim * np.log(axis[1] - axis[0]), mean, np.sqrt(weights @ z**2 - mean**2)
