"""What users say of a voice: corrections as NAME.wav with NAME.txt, and marks, within limits. No torch, no gradio."""

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
from typing import Literal

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
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write, atomic_writer, discard, try_lock

logger = logging.getLogger(__name__)

MARKS_FILE = "marks.jsonl"
SILENCE_DBFS = -60.0
"""A recording that is softer came from a microphone that was muted."""
_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
"""When it was saved, in UTC, and chance: what the user writes is in no file's name."""
_ENDING = re.compile(r"(wav|txt)((\.[0-9a-f]{8})?\.part)?")
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_HOUR_S = 3600.0
_ALL_CLIENTS = 4
"""All clients together may save this many times what one may."""
_MARKS = 10
"""Marks that a client may set for each correction that it may save."""
_LISTED_BYTES = 16 * 2**10
"""The most of a text that is read, as other programs can write into the folder."""

_IN_PLAIN_WORDS = {
    Reason.TRUNCATED_AUDIO: "The recording is cut off ({detail}): upload the whole file.",
    Reason.UNREADABLE_AUDIO: "This file cannot be read as audio ({detail}): give WAV, FLAC, MP3 or Ogg.",
    Reason.UNSUPPORTED_AUDIO: "The recording has {detail}: give 1 to 8 channels at 4 to 192 kHz.",
    Reason.EMPTY_AUDIO: "The recording is empty: record it again.",
    Reason.TOO_SHORT: "The recording is too short ({detail}).",
    Reason.TOO_LONG: "The recording is too long ({detail}).",
    Reason.NON_FINITE_AUDIO: "The recording holds samples that are no numbers: record it again.",
    Reason.TOO_QUIET: "Nothing can be heard in the recording ({detail}): is the microphone on?",
    Reason.MISSING_FILE: "The recording is no longer there: record or upload it again.",
}


@dataclass(frozen=True)
class Limits:
    """What one correction may be, and how many there may be."""

    max_clip_s: float = 30.0
    max_upload_bytes: int = 20 * 2**20
    max_corrections_per_hour: int = 60
    """From one client; four times as many from all together."""
    max_text_characters: int = 400


@dataclass(frozen=True)
class Correction:
    """A pair that is whole."""

    name: str
    text: str
    duration_s: float
    saved_s: float
    """Unix time, from the name."""


@dataclass(frozen=True)
class Mark:
    """What a user thinks of one rendering."""

    text: str
    mark: Literal["right", "wrong"]
    seed: int
    model: str
    """SHA-256 of the weights that spoke."""


class RateLimit:
    """At most so many events in any hour, from one client and from all together."""

    def __init__(self, per_client: int, overall: int, now: Callable[[], float] = time.monotonic) -> None:
        self.per_client = per_client
        self.overall = overall
        self._now = now
        self._times_s: dict[str, deque[float]] = defaultdict(deque)

    def require(self, client: str, what: str) -> None:
        """Raises :class:`DataError` where ``client`` must wait before one more; :meth:`note` counts it."""
        self._forget()
        own = self._times_s.get(client, deque())
        everyone = sorted(moment for times_s in self._times_s.values() for moment in times_s)
        for times_s, limit, whose in ((list(own), self.per_client, "you"), (everyone, self.overall, "everyone here")):
            if len(times_s) >= limit:
                wait_min = max(1, round((times_s[-limit] + _HOUR_S - self._now()) / 60))
                raise DataError(f"Too many {what}: {whose} may save {limit} in an hour. Try again in {wait_min} min.")

    def note(self, client: str) -> None:
        """Counts one event."""
        self._times_s[client].append(self._now())

    def _forget(self) -> None:
        since_s = self._now() - _HOUR_S
        for client, times_s in list(self._times_s.items()):
            while times_s and times_s[0] <= since_s:
                times_s.popleft()
            if not times_s:
                del self._times_s[client]


class Corrections:
    """The folder that ``train_feedback`` reads. Several threads may use it, and one object at a time."""

    def __init__(self, folder: Path, rate_hz: int, limits: Limits) -> None:
        """Makes the folder where it is absent, and clears away what a crash left of half a pair.

        Args:
            folder: holds the pairs and marks.jsonl.
            rate_hz: of the voice.
            limits: are kept by :meth:`add` and :meth:`mark`.

        Raises:
            DataError: the folder cannot be made or written to, or is in use.
        """
        self.folder = folder
        self.rate_hz = rate_hz
        self.limits = limits
        hourly = limits.max_corrections_per_hour
        self._saving = RateLimit(hourly, _ALL_CLIENTS * hourly)
        self._marking = RateLimit(_MARKS * hourly, _MARKS * _ALL_CLIENTS * hourly)
        self._one_at_a_time = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held = try_lock(folder / ".in_use")
            if self._held is None:
                raise DataError(f"Another feedback_app uses {folder}: end it, or give another --feedback_dir.")
            self._clear_halves()
        except OSError as error:
            raise DataError(f"{folder} cannot be used ({error.strerror}): give another --feedback_dir.") from error

    def close(self) -> None:
        """Lets another one use the folder."""
        if self._held is not None:
            self._held.close()

    def add(self, text: str, recording: Path, client: str) -> Correction:
        """Saves how ``text`` should sound; a pair is whole or not listed, whenever the process may die.

        Args:
            text: what is said.
            recording: any file of libsndfile's formats; it is left where it is.
            client: whom the hourly limit holds for.

        Raises:
            DataError: a limit is passed, the text or the recording cannot be used, or the disk is full; in one plain
                sentence, and nothing is left behind.
        """
        said = normalised_text(text, self.limits.max_text_characters)
        with self._one_at_a_time:
            self._saving.require(client, "corrections")
            samples = self.read(recording)
            name = f"{time.strftime(_TIME_FORMAT, time.gmtime())}-{secrets.token_hex(4)}"
            wav, txt = self._paths(name)
            try:
                atomic_write(txt, f"{said}\n")
                with atomic_writer(wav) as part:
                    write_pcm16_wav(part, to_pcm16(samples), self.rate_hz)
            except OSError as error:
                for path in (wav, txt):
                    discard(path)
                raise DataError(f"The correction could not be saved: {error.strerror}.") from error
            self._saving.note(client)
        return Correction(name, said, len(samples) / self.rate_hz, _saved_s(name))

    def read(self, recording: Path) -> NDArray[np.float32]:
        """A recording as it would be saved: samples, (T,), full scale at 1, at the voice's rate.

        Raises:
            DataError: it is too large, too long or too short, silent, or cannot be read.
        """
        try:
            size_bytes = recording.stat().st_size if recording.exists() else 0
            if size_bytes > self.limits.max_upload_bytes:
                found_mb, most_mb = (size / 2**20 for size in (size_bytes, self.limits.max_upload_bytes))
                raise DataError(f"The file is too large: {found_mb:.1f} MB, at most {most_mb:g} MB.")
            samples, rate_hz = read_recording(recording, MIN_DURATION_S, self.limits.max_clip_s)
            require_loudness(samples, SILENCE_DBFS)
        except RecordingError as error:
            logger.info("a recording was refused: %s", error)
            sentence = _IN_PLAIN_WORDS.get(error.rejection.reason, "The recording cannot be used ({detail}).")
            raise DataError(sentence.format(detail=error.rejection.detail)) from error
        return to_rate(samples, rate_hz, self.rate_hz)

    def all(self) -> list[Correction]:
        """The pairs that this program saved, newest first."""
        names = sorted((path.stem for path in self.folder.glob("*.wav") if _NAME.fullmatch(path.stem)), reverse=True)
        return [correction for correction in map(self._listed, names) if correction is not None]

    def others(self) -> int:
        """How many texts somebody else has put into the folder: they are learnt, but not listed or deleted."""
        return sum(not _NAME.fullmatch(path.stem) for path in self.folder.glob("*.txt"))

    def wav(self, name: str) -> Path:
        """The recording of a correction.

        Raises:
            DataError: there is no such correction.
        """
        if self._listed(name) is None:
            raise DataError("This correction is no longer there.")
        return self._paths(name)[0]

    def delete(self, name: str) -> None:
        """Removes a pair.

        Raises:
            DataError: there is no such correction, or the folder does not let it go.
        """
        with self._one_at_a_time:
            self.wav(name)
            try:
                for path in self._paths(name):  # the .wav first: from then on the pair is not listed
                    discard(path)
            except OSError as error:
                raise DataError(f"The correction could not be deleted: {error.strerror}.") from error

    def mark(self, mark: Mark, client: str) -> None:
        """Appends a line to marks.jsonl.

        Raises:
            DataError: a limit is passed, or the line cannot be written.
        """
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(mark)})
        with self._one_at_a_time:
            self._marking.require(client, "marks")
            try:
                with (self.folder / MARKS_FILE).open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            except OSError as error:
                raise DataError(f"The mark could not be saved: {error.strerror}.") from error
            self._marking.note(client)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.wav", self.folder / f"{name}.txt"

    def _listed(self, name: str) -> Correction | None:
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
        return Correction(name, text.strip(), seconds, _saved_s(name))

    def _clear_halves(self) -> None:
        for path in list(self.folder.iterdir()):
            name, _, ending = path.name.lstrip(".").partition(".")
            if not _NAME.fullmatch(name) or not _ENDING.fullmatch(ending):
                continue
            if ending.endswith(".part") or not all(other.exists() for other in self._paths(name)):
                logger.info("%s is half a correction, left by a crash: deleted", path)
                discard(path)


def normalised_text(text: str, max_characters: int) -> str:
    """One line without control characters, stripped, white space as single spaces.

    Raises:
        DataError: nothing to say is left, or more than ``max_characters``.
    """
    spaced = (" " if character.isspace() else character for character in text)
    # Cc: control characters, NUL among them. Cs: halves of characters, which no file can hold.
    kept = "".join(character for character in spaced if unicodedata.category(character) not in ("Cc", "Cs"))
    said = " ".join(kept.split())
    if not any(map(str.isalnum, said)):
        raise DataError("There is nothing to say: type a sentence.")
    if len(said) > max_characters:
        raise DataError(f"The text is too long: {len(said)} characters, at most {max_characters}.")
    return said


def _saved_s(name: str) -> float:
    return calendar.timegm(time.strptime(name.partition("-")[0], _TIME_FORMAT))
