"""Validation mel by speaker."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vits_trainer.utils.strings import _NAMED


@dataclass(frozen=True)
class SpeakerMel:
    """How well one speaker's held-out clips are met."""

    speaker: str
    clips: int
    mel: float
    """Mel L1 over the segments of these clips, in nats."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.speaker} {self.mel:.4f} ({self.clips} clip(s))"


def worst(speakers: Sequence[SpeakerMel]) -> SpeakerMel:
    """The one of the largest mel L1, or whose is no number."""
    return speakers[int(np.argmax([speaker.mel for speaker in speakers]))]


def curves(speakers: Sequence[SpeakerMel]) -> dict[str, float]:
    """The worst, the median and, where they are few, each speaker's mel L1, by name; nothing where there are none."""
    if not speakers:
        return {}
    mels = [speaker.mel for speaker in speakers]
    found = {
        "validation/speaker_mel_worst": worst(speakers).mel,
        "validation/speaker_mel_median": float(np.median(mels)),
    }
    if len(speakers) > _NAMED:
        return found
    names = [re.sub(r"[^\w.-]+", "_", speaker.speaker) or "_" for speaker in speakers]
    # Two names that differ in such a character alone are told apart by their places.
    own = [name if names.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(names)]
    return found | {f"validation/speaker_mel/{name}": mel for name, mel in zip(own, mels, strict=True)}
