"""How training weighs the KL: schedules of beta, a beta that holds a reconstruction target, and free bits."""

import jax
import jax.numpy as jnp
import optax

from aevb.learners import device_mean

AVERAGE_DECAY = 0.99  # of the log-likelihood that is held to its target, as in Rezende & Viola
LARGEST_ERROR = 10.0  # nats a step; beyond, beta moves no faster
SMALLEST, LARGEST = 1e-6, 1e6  # of beta: a target that cannot be reached must not end in numbers that are not finite


def cosine_schedule(num_steps: int) -> optax.Schedule:
    """From 0 to 1 in `num_steps`, `(1 - cos(pi t / num_steps)) / 2`, then 1."""
    decay = optax.cosine_decay_schedule(1.0, num_steps)
    return lambda step: 1.0 - decay(step)


def cyclical_schedule(num_steps: int, cycle_steps: int) -> optax.Schedule:
    """In every cycle a linear rise from 0 to 1 in `num_steps`, then 1 (Fu et al., 1903.10145)."""
    return lambda step: jnp.minimum((step % cycle_steps) / num_steps, 1.0)


def first_adaptive(kl_weight: float, target: float) -> dict[str, float]:
    """The hyperparameters that `adapt` carries: beta, the target, and the average that is held to it, all at the start.

    Args:
      kl_weight: beta of the first step, above 0.
      target: of the log-likelihood, nats per datapoint.
    """
    return {"kl_weight": kl_weight, "log_likelihood_target": target, "log_likelihood_average": target}


def adapt(hyperparameters: dict[str, jax.Array], log_likelihood: jax.Array, rate: float) -> dict[str, jax.Array]:
    """The next beta of a constrained optimisation: the lowest KL at a given log-likelihood (Rezende & Viola, 2018).

    `log beta += rate * (average - target)`: beta is the inverse of the multiplier of the constraint that
    `E[log_likelihood] >= target`, so it falls while reconstructions are worse, and rises once they are better. The
    difference is cut at 10 nats a step, and beta stays between 1e-6 and 1e6.

    Args:
      hyperparameters: `first_adaptive`, or what the last step made of it.
      log_likelihood: of the minibatch, over all devices, nats per datapoint.
      rate: of log beta, a nat and step.
    """
    average = hyperparameters["log_likelihood_average"]
    average = AVERAGE_DECAY * average + (1 - AVERAGE_DECAY) * log_likelihood
    error = jnp.clip(average - hyperparameters["log_likelihood_target"], -LARGEST_ERROR, LARGEST_ERROR)
    beta = jnp.clip(hyperparameters["kl_weight"] * jnp.exp(rate * error), SMALLEST, LARGEST)
    return hyperparameters | {"kl_weight": beta, "log_likelihood_average": average}


def freed(kl_per_dim: jax.Array, free_bits: float, axis_name: str | None) -> jax.Array:
    """The KL that is weighed when each dimension has some for nothing, of each datapoint, `[M]`, nats.

    `sum_j max(free_bits, mean_i kl_ij)` (Kingma et al., 1606.04934, eq. 15), the mean over the minibatch of all
    devices: a dimension below `free_bits` has no gradient.

    Args:
      kl_per_dim: `[M, latent]`, or `[M, 1]` of all dimensions together.
      free_bits: nats a column of it.
      axis_name: the mapped axis of devices, None on one.
    """
    paid = jax.lax.stop_gradient(device_mean(kl_per_dim.mean(axis=0), axis_name)) > free_bits
    return jnp.where(paid[None], kl_per_dim, free_bits).sum(axis=1)
