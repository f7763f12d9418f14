"""A VAE that is solved in closed form: every oracle about bounds rests on this one.

p(z) = N(0, I), p(x | z) = N(W z + b, s^2 I), so log p(x) = log N(x; b, W W^T + s^2 I). The columns of W are orthogonal,
so the exact posterior is diagonal: precision 1 + |w_j|^2 / s^2, mean w_j . (x - b) / s^2 over it. It is affine in x, so
an affine encoder can hold it. `shift` and `stretch` make it wrong: mean + shift * sd, standard deviation * stretch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import stats

from aevb import models
from aevb.networks import MLP

SCALE = 0.7
W = np.array([[0.8, 0.5], [-0.6, 0.5], [0.4, -0.2], [0.2, 0.8], [0.5, 0.0]])
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])
B = np.array([0.3, -0.2, 0.1, 0.0, -0.5])
X = np.array([0.9, -1.1, 0.4, 0.7, 0.2])
SIZE, LATENT = W.shape
PRECISION = 1 + (W**2).sum(0) / SCALE**2
POSTERIOR_SCALE = PRECISION**-0.5

MODEL = models.vae((SIZE,), LATENT, network=functools.partial(MLP, hidden=()), likelihood=models.Gaussian(scale=SCALE))


def log_marginal(x: np.ndarray = X) -> float:
    return float(stats.multivariate_normal(B, W @ W.T + SCALE**2 * np.eye(SIZE)).logpdf(x))


def posterior_mean(x: np.ndarray = X) -> np.ndarray:
    return W.T @ (x - B) / SCALE**2 / PRECISION


def params(shift: float = 0.0, stretch: float = 1.0) -> dict:
    """The true decoder, and the exact posterior moved by `shift` of its standard deviations and scaled by `stretch`."""
    to_mean = W / SCALE**2 / PRECISION
    mean_bias = -B @ to_mean + shift * POSTERIOR_SCALE
    log_variance = 2 * np.log(stretch * POSTERIOR_SCALE)
    tree = {
        "encoder": {
            "output": {
                "kernel": np.concatenate([to_mean, np.zeros_like(W)], axis=1),
                "bias": np.concatenate([mean_bias, log_variance]),
            }
        },
        "decoder": {"output": {"kernel": W.T, "bias": B}},
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def gap(shift: float, stretch: float) -> float:
    """KL(q || exact posterior), nats: between diagonal Gaussians that differ by `shift` and `stretch` in each z_j."""
    return LATENT * (0.5 * (stretch**2 + shift**2 - 1) - np.log(stretch))


def elbo(params: dict, x: jax.Array) -> jax.Array:
    """The elbo of any affine encoder and decoder, written out: E_q log p(x | z) - KL(q || p)."""
    encoder, decoder = params["encoder"]["output"], params["decoder"]["output"]
    mean, log_variance = jnp.split(x @ encoder["kernel"] + encoder["bias"], 2)
    variance = jnp.exp(log_variance)
    residual = x - mean @ decoder["kernel"] - decoder["bias"]
    expected_square = residual @ residual + variance @ (decoder["kernel"] ** 2).sum(1)
    log_likelihood = -0.5 * expected_square / SCALE**2 - 0.5 * SIZE * np.log(2 * np.pi * SCALE**2)
    return log_likelihood - 0.5 * (variance + mean**2 - 1 - log_variance).sum()


def of_size(latent: int, spread: float) -> tuple[np.ndarray, np.ndarray, dist.Distribution, Callable]:
    """100 draws `[100, 30]` of another model, log p(x) of each, its prior of so many dimensions, and its decoder."""
    rng = np.random.default_rng(0)
    weights, scale = spread * rng.normal(size=(30, latent)), 0.5
    x = rng.normal(size=(100, latent)) @ weights.T + scale * rng.normal(size=(100, 30))
    exact = stats.multivariate_normal(np.zeros(30), weights @ weights.T + scale**2 * np.eye(30)).logpdf(x)
    prior = dist.Normal(jnp.zeros(latent), jnp.ones(latent)).to_event(1)
    return x, exact, prior, lambda z: dist.Normal(jnp.float32(weights) @ z, scale).to_event(1)
