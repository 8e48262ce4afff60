"""The order of clips that are streamed: known without their lengths, and read row group by row group.

Row groups are put in random order, and their clips laid end to end. This sequence is cut into substreams of equal
length, :data:`SUBSTREAMS_PER_SLOT` for each micro-batch of an update. An update takes one micro-batch from each
substream of its turn, so a row group is read by one rank, and there by one data worker (those at a cut by two). The
clips that fill no whole update are dealt evenly and make the epoch's last. All of it is a pure function of seed,
epoch and number of clips per row group: equal numbers of updates on all ranks, and nothing to store for a
resume.

A window of a substream holds the clips of several of its micro-batches. The dataset worker sorts the window by length
and cuts it into micro-batches. In an update all ranks read the same part of their windows, so lengths are similar.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.sampler import MicroBatchSpec, UpdateSampler

SUBSTREAMS_PER_SLOT = 4
"""Updates take their lanes in turns of so many: a number of data workers that divides it, or it times the accumulation,
reads each row group once."""

Rows = NDArray[np.int64]
"""Of clips, over all shards one after another."""


@dataclass(frozen=True)
class StreamedBatchSpec(MicroBatchSpec):
    """A micro-batch of a stream. Its ``indices`` are all clips of a window; which of them it is shows their lengths."""

    part: int = 0
    """Which of the ``parts`` into which the window falls once it is sorted by length."""
    parts: int = 1
    substream: int | None = None
    """Micro-batches of one lane share row groups; None for the clips at an epoch's end."""
    ahead: tuple[int, ...] = ()
    """Row groups that the lane needs next."""
    stretched: bool = False
    """Whether each clip is to be made as long as the longest of all, to try what it takes."""


class _Epoch:
    """The clips of one epoch, end to end."""

    def __init__(self, order: "StreamingBatchSampler", epoch: int) -> None:
        self._order, self._epoch = order, epoch
        draw = np.random.default_rng([order.seed, epoch])
        # Shard by shard, so that a lane has to do with few of them at a time: each has metadata to be kept.
        turn_of_shard = draw.permutation(int(order.shard_of_group[-1]) + 1)
        self.groups = np.lexsort((draw.random(len(order.groups)), turn_of_shard[order.shard_of_group]))
        self._ends = np.cumsum(order.trained_of_group[self.groups])

    def rows(self, start: int, stop: int) -> Rows:
        """Those at the places from ``start`` to before ``stop``."""
        order, found = self._order, []
        for place in self._groups_at(start, stop):
            group = int(self.groups[place])
            begins = int(self._ends[place]) - int(order.trained_of_group[group])
            rows = order.rows_of(group)
            shuffled = rows[np.random.default_rng([order.seed, self._epoch, group]).permutation(len(rows))]
            found.append(shuffled[max(0, start - begins) : stop - begins])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def groups_of(self, start: int, stop: int) -> tuple[int, ...]:
        """Row groups of the clips at these places."""
        return tuple(int(self.groups[place]) for place in self._groups_at(start, stop))

    def _groups_at(self, start: int, stop: int) -> range:
        if start >= stop:
            return range(0)
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        return range(int(first), int(last) + 1)


@dataclass(frozen=True, eq=False)
class StreamingBatchSampler(UpdateSampler):
    """The updates of each epoch, and each process's micro-batches in them, of clips that are streamed."""

    groups: Sequence[int]
    """Clips in each row group, of all shards one after another."""
    shard_of_group: NDArray[np.int64]
    """Number of each row group's shard, going up."""
    held_out: Sequence[int]
    """Rows that are not trained on."""
    seed: int
    batch_size: int
    """Clips in a process's micro-batch."""
    world_size: int
    accumulation: int
    """Micro-batches in an update."""
    window: int = 8
    """Micro-batches of a lane that are sorted by length together."""

    batch_frames = 0
    """Lengths are not known beforehand: clips are counted."""
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
        """Clips in an update."""
        return self.batch_size * self._slots

    @cached_property
    def clips(self) -> int:
        """To train on, in all."""
        return int(self.trained_of_group.sum())

    @property
    def updates_per_epoch(self) -> int:
        """The same in every epoch."""
        return -(-self.clips // self.update_clips)

    def epoch(self, epoch: int, rank: int, done: int = 0) -> Iterator[MicroBatchSpec]:
        """What process ``rank`` takes in epoch ``epoch`` once ``done`` of its updates are done."""
        for update in range(done, self.updates_per_epoch):
            if update < self._whole_updates:
                slots = range(rank, self._slots, self.world_size)
                found: list[StreamedBatchSpec] = [self._micro_batch(epoch, update, slot) for slot in slots]
            else:
                found = self._last_update(epoch, rank)
            yield from found

    def clips_left(self, updates: int) -> int:
        """How many clips of its epoch wait for their turn once ``updates``, at least 1, are done."""
        return max(0, self.clips - ((updates - 1) % self.updates_per_epoch + 1) * self.update_clips)

    def dry_run_batches(self, rank: int) -> list[MicroBatchSpec]:
        """Two micro-batches that process ``rank`` tries first: one of clips as long as the longest, and a typical one.

        Each closes its update, as the processes' gradients meet in the very first backward pass, or never.
        """
        first = next(iter(self.epoch(0, rank)))
        found = []
        for stretched in (True, False):
            parts = first.parts if isinstance(first, StreamedBatchSpec) else 1
            found.append(StreamedBatchSpec(first.indices, 0, 0, True, parts // 2, parts, stretched=stretched))
        return list(found)

    @cached_property
    def trained_of_group(self) -> NDArray[np.int64]:
        """Clips to train on in each row group."""
        held_out = np.searchsorted(self._first_rows, np.asarray(self.held_out, np.int64), side="right") - 1
        return np.asarray(self.groups, np.int64) - np.bincount(held_out, minlength=len(self.groups))

    def rows_of(self, group: int) -> Rows:
        """Those of a row group that are trained on."""
        rows = int(self._first_rows[group]) + np.arange(self.groups[group])
        return rows if self.trained_of_group[group] == len(rows) else np.setdiff1d(rows, self.held_out)

    @cached_property
    def _first_rows(self) -> Rows:
        counts = np.asarray(self.groups, np.int64)
        ends: Rows = np.cumsum(counts)
        return ends - counts

    @property
    def _slots(self) -> int:
        """Micro-batches in an update, over all processes."""
        return self.world_size * self.accumulation

    @property
    def _whole_updates(self) -> int:
        return self.clips // self.update_clips

    def _steps(self, turn: int) -> int:
        """Updates of an epoch that take the lanes of ``turn``."""
        return len(range(turn, self._whole_updates, SUBSTREAMS_PER_SLOT))

    def _window_span(self, turn: int, slot: int, window: int) -> tuple[int, int]:
        """Where a lane's window begins, and before which place it ends."""
        earlier = sum(self._steps(before) for before in range(turn)) * self._slots + slot * self._steps(turn)
        steps = range(self._steps(turn))[window * self.window : (window + 1) * self.window]
        return (earlier + steps.start) * self.batch_size, (earlier + steps.stop) * self.batch_size

    def _micro_batch(self, epoch: int, update: int, slot: int) -> StreamedBatchSpec:
        step, turn = divmod(update, SUBSTREAMS_PER_SLOT)
        window, place = divmod(step, self.window)
        start, stop = self._window_span(turn, slot, window)
        parts = (stop - start) // self.batch_size
        # The same on all ranks and in all lanes of the turn: they take like lengths at a time.
        part = int(np.random.default_rng([self.seed, epoch, turn, window]).permutation(parts)[place])
        ahead = self._groups_of_next(epoch, turn, slot, window)
        return StreamedBatchSpec(
            indices=tuple(self._sequence(epoch).rows(start, stop).tolist()),
            epoch=epoch,
            number=update * self.accumulation + slot // self.world_size,
            closes_update=slot + self.world_size >= self._slots,
            part=part,
            parts=parts,
            substream=turn * self._slots + slot,
            # Little by little, so that what lies ahead does not all come at once.
            ahead=ahead[: -(-len(ahead) * (place + 1) // parts)],
        )

    def _groups_of_next(self, epoch: int, turn: int, slot: int, window: int) -> tuple[int, ...]:
        """Row groups of a lane's next window, which may be the next epoch's first."""
        if (window + 1) * self.window < self._steps(turn):
            return self._sequence(epoch).groups_of(*self._window_span(turn, slot, window + 1))
        return self._sequence(epoch + 1).groups_of(*self._window_span(turn, slot, 0))

    def _last_update(self, epoch: int, rank: int) -> list[StreamedBatchSpec]:
        """The clips that fill no whole update."""
        start = self._whole_updates * self.update_clips
        micro_batches = min(self.accumulation, -(-(self.clips - start) // (self.batch_size * self.world_size)))
        places = np.arange(start, self.clips)
        shares = np.array_split(places, micro_batches * self.world_size)[rank :: self.world_size]
        sequence, first = self._sequence(epoch), self._whole_updates * self.accumulation
        return [
            StreamedBatchSpec(
                indices=tuple(sequence.rows(share[0], share[-1] + 1).tolist()) if len(share) else (),
                epoch=epoch,
                number=first + number,
                closes_update=number == len(shares) - 1,
            )
            for number, share in enumerate(shares)
        ]

    @cached_property
    def _sequence(self) -> Callable[[int], _Epoch]:
        """The clips of an epoch; two are kept, as lanes look into the next."""
        return lru_cache(maxsize=2)(lambda epoch: _Epoch(self, epoch))
