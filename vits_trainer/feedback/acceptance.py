"""Corrections of a voice: which are new, what they are mixed with, and whether the voice that learnt them is better."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.prepared import PreparedData
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models import pretrained
from vits_trainer.models.generator import Generator
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.training.objective import Objective
from vits_trainer.training.validation import Validation

FIGURES = ("mel", "mel_from_text")
"""What a voice is judged by: decoding the recording itself, and speaking its text along the recording's alignment."""


def measure_mel(
    voice: str, prepared: PreparedData, rows: Sequence[int], runtime: Runtime, seed: int
) -> dict[str, float]:
    """Mel L1 of a voice on these clips, by the names in :data:`FIGURES`, with the same noise each time."""
    model = pretrained.load_model(voice)
    spec = pretrained.audio_spec(model.config)
    speaker_ids = pretrained.speaker_ids(model.config, prepared.speakers)
    reader = PreparedClipDataset(prepared, load_tokenizer(voice), spec, speaker_ids)
    objective = Objective("mel", LossWeights(), spec, segment_frames=32)
    generator = Generator(model.to(runtime.device), "posterior", 32)
    validation = Validation(runtime, objective, reader, rows, 8, seed)
    mel = validation.run(generator, None).scalars["validation/mel"]
    return {"mel": mel, "mel_from_text": validation.mel_from_text(generator)}


@dataclass(frozen=True)
class MelChange:
    """A figure before and after."""

    before: float
    after: float

    @property
    def relative(self) -> float:
        """-0.2 is a fall by 20 %."""
        return self.after / self.before - 1

    def __str__(self) -> str:
        """For people."""
        return f"{self.before:.4f} -> {self.after:.4f} ({self.relative:+.1%})"


@dataclass(frozen=True)
class AcceptanceDecision:
    """Whether the voice that has learnt may take the other's place."""

    corrections: Mapping[str, MelChange]
    held_out: Mapping[str, MelChange] | None
    """None where there is no clip to see by what was forgotten."""
    max_regression: float

    @property
    def reasons_to_reject(self) -> list[str]:
        """Why it may not; empty if it may."""
        found = [
            f"the corrections' {name} did not improve: {change}"
            for name, change in self.corrections.items()
            if not change.after < change.before
        ]
        return found + [
            f"the held-out clips' {name} became worse than --max_regression {self.max_regression:g} allows: {change}"
            for name, change in (self.held_out or {}).items()
            if not change.relative <= self.max_regression
        ]

    def __str__(self) -> str:
        """For people, with the figures."""
        told = {"corrections": self.corrections, "held-out clips": self.held_out or {}}
        figures = "; ".join(
            f"{whose}: " + ", ".join(f"{name} {change}" for name, change in changes.items())
            for whose, changes in told.items()
            if changes
        )
        if self.reasons_to_reject:
            return f"REFUSED, as {'; and '.join(self.reasons_to_reject)}. {figures}"
        return f"accepted. {figures}"

    def to_dict(self, learnt: Sequence[str], version: int) -> dict[str, Any]:
        """For verdict.json."""
        last = FIGURES[-1]
        return {
            "accepted": not self.reasons_to_reject,
            "words": str(self),
            "corrections": asdict(self.corrections[last]),
            "held_out": None if self.held_out is None else asdict(self.held_out[last]),
            "figures": {
                "corrections": {name: asdict(change) for name, change in self.corrections.items()},
                "held_out": {name: asdict(change) for name, change in (self.held_out or {}).items()},
            },
            "learnt": list(learnt),
            "version": version,
        }


def mel_changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, MelChange]:
    """Of each figure."""
    return {name: MelChange(before[name], after[name]) for name in before}
