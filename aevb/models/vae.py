"""The variational autoencoder: a posterior, a likelihood and a prior, each a function of one datapoint."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn

from aevb import bounds
from aevb.errors import InputError
from aevb.models.families import FAMILIES, interval
from aevb.models.likelihoods import Bernoulli
from aevb.models.posteriors import DiagonalGaussian
from aevb.models.priors import StandardNormal
from aevb.networks import MLP

# The subtrees of the parameters that belong to p(x, z), the paper's theta; the others are the posterior's, phi.
GENERATIVE = ("decoder", "likelihood", "prior")


class VAE(nn.Module):
    """q(z | x) = posterior(encoder(x)), p(x | z) = likelihood(decoder(z)), p(z) = prior().

    Bind it to parameters to use it, inside or outside a transformation: `vae = model.bind({"params": params})`.
    Use `vae` below to put one together whose shapes fit.
    """

    encoder: nn.Module
    posterior: nn.Module
    decoder: nn.Module
    likelihood: nn.Module
    prior: nn.Module  # `vae.prior()` is p(z) over z `[latent]`
    event_shape: tuple[int, ...]
    latent_dim: int

    def encode(self, x: jax.Array) -> dist.Distribution:
        """q(z | x) over z `[latent]`, for one x `[*event]`."""
        return self.posterior(self.encoder(x))

    def decode(self, z: jax.Array) -> dist.Distribution:
        """p(x | z) over x `[*event]`, for one z `[latent]`."""
        return self.likelihood(self.decoder(z))

    def __call__(self, x: jax.Array, key: jax.Array) -> dist.Distribution:
        """p(x | z) at one z drawn from q(z | x): one pass through every part."""
        self.prior()
        return self.decode(self.encode(x).sample(key))


def vae(
    event_shape: tuple[int, ...],
    latent_dim: int,
    *,
    network: Callable[[tuple[int, ...]], nn.Module] = MLP,
    posterior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    prior: nn.Module | None = None,
) -> VAE:
    """A VAE whose encoder and decoder are one kind of network, with the output shapes its distributions ask for.

    Args:
      event_shape: the shape of one datapoint.
      latent_dim: the size of z.
      network: from an output shape to a linen module, for example `functools.partial(MLP, hidden=(500,))`.
      posterior: a module of `aevb.models.posteriors`; the diagonal Gaussian unless given.
      likelihood: a module of `aevb.models.likelihoods`; Bernoulli unless given.
      prior: a module of `aevb.models.priors`; the standard normal unless given.

    Raises:
      InputError: KL(q || p) is infinite, see `check_pair`.
    """
    posterior = posterior or DiagonalGaussian()
    likelihood = likelihood or Bernoulli()
    prior = prior or StandardNormal(latent_dim)
    check_pair(posterior, prior, latent_dim)
    event_shape = tuple(event_shape)
    return VAE(
        encoder=network(posterior.output_shape(latent_dim)),
        posterior=posterior,
        decoder=network(likelihood.output_shape(event_shape)),
        likelihood=likelihood,
        prior=prior,
        event_shape=event_shape,
        latent_dim=latent_dim,
    )


def check_pair(posterior: nn.Module, prior: nn.Module, latent_dim: int) -> None:
    """Refuse a posterior and a prior between which KL(q || p) is infinite whatever the parameters; computes nothing.

    Raises:
      InputError: the posterior has mass where the prior has none, or a Student t meets a Gumbel, whose left tail
        `exp(-exp(-z))` no power law has a finite expectation under.
    """
    q, p = _distributions(posterior, prior, latent_dim)
    q_ends, p_ends = interval(q.support), interval(p.support)
    q, p = _one_dimension(q), _one_dimension(p)
    if q_ends and p_ends and (q_ends[0] < p_ends[0] or q_ends[1] > p_ends[1]):
        fitting = [name for name, family in FAMILIES.items() if interval(family.support) == p_ends]
        raise InputError(
            f"the posterior ({type(q).__name__}) has mass on ({q_ends[0]:g}, {q_ends[1]:g}) but the prior "
            f"({type(p).__name__}) only on ({p_ends[0]:g}, {p_ends[1]:g}), so their KL is infinite: choose another "
            f"prior, or a posterior with mass there only{', such as ' if fitting else ''}{', '.join(fitting)}"
        )
    if isinstance(q, dist.StudentT) and isinstance(p, dist.Gumbel):
        raise InputError(
            "the posterior (StudentT) has too heavy a tail for the prior (Gumbel), so their KL is infinite: choose "
            "another prior, or the posterior gumbel"
        )


def has_closed_form_kl(posterior: nn.Module, prior: nn.Module, latent_dim: int) -> bool:
    """Whether `bounds.sgvb_b` can be computed for this pair; computes nothing."""
    try:
        jax.eval_shape(bounds.kl, *_distributions(posterior, prior, latent_dim))
    except NotImplementedError:
        return False
    return True


def _distributions(
    posterior: nn.Module, prior: nn.Module, latent_dim: int
) -> tuple[dist.Distribution, dist.Distribution]:
    """q(z | x) and p(z) with shapes in the place of numbers."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    outputs = jax.ShapeDtypeStruct(posterior.output_shape(latent_dim), jnp.float32)
    q = jax.eval_shape(lambda key, outputs: posterior.init_with_output(key, outputs)[0], key, outputs)
    return q, jax.eval_shape(lambda key: prior.init_with_output(key)[0], key)


def _one_dimension(distribution: dist.Distribution) -> dist.Distribution:
    while isinstance(distribution, dist.Independent):
        distribution = distribution.base_dist
    return distribution


def init(model: VAE, init_key: jax.Array) -> dict[str, Any]:
    """Fresh parameters of every part of the model."""
    draw_key = jax.random.key(0)  # what is drawn changes no parameter
    return model.init(init_key, jnp.zeros(model.event_shape), draw_key).get("params", {})


def generative(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters theta of p(x, z), out of all of them."""
    return {name: params[name] for name in GENERATIVE if name in params}
