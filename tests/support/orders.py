"""Samplers of many sizes, and the clips of their updates."""

import itertools
from collections import Counter

import numpy as np

from vits_trainer.data.sampler import BucketBatchSampler

# clips, clips per micro-batch, processes, micro-batches per update
SIZES = list(itertools.product((1, 2, 7, 16, 33), (1, 4, 5), (1, 2, 3), (1, 3, 8)))
SECONDS = list(itertools.product((1, 7, 33, 120), (60, 500, 2000), (1, 2, 3), (1, 3)))


def lengths(clips: int, seed: int = 0) -> list[int]:
    """Returns lengths like those of speech, in frames: 0.6 to 10 s, most of them near 4 s."""
    return np.random.default_rng(seed).gamma(6, 45, clips).clip(40, 650).astype(int).tolist()


def order_of(
    clips: int, batch: int, world: int, accumulation: int, seed: int = 1, frames: int = 0
) -> BucketBatchSampler:
    rows = tuple(range(100, 100 + clips))
    return BucketBatchSampler(rows, lengths(clips), seed, batch, world, accumulation, batch_frames=frames)


def by_frames(clips: int, frames: int, world: int, accumulation: int) -> BucketBatchSampler:
    return order_of(clips, 1, world, accumulation, frames=frames)


ORDERS = [*(order_of(*sizes) for sizes in SIZES), *(by_frames(*sizes) for sizes in SECONDS)]


def named(order: BucketBatchSampler) -> str:
    return f"{len(order.rows)}x{order.batch_frames or order.batch_size}x{order.world_size}x{order.accumulation}"


def clips_by_update(order: BucketBatchSampler, epoch: int) -> list[Counter[int]]:
    """Returns the clips of all ranks in each update, from their micro-batches."""
    updates: list[Counter[int]] = []
    for rank in range(order.world_size):
        number = 0
        for micro_batch in order.epoch(epoch, rank):
            if number == len(updates):
                updates.append(Counter())
            updates[number].update(micro_batch.indices)
            number += micro_batch.closes_update
    return updates
