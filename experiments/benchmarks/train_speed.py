"""How near training comes to the machine's limit: an epoch of AEVB against its matrix products alone.

    python -m experiments.benchmarks.train_speed

The model is the paper's, 784-500-20-500-784, on 60,000 images: batch 100, dynamic binarization, Adam. The limit is
the time that the matrix products of an epoch, forward and backward, would take at the best float32 rate that any of
several square products reaches in this run. Epochs and products alternate, so that a busy neighbour slows both; the
ratio is between the best of each. A hand-written step that a user might write instead (one batched `jit` a step,
binarized the usual way) runs beside them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from aevb import models, training
from aevb.data import Split
from aevb.data.binarization import make_preprocess
from aevb.data.feeding import InMemory
from aevb.learners import aevb
from experiments import cli, workdir

NUM_EXAMPLES, BATCH, PIXELS, HIDDEN, LATENT = 60_000, 100, 784, 500, 20
STEPS = NUM_EXAMPLES // BATCH


def epoch_flops() -> int:
    """Multiplications and additions of an epoch's matrix products: three a layer, but none for the input's gradient."""
    layers = PIXELS * HIDDEN + HIDDEN * 2 * LATENT + LATENT * HIDDEN + HIDDEN * PIXELS
    return 2 * NUM_EXAMPLES * (3 * layers - PIXELS * HIDDEN)


def images() -> np.ndarray:
    """Images with MNIST's share of ink, uint8 `[N, 28, 28, 1]`; the values cost the same as real ones."""
    generator = np.random.default_rng(0)
    ink = generator.random((NUM_EXAMPLES, 28, 28, 1)) < 0.19
    return np.where(ink, generator.integers(0, 256, ink.shape), 0).astype(np.uint8)


def matrix_products() -> Callable[[], float]:
    """A measurement of the machine's float32 rate, operations a second: the best of several square sizes."""
    product = jax.jit(lambda a: a @ a)
    squares = [jnp.ones((size, size)) for size in (1024, 2048, 4096)]

    def measure() -> float:
        return max(2 * a.shape[0] ** 3 / seconds(lambda a=a: product(a)) for a in squares)

    return measure


def aevb_epoch(examples: np.ndarray, devices: list[jax.Device]) -> Callable[[], Any]:
    """An epoch as experiments.train runs it."""
    model = models.vae((28, 28, 1), LATENT)
    learner = aevb.learner(model, optax.adam(1e-3))
    feed = InMemory(Split(examples, None), BATCH, jax.random.key(1))
    steps = training.make_train_steps(learner, feed, make_preprocess("dynamic"), 0.0, devices)
    resident = training.replicate(feed.resident, devices)
    carry = [training.replicate(learner.init(jax.random.key(0)), devices), 0]

    def epoch() -> Any:
        for _ in range(STEPS // 100):
            fed = training.split_over(len(devices), feed.steps(carry[1], 100))
            carry[0], metrics = steps(carry[0], resident, fed)
            carry[1] += 100
            np.asarray(metrics["loss"])
        return carry[0]

    return epoch


def hand_written_epoch(examples: np.ndarray) -> Callable[[], Any]:
    """The same model as one batched, jitted function a step, fed from NumPy."""
    model, optimizer = models.vae((28, 28, 1), LATENT), optax.adam(1e-3)
    params = models.init(model, jax.random.key(0))
    carry = [params, optimizer.init(params)]
    generator = np.random.default_rng(0)

    def dense(layer: dict, h: jax.Array) -> jax.Array:
        return h @ layer["kernel"] + layer["bias"]

    def loss_fn(params: dict, x: jax.Array, key: jax.Array) -> jax.Array:
        encoder, decoder = params["encoder"], params["decoder"]
        mean, log_variance = jnp.split(dense(encoder["output"], jnp.tanh(dense(encoder["hidden_0"], x))), 2, axis=-1)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        logits = dense(decoder["output"], jnp.tanh(dense(decoder["hidden_0"], z)))
        log_likelihood = -optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
        kl = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1)
        return (kl - log_likelihood).mean()

    @jax.jit
    def step(params: dict, opt_state: Any, x: jax.Array, key: jax.Array) -> tuple:
        data_key, z_key = jax.random.split(key)
        x = jax.random.bernoulli(data_key, x).astype(jnp.float32)
        grads = jax.grad(loss_fn)(params, x, z_key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def epoch() -> Any:
        order = generator.permutation(NUM_EXAMPLES)
        key = jax.random.key(int(order[0]))
        for i in range(STEPS):
            x = examples[order[i * BATCH : (i + 1) * BATCH]].reshape(BATCH, PIXELS) / np.float32(255)
            carry[:] = step(*carry, x, jax.random.fold_in(key, i))
        return carry[0]

    return epoch


def seconds(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    cli.refuse(argv)
    examples = images()
    contenders = {
        "aevb": aevb_epoch(examples, jax.local_devices()),
        "hand-written jit": hand_written_epoch(examples),
    }
    rate = matrix_products()
    rates, times = [rate()], {name: [] for name in contenders}
    for epoch in contenders.values():
        seconds(epoch)  # compiles
    for _ in range(flags.FLAGS.epochs):
        for name, epoch in contenders.items():
            rates.append(rate())
            times[name].append(seconds(epoch))
    limit = epoch_flops() / max(rates)
    print(f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}, {NUM_EXAMPLES:,} examples an epoch")
    print(f"matrix products alone, at {max(rates) / 1e9:.0f} GFLOP/s: {limit:.3f} s")
    for name, values in times.items():
        best, median = min(values), statistics.median(values)
        print(
            f"{name}: best {best:.3f} s an epoch ({best / limit:.2f} times the products), "
            f"median {median:.3f} s ({median / limit:.2f}), {NUM_EXAMPLES / best:,.0f} examples/s"
        )
    print(f"peak memory: {workdir.peak_memory():.2f} GiB")


if __name__ == "__main__":
    flags.DEFINE_integer("epochs", 7, "Measured epochs of each.", lower_bound=1)
    cli.run(main)
