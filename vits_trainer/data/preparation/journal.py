"""Append-only journals of a preparation, from which an interrupted prepare_data resumes."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypedDict, TypeVar

from vits_trainer.data.audio import PCM16_BYTES, WAV_HEADER_BYTES, Reason
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import discard, try_lock

logger = logging.getLogger(__name__)

JOURNAL = ".preparing.jsonl"

_Self = TypeVar("_Self", bound="Journal")


class AcceptedClip(NamedTuple):
    """A clip that was written."""

    text: str
    speaker: str
    samples: int
    text_changed: bool
    source: str = ""
    """Name of the clip in the source."""
    audio_digest: str = ""
    """Hexadecimal digest of the samples; empty in journals of earlier versions."""


class RejectedClip(NamedTuple):
    """A clip that was rejected."""

    clip_id: str
    reason: Reason
    detail: str


class Journal(ABC):
    """A file of JSON lines, flushed after each line, and locked while the context is entered.

    Entering reads the entries of an interrupted preparation with the same fingerprint, up to the first invalid one.

    Raises:
        DataError: on entering, if another process has locked the file.
    """

    unit = "entries"
    """What the lines stand for, in the log."""
    line_type: Any
    """Type of a line, as JSON."""

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Args:
        path: of the file. Its folder is created if necessary.
        fingerprint: of the source and the settings. Entries written under another fingerprint are discarded.
        """
        self.path = path
        self.fingerprint = dict(fingerprint)
        self._file: Any = None

    def __enter__(self: _Self) -> _Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = try_lock(self.path)
        if self._file is None:
            raise DataError(
                f"Another prepare_data is running in {self.path.parent}. Wait for it, or choose another --output_dir."
            )
        self._resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Deletes the file; call it when the preparation is complete."""
        discard(self.path)

    @abstractmethod
    def _restore(self, record: Any) -> bool:
        """Adds the entry of an earlier line, and returns whether it is valid: the file that it describes is intact."""

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(record) + "\n").encode())
        self._file.flush()

    def _resume(self) -> None:
        """Reads the entries up to the first invalid one, and truncates the file there."""
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        valid_bytes = kept = 0
        if lines and lines[0] == (json.dumps({"asked": self.fingerprint}) + "\n").encode():
            valid_bytes = len(lines[0])
            for line in lines[1:]:
                # A line without a newline was incomplete when the process was killed.
                record = records.parse_json_line(line, self.line_type) if line.endswith(b"\n") else None
                if record is None or not self._restore(record):
                    break
                valid_bytes += len(line)
                kept += 1
            logger.info("Resuming in %s: %d %s already done.", self.path.parent, kept, self.unit)
        self._file.truncate(valid_bytes)
        if not valid_bytes:
            self._write({"asked": self.fingerprint})


class _ClipLine(TypedDict, total=False):
    """Has one of the two."""

    accepted: AcceptedClip
    left_out: RejectedClip


class ClipJournal(Journal):
    """The outcome of each clip so far, in the order of the source."""

    unit = "clips"
    line_type = _ClipLine

    def __init__(self, output_dir: Path, fingerprint: Mapping[str, Any]) -> None:
        """Args:
        output_dir: of the preparation, with wavs/ in it. Created if necessary.
        fingerprint: of the source and the settings. Entries written under another fingerprint are discarded.
        """
        super().__init__(output_dir / JOURNAL, fingerprint)
        self.output_dir = output_dir
        self.accepted: list[AcceptedClip] = []
        self.entries: list[AcceptedClip | RejectedClip] = []
        self.numbers: list[int] = []
        """Number of each accepted clip in its name. A dropped clip leaves a gap: the others keep their names."""
        self._dropped = 0

    @property
    def next_number(self) -> int:
        """Number of the next accepted clip."""
        return len(self.accepted) + self._dropped

    @property
    def names(self) -> list[str]:
        """File names of the accepted clips."""
        return [wav_name(number) for number in self.numbers]

    def add(self, entry: AcceptedClip | RejectedClip) -> None:
        """Records the outcome of the next clip. The file of an accepted clip must already be in wavs/."""
        self._add(entry)
        self._write({"accepted" if isinstance(entry, AcceptedClip) else "left_out": entry})

    def _add(self, entry: AcceptedClip | RejectedClip) -> None:
        self.entries.append(entry)
        if isinstance(entry, AcceptedClip):
            self.numbers.append(self.next_number)
            self.accepted.append(entry)
        elif entry.reason == Reason.DROPPED:
            self._dropped += 1

    def _restore(self, record: Any) -> bool:
        entry = record.get("accepted", record.get("left_out"))
        valid = entry is not None and self._is_intact(entry)
        if valid:
            self._add(entry)
        return valid

    def _is_intact(self, entry: AcceptedClip | RejectedClip) -> bool:
        """Whether a clip's file has its full size: after a power loss it may be empty."""
        if isinstance(entry, RejectedClip):
            return True
        file = self.output_dir / "wavs" / wav_name(self.next_number)
        return file.is_file() and file.stat().st_size == WAV_HEADER_BYTES + PCM16_BYTES * entry.samples


def wav_name(number: int, part: str = "") -> str:
    """Returns the file name of accepted clip ``number``, from 0; ``part`` is a prefix if there are several parts."""
    return f"audio_{part}{number:06d}.wav"
