"""Validation mel L1 by speaker."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vits_trainer.utils.strings import MAX_NAMES, counted


@dataclass(frozen=True)
class SpeakerMel:
    """Validation mel L1 of one speaker."""

    speaker: str
    clips: int
    mel: float
    """Mel L1 over the segments of the speaker's validation clips, in nats."""

    def __str__(self) -> str:
        return f"{self.speaker} {self.mel:.4f} ({counted(self.clips, 'clip')})"


def worst(speakers: Sequence[SpeakerMel]) -> SpeakerMel:
    """Returns the speaker with the largest mel L1, or one whose mel L1 is NaN."""
    return speakers[int(np.argmax([speaker.mel for speaker in speakers]))]


def curves(speakers: Sequence[SpeakerMel]) -> dict[str, float]:
    """Returns scalars by metric name: the worst and the median mel L1 and, of few speakers, each one's."""
    if not speakers:
        return {}
    mels = [speaker.mel for speaker in speakers]
    scalars = {
        "validation/speaker_mel_worst": worst(speakers).mel,
        "validation/speaker_mel_median": float(np.median(mels)),
    }
    if len(speakers) > MAX_NAMES:
        return scalars
    names = [re.sub(r"[^\w.-]+", "_", speaker.speaker) or "_" for speaker in speakers]
    # Names that become equal by the replacement get their index appended.
    unique = [name if names.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(names)]
    return scalars | {f"validation/speaker_mel/{name}": mel for name, mel in zip(unique, mels, strict=True)}
