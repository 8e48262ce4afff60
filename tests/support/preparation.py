"""Data sets to prepare, and the results."""

import csv
from pathlib import Path

from tests.support import audio
from tests.support.audio import encode, voice
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.preparation import pipeline
from vits_trainer.data.preparation.pipeline import prepare


def prepare_into(output_dir: Path, dataset: Path, **settings: int | float | str) -> pipeline.PreparationSummary:
    return prepare(PrepareConfig(dataset=str(dataset), output_dir=str(output_dir), **{"processes": 1, **settings}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejected(output_dir: Path) -> dict[str, str]:
    with (output_dir / "rejected.csv").open(encoding="utf-8", newline="") as file:
        return {row["clip"]: row["reason"] for row in csv.DictReader(file)}


def lj_speech(folder: Path, texts: list[str]) -> Path:
    """Clips c0, c1 ... of 0.5 s at 16 kHz, each with a different pitch."""
    clips = {f"wavs/c{n}.wav": encode(voice(0.5, 16000, 100 + 20 * n), 16000) for n in range(len(texts))}
    return audio.write_lj_speech(folder, [f"c{n}|{text}" for n, text in enumerate(texts)], clips)
