"""A folder in the form of LJ Speech, as a source."""

from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Source,
    SourceClip,
    audio_file_finder,
    clip_of,
    filled_lines,
    named_columns,
    require_clips,
)
from vits_trainer.utils.errors import DataError

# LJ Speech


def _open_lj_speech(folder: Path, config: PrepareConfig) -> Source:
    """``metadata.csv`` holds ``id|text`` or ``id|text|normalised text``, the same number of columns in every line."""
    metadata = folder / "metadata.csv"
    _refuse_prepared(folder)
    for flag in named_columns(config):
        raise DataError(f"{metadata}: id|text has no column names. Leave out {flag}, or write a header with commas.")
    columns = clip_count = 0
    for number, line in filled_lines(metadata):
        fields = line.split("|")
        columns = columns or len(fields)
        if columns not in (2, 3):
            raise DataError(
                f"{metadata} line {number}: {columns} column(s) between '|', where id|text or "
                "id|text|normalised text is expected. Write it so, without a header line; or as real CSV under the "
                "header file_name,text."
            )
        if len(fields) != columns or not fields[0].strip():
            raise DataError(
                f"{metadata} line {number}: expected {columns} columns like the first line, beginning with the "
                f"clip's id, but found {line[:80]!r}. Correct the line ('|' may not stand in a text)."
            )
        clip_count += 1
    return Source("lj-speech", folder, require_clips(clip_count, metadata), _lj_speech_clips(folder))


def _lj_speech_clips(folder: Path) -> Iterator[SourceClip]:
    find = audio_file_finder(folder, ("wavs", "audio", "."))
    for _, line in filled_lines(folder / "metadata.csv"):
        clip_id, text, *normalised = line.split("|")
        spoken = normalised[0] if normalised and normalised[0].strip() else text
        yield clip_of(clip_id, spoken, find(clip_id.strip()), speaker=None)


def _refuse_prepared(folder: Path) -> None:
    # Its third column is the speaker: it would be taken for the text.
    summary = folder / "dataset.json"
    if summary.is_file() and '"vits_trainer"' in summary.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"--dataset {folder}: prepare_data wrote this folder. Give it to train_vits --data_dir {folder}, or give "
            "the data set that it was made from."
        )
