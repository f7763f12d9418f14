"""log p(x | theta) at many theta, by importance sampling from a density that is fitted to each x once, with HMC.

The estimator of appendix D would start chains anew for every theta. Here they run at one theta, near the others; a
mixture of Gaussians fitted to their draws is the proposal for all. No encoder has a part in it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from aevb import bounds, data, models, training
from aevb.inference import hmc
from aevb.inference.marginal_likelihood import start_chains
from experiments import numbers
from experiments.build import Run

NUM_CHAINS, NUM_DRAWS, NUM_BURN_IN, NUM_LEAPFROG = 10, 10, 5, 4  # draws of each chain
WIDEN = 2.0  # the covariance of the proposal over that of the draws
EXAMPLES_AT_ONCE = 50


def propose(run: Run, params: Any, split: data.Split, name: str, num_samples: int, key: jax.Array) -> dict[str, Any]:
    """Datapoints x `[n, *event]`, draws z `[n, num_samples, latent]` from a proposal for each, and its log density.

    The proposal has a Gaussian at the mean of each chain, with twice the covariance within chains, and one more for all
    draws, with twice the covariance of them all.

    Args:
      run: whose prior is over all of R^latent.
      params: where the chains run, on one device.
      split: its datapoints, as stored.
      name: of the split they are from.
      num_samples: K.
      key: consumed here.
    """

    def one(params: Any, point: data.Datapoint, key: jax.Array) -> dict[str, jax.Array]:
        vae, x = run.model.bind({"params": params}).given(point.context), point.x
        start_key, chain_key, draw_key = jax.random.split(key, 3)
        log_joint, _ = hmc.joint_log_density(x, vae.prior(), vae.decode)
        z, step_size = start_chains(start_key, vae.prior(), log_joint, NUM_CHAINS, NUM_LEAPFROG)
        chain = hmc.sample(chain_key, z, log_joint, NUM_DRAWS, NUM_BURN_IN, NUM_LEAPFROG, step_size=step_size)
        proposal = fit(chain.z)
        z = jax.vmap(proposal.sample)(jax.random.split(draw_key, num_samples))
        return {"x": x, "z": z, "log_proposal": jax.vmap(proposal.log_prob)(z)}

    made = training.collect(run.map_split(one, name)(training.replicate(params), split, key))
    numbers.check_finite(made, f"a proposal for the {name} split")
    return made


def fit(z: jax.Array) -> dist.Distribution:
    """The proposal for draws of chains `[draws, chains, latent]`."""
    of_each, of_all = z.mean(axis=0, keepdims=True), z.mean(axis=(0, 1), keepdims=True)
    means = jnp.concatenate([of_each[0], of_all[0]])
    parts = (z - of_each, z - of_all)
    covariances = [jnp.einsum("tci,tcj->ij", part, part) / (z.shape[0] * z.shape[1]) for part in parts]
    # Chains that never moved have no covariance; the effective sample size tells of them.
    roots = jnp.stack([jnp.linalg.cholesky(WIDEN * each + 1e-8 * jnp.eye(z.shape[-1])) for each in covariances])
    which = jnp.array([0] * z.shape[1] + [1])
    normals = dist.MultivariateNormal(means, scale_tril=roots[which])
    return dist.MixtureSameFamily(dist.Categorical(jnp.full(len(which), 1 / len(which))), normals)


def log_marginals(
    model: models.VAE, thetas: Iterable[Any], proposed: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """log p(x | theta) `[thetas, n]`, nats, `log mean_k p(x, z_k | theta) / q(z_k)`, and its effective sample sizes.

    For each theta the mean is p(x | theta) in expectation, so that means over theta as well are unbiased.
    """

    @jax.jit
    def of_all(theta: Any, proposed: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vae = model.bind({"params": theta})
        prior = vae.prior()

        def one(given: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            def log_joint(z: jax.Array) -> jax.Array:
                return bounds.log_likelihood(vae.decode(z), given["x"]) + prior.log_prob(z)

            log_weights = jax.vmap(log_joint)(given["z"]) - given["log_proposal"]
            log_sum = logsumexp(log_weights)
            effective = jnp.exp(2 * log_sum - logsumexp(2 * log_weights))
            return log_sum - jnp.log(len(log_weights)), effective

        return jax.lax.map(one, proposed, batch_size=EXAMPLES_AT_ONCE)

    return tuple(np.stack(each) for each in zip(*(of_all(theta, proposed) for theta in thetas), strict=True))


def pixels(
    model: models.VAE, thetas: Iterable[Any], x: np.ndarray, keys: jax.Array, of: Callable[..., jax.Array]
) -> np.ndarray:
    """The mean over theta and z ~ q(z | x), one draw each, of `of(p(x | z), x)`; `[n, pixels]`."""

    @jax.jit
    def one(theta: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        vae = model.bind({"params": theta})

        def pixel(x: jax.Array, key: jax.Array) -> jax.Array:
            return of(vae.decode(vae.encode(x).sample(key)), x).reshape(-1)

        return jax.vmap(pixel)(x, jax.random.split(key, len(x)))

    total = sum(np.asarray(one(theta, x, key), np.float64) for theta, key in zip(thetas, keys, strict=True))
    return total / len(keys)
