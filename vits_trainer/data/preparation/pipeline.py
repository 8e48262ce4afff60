"""From a source of clips to a prepared folder, in several processes; every clip left out is written down."""

import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Rejection
from vits_trainer.data.preparation.journal import JOURNAL, ClipJournal, RejectedClip, wav_name
from vits_trainer.data.preparation.sharded import prepare_shards, remove_journals
from vits_trainer.data.preparation.summary import (
    PreparationStats,
    PreparationSummary,
    already_prepared_message,
    dataset_json,
    finished_before,
    no_clips_message,
    preparation_fingerprint,
    refuse_foreign,
    rejected_csv,
)
from vits_trainer.data.preparation.workers import convert_clip, map_in_processes, prescreen, to_accepted
from vits_trainer.data.shards import FOLDER
from vits_trainer.data.sources.base import Source
from vits_trainer.data.sources.dataset import open_dataset
from vits_trainer.data.sources.detect import open_source
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, atomic_write, discard, remove, replace_file

if TYPE_CHECKING:
    from datasets import Dataset

WAVS = Kind(
    "wavs",
    re.compile(r"audio_\d{6,}\.wav|\d+(-\d+)?\.part"),
    lambda folder: (folder.parent / JOURNAL).is_file(),  # as long as it may be cleared
)


def prepare(config: PrepareConfig, dataset: "Dataset | None" = None) -> PreparationSummary:
    """Writes ``config.output_dir``, the same bytes whatever the number of processes, and however often it was killed::

        wavs/audio_000000.wav   16-bit PCM, mono, numbered over the accepted clips in the order of the source
        rejected.csv            clip,reason,detail of every clip left out
        metadata.csv            audio_000000.wav|text, and |speaker where there are several
        dataset.json            counts, lengths, settings, versions; written last
        .preparing.jsonl        while it is at work: what has become of each clip

    With --shards, shards/ and shards.json stand for wavs/ and metadata.csv
    (:mod:`vits_trainer.data.preparation.sharded`).

    What is finished is left as it is, if it was asked for in the same words and the source has not changed since.

    Args:
        config: of the preparation.
        dataset: clips to prepare instead of ``config.dataset``, with an audio column (``datasets.Audio``) and a text
            column.

    Raises:
        DataError: the source or the output folder cannot be used, or not one clip is left (rejected.csv is
            written all the same).
        VitsTrainerError: a worker process was killed.
    """
    source = open_source(config) if dataset is None else open_dataset(dataset, config)
    output_dir = Path(config.output_dir).expanduser()
    if source.root is not None and output_dir.resolve() == source.root.resolve():
        raise DataError(f"--output_dir {output_dir} is the data set itself. Choose another --output_dir.")
    asked = preparation_fingerprint(source, config, output_dir)
    finished = finished_before(output_dir, asked)
    if finished is not None:
        discard(output_dir / JOURNAL)  # of one that was killed when all was done
        remove_journals(output_dir / FOLDER)
        return finished
    try:
        if config.shards:
            return prepare_shards(source, config, output_dir, asked)
        return _prepare_wavs(source, config, output_dir, asked)
    except OSError as error:
        raise DataError(
            f"{error.filename or output_dir}: cannot be written ({error.strerror or error}). "
            "Make room there, or choose another --output_dir; the same command goes on from here."
        ) from error


def _prepare_wavs(
    source: Source, config: PrepareConfig, output_dir: Path, asked: Mapping[str, Any]
) -> PreparationSummary:
    wavs = output_dir / "wavs"
    if (output_dir / "metadata.csv").exists() and not (output_dir / JOURNAL).exists():
        raise DataError(already_prepared_message(output_dir, "metadata.csv"))
    refuse_foreign(wavs, WAVS)
    with ClipJournal(output_dir, asked) as ledger:
        if not ledger.entries:
            _clear(wavs)
        wavs.mkdir(exist_ok=True)
        _convert_all(source, config, wavs, ledger)
        atomic_write(output_dir / "rejected.csv", rejected_csv(ledger.entries))
        tally = PreparationStats()
        for entry in ledger.entries:
            tally.add(entry)
        summary = tally.summary(output_dir, config.target_sr)
        if not summary.accepted:
            _clear(wavs)
            ledger.remove()
            raise DataError(no_clips_message(summary))
        atomic_write(output_dir / "metadata.csv", _metadata_csv(ledger))
        os.sync()  # thousands of files: one by one it would take minutes
        atomic_write(output_dir / "dataset.json", dataset_json(summary, tally, source, config, asked))
        ledger.remove()
    return summary


def _convert_all(source: Source, config: PrepareConfig, wavs: Path, ledger: ClipJournal) -> None:
    total = min((count for count in (config.max_samples, source.clip_count) if count), default=None)
    accepted, done = len(ledger.accepted), len(ledger.entries)

    def part(place: int) -> Path:
        # With our number, as workers of a killed preparation may live on for a moment.
        return wavs / f"{done + place}-{os.getpid()}.part"

    with tqdm(desc="prepare_data", total=total, unit="clip", disable=None) as bar:
        bar.update(accepted if config.max_samples else done)
        if accepted == config.max_samples > 0:
            return
        clips = prescreen(source, done)
        with closing(map_in_processes(clips, convert_clip, lambda place: (part(place),), config)) as outcomes:
            for place, (clip, outcome) in enumerate(outcomes):
                if isinstance(outcome, Rejection):
                    ledger.add(RejectedClip(clip.clip_id, *outcome))
                else:
                    replace_file(part(place), wavs / wav_name(accepted))
                    ledger.add(to_accepted(clip, outcome))
                    accepted += 1
                bar.update((accepted if config.max_samples else len(ledger.entries)) - bar.n)
                if accepted == config.max_samples > 0:
                    break
    for left in wavs.glob("*.part"):  # of clips that were begun before the last one wanted was done
        discard(left)


def _clear(wavs: Path) -> None:
    refuse_foreign(wavs, WAVS)
    if wavs.exists():
        remove(wavs, WAVS)


def _metadata_csv(ledger: ClipJournal) -> str:
    several = len({entry.speaker for entry in ledger.accepted}) > 1
    return "".join(
        "|".join([wav_name(number), entry.text, *([entry.speaker] if several else [])]) + "\n"
        for number, entry in enumerate(ledger.accepted)
    )
