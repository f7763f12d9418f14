"""Numbers before they are told: finite, and with their standard errors; the area under an ROC curve."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aevb.errors import InputError, NonFiniteError


def standard_error(values: np.ndarray) -> float:
    """Of the mean over examples, `sd / sqrt(N)`; 0 for one example, of which it says nothing."""
    return float(values.std(ddof=1, dtype=np.float64) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def auroc(scores: np.ndarray, held_out: np.ndarray) -> float:
    """The chance that an example of the held-out class scores above another: `P(s_out > s_in) + P(s_out = s_in) / 2`.

    Args:
      scores: of the test examples, `[M]`, finite; high means strange.
      held_out: whether each is of the held-out class, bool `[M]`; both kinds must occur.

    Returns:
      The area under the ROC curve, in [0, 1]; 0.5 where the score says nothing.

    Raises:
      InputError: the shapes differ, a score is not finite, or all examples are of one kind.
    """
    from sklearn.metrics import roc_auc_score

    scores, held_out = np.asarray(scores), np.asarray(held_out, bool)
    if scores.shape != held_out.shape or scores.ndim != 1:
        raise InputError(f"scores have shape {scores.shape} and held_out {held_out.shape}: give one of each an example")
    if not np.isfinite(scores).all():
        raise InputError(f"{np.sum(~np.isfinite(scores))} anomaly scores are not finite: look at what made them")
    if held_out.all() or not held_out.any():
        raise InputError(f"{held_out.sum()} of {len(held_out)} examples are held out: give some that are, some not")
    return float(roc_auc_score(held_out, scores))


def auroc_stderr(auroc: float, num_strange: int, num_others: int) -> float:
    """The standard error of an AUROC over draws of the examples (Hanley & McNeil, 1982, for exponential scores).

    `((A (1 - A) + (m - 1) (Q1 - A^2) + (n - 1) (Q2 - A^2)) / m n)^(1/2)`, `Q1 = A / (2 - A)`, `Q2 = 2 A^2 / (1 + A)`,
    of m strange examples and n others.
    """
    square, m, n = auroc**2, num_strange, num_others
    both = (m - 1) * (auroc / (2 - auroc) - square) + (n - 1) * (2 * square / (1 + auroc) - square)
    return math.sqrt((auroc * (1 - auroc) + both) / (m * n))


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
