"""Feeding: which examples step t sees, as a pure function of (seed, step), and how they reach the device.

The training set is a stream of shuffled epochs, one after another: batch t holds the stream's places t B to (t + 1) B.
No example is dropped and none is seen twice before every other was seen, whether or not B divides N. A set in
memory lives on the device and is shuffled and gathered there; one that is not streams through Grain. Of several
processes each feeds its own part of every batch, the places i B/P to (i + 1) B/P for process i of P: the stream is the
one of a single process, and of a streamed set each process reads no other examples.
"""

import functools
import multiprocessing
import os
import signal
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aevb import processes
from aevb.data import Split
from aevb.errors import InputError


class Fed(NamedTuple):
    """Stored examples on their way to the device.

    Attributes:
      stored: `[..., *event]`, uint8 or float32.
      label: a class, int32 `[...]`, or a vector, float32 `[..., k]`; or None.
      example_id: the index in the split, int32 `[...]`.
    """

    stored: jax.Array | np.ndarray
    label: jax.Array | np.ndarray | None
    example_id: jax.Array | np.ndarray


class InMemory:
    """The whole split on the device; a step is fed the places of its examples and gathers them there."""

    def __init__(self, split: Split, batch_size: int, key: jax.Array, part: tuple[int, int] | None = None) -> None:
        self.batch_size = batch_size
        self._part = part or processes.part()
        self.num_examples = len(split.examples)
        self.resident = Fed(split.examples, split.labels, np.arange(self.num_examples, dtype=np.int32))
        self._epoch = functools.lru_cache(maxsize=4)(functools.partial(_shuffled_epoch, key, self.num_examples))

    def steps(self, first: int, num: int) -> jax.Array:
        """The places in the split of the examples of steps first to first + num, int32 `[num, B]`.

        B is the batch size, or this process' part of it.
        """
        start, stop = first * self.batch_size, (first + num) * self.batch_size
        epochs = range(start // self.num_examples, -(-stop // self.num_examples))
        stream = jnp.concatenate([self._epoch(epoch) for epoch in epochs])
        offset = start - epochs.start * self.num_examples
        index, count = self._part
        places = stream[offset : offset + stop - start].reshape(num, self.batch_size)
        return places if count == 1 else jnp.split(places, count, axis=1)[index]

    @staticmethod
    def fetch(resident: Fed, places: jax.Array) -> Fed:
        """Gather the examples at `places` `[M]`; pure, called on the device inside the step."""
        return jax.tree.map(lambda leaf: leaf[places], resident)


@functools.partial(jax.jit, static_argnums=1)
def _shuffled_epoch(key: jax.Array, num_examples: int, epoch: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples).astype(jnp.int32)


class Streaming:
    """A split that does not fit: Grain reads, shuffles and batches it in worker processes, ahead of the device."""

    def __init__(
        self, split: Split, batch_size: int, key: jax.Array, num_workers: int, part: tuple[int, int] | None = None
    ) -> None:
        import grain

        index, count = part or processes.part()
        self.batch_size = batch_size
        self.num_examples = len(split.examples)
        self.resident = None
        self._num_workers = num_workers
        self._batches = (
            grain.MapDataset.source(_Source(split))
            .shuffle(seed=int(jax.random.bits(key)))
            .repeat()
            .batch(batch_size // count, batch_fn=lambda items: jax.tree.map(lambda *leaves: np.stack(leaves), *items))
        )
        if count > 1:
            self._batches = self._batches[index::count]
        self._iterator: Any = None
        self._next_step = -1

    def steps(self, first: int, num: int) -> Fed:
        """The examples of steps first to first + num, leaves `[num, B, ...]` as above; resumes at any step."""
        import grain

        if self._next_step != first:
            ahead = self._batches[first:].to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=64))
            if self._num_workers:
                options = grain.MultiprocessingOptions(num_workers=self._num_workers)
                ahead = ahead.mp_prefetch(options, worker_init_fn=_leave_with_parent)
            self._iterator = iter(ahead)
        self._next_step = first + num
        return jax.tree.map(lambda *leaves: np.stack(leaves), *[next(self._iterator) for _ in range(num)])

    @staticmethod
    def fetch(resident: None, fed: Fed) -> Fed:
        """The examples themselves: they came with the step."""
        del resident
        return fed


def _leave_with_parent(worker: int, num_workers: int) -> None:
    """End this worker process with the training process, and not before.

    After a kill -9 Grain's workers would read on for ever; and a signal to the whole group, as a terminal or a cluster
    sends it, would take them from a training process that still wants to save.
    """
    del worker, num_workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Source:
    """A split as Grain wants it: random access to one example with its label and index."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split.examples)

    def __getitem__(self, i: int) -> Fed:
        label = None if self._split.labels is None else self._split.labels[i]
        return Fed(np.asarray(self._split.examples[i]), label, np.int32(i))


def make_feed(
    split: Split, batch_size: int, key: jax.Array, num_workers: int = 0, part: tuple[int, int] | None = None
) -> InMemory | Streaming:
    """The road that the split takes: in memory if its examples are an array, else streamed.

    Args:
      split: the training examples.
      batch_size: of the global batch, over all devices.
      key: what the order of the examples derives from; nothing else may use it.
      num_workers: Grain's worker processes; 0 reads in this one. They read Grain's own flags, so where no command has
        parsed them (a notebook), `absl.flags.FLAGS.mark_as_parsed()` must come first.
      part: `(index, count)` of the processes that the batch is split over; this one of all of them unless given.

    Raises:
      InputError: the batch does not divide over the processes.
    """
    part = part or processes.part()
    if batch_size % part[1]:
        raise InputError(
            f"a batch of {batch_size} does not divide over {part[1]} processes: set the batch size to a multiple of "
            f"{part[1]}"
        )
    if isinstance(split.examples, np.ndarray):
        return InMemory(split, batch_size, key, part)
    return Streaming(split, batch_size, key, num_workers, part)
