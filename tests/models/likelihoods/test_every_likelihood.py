"""What every likelihood keeps to: its shapes, its support, its line in the table."""

import jax
import jax.numpy as jnp
import pytest

from aevb import bounds
from aevb.models import likelihoods

EVENT_SHAPE = (4, 2, 1)
LIKELIHOODS = [
    likelihoods.Bernoulli(),
    likelihoods.ContinuousBernoulli(),
    likelihoods.Gaussian(),
    likelihoods.Gaussian(scale=1.0),
    likelihoods.Gaussian(scale="shared"),
    likelihoods.Laplace(),
    likelihoods.Laplace(scale=1.0),
    likelihoods.Laplace(scale="shared"),
    likelihoods.Categorical(),
    likelihoods.DiscretizedLogisticMixture(),
    likelihoods.Poisson(),
    likelihoods.NegativeBinomial(),
    likelihoods.NegativeBinomial(shared_dispersion=True),
    likelihoods.ZeroInflatedNegativeBinomial(),
    likelihoods.ZeroInflatedNegativeBinomial(shared_dispersion=True),
]


def distribution(likelihood, outputs):
    return likelihood.init_with_output(jax.random.key(0), outputs)[0]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("event_shape", [EVENT_SHAPE, (3, 5, 3)])
def test_the_distribution_is_over_the_event_and_its_draws_and_mean_are_events(likelihood, event_shape):
    def look(outputs):
        p = distribution(likelihood, outputs)
        return p, p.sample(jax.random.key(0)), p.mean

    outputs = jax.ShapeDtypeStruct(likelihood.output_shape(event_shape), jnp.float32)
    p, draw, mean = jax.eval_shape(look, outputs)  # so it is a pytree, too
    assert p.event_shape == draw.shape == mean.shape == event_shape
    assert p.batch_shape == ()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(4, 2), (2, 1), (1, 4, 2, 1), (4, 2, 3), (4, 1, 1), ()])
def test_another_shape_than_the_datapoints_is_refused_while_tracing(likelihood, shape):
    def log_likelihood(outputs, x):
        return bounds.log_likelihood(distribution(likelihood, outputs), x)

    outputs = jnp.zeros(likelihood.output_shape(EVENT_SHAPE))
    assert jax.eval_shape(log_likelihood, outputs, jnp.zeros(EVENT_SHAPE)).shape == ()
    with pytest.raises(ValueError, match=r"event shape \(4, 2, 1\)"):
        jax.eval_shape(log_likelihood, outputs, jnp.zeros(shape))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_table_has_a_line_for_it_with_its_support(likelihood):
    (line,) = (line for line in likelihoods.__doc__.splitlines() if f"`{type(likelihood).__name__}`" in line)
    assert f'| "{likelihood.support}" |' in line
