"""What one round of feedback trains on: the new corrections, and clips that the voice knows."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vits_trainer.config.selection import ClipSelection
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.audio_store import AudioSubset, JoinedAudioStore
from vits_trainer.data.prepared import ClipTable, PreparedData
from vits_trainer.data.sampler import ClipPositions
from vits_trainer.data.sources.corrections import SPEAKER_ENDING, read_speaker
from vits_trainer.data.sources.files import paired_files
from vits_trainer.data.training_data import PreparedTrainingData
from vits_trainer.utils.strings import printable


class CorrectionFiles(NamedTuple):
    """NAME.wav, how it should sound, NAME.txt, its text, and perhaps NAME.speaker, whose voice it is."""

    name: str
    files: tuple[Path, ...]
    sha256: str
    speaker: str | None = None


def find_corrections(folder: Path) -> list[CorrectionFiles]:
    """Returns a folder's corrections by name, also those that lack a text or a recording: preparing rejects them."""
    corrections = []
    for name, paths in paired_files(folder).items():
        speaker = paths[0].with_suffix(SPEAKER_ENDING)
        files = [*paths, speaker] if speaker.is_file() else paths
        corrections.append(CorrectionFiles(printable(name), tuple(files), _digest(files), read_speaker(speaker)))
    return corrections


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.suffix} {len(content)} ".encode() + content)
    return digest.hexdigest()


def not_yet_learnt(corrections: Sequence[CorrectionFiles], learnt: Mapping[str, str]) -> list[CorrectionFiles]:
    """Returns those that a voice has not learnt; one whose files have changed is new."""
    return [correction for correction in corrections if learnt.get(correction.name) != correction.sha256]


def copy_corrections(corrections: Sequence[CorrectionFiles], folder: Path) -> None:
    """Copies the files into a new folder."""
    folder.mkdir(parents=True)
    for correction in corrections:
        for file in correction.files:
            shutil.copyfile(file, folder / file.name)


@dataclass(frozen=True)
class ReplayDraw:
    """What an epoch trains on: each correction once, and ``replayed`` known clips in turn.

    Known clips are replayed in random order, and none again before all others were: a pure function of seed and epoch.
    """

    corrections: int
    """Rows from 0 on."""
    known: int
    """Rows after them."""
    replayed: int
    """Per epoch."""
    seed: int

    def __call__(self, epoch: int) -> ClipPositions:
        """Returns the positions of an epoch, sorted."""
        turns = np.arange(epoch * self.replayed, (epoch + 1) * self.replayed)
        rounds = {number: self._round(number) for number in set((turns // max(self.known, 1)).tolist())}
        replayed = [self.corrections + rounds[turn // self.known][turn % self.known] for turn in turns.tolist()]
        return np.sort(np.concatenate([np.arange(self.corrections), np.array(replayed, dtype=np.int64)]))

    def _round(self, number: int) -> ClipPositions:
        return np.random.default_rng([self.seed, number]).permutation(self.known)


def replay_data(
    config: TrainConfig,
    corrections: PreparedData,
    known: Sequence[tuple[PreparedData, Sequence[int]]],
    replay_fraction: float,
    selection: ClipSelection | None = None,
) -> PreparedTrainingData:
    """Returns training data whose epochs hold all corrections, mixed with replayed clips that the voice knows.

    Validation is on the corrections: its curves show what is learnt. The decision measures other clips, too.

    Args:
        config: of the training.
        corrections: prepared.
        known: prepared data, and the rows of each that may be replayed.
        replay_fraction: replayed part of an epoch.
        selection: of the clips that the voice was trained on before, to be stored with the new voice.
    """
    count = len(corrections.rows)
    replayable = sum(len(rows) for _, rows in known)
    replayed = round(count * replay_fraction / (1 - replay_fraction)) if replayable else 0
    joined = _join([(corrections, range(count)), *known])
    joined.summary.update(clips=count + replayed, replayed=replayed, passes=config.epochs)
    return PreparedTrainingData(
        config,
        joined,
        rows=range(count + replayable),
        validation_rows=range(min(count, config.validation_max_clips)),
        draw_epoch=ReplayDraw(count, replayable, replayed, config.seed),
        selection=selection,
    )


def _join(parts: Sequence[tuple[PreparedData, Sequence[int]]]) -> PreparedData:
    """Joins rows of prepared data; names are preceded by the number of their part, so that no two are alike."""
    tables = [prepared.rows.select(rows) for prepared, rows in parts]
    joined = ClipTable(
        [f"{number}/{name}" for number, table in enumerate(tables) for name in table.filename],
        [text for table in tables for text in table.text],
        [speaker for table in tables for speaker in table.speaker],
    )
    first = parts[0][0]
    recordings = JoinedAudioStore([AudioSubset(prepared.recordings, rows) for prepared, rows in parts])
    summary = {"sampling_rate": first.sampling_rate}
    return PreparedData(first.root, joined, first.sampling_rate, summary, recordings)
