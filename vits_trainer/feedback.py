"""Corrections of a voice: which are new, what they are mixed with, and whether the voice that learnt them is better."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vits_trainer import models
from vits_trainer.config import LossWeights
from vits_trainer.data import ClipReader, PreparedSet
from vits_trainer.evaluation import Validation
from vits_trainer.generator import Generator
from vits_trainer.objective import Objective
from vits_trainer.runtime import Runtime
from vits_trainer.tables import AUDIO_ENDINGS
from vits_trainer.text import load_tokenizer

FIGURES = ("mel", "mel_from_text")
"""What a voice is judged by: decoding the recording itself, and speaking its text along the recording's alignment."""


class Correction(NamedTuple):
    """NAME.wav, how it should sound, and NAME.txt, its text."""

    name: str
    files: tuple[Path, ...]
    sha256: str


def find_corrections(folder: Path) -> list[Correction]:
    """All in the folder, sorted by name; one without a text or a recording is among them, to be rejected."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in (".txt", *AUDIO_ENDINGS):
            files.setdefault(path.stem, []).append(path)
    return [Correction(name, tuple(paths), _digest(paths)) for name, paths in sorted(files.items())]


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.suffix} {len(content)} ".encode() + content)
    return digest.hexdigest()


def new_ones(corrections: Sequence[Correction], learnt: Mapping[str, str]) -> list[Correction]:
    """Those that a voice has not learnt; one whose files have changed is new."""
    return [correction for correction in corrections if learnt.get(correction.name) != correction.sha256]


def copy_corrections(corrections: Sequence[Correction], folder: Path) -> None:
    """Into a folder of their own, made anew."""
    folder.mkdir(parents=True)
    for correction in corrections:
        for file in correction.files:
            shutil.copyfile(file, folder / file.name)


def write_mix(
    folder: Path,
    corrections: PreparedSet,
    others: Sequence[tuple[PreparedSet, Sequence[int]]],
    replay_fraction: float,
    passes: int,
    seed: int,
) -> int:
    """Writes a prepared folder to learn from: each pass all corrections, and among them clips that the voice knows.

    Each clip is a name for the same file, a pass a name; clips are replayed in turn, none twice before all were.

    Args:
        folder: made; on the file system of the others where they are to take no room.
        corrections: prepared.
        others: prepared sets, and the rows of each that may be replayed.
        replay_fraction: this part of a pass are replayed clips.
        passes: over the corrections.
        seed: of which clips are replayed.

    Returns:
        How many of the clips are replayed ones.
    """
    (folder / "wavs").mkdir(parents=True)
    pool = [(prepared, row) for prepared, rows in others for row in rows]
    each = round(len(corrections.rows) * replay_fraction / (1 - replay_fraction)) if pool else 0
    turns = _in_turn(pool, seed)
    lines, replayed = [], 0
    several = len({speaker for prepared in (corrections, *(p for p, _ in others)) for speaker in prepared.speakers}) > 1
    for number in range(passes):
        learnt = [(corrections, row) for row in range(len(corrections.rows))]
        for place, (prepared, row) in enumerate([*learnt, *(next(turns) for _ in range(each))]):
            name, clip = f"pass{number:03}_{place:05}.wav", prepared.rows[row]
            prepared.recordings.put(row, folder / "wavs" / name)
            lines.append("|".join([name, clip["text"], *([clip["speaker"]] if several else [])]) + "\n")
        replayed += each
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    summary = {"sampling_rate": corrections.sampling_rate, "clips": len(lines), "replayed": replayed, "passes": passes}
    (folder / "dataset.json").write_text(json.dumps(summary), encoding="utf-8")
    return replayed


def _in_turn(pool: Sequence[tuple[PreparedSet, int]], seed: int) -> Iterator[tuple[PreparedSet, int]]:
    rng = np.random.default_rng(seed)
    while True:
        for place in rng.permutation(len(pool)):
            yield pool[place]


def judge(voice: str, prepared: PreparedSet, rows: Sequence[int], runtime: Runtime, seed: int) -> dict[str, float]:
    """Mel L1 of a voice on these clips, by the names in :data:`FIGURES`, with the same noise each time."""
    model = models.load_model(voice)
    spec = models.audio_spec(model.config)
    speaker_ids = models.speaker_ids(model.config, prepared.speakers)
    reader = ClipReader(prepared, load_tokenizer(voice), spec, speaker_ids)
    objective = Objective("mel", LossWeights(), spec, segment_frames=32)
    generator = Generator(model.to(runtime.device), "posterior", 32)
    validation = Validation(runtime, objective, reader, rows, 8, seed)
    mel = validation.run(generator, None).scalars["validation/mel"]
    return {"mel": mel, "mel_from_text": validation.mel_from_text(generator)}


@dataclass(frozen=True)
class Change:
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
class Verdict:
    """Whether the voice that has learnt may take the other's place."""

    corrections: Mapping[str, Change]
    held_out: Mapping[str, Change] | None
    """None where there is no clip to see by what was forgotten."""
    max_regression: float

    @property
    def complaints(self) -> list[str]:
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
        if self.complaints:
            return f"REFUSED, as {'; and '.join(self.complaints)}. {figures}"
        return f"accepted. {figures}"

    def to_dict(self, learnt: Sequence[str], version: int) -> dict[str, Any]:
        """For verdict.json."""
        last = FIGURES[-1]
        return {
            "accepted": not self.complaints,
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


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Change]:
    """Of each figure."""
    return {name: Change(before[name], after[name]) for name in before}
