"""The masked autoencoder (He et al., 2021, 2111.06377): an image back from the patches that a mask left visible."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import linen as nn

from aevb.models.likelihoods import Gaussian
from aevb.models.posteriors import PointMass
from aevb.networks import vit

SCALE = 0.5**0.5  # of the Gaussian whose log-likelihood is minus the sum of squared errors, but for a constant


class Restored(NamedTuple):
    """One image from some of its patches.

    Attributes:
      predicted: all patches as the decoder writes them, `[N, P]`, of the kind of `target`.
      target: the patches themselves, normalised one by one if the model is trained on that, `[N, P]`.
      masked: which patches were masked, bool `[N]`.
      inside: which elements are the image's own and not padding, bool `[N, P]`.
    """

    predicted: jax.Array
    target: jax.Array
    masked: jax.Array
    inside: jax.Array

    @property
    def error(self) -> jax.Array:
        """The mean squared error over the elements of the masked patches, the objective, in squared units of target.

        Padding is no part of it.
        """
        counted = self.masked[:, None] & self.inside
        return jnp.where(counted, jnp.square(self.predicted - self.target), 0.0).sum() / jnp.maximum(counted.sum(), 1)


class MaskedAutoencoder(nn.Module):
    """`codes = encoder(visible patches)`, `image = decoder(codes, mask tokens)`.

    The encoder is handed the visible patches only; the decoder tells all of them. The code of a whole image is the mean
    of the encoder's patch codes with nothing masked. There is no prior and no density.

    Attributes:
      encoder, decoder: `vit.ViTEncoder` and `vit.ViTDecoder` of the same grid.
      event_shape: H, W and C.
      latent_dim: the width of the encoder, which the code of an image has.
      patch_size: of a square patch, in pixels.
      mask_ratio: the share of patches that training masks, in [0, 1).
      pad: whether an image that the patches do not cover evenly is padded with zeros.
      normalise: whether the target of each patch has its own mean and variance, padding included, taken out.
    """

    encoder: nn.Module
    decoder: nn.Module
    event_shape: tuple[int, ...]
    latent_dim: int
    patch_size: int
    mask_ratio: float = 0.75
    pad: bool = False
    normalise: bool = False
    posterior: nn.Module = PointMass()
    likelihood: nn.Module = Gaussian(scale=SCALE)
    context_dim: int = 0

    @property
    def num_patches(self) -> int:
        rows, columns = self.encoder.grid
        return rows * columns

    def encode(self, x: jax.Array) -> dist.Distribution:
        """The code of one image `[H, W, C]`, all of it visible, as a point mass over `[latent]`."""
        return self.posterior(self.encoder(self.patches(x))[1:].mean(axis=0))

    def restore(self, x: jax.Array, visible: jax.Array) -> Restored:
        """One image from its patches at the indices `visible` `[V]`."""
        each = self.patches(x)
        predicted = self.decoder(self.encoder(each[visible], visible), visible)
        masked = jnp.ones(self.num_patches, bool).at[visible].set(False)
        target = vit.normalised(each) if self.normalise else each
        return Restored(predicted, target, masked, self.patches(jnp.ones(self.event_shape)) > 0)

    def image(self, patches: jax.Array) -> jax.Array:
        """The image `[H, W, C]` of patches `[N, P]`."""
        return vit.unpatched(patches, self.event_shape, self.patch_size)

    def whole(self, restored: Restored, x: jax.Array) -> jax.Array:
        """The image `[H, W, C]` with the masked patches as predicted; x gives the others.

        Where patches are normalised, the mean and variance that were taken out of a target are those of the true patch.
        """
        each = self.patches(x)
        told = vit.unnormalised(restored.predicted, each) if self.normalise else restored.predicted
        return self.image(jnp.where(restored.masked[:, None], told, each))

    def patches(self, x: jax.Array) -> jax.Array:
        """The patches `[N, P]` of an image."""
        return vit.patches(x, self.patch_size, self.pad)

    def __call__(self, x: jax.Array, key: jax.Array) -> Restored:
        """One image from what a mask drawn with the key leaves of it."""
        return self.restore(x, vit.sample_mask(key, self.num_patches, self.mask_ratio))


def masked_autoencoder(
    event_shape: tuple[int, ...],
    *,
    patch_size: int = 4,
    width: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    decoder_width: int = 32,
    decoder_depth: int = 2,
    **options: Any,
) -> MaskedAutoencoder:
    """A masked autoencoder whose encoder and decoder share the grid that its patches make of an image.

    Args:
      event_shape: H, W and C.
      patch_size: in pixels.
      width, depth, num_heads: of the encoder, which is the larger one.
      decoder_width, decoder_depth: of the decoder, with as many heads.
      options: `mask_ratio`, `pad` and `normalise` of `MaskedAutoencoder`.

    Raises:
      InputError: the patches do not cover the image evenly and `pad` is not set.
    """
    event_shape = tuple(event_shape)
    grid = vit.patch_grid(event_shape, patch_size, options.get("pad", False))
    patch_dim = patch_size**2 * event_shape[-1]
    return MaskedAutoencoder(
        encoder=vit.ViTEncoder(grid, width, depth, num_heads),
        decoder=vit.ViTDecoder(grid, patch_dim, decoder_width, decoder_depth, num_heads),
        event_shape=event_shape,
        latent_dim=width,
        patch_size=patch_size,
        **options,
    )
