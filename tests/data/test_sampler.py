"""Bucket batch sampler: complete, independent of the number of ranks, with little padding."""

import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.orders import ORDERS, SIZES, clips_by_update, lengths, named, order_of
from vits_trainer.data.sampler import BucketBatchSampler, MicroBatchSpec, bucket_length, validation_batches


@pytest.mark.parametrize("order", ORDERS, ids=named)
def test_every_clip_occurs_once_per_epoch_with_equal_micro_batches_on_all_ranks(order):
    updates = clips_by_update(order, 3)
    assert sum(updates, Counter()) == Counter(order.rows)
    assert len(updates) == order.updates_per_epoch
    assert all(updates)
    ranks = [list(order.epoch(3, rank)) for rank in range(order.world_size)]
    assert len({tuple(m.closes_update for m in micro_batches) for micro_batches in ranks}) == 1
    assert all([m.number for m in micro_batches] == list(range(len(micro_batches))) for micro_batches in ranks)


@pytest.mark.parametrize("order", ORDERS[: len(SIZES)], ids=named)
def test_updates_are_filled_evenly(order):
    """No update of a single clip, which would move the voice as far as one of 32."""
    sizes = [sum(update.values()) for update in clips_by_update(order, 0)]
    assert len(sizes) == -(-len(order.rows) // order.update_clips)
    assert max(sizes) - min(sizes) <= 1
    for rank in range(order.world_size):
        assert max(len(m.indices) for m in order.epoch(0, rank)) <= order.batch_size


@pytest.mark.parametrize("order", ORDERS[len(SIZES) :], ids=named)
def test_micro_batches_exceed_their_frames_by_part_of_a_clip_at_most(order):
    frames = dict(zip(order.rows, bucket_length(np.asarray(order.frames)).tolist(), strict=True))
    for rank in range(order.world_size):
        for micro_batch in order.epoch(0, rank):
            longest = max((frames[row] for row in micro_batch.indices), default=0)
            assert len(micro_batch.indices) * longest < order.batch_frames + longest


def test_updates_by_hand():
    # 9 clips, at most 6 per update: an update of 5 in three micro-batches, and one of 4 in two.
    epoch = list(order_of(9, 2, 1, 3).epoch(0, 0))
    by_update = {5: [2, 2, 1], 4: [2, 2]}
    first = sum(len(m.indices) for m in epoch[: [m.closes_update for m in epoch].index(True) + 1])
    assert [len(m.indices) for m in epoch] == [*by_update[first], *by_update[9 - first]]
    assert sum(m.closes_update for m in epoch) == 2


def test_rank_without_clips_stays_in_step():
    ranks = [list(order_of(2, 2, 3, 1).epoch(0, rank)) for rank in range(3)]
    assert [[len(m.indices) for m in micro_batches] for micro_batches in ranks] == [[1], [1], [0]]


@pytest.mark.parametrize("order", ORDERS[len(SIZES) :], ids=named)
def test_updates_by_frames_are_filled_evenly(order):
    """With one update more or less than the greedy filling of any epoch, and none much smaller than it must be."""
    for epoch in range(5):
        padded = [len(update) * order._sizes[update].max() for update in order.updates(epoch)]
        assert max(padded) <= order._update_frames + max(order._sizes)


@pytest.mark.parametrize(("batch_size", "most"), [(8, 0.0135), (32, 0.052)])
def test_clips_that_meet_in_an_update_rarely_meet_in_the_next_epoch(batch_size, most):
    """Of 13,000 clips; shares of pairs, by counting. With groups of equal rounded length: 1.6 % and 6.1 %."""
    order = BucketBatchSampler(range(13_000), lengths(13_000), 1, batch_size, 1, 1)
    update_of = np.zeros(13_000, dtype=int)
    for number, update in enumerate(order.updates(0)):
        update_of[update] = number
    again = pairs = 0
    for update in order.updates(1):
        counts = np.unique(update_of[update], return_counts=True)[1]
        again += int((counts * (counts - 1)).sum())
        pairs += len(update) * (len(update) - 1)
    assert again / pairs < most


@pytest.mark.parametrize(("batch", "frames"), [(16, 0), (0, 2400)])
def test_updates_do_not_depend_on_world_size_and_accumulation(batch, frames):
    def run(world: int, accumulation: int) -> list[Counter[int]]:
        share = world * accumulation
        order = BucketBatchSampler(
            tuple(range(200)), lengths(200), 5, batch // share, world, accumulation, frames // share
        )
        return [update for epoch in range(3) for update in clips_by_update(order, epoch)]

    expected = run(1, 1)
    for world, accumulation in ((2, 1), (1, 2), (4, 1), (2, 2), (1, 8), (4, 2)):
        assert run(world, accumulation) == expected


@pytest.mark.parametrize("order", ORDERS[::11], ids=named)
def test_resuming_continues_with_the_remaining_updates(order):
    until = 3 * order.updates_per_epoch + 1
    complete = list(order.after(0, until, rank=0))
    assert sum(m.closes_update for m in complete) == until
    assert complete[-1].closes_update
    ends = [0, *(index for index, m in enumerate(complete, start=1) if m.closes_update)]
    for updates in range(until):
        assert list(order.after(updates, until, rank=0)) == complete[ends[updates] :]
    assert list(order.after(until, until, rank=0)) == []


def test_order_differs_between_epochs_and_seeds():
    def rows(epoch: int, seed: int) -> tuple[int, ...]:
        return tuple(row for m in order_of(33, 4, 1, 1, seed).epoch(epoch, 0) for row in m.indices)

    assert len({rows(epoch, seed) for epoch in range(4) for seed in range(4)}) == 16


def test_clips_of_an_update_have_similar_lengths_and_updates_are_shuffled():
    order = order_of(3200, 32, 1, 1)
    means = [np.mean([order.frames[row - 100] for row in m.indices]) for m in order.epoch(0, 0)]
    spreads = [np.ptp([order.frames[row - 100] for row in m.indices]) for m in order.epoch(0, 0)]
    assert np.median(spreads) < 40
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_order_is_the_same_in_another_process():
    code = (
        "from vits_trainer.data.sampler import BucketBatchSampler; "
        "print([m.indices for m in BucketBatchSampler(range(20), range(50, 70), 5, 3, 2, 2).epoch(4, 1)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    order = BucketBatchSampler(range(20), range(50, 70), 5, 3, 2, 2)
    assert result.stdout.strip() == str([m.indices for m in order.epoch(4, 1)])


def test_order_does_not_touch_the_global_generator():
    before = np.random.get_state()[1].copy()
    list(order_of(33, 4, 2, 2).epoch(0, 0))
    assert (np.random.get_state()[1] == before).all()


def test_dry_run_starts_with_the_longest_clips_and_synchronizes():
    order = order_of(64, 4, 2, 2)
    longest, typical = order.dry_run_batches(rank=1)
    assert max(order.frames[row - 100] for row in longest.indices) == max(order.frames)
    assert len(longest.indices) == len(typical.indices) == 4
    assert longest.closes_update  # required by DDP with a static graph


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3)])
def test_dry_run_has_the_most_frames_and_the_most_clips_of_any_epoch(world_size, accumulation):
    """Decoder and discriminators need memory for a segment of each clip, so many short clips may need most."""
    frames = np.random.default_rng(0).gamma(4, 60, 3000).astype(int).clip(40)
    order = BucketBatchSampler(range(3000), frames, 1, 0, world_size, accumulation, batch_frames=3750)
    most_frames, longest, most_clips, typical = order.dry_run_batches(rank=0)
    batches = [batch for epoch in range(3) for batch in order.epoch(epoch, 0)]
    assert max(len(batch.indices) for batch in batches) <= len(most_clips.indices) < 100
    assert len(most_clips.indices) > 2 * len(typical.indices)
    assert frames[list(longest.indices)].max() == frames.max()

    def padded(batch):
        return len(batch.indices) * bucket_length(frames[list(batch.indices)]).max()

    assert max(map(padded, order.epoch(0, 0))) <= padded(most_frames)


def test_validation_clips_are_split_in_a_fixed_order():
    shares = [validation_batches(range(10, 17), 2, rank, 2) for rank in range(2)]
    assert [[m.indices for m in share] for share in shares] == [[(10, 12), (14, 16)], [(11, 13), (15,)]]
    assert shares[0][1] == MicroBatchSpec((14, 16), 0, 1, True)


@pytest.mark.parametrize(
    ("length", "size"), [(1, 4), (4, 4), (5, 8), (63, 64), (64, 64), (65, 68), (129, 136), (512, 512), (513, 544)]
)
def test_bucket_lengths(length, size):
    assert bucket_length(np.array([length])).tolist() == [size]


def test_bucket_lengths_are_few_and_add_little_padding():
    lengths = np.arange(32, 4000)
    sizes = bucket_length(lengths)
    assert (sizes >= lengths).all()
    assert ((sizes - lengths) / lengths)[lengths >= 64].max() <= 0.0625
    assert len(np.unique(sizes)) <= 113  # 16 per octave


@pytest.mark.parametrize("settings", [{"batch_size": 4, "accumulation": 8}, {"batch_frames": 3750}], ids=str)
def test_sampler_of_a_large_data_set_needs_little_memory(settings):
    """Needs 5 MB; docs/benchmarks.md gives the time."""
    frames = lengths(42_139)
    tracemalloc.start()
    settings = {"batch_size": 1, "accumulation": 1} | settings
    order = BucketBatchSampler(range(42_139), frames, seed=1, world_size=1, **settings)
    clips = sum(len(m.indices) for m in order.epoch(0, 0))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clips == 42_139
    assert peak_bytes < 20 * 2**20


def test_padding_with_sixty_seconds_per_batch():
    frames = lengths(42_139)
    order = BucketBatchSampler(
        range(42_139), frames, seed=1, batch_size=1, world_size=1, accumulation=1, batch_frames=3750
    )
    longest = [(len(m.indices), max(frames[row] for row in m.indices)) for m in order.epoch(0, 0)]
    padded = sum(clips * int(bucket_length(np.array([length]))[0]) for clips, length in longest)
    assert 1 - sum(frames) / padded < 0.08
