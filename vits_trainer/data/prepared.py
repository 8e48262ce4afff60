"""Opens prepared folders, selects speakers, and splits training from validation clips."""

import hashlib
import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.selection import ClipSelection
from vits_trainer.data.audio import PCM16_BYTES, WAV_HEADER_BYTES, RecordingError
from vits_trainer.data.audio_store import AudioStore, AudioSubset, ShardAudioStore, WavAudioStore, read_rows
from vits_trainer.data.shards import MANIFEST, Manifest, RateHz
from vits_trainer.utils import records
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.records import Amount, Count, HexDigits
from vits_trainer.utils.strings import comparable_texts, counted, join_speakers

logger = logging.getLogger(__name__)

_SMALL_GROUP = 8
MAX_EQUAL_TEXTS = 128
"""A text that more clips have is validated and trained on, as are the words of a list."""


@dataclass(frozen=True)
class ClipTable:
    """What is known of each clip without its audio: plain columns of equal length, one entry per row."""

    filename: Sequence[str]
    text: Sequence[str]
    speaker: Sequence[str]

    def __len__(self) -> int:
        return len(self.filename)

    def select(self, rows: Sequence[int]) -> "ClipTable":
        """Returns a table of these rows."""
        return ClipTable(*([column[row] for row in rows] for column in (self.filename, self.text, self.speaker)))


_REMEDY = "Run prepare_data again."


class SourceRecord(TypedDict, total=False):
    """Where the clips come from."""

    kind: str
    dataset: str
    revision: str | None
    clips: Count | None
    state: str


class DatasetSummary(TypedDict, total=False):
    """Fields of dataset.json that are used. Older versions lack some."""

    accepted: Count
    rejected: dict[str, Count]
    texts_changed: Count
    seconds: Amount
    hours: Amount
    mean_seconds: Amount
    speakers: Count
    speaker_clips: dict[str, Count]
    characters: str
    copies: tuple[tuple[str, ...], ...]
    """Names of clips with equal samples."""
    repeated: dict[str, HexDigits]
    """Bits of each shard's rows: whether another clip has the same text or samples."""
    sampling_rate: RateHz
    shards: Count
    source: SourceRecord
    settings: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class PreparedData:
    """An opened folder written by ``prepare_data``."""

    root: Path
    rows: ClipTable
    sampling_rate: int
    """In Hz."""
    summary: dict[str, Any]
    """Content of dataset.json: counts, seconds, sampling rate, source."""
    recordings: AudioStore
    """Indexed by row."""

    @property
    def speakers(self) -> list[str]:
        """Speaker names, sorted: a name's index is its id."""
        return sorted(set(self.rows.speaker))

    @property
    def texts(self) -> list[str]:
        """Texts of all clips."""
        return list(self.rows.text)

    def subset(self, rows: Sequence[int]) -> "PreparedData":
        """Returns these rows only."""
        return replace(self, rows=self.rows.select(rows), recordings=AudioSubset(self.recordings, rows))

    def frames(self, rows: Sequence[int], hop: int) -> list[int]:
        """Returns the spectrogram frames of these clips, at least 1 each, computed from the file sizes."""
        return [max(1, (self.recordings.sizes_bytes[row] - WAV_HEADER_BYTES) // PCM16_BYTES // hop) for row in rows]

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Returns a hash of the file names, file sizes, texts and speakers of these rows."""
        names, texts, speakers = self.rows.filename, self.rows.text, self.rows.speaker
        sizes = self.recordings.sizes_bytes
        lines = (f"{names[row]}|{texts[row]}|{speakers[row]}|{sizes[row]}" for row in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def samples_digest(self, rows: Sequence[int]) -> str:
        """Returns a hash of the samples of these rows; of the kind of error if a recording cannot be read."""
        digest = hashlib.sha256()
        for row in rows:
            try:
                digest.update(self.recordings.read(row)[0].tobytes())
            except (RecordingError, OSError, ValueError, RuntimeError) as error:  # training reports it
                digest.update(type(error).__name__.encode())
        return digest.hexdigest()


def is_prepared(folder: Path) -> bool:
    """Returns whether ``folder`` was written by ``prepare_data``."""
    return any((folder / name).is_file() for name in ("metadata.csv", MANIFEST))


def open_prepared(data_dir: Path, max_samples: int = 0) -> PreparedData:
    """Opens a prepared folder, with wavs/ or shards.

    Args:
        data_dir: contains metadata.csv and wavs/, or shards.json and shards/.
        max_samples: use only the first ``max_samples`` clips (0 = all).

    Raises:
        DataError: the folder does not exist, has no clips, a malformed line or a damaged shard (named).
    """
    return _open_shards(data_dir, max_samples) if (data_dir / MANIFEST).is_file() else _open_wavs(data_dir, max_samples)


def open_selected(data_dir: Path, selection: ClipSelection, names_speaker: bool = False) -> PreparedData:
    """Opens a prepared folder and selects the clips of a voice.

    Args:
        data_dir: as of :func:`open_prepared`.
        selection: which clips.
        names_speaker: whether a single speaker has the name that dataset.json gives.

    Raises:
        DataError: as :func:`open_prepared`.
        ConfigError: as :func:`select_speakers`.
    """
    prepared = open_prepared(data_dir, selection.max_samples)
    prepared = with_speaker_name(prepared) if names_speaker else prepared
    return select_speakers(prepared, selection.only_speakers, selection.max_clips_per_speaker, selection.seed)


def with_speaker_name(prepared: PreparedData) -> PreparedData:
    """Fills in the speaker name of a single-speaker data set, if dataset.json gives it."""
    names = list(prepared.summary.get("speaker_clips") or [""])
    if len(names) > 1 or prepared.speakers != [""]:
        return prepared
    return replace(prepared, rows=replace(prepared.rows, speaker=names * len(prepared.rows)))


def select_speakers(prepared: PreparedData, only: str, max_clips: int, seed: int) -> PreparedData:
    """Selects speakers, and limits the clips of each; the choice depends on names and the seed, not on the order.

    Args:
        prepared: all clips.
        only: speaker names, separated by commas (empty = all).
        max_clips: maximum number of clips per speaker (0 = all).
        seed: seed of the random choice.

    Raises:
        ConfigError: a speaker does not exist; the error lists some that do.
    """
    if not only and not max_clips:
        return prepared
    names, speakers = prepared.rows.filename, prepared.rows.speaker
    wanted = {name.strip() for name in only.split(",") if name.strip()} or set(speakers)
    unknown = sorted(wanted - set(speakers))
    if unknown:
        known = join_speakers(sorted(set(speakers) - {""}))
        raise ConfigError(
            f"--only_speakers: {prepared.root} has no clip of {join_speakers(unknown)}. Its speakers: "
            f"{known or 'none is named (run prepare_data with --speaker_column)'}."
        )
    selected: Counter[str] = Counter()
    rows = []
    for row in _random_order(seed, names):
        speaker = speakers[row]
        if speaker in wanted and (not max_clips or selected[speaker] < max_clips):
            selected[speaker] += 1
            rows.append(row)
    rows.sort()
    return prepared.subset(rows)


def _random_order(seed: int, names: Sequence[str]) -> list[int]:
    """Returns the indices of ``names`` in the order of the SHA-256 of ``SEED:NAME``."""
    prefix, sha256 = f"{seed}:".encode(), hashlib.sha256
    digests = b"".join([sha256(prefix + name.encode()).digest() for name in names])
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)
    order: list[int] = np.lexsort(words.T[::-1]).tolist()
    return order


def _open_shards(data_dir: Path, max_samples: int) -> PreparedData:
    manifest = Manifest.read(data_dir)
    shard_rows = read_rows(data_dir, manifest)
    # As in wavs/, a single speaker has no name: the same clips are then the same data in both formats.
    speakers = shard_rows.speakers if len(set(shard_rows.speakers)) > 1 else [""] * len(shard_rows.names)
    table = ClipTable(shard_rows.names, shard_rows.texts, speakers)
    # By number, as in wavs/: the clips are shuffled over the shards.
    selected = sorted(range(len(table)), key=lambda row: (len(table.filename[row]), table.filename[row]))
    selected = selected[: max_samples or None]
    rows = table.select(selected)
    recordings = AudioSubset(ShardAudioStore(data_dir, manifest, shard_rows.samples), selected)
    return PreparedData(data_dir, rows, manifest.sampling_rate, _summary(data_dir), recordings)


def _open_wavs(data_dir: Path, max_samples: int) -> PreparedData:
    path = data_dir / "metadata.csv"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist. Create it with: vits-trainer prepare_data --dataset SOURCE --output_dir {data_dir}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Run prepare_data again.") from error
    names: list[str] = []
    texts: list[str] = []
    speakers: list[str] = []
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
        # Most names have no folder: a Path takes 3 us.
        if (fields[0][0] in "/." or "/" in fields[0]) and (fields[0][0] == "/" or ".." in fields[0].split("/")):
            raise DataError(f"{path} line {number}: {fields[0]!r} is outside {data_dir / 'wavs'}. Remove the line.")
        if lines_of.setdefault(fields[0], number) != number:
            raise DataError(
                f"{path} line {number}: {fields[0]} is already in line {lines_of[fields[0]]}. Remove one of the two."
            )
        names.append(fields[0])
        texts.append(fields[1])
        speakers.append(fields[2] if len(fields) == 3 else "")
        if max_samples and len(names) == max_samples:
            break
    if not names:
        raise DataError(f"{path} contains no clips. Run prepare_data again and check its table of rejections.")
    summary = _summary(data_dir)
    recordings = WavAudioStore(data_dir / "wavs", names)
    try:
        rate = summary.get("sampling_rate") or recordings.read(0)[1]
    except RecordingError as error:
        if not summary:
            raise DataError(
                f"{data_dir} is not a folder of prepare_data: there is no dataset.json. Prepare it first: vits-trainer "
                f"prepare_data --dataset {shlex.quote(str(data_dir))} --output_dir training"
            ) from error
        raise DataError(f"{data_dir}: the first clip cannot be read: {error}. Run prepare_data again.") from error
    return PreparedData(data_dir, ClipTable(names, texts, speakers), int(rate), summary, recordings)


def _summary(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "dataset.json"
    if not path.is_file():
        return {}
    return read_summary(records.read_bytes(path, DataError, _REMEDY, records.MAX_UNTYPED_BYTES), path)


def read_summary(content: bytes, source: object) -> dict[str, Any]:
    """Parses dataset.json; ``source`` is its path or address.

    Raises:
        DataError: it is not a summary of prepare_data.
    """
    summary = records.parse_json(content, source, dict[str, Any], DataError, _REMEDY)
    return summary | records.check(summary, source, DatasetSummary, DataError, _REMEDY)


_ONLY_HERE = ("speaker_clips", "copies", "repeated", "examples", "warnings")
"""Fields of dataset.json that name speakers, clips or files."""


def published_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the counts and settings of dataset.json, for trackers and reports."""
    return {name: value for name, value in summary.items() if name not in _ONLY_HERE}


class HasSamplingRate(Protocol):
    """A prepared folder or streamed shards."""

    @property
    def root(self) -> object:
        """Path or address, for messages."""

    @property
    def sampling_rate(self) -> int:
        """In Hz."""


def require_rate(prepared: HasSamplingRate, spec: AudioSpec) -> None:
    """Raises :class:`DataError` if the clips do not have the voice's sampling rate."""
    if prepared.sampling_rate != spec.sampling_rate:
        raise DataError(
            f"{prepared.root} is at {prepared.sampling_rate} Hz, the voice at {spec.sampling_rate} Hz: prepare "
            f"the data again with --target_sr {spec.sampling_rate}."
        )


def train_validation_split(
    prepared: PreparedData, fraction: float, max_clips: int, seed: int
) -> tuple[list[int], list[int]]:
    """Returns the rows for training and for validation; the split depends on names and the seed, not on the order.

    Validation clips are drawn from the speakers in turn, to cover as many speakers as possible. Every speaker keeps at
    least one clip for training, unless no speaker has more than one. Clips with the same text or the same samples are
    drawn together, so that the last ones may exceed the number of clips.

    Raises:
        DataError: no clip would be left to train on.
    """
    clips = len(prepared.rows)
    held_out = min(max_clips, max(1, round(fraction * clips))) if fraction > 0 else 0
    if held_out >= clips:
        raise DataError(
            f"{prepared.root} has {counted(clips, 'clip')}, too few to hold out {held_out} for validation. "
            "Prepare more clips, or pass --validation_fraction 0."
        )
    names, texts, speakers = prepared.rows.filename, prepared.rows.text, prepared.rows.speaker
    present = sorted(set(speakers))
    by_speaker: dict[str, list[int]] = {present[index]: [] for index in _random_order(seed, present)}
    for row in _random_order(seed, names):
        by_speaker[speakers[row]].append(row)
    rounds = zip_longest(*(rows[:-1] for rows in by_speaker.values()))
    candidates = [row for one_each in rounds for row in one_each if row is not None]
    # A speaker with clips to draw keeps one; if no speaker has, any clip may be drawn.
    keeps = dict.fromkeys(by_speaker, 1 if candidates else 0)
    candidates = candidates or [rows[-1] for rows in by_speaker.values()]
    groups = equal_clips(names, texts, prepared.summary.get("copies", ()))
    drawn = _draw_groups(candidates, groups, speakers, keeps, held_out)
    if held_out and not drawn:
        logger.warning("%s: nearly all clips share their texts: validation shares them with training.", prepared.root)
        drawn = set(candidates[:held_out])
    return sorted(set(range(clips)) - drawn), sorted(drawn)


def equal_clips(names: Sequence[str], texts: Sequence[str], copies: Sequence[Sequence[str]]) -> dict[int, list[int]]:
    """Returns the rows of all clips with the same text or samples, by each of these rows; others are not in it.

    Args:
        names: of the clips.
        texts: of the clips.
        copies: names of clips with the same samples, as in dataset.json.

    A text of more than :data:`MAX_EQUAL_TEXTS` clips is not counted: word lists consist of such texts.
    """
    comparable = comparable_texts(texts)
    counts = Counter(comparable)
    by_text: dict[str, list[int]] = {text: [] for text, count in counts.items() if 1 < count <= MAX_EQUAL_TEXTS}
    for row, text in enumerate(comparable if by_text else ()):
        if text in by_text:
            by_text[text].append(row)
    groups = list(by_text.values())
    row_of = {name: row for row, name in enumerate(names)} if copies else {}
    groups += [[row_of[name] for name in group if name in row_of] for group in copies]
    return _joined(groups)


def _joined(groups: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Joins groups that have a row in common; returns the group of each row."""
    group_of: dict[int, list[int]] = {}
    for rows in groups:
        joined = sorted({*rows, *(other for row in rows for other in group_of.get(row, ()))})
        group_of |= dict.fromkeys(joined, joined)
    return group_of


def _draw_groups(
    candidates: Sequence[int],
    groups: Mapping[int, Sequence[int]],
    speakers: Sequence[str],
    keeps: Mapping[str, int],
    held_out: int,
) -> set[int]:
    """Draws candidates in their order, each with its group, unless a speaker would keep too few clips.

    Groups of more than ``held_out`` clips stay in training, unless they are small.
    """
    left = Counter(speakers)
    drawn: set[int] = set()
    for candidate in candidates:
        if len(drawn) >= held_out:
            break
        group = groups.get(candidate, (candidate,))
        taken = Counter(speakers[row] for row in group)
        enough = all(left[speaker] - count >= keeps[speaker] for speaker, count in taken.items())
        fits = len(group) <= max(held_out, _SMALL_GROUP) and len(drawn) + len(group) < len(speakers)
        if candidate not in drawn and enough and fits:
            drawn.update(group)
            left -= taken
    return drawn
