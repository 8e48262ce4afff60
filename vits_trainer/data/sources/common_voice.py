"""A release of Common Voice, as a source."""

from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    audio_file_finder,
    filled_lines,
    require_clips,
    require_named_columns,
    row_clip,
)
from vits_trainer.utils.errors import DataError

# Common Voice


def open_common_voice(folder: Path, config: PrepareConfig) -> Source:
    """``validated.tsv`` has a header, tabs, and no quoting: a ``"`` in a sentence is a ``"``."""
    metadata = folder / "validated.tsv"
    clip_count = sum(1 for _ in _release_rows(metadata, config))
    return Source("common-voice", folder, require_clips(clip_count, metadata), _common_voice_clips(folder, config))


def _release_columns(config: PrepareConfig) -> Columns:
    audio = config.audio_column or "path"
    speaker = config.speaker_column or "client_id"
    return Columns(audio, config.text_column or "sentence", audio, "up_votes", "down_votes", speaker)


def _common_voice_clips(folder: Path, config: PrepareConfig) -> Iterator[SourceClip]:
    find, columns = audio_file_finder(folder, ("clips",)), _release_columns(config)
    for number, row in _release_rows(folder / "validated.tsv", config):
        yield row_clip(row, f"line {number}", columns, find, config)


def _release_rows(metadata: Path, config: PrepareConfig) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows by column; every row has all columns, and whole numbers as votes."""
    lines = filled_lines(metadata)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    require_named_columns(f"{metadata} line 1", names, config)
    columns = _release_columns(config)
    asked = (columns.speaker, columns.audio, columns.text, columns.up_votes, columns.down_votes)
    missing = [name for name in asked if name is not None and name not in names]
    if missing:
        raise DataError(
            f"{metadata} line 1: no column {', '.join(missing)}. Give the validated.tsv of a Common Voice release, "
            "with its header line and tabs, as it was extracted."
        )
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            raise DataError(
                f"{metadata} line {number}: {len(fields)} columns where the header has {len(names)}. "
                "Extract the release again, or correct the line."
            )
        row = dict(zip(names, fields, strict=True))
        if not (row["up_votes"].isdecimal() and row["down_votes"].isdecimal() and row[columns.audio]):
            raise DataError(
                f"{metadata} line {number}: needs a path and whole numbers as votes, but found path "
                f"{row[columns.audio]!r}, up_votes {row['up_votes']!r}, down_votes {row['down_votes']!r}. "
                "Correct the line."
            )
        yield number, row
