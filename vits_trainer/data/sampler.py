"""Batch samplers: which rank trains on which clips when, as a pure function of the seed, epoch and clip lengths.

The clips of an update depend on the global batch size, not on the number of ranks. Runs on one, two or four ranks with
equal global batches therefore see the same clips in the same updates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_SMALLEST_STEP = 4
_MIXED_LENGTHS = 0.085
"""Clips whose lengths differ by less than this (natural logarithm) are mixed: more would cost more padding."""
_COUNTED_EPOCHS = 3
"""Epochs that are filled greedily to find the number of updates of every epoch, with ``batch_frames``."""
_PRECISION = 1e-3
"""Of the padded frames to which the updates of an epoch are filled."""

ClipPositions = NDArray[np.int64]
"""Indices into the sequence of all training clips."""


def bucket_length(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rounds lengths, at least 1 each, up to one of 16 sizes per octave, so that batches come in few shapes.

    Costs 2 % of padding on average and at most 6.25 % (more for the shortest, rounded up to a multiple of four).
    """
    octave = np.frexp(lengths)[1] - 1
    step = np.left_shift(1, np.maximum(octave - 4, 0)).clip(min=_SMALLEST_STEP).astype(np.int64)
    rounded: NDArray[np.int64] = -(-lengths // step) * step
    return rounded


@dataclass(frozen=True)
class MicroBatchSpec:
    """The clips of one micro-batch of one rank, and its position in the run."""

    indices: tuple[int, ...]
    """Rows; empty if the update has too few clips for all ranks: this rank then only stays in step."""
    epoch: int
    """From 0."""
    number: int
    """Index within the epoch, from 0."""
    closes_update: bool
    """Whether the optimizer steps after it."""


class UpdateSampler(ABC):
    """Base of the samplers: yields the micro-batches of each update, epoch by epoch."""

    world_size: int
    accumulation: int
    """Micro-batches per process in an update, at most."""
    batch_frames: int
    """Padded frames per micro-batch; 0 if the number of clips decides."""
    expected_counts: Callable[[int], ClipPositions] | None
    """Returns how often an epoch trains on each clip (None = each once)."""

    @property
    @abstractmethod
    def clips(self) -> int:
        """Training clips."""

    @property
    @abstractmethod
    def epoch_clips(self) -> int:
        """Clips that an epoch trains on, each as often as it is drawn."""

    @property
    @abstractmethod
    def update_clips(self) -> int:
        """Clips per update if the number of clips decides."""

    @property
    @abstractmethod
    def updates_per_epoch(self) -> int:
        """Updates per epoch, the same in every epoch."""

    @abstractmethod
    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """Yields the micro-batches of rank ``rank`` in epoch ``epoch``, after its first ``done`` updates."""

    @abstractmethod
    def clips_left(self, updates: int) -> int:
        """Clips of the current epoch that wait after ``updates``, at least 1, each as often as it is drawn."""

    @abstractmethod
    def dry_run_batches(self, rank: int) -> list[MicroBatchSpec]:
        """Micro-batches that process ``rank`` tries first: those that need most memory, and last a typical one.

        Each closes its update, as the processes' gradients are averaged in the first backward pass, or never.
        """

    def fingerprint(self) -> dict[str, object]:
        """What a resumed run must share, so that its updates have the same clips."""
        return {"clips in an update": None if self.batch_frames else self.update_clips}

    def after(self, updates: int, until: int, rank: int) -> Iterator[MicroBatchSpec]:
        """Yields the micro-batches of rank ``rank`` after ``updates`` updates, up to and including update ``until``."""
        while updates < until:
            epoch, done = divmod(updates, self.updates_per_epoch)
            for micro_batch in self.epoch(epoch, rank, done):
                yield micro_batch
                updates += micro_batch.closes_update
                if updates == until:
                    return


@dataclass(frozen=True, eq=False)
class BucketBatchSampler(UpdateSampler):
    """Groups clips of similar length into updates, and splits each update into micro-batches for the ranks.

    Every clip occurs exactly once per epoch, unless ``draw_epoch`` is set. The groups of similar length have other
    limits in each epoch, so that batches differ. Updates are filled evenly, and follow in random order. The clips
    of an update are sorted by length before they are split, so that ranks process similar lengths at the same time.
    """

    rows: Sequence[int]
    """Rows of the training clips."""
    frames: Sequence[int]
    """Length of each of these clips, at least 1."""
    seed: int
    batch_size: int
    """Clips in a rank's micro-batch."""
    world_size: int
    accumulation: int
    """Micro-batches per update."""
    batch_frames: int = 0
    """Padded frames in a rank's micro-batch, instead of ``batch_size`` (0 = off). A micro-batch may exceed it by part
    of a clip, as updates are filled as a whole; a longer clip gets a separate update."""
    draw_epoch: Callable[[int], ClipPositions] | None = None
    """Returns the clips of an epoch: equally many in each epoch, some repeated (None = each once). Not supported with
    ``batch_frames``: the updates per epoch would then depend on the lengths drawn."""

    @property
    def clips(self) -> int:
        """Number of training clips."""
        return len(self.rows)

    @property
    def epoch_clips(self) -> int:
        """Clips that an epoch trains on, each as often as it is drawn."""
        return self._epoch_clips

    @property
    def update_clips(self) -> int:
        """Clips per update, if ``batch_size`` applies."""
        return self.batch_size * self.world_size * self.accumulation

    @cached_property
    def updates_per_epoch(self) -> int:
        """Updates per epoch, the same in every epoch."""
        if not self.batch_frames:
            return -(-self.epoch_clips // self.update_clips)
        orders = (self._mixed_by_length(epoch) for epoch in range(_COUNTED_EPOCHS))
        return max(len(_fill(self._sizes[order], self._update_frames)) for order in orders)

    def updates(self, epoch: int) -> list[ClipPositions]:
        """Returns the clips of each update of an epoch, sorted by length within the update."""
        order, updates = self._mixed_by_length(epoch), self.updates_per_epoch
        starts = _fill_evenly(self._sizes[order], updates) if self.batch_frames else None
        groups = np.array_split(order, updates) if starts is None else np.split(order, starts[1:])
        shuffled = np.random.default_rng([self.seed, epoch, updates]).permutation(updates)
        return [groups[index][np.argsort(self._sizes[groups[index]], kind="stable")] for index in shuffled]

    def _mixed_by_length(self, epoch: int) -> ClipPositions:
        """Returns the clips of an epoch, roughly by length: in random order within groups of similar length."""
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = self._drawn_clips(epoch)[rng.permutation(self.epoch_clips)]
        groups = np.floor(self._log_frames[shuffled] / _MIXED_LENGTHS + rng.uniform())
        mixed: ClipPositions = shuffled[np.argsort(groups, kind="stable")]
        return mixed

    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """Yields the micro-batches of rank ``rank`` in epoch ``epoch``, after its first ``done`` updates."""
        number = 0
        for index, positions in enumerate(self.updates(epoch)):
            shares = self._shares(positions)[rank :: self.world_size]
            for share in shares if index >= done else []:
                rows = tuple(int(self.rows[position]) for position in share)
                yield MicroBatchSpec(rows, epoch, number, closes_update=share is shares[-1])
                number += 1
            number += len(shares) if index < done else 0

    def expected_counts(self, epoch: int) -> ClipPositions:
        """Returns how often each clip occurs in an epoch."""
        return np.bincount(self._drawn_clips(epoch), minlength=len(self.rows))

    def clips_left(self, updates: int) -> int:
        """Returns the clips (counting repeats) left in the epoch after ``updates`` updates, at least 1."""
        epoch, last = divmod(updates - 1, self.updates_per_epoch)
        return sum(len(positions) for positions in self.updates(epoch)[last + 1 :])

    def dry_run_batches(self, rank: int) -> list[MicroBatchSpec]:  # noqa: ARG002 - the same for all ranks
        """Returns the micro-batches of the dry run: the one with most frames of all ranks, and last a typical one.

        With ``batch_frames`` also as many as possible of the longest clips, for attention, and of the shortest: decoder
        and discriminators process a segment of equal length for each clip. Each batch closes its update: DDP must
        synchronize gradients in the very first backward pass, or it never does.
        """
        updates = self.updates(0)
        if self.draw_epoch is not None:  # the first epoch may not contain the longest clips
            clips = np.repeat(np.arange(len(self.rows)), self.expected_counts(0).clip(min=1))
            updates.append(clips[np.argsort(self._sizes[clips])][-min(self.update_clips, self.epoch_clips) :])
        batches = sorted((share for update in updates for share in self._shares(update)), key=self._padded_frames)
        tried = [batches[-1], batches[len(batches) // 2]]
        if self.batch_frames:
            longest_first = np.argsort(-self._sizes, kind="stable")
            counts = [self._clips_that_fit(int(self._sizes[longest_first[end]])) for end in (0, -1)]
            # One more: the clips of an update are divided evenly over its micro-batches, so their number is rounded.
            tried[1:1] = [longest_first[: counts[0]], longest_first[-counts[1] - 1 :]]
        rows = (tuple(int(self.rows[position]) for position in positions) for positions in tried)
        return [MicroBatchSpec(indices, 0, 0, closes_update=True) for indices in rows]

    def _clips_that_fit(self, frames: int) -> int:
        """Number of clips of ``frames`` in a micro-batch with ``batch_frames``, at least one."""
        return max(1, self.batch_frames // frames)

    def _shares(self, positions: ClipPositions) -> list[ClipPositions]:
        """Divides the clips of an update over its micro-batches and ranks, shortest first."""
        return np.array_split(positions, self._micro_batches(positions) * self.world_size)

    def _padded_frames(self, positions: ClipPositions) -> int:
        return len(positions) * int(self._sizes[positions].max(initial=0))

    @cached_property
    def _epoch_clips(self) -> int:
        return len(self._drawn_clips(0))

    def _drawn_clips(self, epoch: int) -> ClipPositions:
        return np.arange(len(self.rows)) if self.draw_epoch is None else self.draw_epoch(epoch)

    @cached_property
    def _sizes(self) -> ClipPositions:
        """Padded length of each clip."""
        return bucket_length(np.asarray(self.frames, dtype=np.int64))

    @cached_property
    def _log_frames(self) -> NDArray[np.float64]:
        logarithms: NDArray[np.float64] = np.log(np.asarray(self.frames, dtype=np.float64))
        return logarithms

    @property
    def _update_frames(self) -> int:
        """Padded frames per update, if ``batch_frames`` applies."""
        return self.batch_frames * self.world_size * self.accumulation

    def _micro_batches(self, positions: ClipPositions) -> int:
        """Number of micro-batches for an update of these clips: no more than needed."""
        if self.batch_frames:
            needed, capacity = self._padded_frames(positions), self.batch_frames * self.world_size
        else:
            needed, capacity = len(positions), self.batch_size * self.world_size
        return min(self.accumulation, -(-needed // capacity))


def _fill(sizes: ClipPositions, frames: float) -> list[int]:
    """Returns the first index of each update, if each takes clips while they pad to at most ``frames``, at least one.

    Args:
        sizes: padded length of each clip, in order.
        frames: padded frames of an update: its clips times the longest.
    """
    most = max(1, int(frames / sizes.min()))
    counts = np.arange(1, most + 1)
    starts, start = [], 0
    while start < len(sizes):
        starts.append(start)
        padded = np.maximum.accumulate(sizes[start : start + most])
        start += max(1, int(np.searchsorted(padded * counts[: len(padded)], frames, side="right")))
    return starts


def _fill_evenly(sizes: ClipPositions, updates: int) -> list[int]:
    """Returns the first index of each of so many updates, whose largest is as small as possible."""
    low = high = float(sizes.sum()) / updates  # without padding
    while len(_fill(sizes, high)) > updates:
        high *= 2
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if len(_fill(sizes, middle)) <= updates else (middle, high)
    starts = _fill(sizes, high)
    while len(starts) < updates:  # one more clip in each would be too many
        ends = [*starts[1:], len(sizes)]
        largest = max(range(len(starts)), key=lambda index: ends[index] - starts[index])
        starts.insert(largest + 1, (starts[largest] + ends[largest]) // 2)
    return starts


def validation_batches(rows: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[MicroBatchSpec]:
    """Returns rank ``rank``'s batches of validation clips, in a fixed order; ranks differ by at most one clip."""
    mine = list(rows)[rank::world_size]
    return [
        MicroBatchSpec(tuple(mine[start : start + batch_size]), 0, number, True)
        for number, start in enumerate(range(0, len(mine), batch_size))
    ]
