"""The clips of one round of feedback: new corrections, and clips that the voice knows."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vits_trainer.data.audio import AUDIO_ENDINGS
from vits_trainer.data.prepared import PreparedData


class CorrectionFiles(NamedTuple):
    """NAME.wav, how it should sound, and NAME.txt, its text."""

    name: str
    files: tuple[Path, ...]
    sha256: str


def find_corrections(folder: Path) -> list[CorrectionFiles]:
    """All in the folder, sorted by name; one without a text or a recording is among them, to be rejected."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in (".txt", *AUDIO_ENDINGS):
            files.setdefault(path.stem, []).append(path)
    return [CorrectionFiles(name, tuple(paths), _digest(paths)) for name, paths in sorted(files.items())]


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.suffix} {len(content)} ".encode() + content)
    return digest.hexdigest()


def not_yet_learnt(corrections: Sequence[CorrectionFiles], learnt: Mapping[str, str]) -> list[CorrectionFiles]:
    """Those that a voice has not learnt; one whose files have changed is new."""
    return [correction for correction in corrections if learnt.get(correction.name) != correction.sha256]


def copy_corrections(corrections: Sequence[CorrectionFiles], folder: Path) -> None:
    """Into a folder of their own, made anew."""
    folder.mkdir(parents=True)
    for correction in corrections:
        for file in correction.files:
            shutil.copyfile(file, folder / file.name)


def write_replay_mix(
    folder: Path,
    corrections: PreparedData,
    others: Sequence[tuple[PreparedData, Sequence[int]]],
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
            prepared.recordings.export_wav(row, folder / "wavs" / name)
            lines.append("|".join([name, clip["text"], *([clip["speaker"]] if several else [])]) + "\n")
        replayed += each
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    summary = {"sampling_rate": corrections.sampling_rate, "clips": len(lines), "replayed": replayed, "passes": passes}
    (folder / "dataset.json").write_text(json.dumps(summary), encoding="utf-8")
    return replayed


def _in_turn(pool: Sequence[tuple[PreparedData, int]], seed: int) -> Iterator[tuple[PreparedData, int]]:
    rng = np.random.default_rng(seed)
    while True:
        for place in rng.permutation(len(pool)):
            yield pool[place]
