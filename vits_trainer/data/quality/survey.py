"""The measurements of all clips of prepared data, as columns: about half a kilobyte for each clip."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.preparation.workers import content_digest
from vits_trainer.data.quality.measurements import FINGERPRINT_SIZE, SoundMeasurements, measure
from vits_trainer.data.quality.pieces import PreparedClip


class PieceMeasurements(NamedTuple):
    """Measurements of the clips of a piece."""

    names: list[str]
    texts: list[str]
    speakers: list[str]
    sounds: NDArray[np.float32]
    """Fields of :class:`SoundMeasurements`, (clips, fields); NaN for a clip that cannot be read."""
    fingerprints: NDArray[np.float16]
    """(clips, FINGERPRINT_SIZE)."""
    digests: list[int]
    """56 bits of the SHA-256 of the samples; 0 for a clip that cannot be read."""
    rejections: dict[int, Rejection]
    """Why a clip cannot be read, by its index in the piece."""


def measure_clips(clips: Sequence[PreparedClip], rate_hz: int) -> PieceMeasurements:
    """Measures clips, in a worker process."""
    sounds = np.full((len(clips), len(SoundMeasurements._fields)), np.nan, np.float32)
    fingerprints = np.zeros((len(clips), FINGERPRINT_SIZE), np.float16)
    digests, rejections = [0] * len(clips), {}
    for row, clip in enumerate(clips):
        if isinstance(clip.pcm, Rejection):
            rejections[row] = clip.pcm
        elif not len(clip.pcm):
            rejections[row] = Rejection(Reason.EMPTY_AUDIO, "0 samples")
        else:
            sounds[row], fingerprints[row] = measure(clip.pcm, rate_hz)
            digests[row] = int(content_digest(clip.pcm.tobytes()), 16)
    names, texts, speakers = ([getattr(clip, name) for clip in clips] for name in ("name", "text", "speaker"))
    return PieceMeasurements(names, texts, speakers, sounds, fingerprints, digests, rejections)


@dataclass
class Survey:
    """The measurements of all clips, in the order in which they are read."""

    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    rejections: dict[int, Rejection] = field(default_factory=dict)
    digests: list[int] = field(default_factory=list)
    _sounds: list[NDArray[np.float32]] = field(default_factory=list)
    _fingerprints: list[NDArray[np.float16]] = field(default_factory=list)

    def add(self, piece: PieceMeasurements) -> None:
        """Appends the measurements of the next piece."""
        self.rejections |= {len(self.names) + row: rejection for row, rejection in piece.rejections.items()}
        self.names += piece.names
        self.texts += piece.texts
        self.speakers += piece.speakers
        self.digests += piece.digests
        self._sounds.append(piece.sounds)
        self._fingerprints.append(piece.fingerprints)

    def sound(self, name: str) -> NDArray[np.float32]:
        """Returns one of the fields of :class:`SoundMeasurements`, (clips,)."""
        column = SoundMeasurements._fields.index(name)
        return np.concatenate([sounds[:, column] for sounds in self._sounds])

    @property
    def fingerprints(self) -> NDArray[np.float16]:
        """Fingerprints, (clips, FINGERPRINT_SIZE)."""
        return np.concatenate(self._fingerprints)

    def __len__(self) -> int:
        return len(self.names)
