"""From a prepared folder to batches, in the order that ``sampler`` gives."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import datasets

from vits_trainer.config.framing import AudioSpec
from vits_trainer.data.audio import PCM16_BYTES, WAV_HEADER_BYTES, RecordingError
from vits_trainer.data.audio_store import AudioStore, AudioSubset, ShardAudioStore, WavAudioStore, read_rows
from vits_trainer.data.shards import MANIFEST, Manifest
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.strings import some


@dataclass(frozen=True)
class PreparedData:
    """What ``prepare_data`` wrote, opened."""

    root: Path
    rows: datasets.Dataset
    """Columns filename, text, speaker."""
    sampling_rate: int
    """In Hz."""
    summary: dict[str, Any]
    """dataset.json: counts, seconds, rate, source."""
    recordings: AudioStore
    """By row."""

    @property
    def speakers(self) -> list[str]:
        """Names of the speakers, sorted: a name's place is its id."""
        return sorted(set(self.rows["speaker"]))

    @property
    def texts(self) -> list[str]:
        """Of all clips."""
        return list(self.rows["text"])

    def frames(self, rows: Sequence[int], hop: int) -> list[int]:
        """Spectrogram frames of these rows' clips, at least 1, as their files' sizes promise."""
        return [max(1, (self.recordings.sizes_bytes[row] - WAV_HEADER_BYTES) // PCM16_BYTES // hop) for row in rows]

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Changes when a file's name or size, a text or a speaker of these rows changes, or which rows they are."""
        columns = [self.rows[name] for name in ("filename", "text", "speaker")]
        lines = list(zip(*columns, map(str, self.recordings.sizes_bytes), strict=True))
        return hashlib.sha256("\n".join("|".join(lines[row]) for row in rows).encode()).hexdigest()


def is_prepared(folder: Path) -> bool:
    """Whether ``folder`` holds what ``prepare_data`` writes."""
    return any((folder / name).is_file() for name in ("metadata.csv", MANIFEST))


def open_prepared(data_dir: Path, max_samples: int = 0) -> PreparedData:
    """Opens a prepared folder, of wavs/ or of shards.

    Args:
        data_dir: holds metadata.csv and wavs/, or shards.json and shards/.
        max_samples: only the first so many clips (0 = all).

    Raises:
        DataError: no such folder, a malformed line (its number is named), a damaged shard (it is named), or no clip.
    """
    return _open_shards(data_dir, max_samples) if (data_dir / MANIFEST).is_file() else _open_wavs(data_dir, max_samples)


def with_speaker_name(prepared: PreparedData) -> PreparedData:
    """The same; clips of one speaker have the name that dataset.json alone tells, if it does."""
    names = list(prepared.summary.get("speaker_clips") or [""])
    if len(names) > 1 or prepared.speakers != [""]:
        return prepared
    columns = {**prepared.rows[:], "speaker": names * len(prepared.rows)}
    return replace(prepared, rows=datasets.Dataset.from_dict(columns))


def select_speakers(prepared: PreparedData, only: str, most_clips: int, seed: int) -> PreparedData:
    """The clips of some speakers, and not too many of each; which ones depends on names and the seed, not on places.

    Args:
        prepared: all clips.
        only: names of speakers, separated by commas (empty = all).
        most_clips: of each speaker (0 = all).
        seed: of the draw.

    Raises:
        ConfigError: there is no such speaker; names some that there are.
    """
    if not only and not most_clips:
        return prepared
    names, speakers = (list(prepared.rows[name]) for name in ("filename", "speaker"))
    wanted = {name.strip() for name in only.split(",") if name.strip()} or set(speakers)
    unknown = sorted(wanted - set(speakers))
    if unknown:
        known = some(sorted(set(speakers) - {""}))
        raise ConfigError(
            f"--only_speakers: {prepared.root} has no clip of {', '.join(unknown)}. Its speakers: "
            f"{known or 'none with a name (prepare it with --speaker_column)'}."
        )
    taken: Counter[str] = Counter()
    rows = []
    for row in sorted(range(len(names)), key=lambda row: _lot(seed, names[row])):
        speaker = speakers[row]
        if speaker in wanted and (not most_clips or taken[speaker] < most_clips):
            taken[speaker] += 1
            rows.append(row)
    rows.sort()
    return replace(prepared, rows=prepared.rows.select(rows), recordings=AudioSubset(prepared.recordings, rows))


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _open_shards(data_dir: Path, max_samples: int) -> PreparedData:
    manifest = Manifest.read(data_dir)
    found = read_rows(data_dir, manifest)
    # Only several speakers are told apart: the same clips in wavs/ are the same data.
    speakers = found.speakers if len(set(found.speakers)) > 1 else [""] * len(found.names)
    columns = {"filename": found.names, "text": found.texts, "speaker": speakers}
    used = slice(max_samples or None)
    rows = datasets.Dataset.from_dict({name: column[used] for name, column in columns.items()})
    recordings = ShardAudioStore(data_dir, manifest, found.samples[used])
    return PreparedData(data_dir, rows, manifest.sampling_rate, _summary(data_dir), recordings)


def _open_wavs(data_dir: Path, max_samples: int) -> PreparedData:
    path = data_dir / "metadata.csv"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist. Make it with: vits-trainer prepare_data --dataset SOURCE --output_dir {data_dir}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Run prepare_data again.") from error
    columns: dict[str, list[str]] = {"filename": [], "text": [], "speaker": []}
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        fields = line.split("|")
        if len(fields) not in (2, 3) or not fields[0]:
            raise DataError(
                f"{path} line {number}: expected filename|text or filename|text|speaker, found {line[:80]!r}. Run "
                "prepare_data again, or correct the line."
            )
        if Path(fields[0]).is_absolute() or ".." in Path(fields[0]).parts:
            raise DataError(f"{path} line {number}: {fields[0]!r} leads out of {data_dir / 'wavs'}. Remove the line.")
        if lines_of.setdefault(fields[0], number) != number:
            raise DataError(
                f"{path} line {number}: {fields[0]} stands in line {lines_of[fields[0]]} already. Keep one of the two."
            )
        for column, value in zip(columns.values(), [*fields, ""], strict=False):
            column.append(value)
        if max_samples and len(columns["filename"]) == max_samples:
            break
    if not columns["filename"]:
        raise DataError(f"{path} holds no clip. Run prepare_data again and look at its table of rejections.")
    summary = _summary(data_dir)
    recordings = WavAudioStore(data_dir / "wavs", columns["filename"])
    try:
        rate = summary.get("sampling_rate") or recordings.read(0)[1]
    except RecordingError as error:
        raise DataError(f"{data_dir}: its first clip cannot be read: {error}. Run prepare_data again.") from error
    return PreparedData(data_dir, datasets.Dataset.from_dict(columns), int(rate), summary, recordings)


def _summary(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "dataset.json"
    if not path.is_file():
        return {}
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Run prepare_data again.") from error
    return summary


class HasSamplingRate(Protocol):
    """A prepared folder, or shards."""

    @property
    def root(self) -> object:
        """Where it lies."""

    @property
    def sampling_rate(self) -> int:
        """In Hz."""


def require_rate(prepared: HasSamplingRate, spec: AudioSpec) -> None:
    """Raises :class:`DataError` unless the clips have the voice's sampling rate."""
    if prepared.sampling_rate != spec.sampling_rate:
        raise DataError(
            f"{prepared.root} is at {prepared.sampling_rate} Hz, the voice at {spec.sampling_rate} Hz: prepare "
            f"the data again with --target_sr {spec.sampling_rate}."
        )


def train_validation_split(
    prepared: PreparedData, fraction: float, most: int, seed: int
) -> tuple[list[int], list[int]]:
    """Rows for training and for validation; a clip's side depends on names and the seed, not on places.

    Of several speakers each gives a clip in turn, so that as many as can be are heard, but none gives the last one,
    unless none has more than one.

    Raises:
        DataError: nothing would be left to train on.
    """
    clips = len(prepared.rows)
    held_out = min(most, max(1, round(fraction * clips))) if fraction > 0 else 0
    if held_out >= clips:
        raise DataError(
            f"{prepared.root} has {clips} clip(s), too few to hold out {held_out} for validation. "
            "Prepare more clips, or give --validation_fraction 0."
        )
    names, speakers = (list(prepared.rows[name]) for name in ("filename", "speaker"))
    ordered = sorted(set(speakers), key=lambda speaker: _lot(seed, speaker))
    waiting: dict[str, list[int]] = {speaker: [] for speaker in ordered}
    for row in sorted(range(clips), key=lambda row: _lot(seed, names[row])):
        waiting[speakers[row]].append(row)
    turns = [row for turn in zip_longest(*(own[:-1] for own in waiting.values())) for row in turn if row is not None]
    drawn = (turns or [own[-1] for own in waiting.values()])[:held_out]
    return sorted(set(range(clips)) - set(drawn)), sorted(drawn)
