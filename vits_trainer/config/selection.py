"""Which clips of a prepared folder a voice was trained on. Stored with the voice, for learning from corrections."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ClipSelection:
    """Settings of the training that select its clips and hold some of them out."""

    only_speakers: str = ""
    max_clips_per_speaker: int = 0
    max_samples: int = 0
    validation_fraction: float = 0.05
    validation_max_clips: int = 64
    seed: int = 1234

    @classmethod
    def from_config(cls, config: Any) -> "ClipSelection":
        """Takes the fields that a configuration has."""
        values: dict[str, Any] = {field.name: getattr(config, field.name, field.default) for field in fields(cls)}
        return cls(**values)
