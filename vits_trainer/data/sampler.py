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

ClipPositions = NDArray[np.int64]
"""Indices into the sequence of all training clips."""


def bucket_length(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rounds lengths, at least 1 each, up to one of eight sizes per octave, so that batches come in few shapes.

    Costs 4 % of padding on average and at most 12.5 % (more for the shortest, rounded up to a multiple of four).
    """
    octave = np.frexp(lengths)[1] - 1
    step = np.left_shift(1, np.maximum(octave - 3, 0)).clip(min=_SMALLEST_STEP).astype(np.int64)
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
        """Two micro-batches that process ``rank`` tries first: the one with the longest clips, and a typical one.

        Each closes its update, as the processes' gradients meet in the very first backward pass, or never.
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

    Every clip occurs exactly once per epoch, unless ``draw_epoch`` is set. Updates follow in random order. The clips of
    an update are sorted by length before they are split, so that ranks process similar lengths at the same time. With
    ``batch_size``, the clips that do not fill a whole update are drawn at random and form the epoch's last update.
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

    @property
    def updates_per_epoch(self) -> int:
        """Updates per epoch, the same in every epoch."""
        return len(self._cuts) + 1 + bool(self._left_over)

    def updates(self, epoch: int) -> list[ClipPositions]:
        """Returns the clips of each update of an epoch, sorted by length within the update."""
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = self._drawn_clips(epoch)[rng.permutation(self.epoch_clips)]
        whole, rest = np.split(shuffled, [self.epoch_clips - self._left_over])
        by_size = whole[np.argsort(self._sizes[whole], kind="stable")]
        groups = np.split(by_size, self._cuts)
        updates = [groups[index] for index in rng.permutation(len(groups))]
        return [*updates, rest[np.argsort(self._sizes[rest], kind="stable")]] if self._left_over else updates

    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """Yields the micro-batches of rank ``rank`` in epoch ``epoch``, after its first ``done`` updates."""
        number = 0
        for index, positions in enumerate(self.updates(epoch)):
            micro_batches = self._micro_batches(positions)
            shares = np.array_split(positions, micro_batches * self.world_size)[rank :: self.world_size]
            for share in shares if index >= done else []:
                rows = tuple(int(self.rows[position]) for position in share)
                yield MicroBatchSpec(rows, epoch, number, closes_update=share is shares[-1])
                number += 1
            number += micro_batches if index < done else 0

    def expected_counts(self, epoch: int) -> ClipPositions:
        """Returns how often each clip occurs in an epoch."""
        return np.bincount(self._drawn_clips(epoch), minlength=len(self.rows))

    def clips_left(self, updates: int) -> int:
        """Returns the clips (counting repeats) left in the epoch after ``updates`` updates, at least 1."""
        epoch, last = divmod(updates - 1, self.updates_per_epoch)
        return sum(len(positions) for positions in self.updates(epoch)[last + 1 :])

    def dry_run_batches(self, rank: int) -> list[MicroBatchSpec]:
        """Returns rank ``rank``'s micro-batches for the dry run: one with the longest clips, and a typical one.

        Each closes its update: DDP must synchronize gradients in the very first backward pass, or it never does.
        """
        by_length = sorted(self.updates(0), key=lambda positions: self._sizes[positions[-1]])
        if self.draw_epoch is not None:  # the first epoch may not contain the longest clips
            clips = np.repeat(np.arange(len(self.rows)), self.expected_counts(0).clip(min=1))
            by_length.append(clips[np.argsort(self._sizes[clips])][-min(self.update_clips, self.epoch_clips) :])
        batches = []
        for positions in (by_length[-1], by_length[len(by_length) // 2]):
            shares = np.array_split(positions, self._micro_batches(positions) * self.world_size)
            rows = tuple(int(self.rows[position]) for position in shares[rank - self.world_size])
            batches.append(MicroBatchSpec(rows, 0, 0, closes_update=True))
        return batches

    @cached_property
    def _epoch_clips(self) -> int:
        return len(self._drawn_clips(0))

    def _drawn_clips(self, epoch: int) -> ClipPositions:
        return np.arange(len(self.rows)) if self.draw_epoch is None else self.draw_epoch(epoch)

    @cached_property
    def _sizes(self) -> ClipPositions:
        """Padded length of each clip."""
        return bucket_length(np.asarray(self.frames, dtype=np.int64))

    @property
    def _left_over(self) -> int:
        """Clips that do not fill a whole update."""
        clips = self.epoch_clips
        return 0 if self.batch_frames or clips < self.update_clips else clips % self.update_clips

    @cached_property
    def _cuts(self) -> ClipPositions:
        """Indices at which the clips of an epoch, sorted by length, are cut into updates."""
        if not self.batch_frames:
            return np.arange(self.update_clips, self.epoch_clips - self._left_over, self.update_clips)
        sizes = np.sort(self._sizes)
        budget = self.batch_frames * self.world_size * self.accumulation
        cuts, start = [], 0
        while start < len(sizes):
            if start:
                cuts.append(start)
            clips = max(1, budget // int(sizes[start]))
            # The last clip is the longest: fewer fit than the length of the first suggests.
            while clips > 1 and clips * int(sizes[min(start + clips, len(sizes)) - 1]) > budget:
                clips -= 1
            start += clips
        return np.asarray(cuts, dtype=np.int64)

    def _micro_batches(self, positions: ClipPositions) -> int:
        """Number of micro-batches for an update of these clips: no more than needed."""
        if self.batch_frames:
            needed, capacity = len(positions) * int(self._sizes[positions[-1]]), self.batch_frames * self.world_size
        else:
            needed, capacity = len(positions), self.batch_size * self.world_size
        return min(self.accumulation, -(-needed // capacity))


def validation_batches(rows: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[MicroBatchSpec]:
    """Returns rank ``rank``'s batches of validation clips, in a fixed order; ranks differ by at most one clip."""
    mine = list(rows)[rank::world_size]
    return [
        MicroBatchSpec(tuple(mine[start : start + batch_size]), 0, number, True)
        for number, start in enumerate(range(0, len(mine), batch_size))
    ]
