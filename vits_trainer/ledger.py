"""What has become of each clip of a preparation, on the disk line by line: one that was killed goes on from there."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from vits_trainer.errors import DataError
from vits_trainer.files import lock
from vits_trainer.recordings import PCM16_BYTES, WAV_HEADER_BYTES, Reason

logger = logging.getLogger("vits_trainer")

JOURNAL = ".preparing.jsonl"


class Accepted(NamedTuple):
    """A clip that was written."""

    text: str
    speaker: str
    samples: int
    text_changed: bool


class LeftOut(NamedTuple):
    """A clip that was not."""

    clip_id: str
    reason: Reason
    detail: str


class Ledger:
    """The outcomes so far, in the order of the source; a process at a time, while it is entered.

    Raises:
        DataError: on entering, another process is at work there.
    """

    def __init__(self, output_dir: Path, asked: Mapping[str, Any]) -> None:
        """Args:
        output_dir: of the preparation, made if need be; wavs/ is in it.
        asked: what decides the outcomes. Those of another preparation are forgotten.
        """
        self.output_dir = output_dir
        self.asked = dict(asked)
        self.accepted: list[Accepted] = []
        self.entries: list[Accepted | LeftOut] = []
        self._file: Any = None

    def __enter__(self) -> "Ledger":
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._file = lock(self.output_dir / JOURNAL)
        if self._file is None:
            raise DataError(
                f"Another prepare_data is at work in {self.output_dir}. Wait for it, or choose another --output_dir."
            )
        self._take_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, entry: Accepted | LeftOut) -> None:
        """Writes down what has become of the next clip; the file of an accepted one lies in its place already."""
        self._keep(entry)
        self._write({"accepted" if isinstance(entry, Accepted) else "left_out": entry})

    def remove(self) -> None:
        """Once all is done."""
        (self.output_dir / JOURNAL).unlink()

    def _keep(self, entry: Accepted | LeftOut) -> None:
        self.entries.append(entry)
        if isinstance(entry, Accepted):
            self.accepted.append(entry)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()

    def _take_up(self) -> None:
        """Reads what is there, as far as it can be relied upon, and forgets the rest."""
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        trusted = 0
        if lines and lines[0] == (json.dumps({"asked": self.asked}) + "\n").encode():
            trusted = len(lines[0])
            for line in lines[1:]:
                entry = _entry(line)
                if entry is None or not self._is_there(entry):
                    break
                self._keep(entry)
                trusted += len(line)
            logger.info("Going on with %s, where %d clips were done.", self.output_dir, len(self.entries))
        self._file.truncate(trusted)
        if not trusted:
            self._write({"asked": self.asked})

    def _is_there(self, entry: Accepted | LeftOut) -> bool:
        """Whether a clip's file is whole: after a loss of power it may be empty."""
        if isinstance(entry, LeftOut):
            return True
        file = self.output_dir / "wavs" / wav_name(len(self.accepted))
        return file.is_file() and file.stat().st_size == WAV_HEADER_BYTES + PCM16_BYTES * entry.samples


def wav_name(number: int) -> str:
    """Of the accepted clip ``number``, from 0."""
    return f"audio_{number:06d}.wav"


def _entry(line: bytes) -> Accepted | LeftOut | None:
    """None for a line that was being written when the process was killed."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if "accepted" in record:
        return Accepted(*record["accepted"])
    clip_id, reason, detail = record["left_out"]
    return LeftOut(clip_id, Reason(reason), detail)
