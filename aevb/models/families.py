"""Families whose draws are differentiable in their parameters: section 2.4 of Kingma & Welling, in one table.

The paper's three routes: `z = F^-1(u)` through the inverse CDF (exponential, Weibull, Kumaraswamy, Gumbel, logistic);
`z = location + scale * noise` (Laplace, Student t, logistic, Gumbel); a composition of those (log-normal). Gamma and
beta, compositions too, are drawn by rejection with implicit gradients (Figurnov et al., 1805.08498).

Every draw is strictly inside the support, where the log density is finite in float32, and every family has `icdf`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn
from numpyro.distributions import constraints

STUDENT_T_DF = 5.0  # the smallest whole number with a finite fourth moment: estimates of E[z^2] have a standard error


class _InverseCDF:
    """Draws `z = F^-1(u)` with u never 0 or 1: NumPyro's draws of these families can be exactly 0."""

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        return self.icdf(jax.random.uniform(key, (*sample_shape, *self.batch_shape), minval=2.0**-24))


class _Bisected:
    """The inverse CDF by bisection of the CDF: NumPyro's needs TensorFlow Probability for these families."""

    def icdf(self, q: jax.Array) -> jax.Array:
        """z with `F(z) = q`, for q from 1e-6 to 1 - 1e-6: by Chebyshev those are within 1000 standard deviations."""
        shape = jnp.broadcast_shapes(jnp.shape(q), self.batch_shape)
        low, high = interval(self.support)
        reach = 1000 * jnp.sqrt(self.variance)
        ends = jnp.maximum(low, self.mean - reach), jnp.minimum(high, self.mean + reach)

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) / 2
            below = self.cdf(middle) < q
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, 60, halve, jax.tree.map(lambda end: jnp.broadcast_to(end, shape), ends))
        return (low + high) / 2


class Exponential(_InverseCDF, dist.Exponential):
    """NumPyro's, with draws strictly above 0."""


class Weibull(_InverseCDF, dist.Weibull):
    """NumPyro's, with an inverse CDF and draws strictly above 0."""

    def icdf(self, q: jax.Array) -> jax.Array:
        """`scale (-log(1 - q))^(1 / concentration)`."""
        return self.scale * (-jnp.log1p(-q)) ** (1 / self.concentration)


class Kumaraswamy(_InverseCDF, dist.Kumaraswamy):
    """NumPyro's, with an inverse CDF and draws through it, precise for large `concentration0` too."""

    def icdf(self, q: jax.Array) -> jax.Array:
        """`(1 - (1 - q)^(1 / concentration0))^(1 / concentration1)`, at most 1 - 2^-23, where float32 rounds to 1."""
        z = (-jnp.expm1(jnp.log1p(-q) / self.concentration0)) ** (1 / self.concentration1)
        return jnp.minimum(z, 1 - 2.0**-23)


class Gamma(_Bisected, dist.Gamma):
    """NumPyro's, with an inverse CDF."""


class Beta(_Bisected, dist.Beta):
    """NumPyro's, with an inverse CDF."""


class StudentT(_Bisected, dist.StudentT):
    """NumPyro's, with an inverse CDF."""


def _real(output: jax.Array) -> jax.Array:
    return output


def _positive(output: jax.Array) -> jax.Array:
    """A scale or a rate."""
    return nn.softplus(output) + 1e-4


def _shape(output: jax.Array) -> jax.Array:
    """A shape: below 1/2 the mass heaps up at the ends of the support, where float32 cannot tell it from them."""
    return nn.softplus(output) + 0.5


def _log_location(output: jax.Array) -> jax.Array:
    """In (-10, 10): the mean of a log-normal is `exp(location + scale^2 / 2)`, and has to stay a float32."""
    return 10 * jnp.tanh(output / 10)


def _log_scale(output: jax.Array) -> jax.Array:
    """In (0, 3), and 1 at 0; at 3 nineteen draws of twenty span five powers of ten."""
    return 1e-4 + 3 * nn.sigmoid(output - jnp.log(2.0))


@dataclasses.dataclass(frozen=True)
class Family:
    """Univariate distributions with reparameterized draws.

    Attributes:
      distribution: from the parameters, arrays of one shape, to a NumPyro distribution of that batch shape.
      constrain: for each parameter, the map onto its values from a network's output, any real number.
      standard: the parameters of the member that serves as a prior.
    """

    distribution: Callable[..., dist.Distribution]
    constrain: tuple[Callable[[jax.Array], jax.Array], ...]
    standard: tuple[float, ...]

    @property
    def support(self) -> constraints.Constraint:
        """Where the mass of every member lies, in one dimension."""
        return self.distribution(*self.standard).support


FAMILIES: dict[str, Family] = {
    # On the real line, location 0 and scale 1 as priors. Under a Gumbel prior, whose left tail is exp(-exp(-z)), a
    # Laplace or logistic posterior has a finite KL only while its scale is below 1, a Student t never has.
    "laplace": Family(dist.Laplace, (_real, _positive), (0.0, 1.0)),
    "logistic": Family(dist.Logistic, (_real, _positive), (0.0, 1.0)),
    "gumbel": Family(dist.Gumbel, (_real, _positive), (0.0, 1.0)),
    "student_t": Family(functools.partial(StudentT, STUDENT_T_DF), (_real, _positive), (0.0, 1.0)),
    # On z > 0: rate 1; scale 1 and concentration 2; log z standard normal; concentration 2 and rate 1.
    "exponential": Family(Exponential, (_positive,), (1.0,)),
    "weibull": Family(Weibull, (_positive, _shape), (1.0, 2.0)),
    "log_normal": Family(dist.LogNormal, (_log_location, _log_scale), (0.0, 1.0)),
    "gamma": Family(Gamma, (_shape, _positive), (2.0, 1.0)),
    # On (0, 1): the uniform distribution, and 4 z (1 - z^2).
    "beta": Family(Beta, (_shape, _shape), (1.0, 1.0)),
    "kumaraswamy": Family(Kumaraswamy, (_shape, _shape), (2.0, 2.0)),
}


def interval(support: constraints.Constraint) -> tuple[float, float] | None:
    """The ends of a support that is one interval in each dimension; None for another, or where parameters move them."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support == constraints.real:
        ends = -jnp.inf, jnp.inf
    elif isinstance(support, constraints.greater_than):
        ends = support.lower_bound, jnp.inf
    elif isinstance(support, constraints.less_than):
        ends = -jnp.inf, support.upper_bound
    elif isinstance(support, constraints.interval):
        ends = support.lower_bound, support.upper_bound
    else:
        return None
    return ends if all(isinstance(end, (int, float)) for end in ends) else None
