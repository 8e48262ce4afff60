"""Parquet files, read a few rows at a time, starting at any row."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    SourceKind,
    require_clips,
    row_clip,
)
from vits_trainer.data.sources.files import AudioFiles
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import first_line

_ROWS_PER_READ = 16
_READ_AHEAD_BYTES = 2**20


def parquet_files(path: Path) -> list[Path]:
    """Returns the Parquet files of a directory, or the file itself, or whatever a pattern matches."""
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute pattern


def _is_parquet(path: Path, _: PrepareConfig) -> bool:
    return bool(parquet_files(path))


def _open_parquet(path: Path, config: PrepareConfig) -> Source:
    """Opens all files at once; their rows are read in the order of the files' names.

    Raises:
        DataError: a file is not Parquet or lacks a column, or there are no rows at all.
    """
    files = parquet_files(path)
    columns, row_counts, embedded, named = [], [], True, True
    for file in files:
        try:
            metadata = pq.read_metadata(file)
            names = metadata.schema.to_arrow_schema().names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable Parquet file ({first_line(error)}). Download it again.") from error
        row_counts.append(metadata.num_rows)
        columns.append(Columns.choose(file, names, config))
        named = named and pa.types.is_string(metadata.schema.to_arrow_schema().field(columns[-1].audio).type)
        embedded = embedded and _has_embedded_audio(metadata, columns[-1].audio)

    def clips_from(start: int) -> Iterator[SourceClip]:
        for file, row_count, file_columns in zip(files, row_counts, columns, strict=True):
            if start < row_count or start == 0:
                yield from _clips(file, file_columns, config, start)
            start = max(0, start - row_count)

    def speakers() -> Iterator[str | None]:
        for file, file_columns in zip(files, columns, strict=True):
            yield from _speakers(file, file_columns.speaker)

    return Source(
        kind=SOURCE.name,
        root=files[0].parent,
        clip_count=require_clips(sum(row_counts), files[0]),
        clips=clips_from(0),
        files=files,
        clips_from=clips_from if embedded else None,
        access="random" if embedded else "listed" if named else "sequential",
        speakers=speakers if any(one.speaker for one in columns) else None,
    )


def _speakers(file: Path, column: str | None) -> Iterator[str | None]:
    """Yields the values of one column as strings, reading no other."""
    if column is None:
        return
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(columns=[column], use_threads=False):
                yield from (None if value is None else str(value) for value in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: column {column} cannot be read ({first_line(error)}). Download it again.") from error


def _has_embedded_audio(metadata: Any, audio: str) -> bool:
    """Whether every row contains its recording rather than the name of a file, by the statistics of the row groups."""
    types = {field.name: field.type for field in metadata.schema.to_arrow_schema()}
    content = f"{audio}.bytes" if pa.types.is_struct(types[audio]) else audio
    if not pa.types.is_struct(types[audio]) and not pa.types.is_binary(types[audio]):
        return False
    row_groups = map(metadata.row_group, range(metadata.num_row_groups))
    groups = [group for group in row_groups if group.num_rows]
    chunks = [chunk for group in groups for chunk in map(group.column, range(group.num_columns))]
    statistics = [chunk.statistics for chunk in chunks if chunk.path_in_schema == content]
    return len(statistics) == len(groups) and all(entry is not None and entry.null_count == 0 for entry in statistics)


def _clips(file: Path, columns: Columns, config: PrepareConfig, start: int) -> Iterator[SourceClip]:
    """Yields the clips from row ``start`` on, with only a few in memory, however large the row groups are."""
    find = AudioFiles(file.parent, (".",))
    number = start
    try:
        # Page by page: pre-buffering would load whole row groups into memory.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_AHEAD_BYTES) as table:
            number, groups = _row_groups_from(table.metadata, start)
            for batch in table.iter_batches(_ROWS_PER_READ, groups, columns.present(), use_threads=False):
                skipped = min(batch.num_rows, max(0, start - number))
                number += skipped
                for row in batch.slice(skipped).to_pylist():
                    number += 1
                    yield row_clip(row, f"{file} row {number}", columns, find, config)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file} after row {number}: cannot be read ({first_line(error)}). Download it again."
        ) from error


def _row_groups_from(metadata: Any, start: int) -> tuple[int, list[int]]:
    """Returns the number of rows before the row group of row ``start``, and the indices of the groups from it on."""
    rows_before = 0
    for group in range(metadata.num_row_groups):
        if rows_before + metadata.row_group(group).num_rows > start:
            return rows_before, list(range(group, metadata.num_row_groups))
        rows_before += metadata.row_group(group).num_rows
    return rows_before, []


SOURCE = SourceKind("parquet", "Parquet (a file, a folder of files or a pattern)", _is_parquet, _open_parquet)
