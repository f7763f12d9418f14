"""The variational autoencoder: a posterior, a likelihood and a prior, each a function of one datapoint."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


class Given(NamedTuple):
    """A VAE that was told its context: `encode(x)`, `decode(z)` and `prior()` as of a model without one.

    `encode` is `to_posterior` of `outputs`, what the encoder makes of x.
    """

    outputs: Callable[[jax.Array], jax.Array]
    to_posterior: Callable[[jax.Array], dist.Distribution]
    encode: Callable[[jax.Array], dist.Distribution]
    decode: Callable[[jax.Array], dist.Distribution]
    prior: Callable[[], dist.Distribution]


class VAE(nn.Module):
    """q(z | x, c) = posterior(encoder(x, c)), p(x | z, c) = likelihood(decoder(z, c)), p(z | c) = prior(c).

    The context c, a vector, is there in a conditional model only (Sohn et al., 2015). Bind the model to parameters to
    use it, inside or outside a transformation: `vae = model.bind({"params": params})`; `vae.given(context)` is then
    used in one way whether or not there is a context. Use `vae` below to put a model together whose shapes fit.
    """

    encoder: nn.Module
    posterior: nn.Module
    decoder: nn.Module
    likelihood: nn.Module
    prior: nn.Module  # `vae.prior(context)` is p(z) over z `[latent]`
    event_shape: tuple[int, ...]
    latent_dim: int
    context_dim: int = 0  # the size of the context; 0 for a model without

    def encode(self, x: jax.Array, context: jax.Array | None = None) -> dist.Distribution:
        """q(z | x) over z `[latent]`, for one x `[*event]`."""
        return self.posterior(self.encoder(x, *_told(context)))

    def decode(self, z: jax.Array, context: jax.Array | None = None) -> dist.Distribution:
        """p(x | z) over x `[*event]`, for one z `[latent]`."""
        return self.likelihood(self.decoder(z, *_told(context)))

    def given(self, context: jax.Array | None) -> Given:
        """The model that was told a context `[context]`, or None.

        Raises:
          InputError: at trace time, when the context has another size than the model was made for.
        """
        size = 0 if context is None else context.size
        if size != self.context_dim or (context is not None and context.ndim != 1):
            shape = "none" if context is None else f"one of shape {list(context.shape)}"
            raise InputError(f"the model takes a context of {self.context_dim} numbers and was given {shape}")
        told = _told(context)
        return Given(
            outputs=lambda x: self.encoder(x, *told),
            to_posterior=self.posterior,
            encode=lambda x: self.encode(x, *told),
            decode=lambda z: self.decode(z, *told),
            prior=lambda: self.prior(*told),
        )

    def __call__(self, x: jax.Array, key: jax.Array) -> dist.Distribution:
        """p(x | z) at one z drawn from q(z | x): one pass through every part."""
        vae = self.given(jnp.zeros(self.context_dim) if self.context_dim else None)
        vae.prior()
        return vae.decode(vae.encode(x).sample(key))


def _told(context: jax.Array | None) -> tuple[jax.Array, ...]:
    """The argument that parts of a conditional model have, and those of another need not know of."""
    return () if context is None else (context,)


def vae(
    event_shape: tuple[int, ...],
    latent_dim: int,
    *,
    network: Callable[[tuple[int, ...]], nn.Module] = MLP,
    decoder_network: Callable[[tuple[int, ...]], nn.Module] | None = None,
    posterior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    prior: nn.Module | None = None,
    context_dim: int = 0,
) -> VAE:
    """A VAE whose encoder and decoder have the output shapes that its distributions ask for.

    Args:
      event_shape: the shape of one datapoint.
      latent_dim: the size of z.
      network: from an output shape to a linen module, for example `functools.partial(MLP, hidden=(500,))`; of the
        encoder, and of the decoder too unless that has its own.
      decoder_network: of the decoder, for example `ConvDecoder`.
      posterior: a module of `aevb.models.posteriors`; the diagonal Gaussian unless given.
      likelihood: a module of `aevb.models.likelihoods`; Bernoulli unless given.
      prior: a module of `aevb.models.priors`; the standard normal unless given.
      context_dim: the size of the vector that a conditional model is told; 0 for a model without.

    Raises:
      InputError: KL(q || p) is infinite, see `check_pair`.
    """
    posterior = posterior or DiagonalGaussian()
    likelihood = likelihood or Bernoulli()
    prior = prior or StandardNormal(latent_dim)
    check_pair(posterior, prior, latent_dim, context_dim)
    event_shape = tuple(event_shape)
    return VAE(
        encoder=network(posterior.output_shape(latent_dim)),
        posterior=posterior,
        decoder=(decoder_network or network)(likelihood.output_shape(event_shape)),
        likelihood=likelihood,
        prior=prior,
        event_shape=event_shape,
        latent_dim=latent_dim,
        context_dim=context_dim,
    )


def check_pair(posterior: nn.Module, prior: nn.Module, latent_dim: int, context_dim: int = 0) -> None:
    """Refuse a posterior and a prior between which KL(q || p) is infinite whatever the parameters; computes nothing.

    Raises:
      InputError: the posterior has mass where the prior has none, or a Student t meets a Gumbel, whose left tail
        `exp(-exp(-z))` no power law has a finite expectation under.
    """
    q, p = _distributions(posterior, prior, latent_dim, context_dim)
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


def has_closed_form_kl(posterior: nn.Module, prior: nn.Module, latent_dim: int, context_dim: int = 0) -> bool:
    """Whether `bounds.sgvb_b` can be computed for this pair; computes nothing."""
    try:
        jax.eval_shape(bounds.kl, *_distributions(posterior, prior, latent_dim, context_dim))
    except NotImplementedError:
        return False
    return True


def _distributions(
    posterior: nn.Module, prior: nn.Module, latent_dim: int, context_dim: int
) -> tuple[dist.Distribution, dist.Distribution]:
    """q(z | x) and p(z) with shapes in the place of numbers."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    outputs = jax.ShapeDtypeStruct(posterior.output_shape(latent_dim), jnp.float32)
    q = jax.eval_shape(lambda key, outputs: posterior.init_with_output(key, outputs)[0], key, outputs)
    context = jax.ShapeDtypeStruct((context_dim,), jnp.float32) if context_dim else None
    return q, jax.eval_shape(lambda key, context: prior.init_with_output(key, *_told(context))[0], key, context)


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
