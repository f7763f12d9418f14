"""Feeding: each example once an epoch by counting, another order each epoch and seed, any step without the others."""

import jax
import numpy as np
import pytest
from absl import flags

from aevb.data import Split
from aevb.data.feeding import InMemory, Streaming, make_feed
from aevb.errors import InputError


class Shelf:
    """Examples that stay out of memory; picklable, for Grain's worker processes."""

    def __init__(self, num):
        self.num = num
        self.read = []

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        if not 0 <= index < self.num:
            raise IndexError(index)
        self.read.append(index)
        return np.full((2, 3), index, np.int32)


def split_of(num, in_memory):
    labels = np.arange(num, dtype=np.int32) * 10
    shelf = Shelf(num)
    return Split(np.stack([shelf[i] for i in range(num)]) if in_memory else shelf, labels)


def ids(feed, first, num):
    """The ids of the examples of some steps, `[num, batch]`, each checked against its content and label."""
    fed = feed.steps(first, num)
    fed = jax.tree.map(np.asarray, feed.fetch(feed.resident, fed))
    assert fed.stored.shape == (num, fed.example_id.shape[1], 2, 3)
    np.testing.assert_array_equal(fed.stored, np.broadcast_to(fed.example_id[..., None, None], fed.stored.shape))
    np.testing.assert_array_equal(fed.label, fed.example_id * 10)
    assert fed.label.dtype == fed.example_id.dtype == np.int32
    return fed.example_id


ROADS = {
    "in_memory": lambda num, batch, seed=0, **how: InMemory(split_of(num, True), batch, jax.random.key(seed), **how),
    "streaming": lambda num, batch, seed=0, **how: Streaming(
        split_of(num, False), batch, jax.random.key(seed), 0, **how
    ),
}
roads = pytest.mark.parametrize("make", ROADS.values(), ids=ROADS)


@roads
@pytest.mark.parametrize(("num", "batch"), [(12, 4), (10, 4), (5, 12), (7, 7), (1, 3)])
def test_every_epoch_has_each_example_once(make, num, batch):
    stream = ids(make(num, batch), 0, 3 * num).ravel()  # whole epochs: 3 batch of them
    for epoch in stream.reshape(-1, num):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num))


@roads
def test_the_order_differs_by_epoch_and_by_seed(make):
    epochs = [order for seed in (0, 1) for order in ids(make(50, 50, seed), 0, 4)]
    for i, a in enumerate(epochs):
        assert not np.array_equal(a, np.arange(50))
        for b in epochs[:i]:
            # Two random orders agree in one place on average; by 9 places once in a million.
            assert (a == b).sum() < 9
    np.testing.assert_array_equal(ids(make(50, 50, 0), 0, 4), epochs[:4])


@roads
@pytest.mark.parametrize("first", [1, 4, 13])
def test_a_stream_resumes_at_any_step(make, first):
    whole = ids(make(10, 4), 0, 20)
    np.testing.assert_array_equal(ids(make(10, 4), first, 20 - first), whole[first:])
    feed = make(10, 4)
    parts = [ids(feed, start, num) for start, num in ((0, 3), (3, 1), (4, 8), (12, 8))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(ids(feed, first, 2), whole[first : first + 2])  # back to an earlier step


@roads
@pytest.mark.parametrize(("num", "batch", "count"), [(12, 4, 2), (10, 6, 3), (5, 12, 4), (7, 2, 1)])
def test_processes_feed_the_stream_of_one_each_example_once_an_epoch(make, num, batch, count):
    """Beside each other, in the order of the processes, their parts are the batches of a single process."""
    parts = [ids(make(num, batch, part=(index, count)), 0, 3 * num) for index in range(count)]
    assert {part.shape for part in parts} == {(3 * num, batch // count)}
    together = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(together, ids(make(num, batch), 0, 3 * num))
    for epoch in together.reshape(-1, num):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num))
    later = [ids(make(num, batch, part=(index, count)), 5, 4) for index in range(count)]
    np.testing.assert_array_equal(np.concatenate(later, axis=1), together[5:9])


def test_a_process_reads_no_example_of_another():
    """Of an epoch so long that what Grain reads ahead does not come to the next one."""
    own, read = [], []
    for index in range(2):
        own.append(set(ids(ROADS["streaming"](1000, 8, part=(index, 2)), 0, 125).ravel()))
        split = split_of(1000, False)
        Streaming(split, 8, jax.random.key(0), 0, part=(index, 2)).steps(0, 5)
        read.append(set(split.examples.read))
    assert own[0] | own[1] == set(range(1000))
    assert not own[0] & own[1]
    assert read[0] <= own[0]
    assert read[1] <= own[1]
    assert min(len(each) for each in read) >= 20


def test_worker_processes_give_the_same_stream():
    flags.FLAGS.mark_as_parsed()  # as every command has
    workers = Streaming(split_of(10, False), 4, jax.random.key(0), 2)
    whole = ids(ROADS["streaming"](10, 4), 0, 11)
    np.testing.assert_array_equal(ids(workers, 3, 4), whole[3:7])
    np.testing.assert_array_equal(ids(workers, 7, 4), whole[7:])


def test_examples_without_labels_have_none():
    for feed in (
        InMemory(Split(np.zeros((4, 2), np.float32), None), 2, jax.random.key(0)),
        Streaming(Split(Shelf(4), None), 2, jax.random.key(0), 0),
    ):
        assert feed.fetch(feed.resident, feed.steps(0, 1)).label is None


def test_arrays_stay_in_memory_and_what_does_not_fit_streams():
    assert isinstance(make_feed(split_of(4, True), 2, jax.random.key(0)), InMemory)
    assert isinstance(make_feed(split_of(4, False), 2, jax.random.key(0), 0), Streaming)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_batch_that_does_not_divide_over_the_processes_is_refused(in_memory):
    with pytest.raises(InputError, match="a batch of 5 does not divide over 2 processes: set the batch size to a mult"):
        make_feed(split_of(10, in_memory), 5, jax.random.key(0), part=(1, 2))
