"""User feedback on a voice: corrections as NAME.wav with NAME.txt, and marks, within limits. No torch, no gradio."""

import calendar
import json
import logging
import re
import secrets
import threading
import time
import unicodedata
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.audio import (
    MIN_DURATION_S,
    PCM16_BYTES,
    WAV_HEADER_BYTES,
    Reason,
    RecordingError,
    read_recording,
    require_loudness,
    to_pcm16,
    to_rate,
    write_pcm16_wav,
)
from vits_trainer.data.sources.corrections import SPEAKER_ENDING, read_speaker
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write, atomic_writer, discard, try_lock
from vits_trainer.utils.records import parse_json_line, read_lines
from vits_trainer.utils.strings import ordinary_spaces, single_spaces

logger = logging.getLogger(__name__)

MARKS_FILE = "marks.jsonl"
SILENCE_DBFS = -60.0
"""Quieter recordings come from a muted microphone."""
_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
"""UTC time of saving and a random suffix; file names contain no user input."""
_ENDING = re.compile(r"(wav|txt|speaker)((\.[0-9a-f]{8})?\.part)?")
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_HOUR_S = 3600.0
_ALL_CLIENTS_FACTOR = 4
"""Limit of all clients together, as a multiple of the limit per client."""
_MARKS_FACTOR = 10
"""Limit of marks, as a multiple of the limit of corrections."""
_LISTED_BYTES = 16 * 2**10
"""Maximum bytes of a text that are read, as other programs can write to the directory."""

_REJECTION_MESSAGES = {
    Reason.TRUNCATED_AUDIO: "The recording is truncated ({detail}). Upload the complete file.",
    Reason.UNREADABLE_AUDIO: "This file cannot be read as audio ({detail}). Use WAV, FLAC, MP3 or Ogg.",
    Reason.UNSUPPORTED_AUDIO: "The recording has {detail}. Use 1 to 8 channels at 4 to 192 kHz.",
    Reason.EMPTY_AUDIO: "The recording is empty. Record it again.",
    Reason.TOO_SHORT: "The recording is too short ({detail}).",
    Reason.TOO_LONG: "The recording is too long ({detail}).",
    Reason.NON_FINITE_AUDIO: "The recording contains NaN or Inf samples. Record it again.",
    Reason.TOO_QUIET: "The recording is silent ({detail}). Check the microphone.",
    Reason.MISSING_FILE: "The recording no longer exists. Record or upload it again.",
}


@dataclass(frozen=True)
class Limits:
    """Limits on the size and number of corrections."""

    max_clip_s: float = 30.0
    max_upload_bytes: int = 20 * 2**20
    max_corrections_per_hour: int = 60
    """Limit per client; four times as many for all clients together."""
    max_text_characters: int = 400


@dataclass(frozen=True)
class Correction:
    """A complete pair of recording and text."""

    name: str
    text: str
    duration_s: float
    saved_s: float
    """Unix time of saving, from the name."""
    speaker: str | None = None
    """Of a voice with several."""


@dataclass(frozen=True)
class Rating:
    """A user's rating of generated speech."""

    text: str
    mark: Literal["right", "wrong"]
    seed: int
    model: str
    """SHA-256 of the weights that generated it."""
    speaker: str | None = None
    """Of a voice with several."""


class _Mark(TypedDict):
    """What is read of a line of marks.jsonl."""

    text: str
    mark: Literal["right", "wrong"]


class RateLimit:
    """Limits the events per hour, per client and for all clients together."""

    def __init__(self, per_client: int, overall: int, now: Callable[[], float] = time.monotonic) -> None:
        self.per_client = per_client
        self.overall = overall
        self._now = now
        self._times_s: dict[str, deque[float]] = defaultdict(deque)

    def require(self, client: str, events: str) -> None:
        """Raises :class:`DataError` if ``client`` has reached a limit. :meth:`record` counts an event."""
        self._drop_expired()
        own = self._times_s.get(client, deque())
        everyone = sorted(time_s for times_s in self._times_s.values() for time_s in times_s)
        for times_s, limit, scope in (
            (list(own), self.per_client, "per user"),
            (everyone, self.overall, "for all users"),
        ):
            if len(times_s) >= limit:
                wait_min = max(1, round((times_s[-limit] + _HOUR_S - self._now()) / 60))
                raise DataError(
                    f"Too many {events}: the limit {scope} is {limit} per hour. Try again in {wait_min} min."
                )

    def record(self, client: str) -> None:
        """Counts one event."""
        self._times_s[client].append(self._now())

    def _drop_expired(self) -> None:
        since_s = self._now() - _HOUR_S
        for client, times_s in list(self._times_s.items()):
            while times_s and times_s[0] <= since_s:
                times_s.popleft()
            if not times_s:
                del self._times_s[client]


class Corrections:
    """The directory of corrections read by ``train_feedback``. Thread-safe; only one instance per directory."""

    def __init__(self, folder: Path, rate_hz: int, limits: Limits) -> None:
        """Creates the directory if needed and deletes incomplete pairs left by a crash.

        Args:
            folder: directory of the pairs and marks.jsonl.
            rate_hz: sampling rate of the voice.
            limits: enforced by :meth:`add` and :meth:`mark`.

        Raises:
            DataError: the directory cannot be created or written, or is in use.
        """
        self.folder = folder
        self.rate_hz = rate_hz
        self.limits = limits
        hourly = limits.max_corrections_per_hour
        self._saving = RateLimit(hourly, _ALL_CLIENTS_FACTOR * hourly)
        self._marking = RateLimit(_MARKS_FACTOR * hourly, _MARKS_FACTOR * _ALL_CLIENTS_FACTOR * hourly)
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder_lock = try_lock(folder / ".in_use")
            if self._folder_lock is None:
                raise DataError(f"{folder} is in use by another feedback_app. Stop it, or pass another --feedback_dir.")
            self._delete_incomplete()
        except OSError as error:
            raise DataError(f"{folder}: cannot be used ({error.strerror}). Pass another --feedback_dir.") from error

    def close(self) -> None:
        """Releases the directory."""
        if self._folder_lock is not None:
            self._folder_lock.close()

    def add(self, text: str, recording: Path, client: str, speaker: str | None = None) -> Correction:
        """Saves a recording of ``text``. Incomplete pairs are never listed, even if the process is killed.

        Args:
            text: text of the recording.
            recording: a file in any format of libsndfile; not modified.
            client: client for the hourly limit.
            speaker: of a voice with several.

        Raises:
            DataError: a limit is exceeded, the text or the recording is unusable, or the disk is full. The message is
                suitable for users, and no files are left.
        """
        cleaned = normalize_text(text, self.limits.max_text_characters)
        with self._lock:
            self._saving.require(client, "corrections")
            samples = self.read(recording)
            name = f"{time.strftime(_TIME_FORMAT, time.gmtime())}-{secrets.token_hex(4)}"
            wav, txt = self._paths(name)
            try:
                if speaker is not None:
                    atomic_write(wav.with_suffix(SPEAKER_ENDING), f"{speaker}\n")
                atomic_write(txt, f"{cleaned}\n")
                with atomic_writer(wav) as part:
                    write_pcm16_wav(part, to_pcm16(samples), self.rate_hz)
            except OSError as error:
                for path in (wav, txt, wav.with_suffix(SPEAKER_ENDING)):
                    discard(path)
                raise DataError(f"The correction could not be saved: {error.strerror}.") from error
            self._saving.record(client)
        return Correction(name, cleaned, len(samples) / self.rate_hz, _saved_s(name), speaker)

    def read(self, recording: Path) -> NDArray[np.float32]:
        """Reads a recording as it would be saved: samples (T,), full scale 1, at the voice's sampling rate.

        Raises:
            DataError: the recording is too large, too long, too short, silent or unreadable.
        """
        try:
            size_bytes = recording.stat().st_size if recording.exists() else 0
            if size_bytes > self.limits.max_upload_bytes:
                size_mb, limit_mb = (size / 2**20 for size in (size_bytes, self.limits.max_upload_bytes))
                raise DataError(f"The file is too large: {size_mb:.1f} MB, at most {limit_mb:g} MB.")
            samples, rate_hz = read_recording(recording, MIN_DURATION_S, self.limits.max_clip_s)
            require_loudness(samples, SILENCE_DBFS)
        except RecordingError as error:
            logger.info("Rejected a recording: %s", error)
            message = _REJECTION_MESSAGES.get(error.rejection.reason, "The recording cannot be used ({detail}).")
            raise DataError(message.format(detail=error.rejection.detail)) from error
        return to_rate(samples, rate_hz, self.rate_hz)

    def all(self) -> list[Correction]:
        """Returns the pairs saved by this program, newest first."""
        names = sorted((path.stem for path in self.folder.glob("*.wav") if _NAME.fullmatch(path.stem)), reverse=True)
        return [correction for correction in map(self._find, names) if correction is not None]

    def count_external(self) -> int:
        """Counts the texts added by other programs, which are used for training but not listed or deleted."""
        return sum(not _NAME.fullmatch(path.stem) for path in self.folder.glob("*.txt"))

    def wav(self, name: str) -> Path:
        """Returns the path of a correction's recording.

        Raises:
            DataError: the correction does not exist.
        """
        if self._find(name) is None:
            raise DataError("This correction no longer exists.")
        return self._paths(name)[0]

    def delete(self, name: str) -> None:
        """Deletes a pair.

        Raises:
            DataError: the correction does not exist or cannot be deleted.
        """
        with self._lock:
            self.wav(name)
            try:
                wav, txt = self._paths(name)
                for path in (wav, txt, wav.with_suffix(SPEAKER_ENDING)):  # without the .wav, the pair is not listed
                    discard(path)
            except OSError as error:
                raise DataError(f"The correction could not be deleted: {error.strerror}.") from error

    def mark(self, mark: Rating, client: str) -> None:
        """Appends a line to marks.jsonl.

        Raises:
            DataError: a limit is exceeded, or the line cannot be written.
        """
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(mark)})
        with self._lock:
            self._marking.require(client, "marks")
            try:
                with (self.folder / MARKS_FILE).open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            except OSError as error:
                raise DataError(f"The mark could not be saved: {error.strerror}.") from error
            self._marking.record(client)

    def ratings(self) -> dict[str, str]:
        """Returns the last mark of each text, by text; damaged lines of marks.jsonl are skipped."""
        path = self.folder / MARKS_FILE
        lines = read_lines(path) if path.is_file() else ()
        marks = (parse_json_line(line, _Mark) for line in lines)
        return {mark["text"]: mark["mark"] for mark in marks if mark is not None}

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.wav", self.folder / f"{name}.txt"

    def _find(self, name: str) -> Correction | None:
        if not _NAME.fullmatch(name):
            return None
        wav, txt = self._paths(name)
        try:
            if not all(path.is_file() and not path.is_symlink() for path in (wav, txt)):
                return None
            size_bytes = wav.stat().st_size
            with txt.open("rb") as file:
                text = file.read(_LISTED_BYTES).decode("utf-8", errors="replace")
        except OSError:
            return None
        seconds = max(0, size_bytes - WAV_HEADER_BYTES) / PCM16_BYTES / self.rate_hz
        return Correction(name, text.strip(), seconds, _saved_s(name), read_speaker(wav))

    def _delete_incomplete(self) -> None:
        for path in list(self.folder.iterdir()):
            name, _, ending = path.name.lstrip(".").partition(".")
            if not _NAME.fullmatch(name) or not _ENDING.fullmatch(ending):
                continue
            if ending.endswith(".part") or not all(other.exists() for other in self._paths(name)):
                logger.info("Deleted %s, an incomplete correction left by a crash", path)
                discard(path)


def normalize_text(text: str, max_characters: int) -> str:
    """Returns the text as one line without control characters, with white space collapsed.

    Raises:
        DataError: no speakable text remains, or it has more than ``max_characters``.
    """
    spaced = ordinary_spaces(text)
    # Cc: control characters including NUL. Cs: surrogates, which cannot be encoded.
    kept = "".join(character for character in spaced if unicodedata.category(character) not in ("Cc", "Cs"))
    cleaned = single_spaces(kept)
    if not any(map(str.isalnum, cleaned)):
        raise DataError("The text has nothing to speak. Type a sentence.")
    if len(cleaned) > max_characters:
        raise DataError(f"The text is too long: {len(cleaned)} characters, at most {max_characters}.")
    return cleaned


def _saved_s(name: str) -> float:
    return calendar.timegm(time.strptime(name.partition("-")[0], _TIME_FORMAT))
