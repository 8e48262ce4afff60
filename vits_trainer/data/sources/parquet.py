"""Parquet files as a source: read a few rows at a time, from any row on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import Columns, Source, SourceClip, audio_file_finder, require_clips, row_clip
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import first_line

_ROWS_AT_ONCE = 16
_READ_AHEAD_BYTES = 2**20


def open_parquet(files: Sequence[Path], config: PrepareConfig) -> Source:
    """Opens ``files``, whose rows are read in the order of the files.

    Raises:
        DataError: one is no Parquet, has not the columns, or there is no row at all.
    """
    columns, rows_of, embedded = [], [], True
    for file in files:
        try:
            metadata = pq.read_metadata(file)
            names = metadata.schema.to_arrow_schema().names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: no readable Parquet file ({first_line(error)}). Fetch it again.") from error
        rows_of.append(metadata.num_rows)
        columns.append(Columns.of(file, names, config))
        embedded = embedded and _holds_recordings(metadata, columns[-1].audio)

    def clips_behind(rows: int) -> Iterator[SourceClip]:
        for file, rows_of_file, named in zip(files, rows_of, columns, strict=True):
            if rows < rows_of_file or rows == 0:
                yield from _clips(file, named, config, rows)
            rows = max(0, rows - rows_of_file)

    return Source(
        kind="parquet",
        root=files[0].parent,
        clip_count=require_clips(sum(rows_of), files[0]),
        clips=clips_behind(0),
        files=files,
        clips_from=clips_behind if embedded else None,
    )


def _holds_recordings(metadata: Any, audio: str) -> bool:
    """Whether every row has its recording in it, rather than the name of a file."""
    kinds = {field.name: field.type for field in metadata.schema.to_arrow_schema()}
    content = f"{audio}.bytes" if pa.types.is_struct(kinds[audio]) else audio
    if not pa.types.is_struct(kinds[audio]) and not pa.types.is_binary(kinds[audio]):
        return False
    every = map(metadata.row_group, range(metadata.num_row_groups))
    groups = [group for group in every if group.num_rows]
    chunks = [chunk for group in groups for chunk in map(group.column, range(group.num_columns))]
    known = [chunk.statistics for chunk in chunks if chunk.path_in_schema == content]
    return len(known) == len(groups) and all(found is not None and found.null_count == 0 for found in known)


def _clips(file: Path, columns: Columns, config: PrepareConfig, behind: int) -> Iterator[SourceClip]:
    """The clips behind the first ``behind`` rows; a few are in memory at a time, however large a row group is."""
    find = audio_file_finder(file.parent, (".",))
    number = behind
    try:
        # Read page by page: pre-buffering would take whole row groups into memory.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_AHEAD_BYTES) as table:
            number, groups = _groups_behind(table.metadata, behind)
            for batch in table.iter_batches(_ROWS_AT_ONCE, groups, columns.present(), use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    if number > behind:
                        yield row_clip(row, f"{file} row {number}", columns, find, config)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} after row {number}: cannot be read ({first_line(error)}). Fetch it again.") from error


def _groups_behind(metadata: Any, rows: int) -> tuple[int, list[int]]:
    """The row groups that hold what comes behind the first ``rows``, and how many rows stand before those groups."""
    before = 0
    for group in range(metadata.num_row_groups):
        if before + metadata.row_group(group).num_rows > rows:
            return before, list(range(group, metadata.num_row_groups))
        before += metadata.row_group(group).num_rows
    return before, []
