"""A folder of recordings with their texts, as a source."""

import csv
from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    _lines,
    audio_file_finder,
    filled_lines,
    named_columns,
    require_clips,
    row_clip,
)
from vits_trainer.utils.errors import DataError

# An audio folder


def is_audio_folder(folder: Path, config: PrepareConfig) -> bool:
    """Whether ``metadata.csv`` begins with a header of names between commas.

    LJ Speech's has no header, and has a ``|`` in every line: where one stands in the first line, it is no header.
    """
    _, first_line = next(filled_lines(folder / "metadata.csv"), (1, ""))
    names = [name.strip('"') for name in first_line.split(",")]
    return "|" not in first_line and ("file_name" in names or bool(named_columns(config)))


def open_audio_folder(folder: Path, config: PrepareConfig) -> Source:
    """``metadata.csv`` has a header ``file_name,text[,speaker]``, and commas and quotes as CSV has them."""
    metadata = folder / "metadata.csv"
    rows = _csv_rows(metadata)
    _, names = next(rows, (1, []))
    columns = Columns.of(f"{metadata} line 1", names, config, audio=("file_name",))
    clip_count = sum(1 for _ in rows)
    return Source(
        "audio-folder", folder, require_clips(clip_count, metadata), _audio_folder_clips(folder, columns, config)
    )


def _audio_folder_clips(folder: Path, columns: Columns, config: PrepareConfig) -> Iterator[SourceClip]:
    metadata = folder / "metadata.csv"
    find, rows = audio_file_finder(folder, (".",)), _csv_rows(metadata)
    _, names = next(rows, (1, []))
    for number, fields in rows:
        yield row_clip(dict(zip(names, fields, strict=True)), f"{metadata} line {number}", columns, find, config)


def _csv_rows(metadata: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, as many fields in each, with the number of the line in which they end."""
    reader = csv.reader((line for _, line in _lines(metadata)), strict=True)
    columns = 0
    try:
        for fields in reader:
            if len(fields) <= 1 and not "".join(fields).strip():  # a blank line
                continue
            columns = columns or len(fields)
            if len(fields) != columns:
                raise DataError(
                    f"{metadata} line {reader.line_num}: {len(fields)} columns where the header has {columns}. "
                    'Correct the line (a text with a comma stands in "").'
                )
            yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{metadata} line {reader.line_num}: no CSV ({error}). Correct the line.") from error
