"""Prepares a folder from a source of clips, in several processes, with a record of every rejected clip."""

import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import expanded
from vits_trainer.data.audio import Rejection
from vits_trainer.data.preparation.drop_list import DropList, read_drop_list
from vits_trainer.data.preparation.journal import JOURNAL, ClipJournal, RejectedClip, wav_name
from vits_trainer.data.preparation.plausibility import clip_facts
from vits_trainer.data.preparation.sharded import prepare_shards, remove_journals
from vits_trainer.data.preparation.speaker_names import short_speaker_names
from vits_trainer.data.preparation.summary import (
    PreparationStats,
    PreparationSummary,
    already_prepared_message,
    dataset_json,
    example_line,
    no_clips_message,
    preparation_fingerprint,
    read_finished,
    refuse_foreign,
    rejected_csv,
    require_plausible,
    with_speaker_names,
)
from vits_trainer.data.preparation.workers import Screening, convert_clip, map_in_processes, prescreen, to_accepted
from vits_trainer.data.segmentation.plan import Transcribe
from vits_trainer.data.shards import FOLDER
from vits_trainer.data.source_names import write_source_names
from vits_trainer.data.sources.base import Source
from vits_trainer.data.sources.dataset import open_dataset
from vits_trainer.data.sources.detect import open_source
from vits_trainer.data.sources.recordings import open_recordings
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, atomic_write, discard, remove, replace_file

if TYPE_CHECKING:
    from datasets import Dataset

WAVS = Kind(
    "wavs",
    re.compile(r"audio_\d{6,}\.wav|\d+(-\d+)?\.part"),
    lambda folder: (folder.parent / JOURNAL).is_file(),  # may be cleared while the journal exists
)


def prepare(
    config: PrepareConfig, dataset: "Dataset | None" = None, transcribe: Transcribe | None = None
) -> PreparationSummary:
    """Writes ``config.output_dir``, with the same bytes for any number of processes and interruptions::

        wavs/audio_000000.wav   16-bit PCM, mono, numbered over the accepted clips in the order of the source
        rejected.csv            clip,reason,detail of every rejected clip
        metadata.csv            audio_000000.wav|text, and |speaker if there are several
        sources.csv             names of the clips in the source
        speakers.csv            short names of speakers whose names are hashes
        dataset.json            counts, lengths, settings, versions; written last
        .preparing.jsonl        until it is finished: the outcome of each clip

        segments/NAME.json      with --segment: the plan of each recording; kept

    With --shards, shards/ and shards.json replace wavs/ and metadata.csv
    (:mod:`vits_trainer.data.preparation.sharded`).

    A finished folder with the same settings and an unchanged source is left unchanged.

    Args:
        config: of the preparation.
        dataset: clips to prepare instead of ``config.dataset``, with an audio column (``datasets.Audio``) and a text
            column.
        transcribe: the recognizer that ``config.transcribe`` names: returns the words of speech, (T,), with full scale
            at 1, at 16 kHz.

    Raises:
        ConfigError: the texts of recordings need a recognizer, or a package is not installed.
        DataError: the source or the output folder cannot be used, or all clips are rejected (rejected.csv is
            written nevertheless).
        VitsTrainerError: a worker process was killed.
    """
    drop = read_drop_list(config.drop)
    if dataset is not None:
        source = open_dataset(dataset, config)
    else:
        source = open_recordings(config, transcribe) if config.segment else open_source(config)
    output_dir = expanded("output_dir", config.output_dir)
    if source.root is not None and output_dir.resolve() == source.root.resolve():
        raise DataError(f"--output_dir {output_dir} is the data set itself. Choose another --output_dir.")
    fingerprint = preparation_fingerprint(source, config, output_dir, drop)
    finished = read_finished(output_dir, fingerprint)
    if finished is not None:
        discard(output_dir / JOURNAL)  # of a preparation that was killed just before removing it
        remove_journals(output_dir / FOLDER)
        return finished
    try:
        screening = Screening(drop, short_speaker_names(source, output_dir))
        fingerprint = with_speaker_names(fingerprint, screening.speakers)
        if config.shards:
            return prepare_shards(source, config, output_dir, fingerprint, screening)
        return _prepare_wavs(source, config, output_dir, fingerprint, screening)
    except OSError as error:
        raise DataError(
            f"{error.filename or output_dir}: cannot be written ({error.strerror or error}). "
            "Free space or fix permissions there, or choose another --output_dir; the same command resumes from here."
        ) from error


def _prepare_wavs(
    source: Source, config: PrepareConfig, output_dir: Path, fingerprint: Mapping[str, Any], screening: Screening
) -> PreparationSummary:
    wavs = output_dir / "wavs"
    if (output_dir / "metadata.csv").exists() and not (output_dir / JOURNAL).exists():
        raise DataError(already_prepared_message(output_dir, "metadata.csv"))
    refuse_foreign(wavs, WAVS)
    with ClipJournal(output_dir, fingerprint) as journal:
        if not journal.entries:
            _clear(wavs)
        wavs.mkdir(exist_ok=True)
        _convert_all(source, config, wavs, journal, screening)
        atomic_write(output_dir / "rejected.csv", rejected_csv(journal.entries))
        stats = _stats(journal, config, screening.drop)
        summary = stats.summary(output_dir, config.target_sr)
        if not summary.accepted:
            _clear(wavs)
            journal.remove()
            raise DataError(no_clips_message(summary, stats))
        require_plausible(stats, config)
        sources = (entry.source for entry in journal.accepted)
        write_source_names(output_dir, zip(journal.names, sources, strict=True))
        atomic_write(output_dir / "metadata.csv", _metadata_csv(journal))
        os.sync()  # one fsync for each of thousands of files would take minutes
        atomic_write(output_dir / "dataset.json", dataset_json(summary, stats, source, config, fingerprint))
        journal.remove()
    return summary


def _stats(journal: ClipJournal, config: PrepareConfig, drop: DropList) -> PreparationStats:
    stats = PreparationStats()
    for entry in journal.entries:
        stats.add(entry)
    rejected = [entry for entry in journal.entries if isinstance(entry, RejectedClip)]
    stats.drop_warnings = drop.warnings(rejected, len(journal.entries))
    accepted, names = journal.accepted, journal.names
    stats.facts = [clip_facts(name, clip, config.target_sr) for name, clip in zip(names, accepted, strict=True)]
    middle, last = len(accepted) // 2, len(accepted) - 1
    stats.examples = [
        example_line(f"wavs/{names[row]}", accepted[row], config.target_sr)
        for row in sorted({0, middle, last})
        if accepted
    ]
    return stats


def _convert_all(source: Source, config: PrepareConfig, wavs: Path, journal: ClipJournal, screening: Screening) -> None:
    total = min((count for count in (config.max_samples, source.clip_count) if count), default=None)
    accepted, done = len(journal.accepted), len(journal.entries)

    def part(index: int) -> Path:
        # With the process id, as workers of a killed preparation may live on for a moment.
        return wavs / f"{done + index}-{os.getpid()}.part"

    with tqdm(desc="prepare_data", total=total, unit="clip", disable=None) as bar:
        bar.update(accepted if config.max_samples else done)
        if accepted == config.max_samples > 0:
            return
        clips = prescreen(source, done, screening)
        with closing(map_in_processes(clips, convert_clip, lambda index: (part(index),), config)) as outcomes:
            for index, (clip, outcome) in enumerate(outcomes):
                if isinstance(outcome, Rejection):
                    journal.add(RejectedClip(clip.clip_id, *outcome))
                else:
                    replace_file(part(index), wavs / wav_name(journal.next_number))
                    journal.add(to_accepted(clip, *outcome))
                    accepted += 1
                bar.update((accepted if config.max_samples else len(journal.entries)) - bar.n)
                if accepted == config.max_samples > 0:
                    break
    for leftover in wavs.glob("*.part"):  # of clips that were in flight when max_samples was reached
        discard(leftover)


def _clear(wavs: Path) -> None:
    refuse_foreign(wavs, WAVS)
    if wavs.exists():
        remove(wavs, WAVS)


def _metadata_csv(journal: ClipJournal) -> str:
    several = len({entry.speaker for entry in journal.accepted}) > 1
    return "".join(
        "|".join([name, entry.text, *([entry.speaker] if several else [])]) + "\n"
        for name, entry in zip(journal.names, journal.accepted, strict=True)
    )
