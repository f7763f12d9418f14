"""SIGNATURES, body to come."""
from typing import NamedTuple
import jax


class AISEstimate(NamedTuple):
    log_marginal: jax.Array
    effective_sample_size: jax.Array
    stderr: jax.Array
    acceptance: jax.Array


def annealed_importance_estimate(key, x, prior, decode, *, num_chains=16, num_temperatures=500, num_leapfrog=10):
    raise NotImplementedError
