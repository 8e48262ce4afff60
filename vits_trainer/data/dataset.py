"""The torch dataset of prepared clips, and collation into batches."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import VitsTokenizer

from vits_trainer.config.framing import AudioSpec
from vits_trainer.data.audio import Reason, RecordingError, reject
from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.prepared import PreparedData
from vits_trainer.data.sampler import MicroBatchSpec, bucket_length
from vits_trainer.text.tokenizer import encode

UNEXPECTED = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Errors returned as incidents with their traceback, not raised; --max_rejected_fraction limits how many."""
_MAX_CACHED_TEXTS = 2**16
"""Maximum number of texts whose tokens a process caches."""


@dataclass(frozen=True)
class Clip:
    """One clip, decoded and tokenized."""

    clip_id: str
    tokens: NDArray[np.int64]
    """(S,)."""
    pcm: NDArray[np.int16]
    """(N,), whole frames only."""
    speaker_id: int | None


@dataclass(frozen=True)
class Batch:
    """Clips of one micro-batch, padded to a common bucket size: B clips, S tokens, N samples (whole frames).

    Without clips it holds a short placeholder of silence with zero weight, so that the rank stays in step with others.
    """

    tokens: Tensor
    """(B, S) int64."""
    token_lengths: Tensor
    """(B,) int64."""
    waveform: Tensor
    """(B, N), zero after each clip's end: int16 as read, float32 in [-1, 1] after :meth:`to`."""
    frame_lengths: Tensor
    """(B,) int64."""
    speaker_ids: Tensor | None
    """(B,) int64; None for single-speaker voices."""
    clip_ids: tuple[str, ...]
    """Ids of the clips in the batch; empty for a placeholder batch of silence."""
    audio_s: float
    """Seconds of speech in the batch, without padding."""
    spec: MicroBatchSpec
    rejections: tuple[Incident, ...]

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on ``device``, with its waveform as float32."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=True),
            token_lengths=self.token_lengths.to(device, non_blocking=True),
            waveform=_as_float(self.waveform.to(device, non_blocking=True)),
            frame_lengths=self.frame_lengths.to(device, non_blocking=True),
            speaker_ids=None if self.speaker_ids is None else self.speaker_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Returns the batch in page-locked memory, for asynchronous copies to a GPU. Called by the DataLoader."""
        return replace(
            self,
            tokens=self.tokens.pin_memory(),
            token_lengths=self.token_lengths.pin_memory(),
            waveform=self.waveform.pin_memory(),
            frame_lengths=self.frame_lengths.pin_memory(),
            speaker_ids=None if self.speaker_ids is None else self.speaker_ids.pin_memory(),
        )

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[dict[str, Any]]]:
        """Pickles only the waveform through shared memory: each tensor there costs a connection (0.5 ms)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value.numpy() for name, value in values.items() if isinstance(value, Tensor)}
        return _unpickle_batch, ({**values, **arrays, "waveform": self.waveform},)

    def trimmed(self, hop: int) -> "Batch":
        """Returns the batch cut to the length of its longest clip."""
        samples = int(self.frame_lengths.max()) * hop
        return replace(
            self,
            tokens=self.tokens[:, : int(self.token_lengths.max())],
            waveform=self.waveform[:, :samples],
        )


def _unpickle_batch(values: dict[str, Any]) -> Batch:
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    arguments: dict[str, Any] = {**values, **tensors}
    return Batch(**arguments)


class ClipDataset(Dataset[Batch], ABC):
    """Base of the clip datasets: reads the micro-batches that a sampler schedules.

    Damaged clips become :class:`Incident` records, never exceptions: these would end the iterator.
    """

    def __init__(self, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self.speaker_ids = speaker_ids
        self._tokens: dict[str, NDArray[np.int64]] = {}
        """Tokens by text, cached: the tokenizer takes 1 ms per text."""
        silence = np.zeros(spec.minimum_frames * spec.hop, dtype=np.int16)
        self.placeholder_clip = Clip("", np.zeros(1, dtype=np.int64), silence, None if speaker_ids is None else 0)

    @abstractmethod
    def read(self, row: int) -> Clip | Incident:
        """Reads one clip, or returns why it cannot be used."""

    @abstractmethod
    def text(self, row: int) -> str:
        """Text of a clip."""

    @abstractmethod
    def speaker(self, row: int) -> str:
        """Speaker name of a clip."""

    def read_all(self, spec: MicroBatchSpec) -> list[Clip | Incident]:
        """Reads the clips of a micro-batch."""
        return [self.read(row) for row in spec.indices]

    def __getitem__(self, spec: MicroBatchSpec) -> Batch:
        """Reads a micro-batch: the sampler's items are whole micro-batches."""
        return collate(self.read_all(spec), spec, self.spec, self.placeholder_clip)

    def clip(self, clip_id: str, pcm: NDArray[np.int16], text: str, speaker: str) -> Clip:
        """Builds a clip; ``pcm`` is (T,).

        Raises:
            RecordingError: the clip cannot be trained on; gives the reason.
        """
        if not text:
            reject(Reason.EMPTY_TEXT, "no text")
        if text not in self._tokens:
            if len(self._tokens) == _MAX_CACHED_TEXTS:  # the texts of a stream may exceed the memory
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


class PreparedClipDataset(ClipDataset):
    """Decodes and tokenizes clips in DataLoader workers. Errors of a clip are returned as incidents, never raised."""

    def __init__(
        self, prepared: PreparedData, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> None:
        super().__init__(tokenizer, spec, speaker_ids)
        self.prepared = prepared
        self._ids, self._texts, self._speakers = prepared.rows.filename, prepared.rows.text, prepared.rows.speaker

    def text(self, row: int) -> str:
        """Returns the text of a clip."""
        return self._texts[row]

    def speaker(self, row: int) -> str:
        """Returns the name of a clip's speaker."""
        return self._speakers[row]

    def read(self, row: int) -> Clip | Incident:
        """Reads one clip, or returns why it cannot be used."""
        clip_id = self._ids[row]
        try:
            return self._read(clip_id, row)
        except RecordingError as error:
            return Incident(clip_id, "read", str(error.rejection.reason), error.rejection.detail)
        except UNEXPECTED as error:
            return Incident(clip_id, "read", type(error).__name__, str(error), traceback.format_exc())

    def _read(self, clip_id: str, index: int) -> Clip:
        pcm, rate_hz = self.prepared.recordings.read(index)
        if rate_hz != self.spec.sampling_rate:
            reject(Reason.WRONG_RATE, f"{rate_hz} Hz, not {self.spec.sampling_rate}")
        return self.clip(clip_id, pcm, self._texts[index], self._speakers[index])


def collate(
    records: Sequence[Clip | Incident], batch_spec: MicroBatchSpec, spec: AudioSpec, placeholder_clip: Clip
) -> Batch:
    """Pads the clips to a common size and keeps the incidents; without any clip, pads ``placeholder_clip``."""
    usable = [record for record in records if isinstance(record, Clip)]
    rejections = tuple(record for record in records if isinstance(record, Incident))
    clips = usable or [placeholder_clip]
    size_tokens, size_frames = bucket_length(
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
        clip_ids=tuple(clip.clip_id for clip in usable),
        audio_s=sum(len(clip.pcm) for clip in usable) / spec.sampling_rate,
        spec=batch_spec,
        rejections=rejections,
    )


def _as_float(waveform: Tensor) -> Tensor:
    return waveform.float() / 32768 if waveform.dtype == torch.int16 else waveform
