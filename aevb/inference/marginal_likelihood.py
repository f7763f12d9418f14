"""SIGNATURES, body to come."""
from typing import NamedTuple
import jax


class HMCEstimate(NamedTuple):
    log_marginal: jax.Array
    stderr: jax.Array
    acceptance: jax.Array
    num_divergent: jax.Array


def hmc_estimate(key, x, prior, decode, *, num_samples=50, num_leapfrog=4, num_burn_in=10, num_chains=10):
    raise NotImplementedError


def check_chains(estimates) -> None:
    """Host-level: raises SamplingError."""
    raise NotImplementedError
