"""Which clips each process takes when: a pure function of the seed, the epoch and the clips' lengths.

An update's clips depend on how much all processes take together, not on how many processes there are. So runs of one,
two or four of them with equal global batches see the same clips in the same updates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_SMALLEST_STEP = 4

ClipPositions = NDArray[np.int64]
"""Of clips, in the sequence of all training clips."""


def bucket_length(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each length, at least 1, at the next of eight sizes an octave: batches then come in few shapes.

    Costs 4 % of padding on the average, 12.5 % at most (but for the shortest, which go up in fours).
    """
    octave = np.frexp(lengths)[1] - 1
    step = np.left_shift(1, np.maximum(octave - 3, 0)).clip(min=_SMALLEST_STEP).astype(np.int64)
    rounded: NDArray[np.int64] = -(-lengths // step) * step
    return rounded


@dataclass(frozen=True)
class MicroBatchSpec:
    """The clips that one process takes at one moment of the run."""

    indices: tuple[int, ...]
    """Rows; none where the update's clips do not go round: the process then only keeps in step."""
    epoch: int
    """From 0."""
    number: int
    """Place in its epoch, from 0."""
    closes_update: bool
    """Whether the weights change after it."""


class UpdateSampler(ABC):
    """Updates that follow one another epoch by epoch."""

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
        """The same in every epoch."""

    @abstractmethod
    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """Yields the micro-batches of process ``rank`` in epoch ``epoch``, after ``done`` of its updates."""

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
        """What process ``rank`` takes once ``updates`` are done, up to update ``until``."""
        while updates < until:
            epoch, done = divmod(updates, self.updates_per_epoch)
            for micro_batch in self.epoch(epoch, rank, done):
                yield micro_batch
                updates += micro_batch.closes_update
                if updates == until:
                    return


@dataclass(frozen=True, eq=False)
class BucketBatchSampler(UpdateSampler):
    """The updates of each epoch, and each process's micro-batches in them.

    Every clip is taken exactly once an epoch, unless ``drawn`` says otherwise. Clips of like length go into one update,
    and updates follow one another in random order. An update is dealt to its micro-batches and the processes from short
    to long, so processes that work side by side have like lengths. Where ``batch_size`` decides, the clips that fill no
    whole update are drawn at random and make the epoch's last.
    """

    rows: Sequence[int]
    """The training clips' rows."""
    frames: Sequence[int]
    """Length of each of these clips, at least 1."""
    seed: int
    batch_size: int
    """Clips in a process's micro-batch."""
    world_size: int
    accumulation: int
    """Micro-batches in an update."""
    batch_frames: int = 0
    """Padded frames in a process's micro-batch, instead of ``batch_size`` (0 = off). A micro-batch may be longer by
    part of a clip, as an update is filled as a whole; a longer clip has an update of its own."""
    draw_epoch: Callable[[int], ClipPositions] | None = None
    """Gives the clips that an epoch takes, equally many in each, some of them several times (None = each once). Not
    with ``batch_frames``, as epochs would have more updates or fewer with the lengths that they draw."""

    @property
    def clips(self) -> int:
        """To train on, in all."""
        return len(self.rows)

    @property
    def epoch_clips(self) -> int:
        """Clips that an epoch trains on, each as often as it is drawn."""
        return self._epoch_clips

    @property
    def update_clips(self) -> int:
        """Clips in an update where ``batch_size`` decides."""
        return self.batch_size * self.world_size * self.accumulation

    @property
    def updates_per_epoch(self) -> int:
        """The same in every epoch."""
        return len(self._cuts) + 1 + bool(self._left_over)

    def updates(self, epoch: int) -> list[ClipPositions]:
        """The clips of each update of an epoch, from short to long."""
        draw = np.random.default_rng([self.seed, epoch])
        shuffled = self._drawn_clips(epoch)[draw.permutation(self.epoch_clips)]
        whole, rest = np.split(shuffled, [self.epoch_clips - self._left_over])
        by_size = whole[np.argsort(self._sizes[whole], kind="stable")]
        groups = np.split(by_size, self._cuts)
        updates = [groups[index] for index in draw.permutation(len(groups))]
        return [*updates, rest[np.argsort(self._sizes[rest], kind="stable")]] if self._left_over else updates

    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """What process ``rank`` takes in epoch ``epoch`` once ``done`` of its updates are done."""
        number = 0
        for index, places in enumerate(self.updates(epoch)):
            micro_batches = self._micro_batches(places)
            shares = np.array_split(places, micro_batches * self.world_size)[rank :: self.world_size]
            for share in shares if index >= done else []:
                rows = tuple(int(self.rows[place]) for place in share)
                yield MicroBatchSpec(rows, epoch, number, closes_update=share is shares[-1])
                number += 1
            number += micro_batches if index < done else 0

    def expected_counts(self, epoch: int) -> ClipPositions:
        """How often each clip is taken in an epoch."""
        return np.bincount(self._drawn_clips(epoch), minlength=len(self.rows))

    def clips_left(self, updates: int) -> int:
        """How many clips of its epoch, each as often as it is drawn, wait once ``updates``, at least 1, are done."""
        epoch, last = divmod(updates - 1, self.updates_per_epoch)
        return sum(len(places) for places in self.updates(epoch)[last + 1 :])

    def dry_run_batches(self, rank: int) -> list[MicroBatchSpec]:
        """Two micro-batches that process ``rank`` tries first: the one with the longest clips, and a typical one.

        Each closes its update, as the processes' gradients meet in the very first backward pass, or never.
        """
        by_length = sorted(self.updates(0), key=lambda places: self._sizes[places[-1]])
        if self.draw_epoch is not None:  # the first epoch may leave out the longest clips
            clips = np.repeat(np.arange(len(self.rows)), self.expected_counts(0).clip(min=1))
            by_length.append(clips[np.argsort(self._sizes[clips])][-min(self.update_clips, self.epoch_clips) :])
        found = []
        for places in (by_length[-1], by_length[len(by_length) // 2]):
            shares = np.array_split(places, self._micro_batches(places) * self.world_size)
            rows = tuple(int(self.rows[place]) for place in shares[rank - self.world_size])
            found.append(MicroBatchSpec(rows, 0, 0, closes_update=True))
        return found

    @cached_property
    def _epoch_clips(self) -> int:
        return len(self._drawn_clips(0))

    def _drawn_clips(self, epoch: int) -> ClipPositions:
        return np.arange(len(self.rows)) if self.draw_epoch is None else self.draw_epoch(epoch)

    @cached_property
    def _sizes(self) -> ClipPositions:
        """Each clip's length as it will be padded."""
        return bucket_length(np.asarray(self.frames, dtype=np.int64))

    @property
    def _left_over(self) -> int:
        """Clips that fill no whole update."""
        clips = self.epoch_clips
        return 0 if self.batch_frames or clips < self.update_clips else clips % self.update_clips

    @cached_property
    def _cuts(self) -> ClipPositions:
        """Where the clips of an epoch, from short to long, are cut into updates."""
        if not self.batch_frames:
            return np.arange(self.update_clips, self.epoch_clips - self._left_over, self.update_clips)
        sizes = np.sort(self._sizes)
        budget = self.batch_frames * self.world_size * self.accumulation
        cuts, start = [], 0
        while start < len(sizes):
            if start:
                cuts.append(start)
            clips = max(1, budget // int(sizes[start]))
            # The last clip is the longest: fewer fit than the first one's length promises.
            while clips > 1 and clips * int(sizes[min(start + clips, len(sizes)) - 1]) > budget:
                clips -= 1
            start += clips
        return np.asarray(cuts, dtype=np.int64)

    def _micro_batches(self, places: ClipPositions) -> int:
        """How many micro-batches an update of these clips is dealt to: no more than it needs."""
        if self.batch_frames:
            needed, room = len(places) * int(self._sizes[places[-1]]), self.batch_frames * self.world_size
        else:
            needed, room = len(places), self.batch_size * self.world_size
        return min(self.accumulation, -(-needed // room))


def validation_batches(rows: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[MicroBatchSpec]:
    """The validation clips that process ``rank`` reads, in a fixed order; the processes' shares may differ by one."""
    mine = list(rows)[rank::world_size]
    return [
        MicroBatchSpec(tuple(mine[start : start + batch_size]), 0, number, True)
        for number, start in enumerate(range(0, len(mine), batch_size))
    ]
