"""What masking saves: the time of a masked autoencoder's encoder, and of its training step, against the share masked.

    python -m experiments.benchmarks.mask_speed

The model is that of experiments/configs/mae.py on MNIST: 49 patches of 4 x 4, width 64, depth 4. Masked patches are
dropped before the encoder, so that its work falls with them; the decoder sees every place. Shares alternate, so that a
busy neighbour slows all of them alike.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from aevb import models
from aevb.learners import Batch, masked
from aevb.networks import vit
from experiments import cli
from experiments.benchmarks.train_speed import seconds

SHARES = (0.02, 0.25, 0.5, 0.75, 0.9)  # the first hides one patch
BATCH, EVENT_SHAPE = 100, (28, 28, 1)


def contenders(share: float) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The encoder of a batch, forward, and a whole training step."""
    model = models.masked_autoencoder(EVENT_SHAPE, mask_ratio=share)
    learner = masked.learner(model, optax.adam(1e-3))
    state = learner.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (BATCH, *EVENT_SHAPE))
    keys, places = jax.random.split(jax.random.key(2), BATCH), jnp.arange(BATCH, dtype=jnp.int32)

    def encode(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        bound = model.bind({"params": params})
        visible = vit.sample_mask(key, bound.num_patches, share)
        return bound.encoder(bound.patches(x)[visible], visible)

    encoder = jax.jit(jax.vmap(encode, in_axes=(None, 0, 0)))
    step = jax.jit(learner.update)
    batch = Batch(x, None, places, places)
    return lambda: encoder(state.params, x, keys), lambda: step(state, batch, jax.random.key(3))


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    each = {share: contenders(share) for share in SHARES}
    times = {share: ([], []) for share in SHARES}
    for pair in each.values():
        for fn in pair:
            seconds(fn)  # compiles
    for _ in range(flags.FLAGS.calls):
        for share, pair in each.items():
            for fn, found in zip(pair, times[share], strict=True):
                found.append(seconds(fn))
    print(f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}, batches of {BATCH}; median (best) of each")
    whole = [statistics.median(found) for found in times[SHARES[0]]]
    for share, pair in times.items():
        medians = [statistics.median(found) for found in pair]
        words = [
            f"{name} {1e3 * median:.1f} ({1e3 * min(found):.1f}) ms, {median / first:.2f} of the first"
            for name, median, found, first in zip(("encoder", "step"), medians, pair, whole, strict=True)
        ]
        print(f"masked {share:.0%}: {'; '.join(words)}")


if __name__ == "__main__":
    flags.DEFINE_integer("calls", 20, "Measured calls of each.", lower_bound=1)
    cli.run(main)
