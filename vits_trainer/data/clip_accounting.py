"""What becomes of every clip in an epoch: nothing is left out uncounted, and nothing is taken more often than due."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vits_trainer.utils.errors import AccountingError, TooManyRejectedError, UnreadableShardError

UNREADABLE = "unreadable-shard"
"""The kind of incident by which a data worker tells that what it streams from does not answer."""
_FIRST = 5
"""As many clips are named in a message."""


@dataclass(frozen=True)
class Incident:
    """A clip that could not be used, or an update that came to no finite number: a record, as an error would end the
    iterator that meets it."""

    clip: str
    """Its id; several between commas where they were one micro-batch."""
    stage: str
    """``read``, ``validation`` or ``update``."""
    kind: str
    """One of few words, to be counted by."""
    message: str
    traceback: str = ""
    """The traceback, where the error was none that is expected of data."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.clip}: {self.kind} ({self.message})"


class ClipAccounting:
    """Counts what this rank does with each clip in an epoch; the ranks' counts add up at its end.

    Clips are told apart by id as the batches bring them, not by their places in the order, so that a mistake in the
    order, in reading or in resuming shows here.
    """

    def __init__(
        self,
        training: Sequence[str],
        held_out: Sequence[str],
        max_rejected_fraction: float,
        expected: Callable[[int], NDArray[np.int64]] | None = None,
        position: Callable[[str], int] | None = None,
    ) -> None:
        """Args:
        training: ids of the clips to train on, each once.
        held_out: ids of those to validate with; none of them is trained on.
        max_rejected_fraction: of all clips; more end the run.
        expected: how often each training clip comes in an epoch (None = once).
        position: finds an id's place in ``training``, or raises KeyError; for where they are too many to be listed.
        """
        self.max_rejected_fraction = max_rejected_fraction
        self.clips = len(training) + len(held_out)
        self._expected = expected
        self._names = training
        self._place = position or {name: place for place, name in enumerate(training)}.__getitem__
        self._held_out = set(held_out)
        self._counts = self._nothing()
        self._rejections: dict[str, Incident] = {}

    @property
    def rejected_by_kind(self) -> dict[str, int]:
        """Clips of all ranks that could not be used in this epoch, and validation's."""
        return dict(sorted(Counter(rejection.kind for rejection in self._rejections.values()).items()))

    def knows(self, clip: str) -> bool:
        """Whether it was rejected already."""
        return clip in self._rejections

    def count(self, trained: Iterable[str], rejected: Iterable[str]) -> None:
        """Counts the clips of one update of this rank's."""
        self._count("trained", trained)
        self._count("rejected", rejected)

    def mask(self, trained: Iterable[str]) -> None:
        """The clips of an update that was masked did not reach the weights after all."""
        places = self._places(trained)
        np.add.at(self._counts["trained"], places, -1)
        np.add.at(self._counts["masked"], places, 1)

    def reject(self, rejections: Iterable[Incident]) -> None:
        """Notes what all ranks could not use.

        Raises:
            TooManyRejectedError: more than the part that may be lost, or all of validation's; gives the reasons.
            UnreadableShardError: a stream's shard cannot be read on a rank.
        """
        rejections = list(rejections)
        unreadable = [rejection for rejection in rejections if rejection.kind == UNREADABLE]
        if unreadable:
            raise UnreadableShardError(f"{unreadable[0].message} Then go on with --resume_from_checkpoint auto.")
        self._rejections |= {rejection.clip: rejection for rejection in rejections}
        if len(self._rejections) > self.max_rejected_fraction * self.clips:
            raise TooManyRejectedError(
                f"{len(self._rejections)} of {self.clips} clips cannot be used, more than --max_rejected_fraction "
                f"{self.max_rejected_fraction:g} allows: {self._reasons()}. Run prepare_data again, and compare the "
                "voice's vocabulary with the texts."
            )
        if self._held_out and self._held_out <= self._rejections.keys():
            raise TooManyRejectedError(
                f"Not one of the {len(self._held_out)} held-out clips can be used: {self._reasons()}. Prepare again."
            )

    def counts(self) -> NDArray[np.int32]:
        """This rank's counts, (kinds, clips), to be added up over the ranks."""
        return np.stack(list(self._counts.values()))

    def finish_epoch(self, epoch: int, totals: NDArray[np.int32], not_reached: int = 0) -> str:
        """Says how an epoch's clips add up, and begins the next one where all have had their turn.

        Args:
            epoch: from 0.
            totals: :meth:`counts` of all ranks, added up.
            not_reached: how many of the training clips' turns the end of the run left out.

        Raises:
            AccountingError: a clip was taken more often than due, or left out: our own bug.
            TooManyRejectedError: not one clip was trained on, though all of them had their turn.
        """
        due = np.ones(len(self._names), dtype=np.int64) if self._expected is None else self._expected(epoch)
        missing = due - totals.sum(axis=0)
        twice, never = np.flatnonzero((missing < 0) | (totals < 0).any(axis=0)), np.flatnonzero(missing > 0)
        once = bool((due == 1).all())
        if len(twice) or missing.sum() != not_reached:
            raise AccountingError(
                f"epoch {epoch + 1}: the clips do not add up. Taken more {'than once' if once else 'often than due'}: "
                f"{self._some(twice)}; not taken: {self._some(never)}, where {not_reached} were to be left. This is a "
                "bug of vits_trainer: report it with train.log."
            )
        # A clip that came several times counts once: as trained, else as masked, else as rejected.
        fates = (totals > 0)[:, (totals > 0).any(axis=0)].argmax(axis=0)
        trained, masked, rejected = (int(count) for count in np.bincount(fates, minlength=len(totals)))
        not_drawn = int((due == 0).sum())
        lost = len(self._held_out & self._rejections.keys())
        parts = [f"{trained} trained", f"{rejected + lost} rejected", f"{len(self._held_out) - lost} validation"]
        parts += [f"{masked} in masked updates"] if masked else []
        parts += [f"{not_drawn} not drawn"] if not_drawn else []
        left = len(self._names) - len(fates) - not_drawn
        parts += [f"{left} not reached, as the run ended before"] if left else []
        words = f"epoch {epoch + 1}: {' + '.join(parts)} = {self.clips} clips"
        words += "" if once else f"; {self._draws(totals, not_reached)}"
        if not (trained or masked or not_reached):
            raise TooManyRejectedError(f"{words}. Nothing was trained: {self._reasons()}. Run prepare_data again.")
        if not not_reached:
            self._begin_epoch()
        return words

    def save(self, totals: NDArray[np.int32]) -> dict[str, Any]:
        """Plain values for a checkpoint, from :meth:`counts` of all ranks, added up."""
        kinds = {kind: _packed(row) for kind, row in zip(self._counts, totals, strict=True)}
        return {**kinds, "rejections": [vars(rejection) for rejection in self._rejections.values()]}

    def restore(self, saved: Mapping[str, Any], is_main: bool, begins_epoch: bool) -> None:
        """Takes up what :meth:`save` gave: the main rank has the counts of all, the others begin with none."""
        for kind, row in self._counts.items():
            row[:] = _unpacked(saved[kind], len(row)) if is_main else 0
        # A clip whose rejection ended the run was not taken: it comes again.
        taken = {
            self._names[place] for place in np.flatnonzero(_unpacked(saved["rejected"], len(self._names))).tolist()
        }
        known = [Incident(**found) for found in saved["rejections"]]
        self._rejections = {found.clip: found for found in known if found.stage == "validation" or found.clip in taken}
        if begins_epoch:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._counts = self._nothing()
        self._rejections = {name: found for name, found in self._rejections.items() if name in self._held_out}

    def _nothing(self) -> dict[str, NDArray[np.int32]]:
        return {kind: np.zeros(len(self._names), dtype=np.int32) for kind in ("trained", "masked", "rejected")}

    def _count(self, kind: str, names: Iterable[str]) -> None:
        np.add.at(self._counts[kind], self._places(names), 1)

    def _places(self, names: Iterable[str]) -> NDArray[np.int64]:
        try:
            return np.array([self._place(name) for name in names], dtype=np.int64)
        except KeyError as error:
            raise AccountingError(
                f"clip {error} was trained on, and is none of the training clips. This is a bug of vits_trainer: "
                "report it with train.log."
            ) from error

    def _draws(self, totals: NDArray[np.int32], not_reached: int) -> str:
        """The turns of clips that come several times: each is counted."""
        kinds = {kind: int(row.sum()) for kind, row in zip(self._counts, totals, strict=True)}
        kinds["not reached"] = not_reached
        parts = [f"{count} {kind}" for kind, count in kinds.items() if count]
        return f"{' + '.join(parts)} = {sum(kinds.values())} draws"

    def _some(self, places: NDArray[np.int64]) -> str:
        named = ", ".join(self._names[place] for place in places[:_FIRST])
        return f"{len(places)} ({named}{', ...' if len(places) > _FIRST else ''})" if len(places) else "none"

    def _reasons(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.rejected_by_kind.items())
        return f"{counts}; the first: {'; '.join(map(str, list(self._rejections.values())[:_FIRST]))}"


def _packed(counts: NDArray[np.int64]) -> str:
    """Small counts in hex: a bit for each, then the next bit for each while there is one."""
    digits = np.arange(max(1, int(counts.max(initial=0)).bit_length()))
    return np.packbits(counts >> digits[:, None] & 1, axis=1).tobytes().hex()


def _unpacked(text: str, clips: int) -> NDArray[np.int64]:
    """The counts of so many clips that :func:`_packed` wrote."""
    digits = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, -(-clips // 8))
    bits = np.unpackbits(digits, axis=1, count=clips).astype(np.int64)
    counts: NDArray[np.int64] = (bits << np.arange(len(bits))[:, None]).sum(axis=0)
    return counts
