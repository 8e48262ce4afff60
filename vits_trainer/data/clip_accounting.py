"""Per-epoch clip accounting: checks that each clip was used exactly as often as the sampler scheduled it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vits_trainer.utils.errors import AccountingError, CheckpointError, TooManyRejectedError, UnreadableShardError
from vits_trainer.utils.records import check
from vits_trainer.utils.strings import counted

UNREADABLE = "unreadable-shard"
"""Kind of the incident with which a data worker reports that a streamed shard cannot be read."""
PREPARE_AGAIN = "Run prepare_data again."
_MAX_BITS = 31
"""Counts are 32-bit integers."""
_MAX_EXAMPLES = 5
"""Maximum number of clips named in a message."""


@dataclass(frozen=True)
class Incident:
    """A clip that cannot be used, or an update with NaN or Inf.

    It is a record, not an exception, because an exception would end the data iterator that raises it."""

    clip: str
    """Id of the clip; for a micro-batch, ids separated by commas."""
    stage: str
    """``read``, ``validation`` or ``update``."""
    kind: str
    """One of a few fixed values, by which incidents are counted."""
    message: str
    traceback: str = ""
    """Traceback of an unexpected error; empty for the errors that data may cause."""

    def __str__(self) -> str:
        return f"{self.clip}: {self.kind} ({self.message})"


@dataclass(frozen=True)
class Accounts:
    """Result of :meth:`ClipAccounting.save`: packed counts of each clip, and the rejected ones."""

    trained: str
    masked: str
    rejected: str
    rejections: list[Incident]


class ClipAccounting:
    """Counts this rank's uses of each clip in an epoch; the counts of all ranks are checked together at its end.

    Clips are identified by the ids in the batches, not by their positions in the sampler, so that bugs in sampling,
    reading or resuming are detected here.
    """

    def __init__(
        self,
        training: Sequence[str],
        held_out: Sequence[str],
        max_rejected_fraction: float,
        expected: Callable[[int], NDArray[np.int64]] | None = None,
        position: Callable[[str], int] | None = None,
        remedy: str = PREPARE_AGAIN,
    ) -> None:
        """Args:
        training: ids of the clips to train on, each once.
        held_out: ids of the validation clips, not trained on.
        max_rejected_fraction: of all clips; more rejections end the run.
        expected: how often each training clip occurs in the given epoch (None = once).
        position: index of an id in ``training``, or KeyError; for data sets with too many ids for a dict.
        remedy: sentence that ends the message about rejected clips.
        """
        self._remedy = remedy
        self.max_rejected_fraction = max_rejected_fraction
        self.clips = len(training) + len(held_out)
        self._expected = expected
        self._names = training
        self._position = position or {name: index for index, name in enumerate(training)}.__getitem__
        self._held_out = set(held_out)
        self._counts = self._zero_counts()
        self._rejections: dict[str, Incident] = {}

    @property
    def rejected_by_kind(self) -> dict[str, int]:
        """Number of clips rejected in this epoch on all ranks, and of rejected validation clips, by kind."""
        return dict(sorted(Counter(rejection.kind for rejection in self._rejections.values()).items()))

    def knows(self, clip: str) -> bool:
        """Returns whether the clip has already been rejected."""
        return clip in self._rejections

    def count(self, trained: Iterable[str], rejected: Iterable[str]) -> None:
        """Counts this rank's clips of one update."""
        self._count("trained", trained)
        self._count("rejected", rejected)

    def mask(self, trained: Iterable[str]) -> None:
        """Moves the clips of a masked update from trained to masked."""
        positions = self._positions(trained)
        np.add.at(self._counts["trained"], positions, -1)
        np.add.at(self._counts["masked"], positions, 1)

    def reject(self, rejections: Iterable[Incident]) -> None:
        """Records the clips rejected on all ranks.

        Raises:
            TooManyRejectedError: more than ``max_rejected_fraction``, or all validation clips; gives the reasons.
            UnreadableShardError: a rank cannot read a streamed shard.
        """
        rejections = list(rejections)
        unreadable = [rejection for rejection in rejections if rejection.kind == UNREADABLE]
        if unreadable:
            raise UnreadableShardError(f"{unreadable[0].message} Then resume with --resume_from_checkpoint latest.")
        self._rejections |= {rejection.clip: rejection for rejection in rejections}
        if len(self._rejections) > self.max_rejected_fraction * self.clips:
            raise TooManyRejectedError(
                f"{len(self._rejections)} of {self.clips} clips cannot be used, more than --max_rejected_fraction "
                f"{self.max_rejected_fraction:g} allows: {self._reason_summary()}. {self._remedy} Check that the "
                "voice's vocabulary covers the texts."
            )
        if self._held_out and self._held_out <= self._rejections.keys():
            raise TooManyRejectedError(
                f"None of the {len(self._held_out)} validation clips can be used: {self._reason_summary()}. "
                f"{self._remedy}"
            )

    def counts(self) -> NDArray[np.int32]:
        """Returns this rank's counts, (kinds, clips), to be summed over the ranks."""
        return np.stack(list(self._counts.values()))

    def finish_epoch(self, epoch: int, totals: NDArray[np.int32], not_reached: int = 0) -> str:
        """Checks the counts of an epoch and returns a summary; starts the next epoch if this one is complete.

        Args:
            epoch: from 0.
            totals: :meth:`counts`, summed over all ranks.
            not_reached: number of scheduled clips left when the run ended.

        Raises:
            AccountingError: a clip occurred more or less often than scheduled: a bug of vits_trainer.
            TooManyRejectedError: the epoch is complete, and no clip was trained on.
        """
        scheduled = np.ones(len(self._names), dtype=np.int64) if self._expected is None else self._expected(epoch)
        missing = scheduled - totals.sum(axis=0)
        too_often, too_rarely = np.flatnonzero((missing < 0) | (totals < 0).any(axis=0)), np.flatnonzero(missing > 0)
        once = bool((scheduled == 1).all())
        if len(too_often) or missing.sum() != not_reached:
            raise AccountingError(
                f"epoch {epoch + 1}: the clips do not add up. Used more {'than once' if once else 'often than due'}: "
                f"{self._examples(too_often)}; missing: {self._examples(too_rarely)}, expected {not_reached}. This is "
                "a bug of vits_trainer: report it with train.log."
            )
        # A clip that occurred several times counts once: as trained, else as masked, else as rejected.
        outcomes = (totals > 0)[:, (totals > 0).any(axis=0)].argmax(axis=0)
        trained, masked, rejected = (int(count) for count in np.bincount(outcomes, minlength=len(totals)))
        not_drawn = int((scheduled == 0).sum())
        lost = len(self._held_out & self._rejections.keys())
        parts = [f"{trained} trained", f"{rejected + lost} rejected", f"{len(self._held_out) - lost} validation"]
        parts += [f"{masked} in masked updates"] if masked else []
        parts += [f"{not_drawn} not drawn"] if not_drawn else []
        left = len(self._names) - len(outcomes) - not_drawn
        parts += [f"{left} not reached before the run ended"] if left else []
        summary = f"epoch {epoch + 1}: {' + '.join(parts)} = {counted(self.clips, 'clip')}"
        summary += "" if once else f"; {self._draw_summary(totals, not_reached)}"
        if not (trained or masked or not_reached):
            raise TooManyRejectedError(f"{summary}. Nothing was trained: {self._reason_summary()}. {self._remedy}")
        if not not_reached:
            self._start_epoch()
        return summary

    def save(self, totals: NDArray[np.int32]) -> dict[str, Any]:
        """Returns JSON values for a checkpoint, from :meth:`counts` summed over all ranks."""
        kinds = {kind: _pack(row) for kind, row in zip(self._counts, totals, strict=True)}
        return {**kinds, "rejections": [vars(rejection) for rejection in self._rejections.values()]}

    def restore(self, saved: Mapping[str, Any], is_main: bool, begins_epoch: bool) -> None:
        """Restores the result of :meth:`save`: the main rank gets the counts of all ranks, others zeros.

        Raises:
            CheckpointError: it is not such a result, or that of another number of clips.
        """
        remedy = "Resume from an earlier checkpoint."
        accounts = check(saved, "state.json: accounts", Accounts, CheckpointError, remedy)
        try:
            totals = {
                "trained": _unpack(accounts.trained, len(self._names)),
                "masked": _unpack(accounts.masked, len(self._names)),
                "rejected": _unpack(accounts.rejected, len(self._names)),
            }
        except ValueError as error:
            raise CheckpointError(f"state.json: accounts: are not those of these clips ({error}). {remedy}") from error
        for kind, row in self._counts.items():
            row[:] = totals[kind] if is_main else 0
        # A clip whose rejection ended the run was not counted: it occurs again.
        counted = {self._names[index] for index in np.flatnonzero(totals["rejected"]).tolist()}
        incidents = accounts.rejections
        self._rejections = {one.clip: one for one in incidents if one.stage == "validation" or one.clip in counted}
        if begins_epoch:
            self._start_epoch()

    def _start_epoch(self) -> None:
        self._counts = self._zero_counts()
        self._rejections = {name: one for name, one in self._rejections.items() if name in self._held_out}

    def _zero_counts(self) -> dict[str, NDArray[np.int32]]:
        return {kind: np.zeros(len(self._names), dtype=np.int32) for kind in ("trained", "masked", "rejected")}

    def _count(self, kind: str, names: Iterable[str]) -> None:
        np.add.at(self._counts[kind], self._positions(names), 1)

    def _positions(self, names: Iterable[str]) -> NDArray[np.int64]:
        try:
            return np.array([self._position(name) for name in names], dtype=np.int64)
        except KeyError as error:
            raise AccountingError(
                f"clip {error} was trained on, but is not a training clip. This is a bug of vits_trainer: "
                "report it with train.log."
            ) from error

    def _draw_summary(self, totals: NDArray[np.int32], not_reached: int) -> str:
        """Summary of the draws, where clips occur a varying number of times."""
        kinds = {kind: int(row.sum()) for kind, row in zip(self._counts, totals, strict=True)}
        kinds["not reached"] = not_reached
        parts = [f"{count} {kind}" for kind, count in kinds.items() if count]
        return f"{' + '.join(parts)} = {sum(kinds.values())} draws"

    def _examples(self, indices: NDArray[np.int64]) -> str:
        names = ", ".join(self._names[index] for index in indices[:_MAX_EXAMPLES])
        return f"{len(indices)} ({names}{', ...' if len(indices) > _MAX_EXAMPLES else ''})" if len(indices) else "none"

    def _reason_summary(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.rejected_by_kind.items())
        return f"{counts}; the first: {'; '.join(map(str, list(self._rejections.values())[:_MAX_EXAMPLES]))}"


def _pack(counts: NDArray[np.int64]) -> str:
    """Encodes small counts in hex: the lowest bit of every clip, then the next bit of every clip, and so on."""
    digits = np.arange(max(1, int(counts.max(initial=0)).bit_length()))
    return np.packbits(counts >> digits[:, None] & 1, axis=1).tobytes().hex()


def _unpack(text: str, clips: int) -> NDArray[np.int64]:
    """Decodes the result of :func:`_pack` for ``clips`` clips."""
    digits = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, -(-clips // 8))
    if len(digits) > _MAX_BITS:
        raise ValueError(f"counts of {len(digits)} bits")
    bits = np.unpackbits(digits, axis=1, count=clips).astype(np.int64)
    counts: NDArray[np.int64] = (bits << np.arange(len(bits))[:, None]).sum(axis=0)
    return counts
