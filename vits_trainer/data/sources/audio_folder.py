"""Audio folders: recordings with a metadata.csv in real CSV."""

import csv
from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    SourceKind,
    audio_file_finder,
    named_columns,
    nonblank_lines,
    read_lines,
    require_clips,
    row_clip,
)
from vits_trainer.utils.errors import DataError


def _is_audio_folder(folder: Path, config: PrepareConfig) -> bool:
    """Whether ``metadata.csv`` begins with a CSV header.

    LJ Speech has no header and a ``|`` in every line, so a first line with ``|`` is not a header.
    """
    if not (folder / "metadata.csv").is_file():
        return False
    _, first_line = next(nonblank_lines(folder / "metadata.csv"), (1, ""))
    names = [name.strip('"') for name in first_line.split(",")]
    return "|" not in first_line and ("file_name" in names or bool(named_columns(config)))


def _open_audio_folder(folder: Path, config: PrepareConfig) -> Source:
    """Opens a folder whose ``metadata.csv`` is CSV with quoting, under the header ``file_name,text[,speaker]``."""
    metadata = folder / "metadata.csv"
    rows = _csv_rows(metadata)
    _, names = next(rows, (1, []))
    columns = Columns.choose(f"{metadata} line 1", names, config, audio=("file_name",))
    clip_count = sum(1 for _ in rows)
    return Source(SOURCE.name, folder, require_clips(clip_count, metadata), _clips(folder, columns, config))


def _clips(folder: Path, columns: Columns, config: PrepareConfig) -> Iterator[SourceClip]:
    metadata = folder / "metadata.csv"
    find, rows = audio_file_finder(folder, (".",)), _csv_rows(metadata)
    _, names = next(rows, (1, []))
    for number, fields in rows:
        yield row_clip(dict(zip(names, fields, strict=True)), f"{metadata} line {number}", columns, find, config)


def _csv_rows(metadata: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the header and the rows, with the number of the line in which each ends.

    Raises:
        DataError: malformed CSV, or rows that differ in their number of fields.
    """
    reader = csv.reader((line for _, line in read_lines(metadata)), strict=True)
    columns = 0
    try:
        for fields in reader:
            if len(fields) <= 1 and not "".join(fields).strip():  # a blank line
                continue
            columns = columns or len(fields)
            if len(fields) != columns:
                raise DataError(
                    f"{metadata} line {reader.line_num}: {len(fields)} columns where the header has {columns}. "
                    'Correct the line (a text with a comma needs "" around it).'
                )
            yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{metadata} line {reader.line_num}: not valid CSV ({error}). Correct the line.") from error


SOURCE = SourceKind(
    "audio-folder",
    "an audio folder (metadata.csv with a header file_name,text)",
    _is_audio_folder,
    _open_audio_folder,
)
