"""From a prepared folder to batches, in the order that ``order`` gives."""

import hashlib
import json
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import VitsTokenizer

from vits_trainer.accounts import Incident
from vits_trainer.audio import AudioSpec
from vits_trainer.errors import ConfigError, DataError
from vits_trainer.order import MicroBatch, rounded_up
from vits_trainer.recordings import PCM16_BYTES, WAV_HEADER_BYTES, Reason, RecordingError, reject
from vits_trainer.shards import MANIFEST, Manifest
from vits_trainer.speakers import some
from vits_trainer.stores import ChosenClips, ShardedClips, Store, WavFiles, read_rows
from vits_trainer.text import encode

UNEXPECTED = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What nobody expects of a clip is a bad record all the same, with its traceback; the limit stops what hits many."""
_KEPT_TEXTS = 2**16
"""So many texts' tokens a process keeps at most."""


@dataclass(frozen=True)
class Clip:
    """One clip as it goes into a batch."""

    clip_id: str
    tokens: NDArray[np.int64]
    """(S,)."""
    pcm: NDArray[np.int16]
    """(N,) whole frames only."""
    speaker_id: int | None


@dataclass(frozen=True)
class Batch:
    """Clips of one micro-batch, padded to a common size of a few. B clips, S tokens, N samples (whole frames).

    Where there is no clip, a moment of silence stands in, so that the process keeps in step with the others; it weighs
    nothing.
    """

    tokens: Tensor
    """(B, S) int64."""
    token_lengths: Tensor
    """(B,) int64."""
    waveform: Tensor
    """(B, N) zero behind each clip's end: int16 as it was read; float32 in [-1, 1] once :meth:`to` has moved it."""
    frame_lengths: Tensor
    """(B,) int64."""
    speaker_ids: Tensor | None
    """(B,) int64, for voices of several speakers."""
    clip_ids: tuple[str, ...]
    """Of the clips that are trained on: none where silence stands in."""
    audio_s: float
    """Seconds of speech in the batch."""
    place: MicroBatch
    rejections: tuple[Incident, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``, its samples as float32."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=True),
            token_lengths=self.token_lengths.to(device, non_blocking=True),
            waveform=_as_float(self.waveform.to(device, non_blocking=True)),
            frame_lengths=self.frame_lengths.to(device, non_blocking=True),
            speaker_ids=None if self.speaker_ids is None else self.speaker_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which a GPU copies without waiting; what a DataLoader calls."""
        return replace(
            self,
            tokens=self.tokens.pin_memory(),
            token_lengths=self.token_lengths.pin_memory(),
            waveform=self.waveform.pin_memory(),
            frame_lengths=self.frame_lengths.pin_memory(),
            speaker_ids=None if self.speaker_ids is None else self.speaker_ids.pin_memory(),
        )

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[dict[str, Any]]]:
        """On its way from a worker only the samples take shared memory: a tensor there costs a connection, 0.5 ms."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        small = {name: value.numpy() for name, value in given.items() if isinstance(value, Tensor)}
        return _received, ({**given, **small, "waveform": self.waveform},)

    def trimmed(self, hop: int) -> "Batch":
        """The same batch, no longer than its longest clip."""
        samples = int(self.frame_lengths.max()) * hop
        return replace(
            self,
            tokens=self.tokens[:, : int(self.token_lengths.max())],
            waveform=self.waveform[:, :samples],
        )


@dataclass(frozen=True)
class PreparedSet:
    """What ``prepare_data`` wrote, opened."""

    root: Path
    rows: datasets.Dataset
    """Columns filename, text, speaker."""
    sampling_rate: int
    """In Hz."""
    summary: dict[str, Any]
    """dataset.json: counts, seconds, rate, source."""
    recordings: Store
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


def open_prepared(data_dir: Path, max_samples: int = 0) -> PreparedSet:
    """Opens a prepared folder, of wavs/ or of shards.

    Args:
        data_dir: holds metadata.csv and wavs/, or shards.json and shards/.
        max_samples: only the first so many clips (0 = all).

    Raises:
        DataError: no such folder, a malformed line (its number is named), a damaged shard (it is named), or no clip.
    """
    return _open_shards(data_dir, max_samples) if (data_dir / MANIFEST).is_file() else _open_wavs(data_dir, max_samples)


def named(prepared: PreparedSet) -> PreparedSet:
    """The same; clips of one speaker have the name that dataset.json alone tells, if it does."""
    names = list(prepared.summary.get("speaker_clips") or [""])
    if len(names) > 1 or prepared.speakers != [""]:
        return prepared
    columns = {**prepared.rows[:], "speaker": names * len(prepared.rows)}
    return replace(prepared, rows=datasets.Dataset.from_dict(columns))


def choose_speakers(prepared: PreparedSet, only: str, most_clips: int, seed: int) -> PreparedSet:
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
    return replace(prepared, rows=prepared.rows.select(rows), recordings=ChosenClips(prepared.recordings, rows))


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _open_shards(data_dir: Path, max_samples: int) -> PreparedSet:
    manifest = Manifest.read(data_dir)
    found = read_rows(data_dir, manifest)
    # Only several speakers are told apart: the same clips in wavs/ are the same data.
    speakers = found.speakers if len(set(found.speakers)) > 1 else [""] * len(found.names)
    columns = {"filename": found.names, "text": found.texts, "speaker": speakers}
    used = slice(max_samples or None)
    rows = datasets.Dataset.from_dict({name: column[used] for name, column in columns.items()})
    recordings = ShardedClips(data_dir, manifest, found.samples[used])
    return PreparedSet(data_dir, rows, manifest.sampling_rate, _summary(data_dir), recordings)


def _open_wavs(data_dir: Path, max_samples: int) -> PreparedSet:
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
    recordings = WavFiles(data_dir / "wavs", columns["filename"])
    try:
        rate = summary.get("sampling_rate") or recordings.read(0)[1]
    except RecordingError as error:
        raise DataError(f"{data_dir}: its first clip cannot be read: {error}. Run prepare_data again.") from error
    return PreparedSet(data_dir, datasets.Dataset.from_dict(columns), int(rate), summary, recordings)


def _summary(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "dataset.json"
    if not path.is_file():
        return {}
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Run prepare_data again.") from error
    return summary


class Rated(Protocol):
    """A prepared folder, or shards."""

    @property
    def root(self) -> object:
        """Where it lies."""

    @property
    def sampling_rate(self) -> int:
        """In Hz."""


def require_rate(prepared: Rated, spec: AudioSpec) -> None:
    """Raises :class:`DataError` unless the clips have the voice's sampling rate."""
    if prepared.sampling_rate != spec.sampling_rate:
        raise DataError(
            f"{prepared.root} is at {prepared.sampling_rate} Hz, the voice at {spec.sampling_rate} Hz: prepare "
            f"the data again with --target_sr {spec.sampling_rate}."
        )


def split(prepared: PreparedSet, fraction: float, most: int, seed: int) -> tuple[list[int], list[int]]:
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


def _received(sent: dict[str, Any]) -> Batch:
    tensors = {name: torch.from_numpy(value) for name, value in sent.items() if isinstance(value, np.ndarray)}
    whole: dict[str, Any] = {**sent, **tensors}
    return Batch(**whole)


class Reader(Dataset[Clip | Incident]):
    """What readers of clips share: tokens, speakers, and what is asked of a clip."""

    def __init__(self, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self.speaker_ids = speaker_ids
        self._tokens: dict[str, NDArray[np.int64]] = {}
        """Of texts that were read before: the tokenizer takes 1 ms for each."""
        silence = np.zeros(spec.minimum_frames * spec.hop, dtype=np.int16)
        self.stand_in = Clip("", np.zeros(1, dtype=np.int64), silence, None if speaker_ids is None else 0)

    def clip(self, clip_id: str, pcm: NDArray[np.int16], text: str, speaker: str) -> Clip:
        """A clip as it goes into a batch; ``pcm`` is (T,).

        Raises:
            RecordingError: it cannot be trained on; says why.
        """
        if text not in self._tokens:
            if len(self._tokens) == _KEPT_TEXTS:  # of a stream there may be more texts than memory
                self._tokens.clear()
            self._tokens[text] = encode(self.tokenizer, text)
        tokens = self._tokens[text]
        frames = self.spec.frames(len(pcm))
        if len(tokens) == 0:
            reject(Reason.NO_KNOWN_CHARACTERS, repr(text[:200]))
        if frames < self.spec.minimum_frames:
            reject(Reason.TOO_SHORT, f"{len(pcm)} samples")
        if len(tokens) > frames:
            reject(Reason.TEXT_TOO_LONG, f"{len(tokens)} tokens, {frames} frames")
        speaker_id = None if self.speaker_ids is None else self.speaker_ids[speaker]
        return Clip(clip_id, tokens, pcm[: frames * self.spec.hop], speaker_id)


class ClipReader(Reader):
    """Decodes and tokenizes clips where a DataLoader's worker asks for them; never raises for what a clip holds."""

    def __init__(
        self, prepared: PreparedSet, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> None:
        super().__init__(tokenizer, spec, speaker_ids)
        self.prepared = prepared
        # Lists, as a row of a Dataset takes longer to look up than its clip to be read.
        self._ids, self._texts, self._speakers = (list(prepared.rows[name]) for name in ("filename", "text", "speaker"))

    def text(self, row: int) -> str:
        """The text of a clip."""
        return str(self._texts[row])

    def speaker(self, row: int) -> str:
        """A clip's speaker, by name."""
        return str(self._speakers[row])

    def __getitem__(self, index: int) -> Clip | Incident:
        """The clip of row ``index`` as a good or a bad record."""
        clip_id = self._ids[index]
        try:
            return self._read(clip_id, index)
        except RecordingError as error:
            return Incident(clip_id, "read", str(error.rejection.reason), error.rejection.detail)
        except UNEXPECTED as error:
            return Incident(clip_id, "read", type(error).__name__, str(error), traceback.format_exc())

    def _read(self, clip_id: str, index: int) -> Clip:
        pcm, rate_hz = self.prepared.recordings.read(index)
        if rate_hz != self.spec.sampling_rate:
            reject(Reason.WRONG_RATE, f"{rate_hz} Hz, not {self.spec.sampling_rate}")
        return self.clip(clip_id, pcm, self._texts[index], self._speakers[index])

    def __getitems__(self, place: MicroBatch) -> list[Batch]:
        """What a DataLoader calls with the sampler's whole item. One batch, in a list as it asks for one."""
        return [collate([self[index] for index in place.indices], place, self.spec, self.stand_in)]


def collate(records: Sequence[Clip | Incident], place: MicroBatch, spec: AudioSpec, stand_in: Clip) -> Batch:
    """Pads the good clips to a common size, and keeps the bad ones' records; ``stand_in`` is for where none is good."""
    good = [record for record in records if isinstance(record, Clip)]
    rejections = tuple(record for record in records if isinstance(record, Incident))
    clips = good or [stand_in]
    size_tokens, size_frames = rounded_up(
        np.max([(len(clip.tokens), spec.frames(len(clip.pcm))) for clip in clips], axis=0)
    )
    tokens = np.zeros((len(clips), size_tokens), dtype=np.int64)
    pcm = np.zeros((len(clips), size_frames * spec.hop), dtype=np.int16)
    for row, clip in enumerate(clips):
        tokens[row, : len(clip.tokens)] = clip.tokens
        pcm[row, : len(clip.pcm)] = clip.pcm
    speakers = [clip.speaker_id for clip in clips if clip.speaker_id is not None]
    return Batch(
        tokens=torch.from_numpy(tokens),
        token_lengths=torch.tensor([len(clip.tokens) for clip in clips]),
        waveform=torch.from_numpy(pcm),
        frame_lengths=torch.tensor([spec.frames(len(clip.pcm)) for clip in clips]),
        speaker_ids=torch.tensor(speakers) if speakers else None,
        clip_ids=tuple(clip.clip_id for clip in good),
        audio_s=sum(len(clip.pcm) for clip in good) / spec.sampling_rate,
        place=place,
        rejections=rejections,
    )


def _as_float(waveform: Tensor) -> Tensor:
    return waveform.float() / 32768 if waveform.dtype == torch.int16 else waveform
