"""Streaming batch sampler: every clip once per epoch over all ranks, whatever the shards contain."""

import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest

from vits_trainer.data.streaming_sampler import SUBSTREAMS_PER_SLOT, StreamedBatchSpec, StreamingBatchSampler


def order_of(
    groups, shards=3, held_out=(), batch_size=2, world_size=2, accumulation=2, seed=5, window=3
) -> StreamingBatchSampler:
    shard_of_group = np.sort(np.arange(len(groups)) % shards)
    return StreamingBatchSampler(groups, shard_of_group, held_out, seed, batch_size, world_size, accumulation, window)


def clips_of(micro_batch: StreamedBatchSpec, lengths: np.ndarray) -> list[int]:
    """The clips of a micro-batch, given their lengths, as the dataset worker selects them."""
    rows = sorted(micro_batch.indices, key=lambda row: (lengths[row], row))
    return [int(row) for row in np.array_split(rows, micro_batch.parts)[micro_batch.part]]


def lengths_of(order: StreamingBatchSampler) -> np.ndarray:
    return np.random.default_rng(0).integers(10, 500, sum(order.groups))


def updates_of(order: StreamingBatchSampler, epoch: int = 0) -> list[set[int]]:
    """Clips of each update, over all ranks."""
    lengths, updates = lengths_of(order), [set() for _ in range(order.updates_per_epoch)]
    for rank in range(order.world_size):
        number = 0
        for micro_batch in order.epoch(epoch, rank):
            updates[number].update(clips_of(micro_batch, lengths))
            number += micro_batch.closes_update
        assert number == order.updates_per_epoch
    return updates


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("groups", [[1], [7, 7, 7], [50, 1, 3, 90, 12, 12, 2], [5] * 40])
@pytest.mark.parametrize("held_out", [(), (0, 3)])
def test_every_clip_occurs_once_per_epoch(groups, held_out, world_size, accumulation):
    held_out = held_out if sum(groups) > 4 else ()
    order = order_of(groups, min(3, len(groups)), held_out, 2, world_size, accumulation)
    lengths = lengths_of(order)
    for epoch in (0, 1):
        per_rank = [list(order.epoch(epoch, rank)) for rank in range(world_size)]
        assert len({len(micro_batches) for micro_batches in per_rank}) == 1
        assert len({tuple(m.closes_update for m in micro_batches) for micro_batches in per_rank}) == 1
        assert [m.number for m in per_rank[0]] == list(range(len(per_rank[0])))
        assert max(len(clips_of(m, lengths)) for m in chain(*per_rank)) <= order.batch_size
        counts = Counter(row for m in chain(*per_rank) for row in clips_of(m, lengths))
        assert counts == Counter(set(range(sum(groups))) - set(held_out))


def test_number_of_updates_depends_only_on_the_number_of_clips():
    one_shard, many = order_of([1000], 1), order_of([10] * 100, 20)
    assert one_shard.updates_per_epoch == many.updates_per_epoch == 1000 // 8
    assert order_of([7, 2], 2).updates_per_epoch == 2


def test_updates_do_not_depend_on_the_number_of_ranks():
    one, two, four = (order_of([9, 30, 41, 22, 17] * 4, 4, (3, 50), 2, n, 4 // n) for n in (1, 2, 4))
    assert updates_of(one, 1) == updates_of(two, 1) == updates_of(four, 1)


def test_order_differs_between_epochs_and_seeds_but_not_processes():
    order = order_of([20] * 12, 4)
    assert updates_of(order, 0) != updates_of(order, 1)
    assert updates_of(order, 0) != updates_of(order_of([20] * 12, 4, seed=6), 0)
    result = subprocess.run(
        [sys.executable, "-c",
         ("from tests.data.test_streaming_sampler import order_of; "
          "print([m.indices for m in order_of([20] * 12, 4).epoch(1, 1)])")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == str([m.indices for m in order.epoch(1, 1)])


@pytest.mark.parametrize("done", [1, 5, 17, 18, 19, 30])
def test_resuming_continues_with_the_remaining_updates(done):
    order = order_of([13, 40, 31, 22, 44], 5)
    assert order.updates_per_epoch == 19  # 18 full ones and the rest
    complete = list(order.after(0, 40, 1))
    closed = [index for index, m in enumerate(complete) if m.closes_update]
    assert list(order.after(done, 40, 1)) == complete[closed[done - 1] + 1 :]


def test_clips_left_equals_the_clips_of_the_remaining_updates():
    order = order_of([13, 40, 31, 22, 44], 5)
    updates = updates_of(order)
    for done in range(1, 20):
        assert order.clips_left(done) == sum(map(len, updates[done:])), done
    assert order.clips_left(20) == order.clips_left(1)


@pytest.mark.parametrize(("accumulation", "workers"), [(1, 2), (1, 4), (2, 2), (3, 2), (8, 8)])
def test_row_group_is_read_by_one_worker(accumulation, workers):
    order = order_of([16] * 400, 8, (), 4, 2, accumulation)
    readers: dict[int, set[tuple[int, int]]] = {}
    for rank in range(2):
        for number, micro_batch in enumerate(order.epoch(0, rank)):
            if micro_batch.substream is None:
                continue
            for group in {row // 16 for row in micro_batch.indices}:
                readers.setdefault(group, set()).add((rank, number % workers))
    substreams = SUBSTREAMS_PER_SLOT * 2 * accumulation
    assert len(readers) > 0.9 * 400
    assert sum(len(of_group) - 1 for of_group in readers.values()) < substreams  # only row groups that are cut


def test_prefetched_row_groups_are_the_next_ones_of_the_substream():
    order = order_of([16] * 100, 8)
    of_substream: dict[int, list[StreamedBatchSpec]] = {}
    for micro_batch in order.after(0, 2 * order.updates_per_epoch, 0):
        if micro_batch.substream is not None:
            of_substream.setdefault(micro_batch.substream, []).append(micro_batch)
    for parts in of_substream.values():
        for now, then in pairwise(parts):
            needed = {row // 16 for row in then.indices}
            assert needed <= {row // 16 for row in now.indices} | set(now.ahead)
        assert max(len(m.ahead) for m in parts) <= 3


def test_lengths_are_similar_within_batches_and_across_ranks():
    order = order_of([32] * 120, 4, (), 4, 2, 2, window=8)
    lengths = lengths_of(order)
    ranks = [list(order.epoch(0, rank)) for rank in range(2)]
    mine, other = ([np.mean([lengths[row] for row in clips_of(m, lengths)]) for m in ms] for ms in ranks)
    assert np.corrcoef(mine, other)[0, 1] > 0.9
    padded = sum(len(clips_of(m, lengths)) * max(lengths[row] for row in clips_of(m, lengths)) for m in chain(*ranks))
    unsorted = order_of([32] * 120, 4, (), 4, 2, 2, window=1)
    at_random = sum(
        len(m.indices) * max(lengths[row] for row in m.indices) for rank in range(2) for m in unsorted.epoch(0, rank)
    )
    assert padded / lengths.sum() < 1.15 < 1.5 < at_random / lengths.sum()


def test_dry_run_starts_with_the_longest():
    longest, typical = order_of([32] * 120, 4).dry_run_batches(1)
    assert (longest.stretched, typical.stretched) == (True, False)
    assert longest.closes_update
    assert typical.closes_update
    assert len(longest.indices) == typical.parts * 2


def test_few_clips_are_split_among_all_ranks():
    order = order_of([5], 1, (), 2, 3, 2)
    ranks = [list(order.epoch(0, rank)) for rank in range(3)]
    assert [[len(m.indices) for m in micro_batches] for micro_batches in ranks] == [[2], [2], [1]]
    assert all(micro_batch.substream is None for micro_batch in chain(*ranks))


def test_sampler_of_millions_of_clips_needs_little_memory():
    """10,000 hours in 550,000 row groups; memory does not grow with the number of clips."""
    import tracemalloc

    order = order_of([13] * 550_000, 512, (7,), 16, 64, 1)
    tracemalloc.start()
    first = next(iter(order.epoch(3, 5)))
    peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert len(first.indices) == 3 * 16
    assert peak_mib < 100
