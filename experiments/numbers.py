"""Numbers before they are told: finite, and with their standard errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb.errors import NonFiniteError


def standard_error(values: np.ndarray) -> float:
    """Of the mean over examples, `sd / sqrt(N)`; 0 for one example, of which it says nothing."""
    return float(values.std(ddof=1, dtype=np.float64) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def check_finite(tree: Any, what: str) -> None:
    """Keep what is not finite out of every file.

    Raises:
      NonFiniteError: a leaf holds NaN or infinity.
    """
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise NonFiniteError(
                f"{what} is not finite: lower the learning rate, clip the gradient, or look at the data"
            )
