"""Folders in the format of LJ Speech."""

from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Source,
    SourceClip,
    SourceKind,
    audio_file_finder,
    make_clip,
    named_columns,
    nonblank_lines,
    require_clips,
)
from vits_trainer.utils.errors import DataError


def _is_lj_speech(folder: Path, _: PrepareConfig) -> bool:
    """Whether there is a ``metadata.csv``. Audio folders have one too and are detected first."""
    return (folder / "metadata.csv").is_file()


def _open_lj_speech(folder: Path, config: PrepareConfig) -> Source:
    """Opens a folder whose ``metadata.csv`` has ``id|text`` or ``id|text|normalised text`` in every line."""
    metadata = folder / "metadata.csv"
    _refuse_prepared(folder)
    for flag in named_columns(config):
        raise DataError(f"{metadata}: id|text has no column names. Leave out {flag}, or add a header with commas.")
    columns = clip_count = 0
    for number, line in nonblank_lines(metadata):
        fields = line.split("|")
        columns = columns or len(fields)
        if columns not in (2, 3):
            raise DataError(
                f"{metadata} line {number}: {columns} column(s) separated by '|'; expected id|text or "
                "id|text|normalised text. Write it in that form, without a header line; or as real CSV under the "
                "header file_name,text."
            )
        if len(fields) != columns or not fields[0].strip():
            raise DataError(
                f"{metadata} line {number}: expected {columns} columns like the first line, beginning with the "
                f"clip's id, but found {line[:80]!r}. Correct the line (a text cannot contain '|')."
            )
        clip_count += 1
    return Source(SOURCE.name, folder, require_clips(clip_count, metadata), _clips(folder))


def _clips(folder: Path) -> Iterator[SourceClip]:
    find = audio_file_finder(folder, ("wavs", "audio", "."))
    for _, line in nonblank_lines(folder / "metadata.csv"):
        clip_id, text, *normalised = line.split("|")
        spoken = normalised[0] if normalised and normalised[0].strip() else text
        yield make_clip(clip_id, spoken, find(clip_id.strip()), speaker=None)


def _refuse_prepared(folder: Path) -> None:
    # Its third column is the speaker, which would be read as the normalised text.
    summary = folder / "dataset.json"
    if summary.is_file() and '"vits_trainer"' in summary.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"--dataset {folder}: prepare_data wrote this folder. Train on it with train_vits --data_dir {folder}, or "
            "give the data set from which it was made."
        )


SOURCE = SourceKind(
    "lj-speech", "an LJ Speech folder (metadata.csv with wavs/ or audio/)", _is_lj_speech, _open_lj_speech
)
