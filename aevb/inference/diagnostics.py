"""Diagnostics of the latent code: which dimensions carry information."""

import numpy as np

ACTIVE_VARIANCE = 0.01


def active_units(posterior_means: np.ndarray) -> np.ndarray:
    """Which latent dimensions are active: `Var_x(E_q[z_j]) > 0.01`, bool `[latent]` (Burda et al., 1509.00519).

    Args:
      posterior_means: E_q[z] of each datapoint of a split, `[N, latent]`.
    """
    return posterior_means.var(axis=0) > ACTIVE_VARIANCE
