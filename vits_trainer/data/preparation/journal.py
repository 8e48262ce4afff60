"""What has become of each clip of a preparation, on the disk line by line: one that was killed goes on from there."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from vits_trainer.data.audio import PCM16_BYTES, WAV_HEADER_BYTES, Reason
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import discard, try_lock

logger = logging.getLogger("vits_trainer")

JOURNAL = ".preparing.jsonl"

_Own = TypeVar("_Own", bound="Journal")


class AcceptedClip(NamedTuple):
    """A clip that was written."""

    text: str
    speaker: str
    samples: int
    text_changed: bool


class RejectedClip(NamedTuple):
    """A clip that was not."""

    clip_id: str
    reason: Reason
    detail: str


class Journal(ABC):
    """Lines of JSON, on the disk as they come; a process at a time, while it is entered.

    Raises:
        DataError: on entering, another process is at work there.
    """

    unit = "entries"
    """What a line tells of, in the log."""

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Args:
        path: of the file, whose folder is made if need be.
        fingerprint: what decides the content. That of another preparation is forgotten.
        """
        self.path = path
        self.fingerprint = dict(fingerprint)
        self._file: Any = None

    def __enter__(self: _Own) -> _Own:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = try_lock(self.path)
        if self._file is None:
            raise DataError(
                f"Another prepare_data is at work in {self.path.parent}. Wait for it, or choose another --output_dir."
            )
        self._take_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Once all is done."""
        discard(self.path)

    @abstractmethod
    def _keep(self, record: Any) -> bool:
        """Takes up a line of before, if what it says can be relied upon."""

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(record) + "\n").encode())
        self._file.flush()

    def _take_up(self) -> None:
        """Reads what is there, as far as it can be relied upon, and forgets the rest."""
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        trusted = kept = 0
        if lines and lines[0] == (json.dumps({"asked": self.fingerprint}) + "\n").encode():
            trusted = len(lines[0])
            for line in lines[1:]:
                record = _whole(line)
                if record is None or not self._keep(record):
                    break
                trusted += len(line)
                kept += 1
            logger.info("Going on with %s, where %d %s were done.", self.path.parent, kept, self.unit)
        self._file.truncate(trusted)
        if not trusted:
            self._write({"asked": self.fingerprint})


class ClipJournal(Journal):
    """The outcomes of the clips so far, in the order of the source."""

    unit = "clips"

    def __init__(self, output_dir: Path, fingerprint: Mapping[str, Any]) -> None:
        """Args:
        output_dir: of the preparation, made if need be; wavs/ is in it.
        fingerprint: what decides the outcomes. Those of another preparation are forgotten.
        """
        super().__init__(output_dir / JOURNAL, fingerprint)
        self.output_dir = output_dir
        self.accepted: list[AcceptedClip] = []
        self.entries: list[AcceptedClip | RejectedClip] = []

    def add(self, entry: AcceptedClip | RejectedClip) -> None:
        """Writes down what has become of the next clip; the file of an accepted one lies in its place already."""
        self._add(entry)
        self._write({"accepted" if isinstance(entry, AcceptedClip) else "left_out": entry})

    def _add(self, entry: AcceptedClip | RejectedClip) -> None:
        self.entries.append(entry)
        if isinstance(entry, AcceptedClip):
            self.accepted.append(entry)

    def _keep(self, record: Any) -> bool:
        entry = AcceptedClip(*record["accepted"]) if "accepted" in record else left_out(record["left_out"])
        trusted = self._is_there(entry)
        if trusted:
            self._add(entry)
        return trusted

    def _is_there(self, entry: AcceptedClip | RejectedClip) -> bool:
        """Whether a clip's file is whole: after a loss of power it may be empty."""
        if isinstance(entry, RejectedClip):
            return True
        file = self.output_dir / "wavs" / wav_name(len(self.accepted))
        return file.is_file() and file.stat().st_size == WAV_HEADER_BYTES + PCM16_BYTES * entry.samples


def wav_name(number: int, part: str = "") -> str:
    """Of the accepted clip ``number``, from 0, with a word for the part where there are several."""
    return f"audio_{part}{number:06d}.wav"


def left_out(line: tuple[str, str, str]) -> RejectedClip:
    """What JSON made of a :class:`RejectedClip`."""
    clip_id, reason, detail = line
    return RejectedClip(clip_id, Reason(reason), detail)


def _whole(line: bytes) -> Any:
    """None for a line that was being written when the process was killed."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None
