"""Batch sampler of streamed clips: needs no clip lengths, and reads row group by row group.

Row groups are shuffled, and their clips concatenated. This sequence is cut into substreams of equal length,
:data:`SUBSTREAMS_PER_SLOT` for each slot (micro-batch of an update, over all ranks). Updates cycle through these; an
update's index in the cycle is its phase. It reads one micro-batch from each substream of its phase, so a row group is
read by one rank, and there by one data worker (by two if it is cut). The clips that do not fill a whole update are
split evenly and form the epoch's last. All this is a pure function of the seed, the epoch and the number of clips per
row group: all ranks have the same number of updates, whatever the shards contain, and a resume needs no stored state.

A window of a substream holds the clips of several of its micro-batches. The dataset worker sorts the window by length
and cuts it into micro-batches. In an update all ranks read the same part of their windows, so that their lengths match.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.sampler import MicroBatchSpec, UpdateSampler

SUBSTREAMS_PER_SLOT = 4
"""Length of the cycle. If the number of data workers divides it, or it times the accumulation, each row group is read
once."""

Rows = NDArray[np.int64]
"""Rows of clips, over all shards in order."""


@dataclass(frozen=True)
class StreamedBatchSpec(MicroBatchSpec):
    """A micro-batch of a stream. ``indices`` are all clips of its window: which part it is depends on their lengths."""

    part: int = 0
    """Index among the ``parts`` into which the window is cut once sorted by length."""
    parts: int = 1
    substream: int | None = None
    """Micro-batches of one substream share row groups. None in the last update of an epoch."""
    ahead: tuple[int, ...] = ()
    """Row groups to prefetch for the substream's next window."""
    stretched: bool = False
    """Whether to lengthen each clip to the longest of the data set, for the dry run."""


class _Epoch:
    """The concatenated clips of one epoch."""

    def __init__(self, sampler: "StreamingBatchSampler", epoch: int) -> None:
        self._sampler, self._epoch = sampler, epoch
        rng = np.random.default_rng([sampler.seed, epoch])
        # Shard by shard, so that a substream uses few shards at a time: each has metadata to keep in memory.
        rank_of_shard = rng.permutation(int(sampler.shard_of_group[-1]) + 1)
        row_groups = np.arange(len(sampler.groups)) if sampler.row_groups is None else sampler.row_groups
        # Groups of one row group keep their order, as they can only be read one after another: lexsort is stable.
        rank_of_group = rng.random(int(row_groups[-1]) + 1)[row_groups]
        self.groups = np.lexsort((rank_of_group, rank_of_shard[sampler.shard_of_group]))
        self._ends = np.cumsum(sampler.train_clips_per_group[self.groups])

    def rows(self, start: int, stop: int) -> Rows:
        """Returns the rows at positions ``start`` to ``stop`` (exclusive)."""
        sampler, parts = self._sampler, list[Rows]()
        for position in self._groups_at(start, stop):
            group = int(self.groups[position])
            begins = int(self._ends[position]) - int(sampler.train_clips_per_group[group])
            rows = sampler.train_rows(group)
            shuffled = rows[np.random.default_rng([sampler.seed, self._epoch, group]).permutation(len(rows))]
            parts.append(shuffled[max(0, start - begins) : stop - begins])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def groups_of(self, start: int, stop: int) -> tuple[int, ...]:
        """Returns the row groups of the clips at these positions."""
        return tuple(int(self.groups[position]) for position in self._groups_at(start, stop))

    def _groups_at(self, start: int, stop: int) -> range:
        if start >= stop:
            return range(0)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        return range(int(first), int(last) + 1)


@dataclass(frozen=True, eq=False)
class StreamingBatchSampler(UpdateSampler):
    """Samples the updates of each epoch, and their micro-batches for each rank, from streamed clips."""

    groups: Sequence[int]
    """Number of clips per row group, over all shards in order."""
    shard_of_group: NDArray[np.int64]
    """Index of the shard of each row group, ascending."""
    held_out: Sequence[int]
    """Rows of the validation clips, not trained on."""
    seed: int
    batch_size: int
    """Clips in a rank's micro-batch."""
    world_size: int
    accumulation: int
    """Micro-batches per update."""
    window: int = 8
    """Micro-batches of a substream that are sorted by length together."""
    row_groups: NDArray[np.int64] | None = None
    """Row group of each group, ascending, if ``groups`` are parts of row groups."""

    batch_frames = 0
    """Always 0: lengths are not known beforehand, so a batch is a number of clips."""
    expected_counts = None

    @property
    def epoch_clips(self) -> int:
        """Clips that an epoch trains on: each once."""
        return self.clips

    def fingerprint(self) -> dict[str, object]:
        """What a resumed run must share, so that its updates have the same clips."""
        lanes = f"{self.world_size * self.accumulation} of {self.batch_size} clips, window {self.window}"
        return {**super().fingerprint(), "lanes": lanes}

    @property
    def update_clips(self) -> int:
        """Clips per update."""
        return self.batch_size * self._slots

    @cached_property
    def clips(self) -> int:
        """Number of training clips."""
        return int(self.train_clips_per_group.sum())

    @property
    def updates_per_epoch(self) -> int:
        """Updates per epoch, the same in every epoch."""
        return -(-self.clips // self.update_clips)

    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """Yields the micro-batches of rank ``rank`` in epoch ``epoch``, after its first ``done`` updates."""
        for update in range(done, self.updates_per_epoch):
            if update < self._whole_updates:
                slots = range(rank, self._slots, self.world_size)
                micro_batches = [self._micro_batch(epoch, update, slot) for slot in slots]
            else:
                micro_batches = self._tail_update(epoch, update, rank)
            yield from micro_batches

    def clips_left(self, updates: int) -> int:
        """Returns the clips left in the epoch after ``updates`` updates, at least 1."""
        done = (updates - 1) % self.updates_per_epoch + 1
        if done <= self._whole_updates:
            return self.clips - done * self.update_clips
        return sum(map(len, self._tail[done - self._whole_updates :]))

    def dry_run_batches(self, rank: int) -> list[MicroBatchSpec]:
        """Returns rank ``rank``'s micro-batches for the dry run: one with all clips at the longest length, one typical.

        Each closes its update: DDP must synchronize gradients in the very first backward pass, or it never does.
        """
        first = next(iter(self.epoch(0, rank)))
        batches = []
        for stretched in (True, False):
            parts = first.parts if isinstance(first, StreamedBatchSpec) else 1
            batches.append(StreamedBatchSpec(first.indices, 0, 0, True, parts // 2, parts, stretched=stretched))
        return list(batches)

    @cached_property
    def train_clips_per_group(self) -> NDArray[np.int64]:
        """Number of training clips per row group."""
        held_out = np.searchsorted(self._first_rows, np.asarray(self.held_out, np.int64), side="right") - 1
        return np.asarray(self.groups, np.int64) - np.bincount(held_out, minlength=len(self.groups))

    def train_rows(self, group: int) -> Rows:
        """Returns the rows of the training clips of a row group."""
        rows = int(self._first_rows[group]) + np.arange(self.groups[group])
        return rows if self.train_clips_per_group[group] == len(rows) else np.setdiff1d(rows, self.held_out)

    @cached_property
    def _first_rows(self) -> Rows:
        counts = np.asarray(self.groups, np.int64)
        ends: Rows = np.cumsum(counts)
        return ends - counts

    @property
    def _slots(self) -> int:
        """Micro-batches per update, over all ranks."""
        return self.world_size * self.accumulation

    @property
    def _whole_updates(self) -> int:
        """Number of an epoch's updates of ``update_clips`` clips."""
        whole, rest = divmod(self.clips, self.update_clips)
        return whole - 1 if rest and whole else whole

    @property
    def _tail(self) -> list[Rows]:
        """Positions in the sequence of the clips after the whole updates, split evenly: no update of a single clip."""
        updates = self.updates_per_epoch - self._whole_updates
        positions = np.arange(self._whole_updates * self.update_clips, self.clips)
        return np.array_split(positions, updates) if updates else []

    def _steps(self, phase: int) -> int:
        """Number of an epoch's updates with this phase."""
        return len(range(phase, self._whole_updates, SUBSTREAMS_PER_SLOT))

    def _window_span(self, phase: int, slot: int, window: int) -> tuple[int, int]:
        """Start and end (exclusive) of a substream's window in the sequence of clips."""
        earlier = sum(self._steps(before) for before in range(phase)) * self._slots + slot * self._steps(phase)
        steps = range(self._steps(phase))[window * self.window : (window + 1) * self.window]
        return (earlier + steps.start) * self.batch_size, (earlier + steps.stop) * self.batch_size

    def _micro_batch(self, epoch: int, update: int, slot: int) -> StreamedBatchSpec:
        step, phase = divmod(update, SUBSTREAMS_PER_SLOT)
        window, position = divmod(step, self.window)
        start, stop = self._window_span(phase, slot, window)
        parts = (stop - start) // self.batch_size
        # The same on all ranks and in all substreams of the phase, so that they read similar lengths at a time.
        part = int(np.random.default_rng([self.seed, epoch, phase, window]).permutation(parts)[position])
        ahead = self._groups_of_next(epoch, phase, slot, window)
        return StreamedBatchSpec(
            indices=tuple(self._sequence(epoch).rows(start, stop).tolist()),
            epoch=epoch,
            number=update * self.accumulation + slot // self.world_size,
            closes_update=slot + self.world_size >= self._slots,
            part=part,
            parts=parts,
            substream=phase * self._slots + slot,
            # Gradually, so that prefetching is spread over the window.
            ahead=ahead[: -(-len(ahead) * (position + 1) // parts)],
        )

    def _groups_of_next(self, epoch: int, phase: int, slot: int, window: int) -> tuple[int, ...]:
        """Row groups of a substream's next window, which may be the first of the next epoch."""
        if (window + 1) * self.window < self._steps(phase):
            return self._sequence(epoch).groups_of(*self._window_span(phase, slot, window + 1))
        return self._sequence(epoch + 1).groups_of(*self._window_span(phase, slot, 0))

    def _tail_update(self, epoch: int, update: int, rank: int) -> list[StreamedBatchSpec]:
        """The micro-batches of an update after the whole ones."""
        first = self._whole_updates * self.accumulation
        for positions in self._tail[: update - self._whole_updates]:
            first += self._micro_batches(len(positions))
        positions = self._tail[update - self._whole_updates]
        micro_batches = self._micro_batches(len(positions))
        shares = np.array_split(positions, micro_batches * self.world_size)[rank :: self.world_size]
        sequence = self._sequence(epoch)
        return [
            StreamedBatchSpec(
                indices=tuple(sequence.rows(share[0], share[-1] + 1).tolist()) if len(share) else (),
                epoch=epoch,
                number=first + number,
                closes_update=number == len(shares) - 1,
            )
            for number, share in enumerate(shares)
        ]

    def _micro_batches(self, clips: int) -> int:
        """Number of micro-batches per rank for an update of these clips: no more than needed."""
        return min(self.accumulation, -(-clips // (self.batch_size * self.world_size)))

    @cached_property
    def _sequence(self) -> Callable[[int], _Epoch]:
        """The clips of an epoch; two are cached, as prefetching looks into the next epoch."""
        return lru_cache(maxsize=2)(lambda epoch: _Epoch(self, epoch))
