"""Which clips of a prepared folder a voice was trained on. Stored with the voice, for learning from corrections."""

from dataclasses import dataclass, fields
from typing import Any

from vits_trainer.utils.records import Amount, Count, Seed


@dataclass(frozen=True)
class ClipSelection:
    """Settings of the training that select its clips and hold some of them out."""

    only_speakers: str = ""
    max_clips_per_speaker: Count = 0
    max_samples: Count = 0
    validation_fraction: Amount = 0.05
    validation_max_clips: Count = 64
    seed: Seed = 1234

    @classmethod
    def from_config(cls, config: Any) -> "ClipSelection":
        """Takes the fields that a configuration has."""
        values: dict[str, Any] = {field.name: getattr(config, field.name, field.default) for field in fields(cls)}
        return cls(**values)
