"""Bias and variance of the gradient of each estimator of the bound, against the exact gradient.

    python -m experiments.paper.gradients

The model is a VAE that is solved in closed form: p(z) = N(0, I), p(x | z) = N(W z + b, I), an affine encoder with mean
and log-variance, 100 numbers in x. The gradient of its bound has a closed form, so the error of an estimate is known. What
is estimated is the gradient of the mean bound of one minibatch of 100 datapoints that stays the same, so that all
the noise is that of z. It is measured at the paper's first weights, and near the optimum: the true decoder, and the
exact posterior moved by a tenth of its standard deviation and widened by a tenth.

Writes gradients.csv and gradients.png, and prints the variances. SGVB-A, SGVB-B and the score function are those
that train a model (section 2.2 and 2.3 of the paper). In the CSV, per parameter group: `bias_norm` is the length of
the mean error over `num_keys` gradients, and `bias_stderr` the length that noise alone would give it; `bias_along`
is the mean error's component along the exact gradient, with its standard error; `variance` is that of one gradient,
summed over the group's parameters; `exact_norm` is the length of the exact gradient.
"""

import csv
import functools
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from aevb import bounds, figures, models
from aevb.learners import aevb
from aevb.networks import MLP
from experiments import cli, workdir

LATENT_DIMS = (2, 10, 50)
NUM_KEYS = {1: 2000, 10: 500, 100: 100}  # gradients measured for each number of draws L
EVENT_DIM, BATCH = 100, 100
INIT_SCALE = 0.1  # standard deviation of the first weights, the paper's
PRECISIONS = (10.0, 2.0)  # of the exact posterior, from the first latent dimension to the last; the prior's is 1
SHIFT, STRETCH = 0.1, 1.1  # of the posterior near the optimum, in its standard deviations
ESTIMATORS = {"sgvb_a": bounds.sgvb_a, "sgvb_b": bounds.sgvb_b, "score_function": bounds.score_function}
POINTS = ("initialisation", "near optimum")


class Problem(NamedTuple):
    """A solved VAE, a minibatch of its own data `[BATCH, EVENT_DIM]`, and the parameters of each point."""

    model: models.VAE
    xs: jax.Array
    params: dict[str, Any]


def make_problem(key: jax.Array, latent_dim: int, event_dim: int = EVENT_DIM, batch: int = BATCH) -> Problem:
    """The model whose W has orthogonal columns, so that the exact posterior is diagonal, and an affine encoder holds it."""
    w_key, z_key, noise_key, init_key = jax.random.split(key, 4)
    precisions = jnp.geomspace(*PRECISIONS, latent_dim)
    directions, _ = jnp.linalg.qr(jax.random.normal(w_key, (event_dim, latent_dim)))
    w = directions * jnp.sqrt(precisions - 1)[None]
    xs = jax.random.normal(z_key, (batch, latent_dim)) @ w.T + jax.random.normal(noise_key, (batch, event_dim))
    model = models.vae(
        (event_dim,),
        latent_dim,
        network=functools.partial(MLP, hidden=(), init_scale=INIT_SCALE),
        likelihood=models.Gaussian(scale=1.0),
    )
    scales = precisions**-0.5
    encoder = {
        "kernel": jnp.concatenate([w / precisions[None], jnp.zeros_like(w)], axis=1),
        "bias": jnp.concatenate([SHIFT * scales, 2 * jnp.log(STRETCH * scales)]),
    }
    decoder = {"kernel": w.T, "bias": jnp.zeros(event_dim)}
    near = {"encoder": {"output": encoder}, "decoder": {"output": decoder}}
    return Problem(model, xs, dict(zip(POINTS, (models.init(model, init_key), near), strict=True)))


def exact_elbo(params: Any, x: jax.Array) -> jax.Array:
    """E_q log p(x | z) - KL(q || p) in nats of one datapoint x, for any affine encoder and decoder."""
    encoder, decoder = params["encoder"]["output"], params["decoder"]["output"]
    mean, log_variance = jnp.split(x @ encoder["kernel"] + encoder["bias"], 2)
    variance = jnp.exp(log_variance)
    residual = x - mean @ decoder["kernel"] - decoder["bias"]
    expected_square = residual @ residual + variance @ (decoder["kernel"] ** 2).sum(1)
    log_likelihood = -0.5 * (expected_square + len(x) * math.log(2 * math.pi))
    return log_likelihood - 0.5 * (variance + mean**2 - 1 - log_variance).sum()


@jax.jit
def exact_gradient(params: Any, xs: jax.Array) -> Any:
    """The gradient of the mean bound of datapoints xs `[M, x]`."""
    return jax.grad(lambda params: jax.vmap(exact_elbo, (None, 0))(params, xs).mean())(params)


def groups(gradient: Any) -> dict[str, jax.Array]:
    """The gradient as one vector a parameter group."""
    encoder, decoder = gradient["encoder"]["output"], gradient["decoder"]["output"]
    means, log_variances = zip(*(jnp.split(encoder[name], 2, axis=-1) for name in ("kernel", "bias")), strict=True)
    parts = {"encoder mean": means, "encoder log-variance": log_variances, "decoder": tuple(decoder.values())}
    return {name: jnp.concatenate([leaf.ravel() for leaf in leaves]) for name, leaves in parts.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def errors(
    model: models.VAE, bound: bounds.BoundFn, num_samples: int, params: Any, xs: jax.Array, keys: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """Errors of one gradient of the mean bound of xs for each key of keys `[chunks, keys of a chunk]`.

    Returns:
      For each parameter group the mean error, and of each error its square length and its component along the exact
      gradient, `[number of keys]`.
    """
    one_bound = aevb.datapoint_bound(model, bound, num_samples)
    exact = groups(exact_gradient(params, xs))

    def mean_bound(params: Any, key: jax.Array) -> jax.Array:
        return jax.vmap(one_bound, (None, 0, 0))(params, xs, jax.random.split(key, len(xs))).elbo.mean()

    def error(key: jax.Array) -> dict[str, jax.Array]:
        return jax.tree.map(jnp.subtract, groups(jax.grad(mean_bound)(params, key)), exact)

    def add(total: Any, keys: jax.Array) -> tuple[Any, Any]:
        each = jax.vmap(error)(keys)
        squares = {name: (e**2).sum(1) for name, e in each.items()}
        along = {name: e @ exact[name] / jnp.linalg.norm(exact[name]) for name, e in each.items()}
        return jax.tree.map(lambda sum_, e: sum_ + e.sum(0), total, each), (squares, along)

    total, parts = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, exact), keys)
    squares, along = jax.tree.map(jnp.ravel, parts)
    return jax.tree.map(lambda sum_: sum_ / keys.size, total), squares, along


def measure(
    problem: Problem, point: str, estimator: str, num_samples: int, num_keys: int, key: jax.Array
) -> Iterable[dict[str, Any]]:
    """The rows of one estimator at one point, a row a parameter group."""
    params, xs = problem.params[point], problem.xs
    chunk = max(1, 20 // num_samples)  # keys at once: what fits in a cache
    keys = jax.random.split(key, (num_keys // chunk, chunk))
    parts = errors(problem.model, ESTIMATORS[estimator], num_samples, params, xs, keys)
    exact = groups(exact_gradient(params, xs))
    for group in exact:
        mean, squares, along = (np.asarray(part[group], np.float64) for part in parts)
        count = len(squares)
        variance = (squares.mean() - mean @ mean) * count / (count - 1)
        yield {
            "latent_dim": problem.model.latent_dim,
            "num_samples": num_samples,
            "point": point,
            "estimator": estimator,
            "parameter_group": group,
            "bias_norm": math.sqrt(mean @ mean),
            "bias_stderr": math.sqrt(variance / count),
            "bias_along": along.mean(),
            "bias_along_stderr": along.std(ddof=1) / math.sqrt(count),
            "variance": variance,
            "exact_norm": float(jnp.linalg.norm(exact[group])),
            "num_keys": count,
        }
