"""Extracted releases of Common Voice."""

from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    SourceKind,
    audio_file_finder,
    nonblank_lines,
    require_clips,
    require_named_columns,
    row_clip,
)
from vits_trainer.utils.errors import DataError


def _is_common_voice(folder: Path, _: PrepareConfig) -> bool:
    return (folder / "validated.tsv").is_file()


def _open_common_voice(folder: Path, config: PrepareConfig) -> Source:
    """Opens a release. Its ``validated.tsv`` has a header, tabs, and no quoting: ``"`` in a sentence is literal."""
    metadata = folder / "validated.tsv"
    clip_count = sum(1 for _ in _rows(metadata, config))
    return Source(SOURCE.name, folder, require_clips(clip_count, metadata), _clips(folder, config))


def _columns(config: PrepareConfig) -> Columns:
    audio = config.audio_column or "path"
    speaker = config.speaker_column or "client_id"
    return Columns(audio, config.text_column or "sentence", audio, "up_votes", "down_votes", speaker)


def _clips(folder: Path, config: PrepareConfig) -> Iterator[SourceClip]:
    find, columns = audio_file_finder(folder, ("clips",)), _columns(config)
    for number, row in _rows(folder / "validated.tsv", config):
        yield row_clip(row, f"line {number}", columns, find, config)


def _rows(metadata: Path, config: PrepareConfig) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line numbers and rows by column.

    Raises:
        DataError: a column is missing, or a row has no path, no integers as votes or the wrong number of fields.
    """
    lines = nonblank_lines(metadata)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    require_named_columns(f"{metadata} line 1", names, config)
    columns = _columns(config)
    required = (columns.speaker, columns.audio, columns.text, columns.up_votes, columns.down_votes)
    missing = [name for name in required if name is not None and name not in names]
    if missing:
        raise DataError(
            f"{metadata} line 1: no column {', '.join(missing)}. Give the validated.tsv of a Common Voice release, "
            "unmodified, with its header line and tabs."
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
                f"{metadata} line {number}: needs a path and integers as votes, but has path "
                f"{row[columns.audio]!r}, up_votes {row['up_votes']!r}, down_votes {row['down_votes']!r}. "
                "Correct the line."
            )
        yield number, row


SOURCE = SourceKind(
    "common-voice",
    "an extracted Common Voice release (validated.tsv with clips/)",
    _is_common_voice,
    _open_common_voice,
)
