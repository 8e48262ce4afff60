"""Reads Parquet files that prepare_data did not write: a few rows at a time, in the order of their row groups.

The row groups of others may have any size, such as a gigabyte, and Parquet pages can only be read one after another. A
row group is therefore divided into groups of about :data:`GROUP_BYTES`. A cursor reads them in their order, with one
page and one group in memory; a group within a row group is reached by reading what is before it.

Some writers make a whole row group one page. The pages of all cursors of a process are therefore limited to
:data:`MAX_PAGE_BYTES`: the cursor that was used least recently is closed, and its row group read again.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.remote_shards import RemoteFolder, SeekableFile, ShardReader, read_footer
from vits_trainer.data.shards import ShardRecord
from vits_trainer.data.sources.base import Columns
from vits_trainer.utils.errors import DataError, UnreadableShardError
from vits_trainer.utils.strings import counted

GROUP_BYTES = 2**21
"""Typical size of a group: 15 to 100 clips of 5 s, by their encoding."""
GROUP_ROWS = 256
"""Maximum number of rows of a group."""
MAX_PAGE_BYTES = 2**29
"""Maximum size of the pages in memory, compressed and not, if there is more than one cursor."""
_READ_AHEAD_BYTES = 2**20
"""Size of a request: a column chunk is not read whole."""
_CONCURRENT_FOOTERS = 8
_TEXT_ROWS = 4096
"""Rows to read at a time without audio."""


@dataclass(frozen=True)
class _Place:
    """Rows of a group."""

    shard: int
    row_group: int
    """Index in its file."""
    first_row: int
    """In the row group."""
    rows: int


class RowCursor:
    """Reads a row group from its beginning, some rows at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch], file: "_RequestFile", expansion: float) -> None:
        """Args:
        batches: of the row group.
        file: that they are read from.
        expansion: uncompressed size of the row group, relative to the compressed one.
        """
        self._batches = batches
        self._file = file
        self._expansion = expansion
        self._rest: pa.RecordBatch | None = None
        self.rows_read = 0

    @property
    def page_bytes(self) -> int:
        """Size of the largest page so far, compressed and not."""
        return round(self._file.largest_bytes * (1 + self._expansion))

    def close(self) -> None:
        """Frees the pages: no more rows can be read."""
        self._batches, self._rest, self.rows_read = iter(()), None, -1

    def take(self, rows: int) -> pa.Table:
        """Returns the next ``rows`` rows; raises EOFError if there are fewer."""
        taken, missing = list[pa.RecordBatch](), rows
        while missing:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                raise EOFError(f"a row group ends after {self.rows_read + rows - missing} rows")
            taken.append(batch.slice(0, missing))
            self._rest = batch.slice(missing) if batch.num_rows > missing else None
            missing -= taken[-1].num_rows
        self.rows_read += rows
        return pa.Table.from_batches(taken)


class ParquetRows(ShardReader):
    """Reads groups of rows of a folder's Parquet files, numbered over all files. Thread-safe."""

    def __init__(
        self, folder: RemoteFolder, records: Sequence[ShardRecord], columns: Sequence[Columns], places: Sequence[_Place]
    ) -> None:
        """Args:
        folder: of the files.
        records: of the files; their ``groups`` are parts of row groups.
        columns: of each file.
        places: of each group.
        """
        super().__init__(folder, records)
        self.columns = columns
        self._places = places
        self._cursors: dict[int, RowCursor] = {}
        """Those that are not reading now, by their ``id``, least recently used first."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cursors": {}}

    @property
    def row_groups(self) -> NDArray[np.int64]:
        """Row group of each group, numbered over all files."""
        return np.cumsum([place.first_row == 0 for place in self._places]) - 1

    def read(self, group: int) -> pa.Table:
        """Reads a group, by role (:func:`by_role`), and what is before it in its row group."""
        table, cursor = self.read_after(group, None)
        with self._lock:
            self._cursors.pop(id(cursor), None)
        cursor.close()
        return table

    def read_after(self, group: int, previous: Any) -> tuple[pa.Table, Any]:
        """Reads a group, by role, and returns the cursor that reads the next one of the row group.

        Args:
            group: to read.
            previous: cursor that has read the groups before, or None: they are read again.

        Raises:
            UnreadableShardError: the file cannot be read, or is damaged.
        """
        place, cursor = self._places[group], previous

        def once() -> tuple[pa.Table, RowCursor]:
            nonlocal cursor
            current, cursor = cursor, None  # after an error, reading begins anew
            with self._lock:
                self._cursors.pop(id(current), None)
            if current is None or current.rows_read != place.first_row:
                current = self._open(place)
            return by_role(current.take(place.rows), self.columns[place.shard]), current

        try:
            table, current = self.folder.with_retries(once, self.records[place.shard].name)
        except DataError as error:  # a data worker reports only unreadable shards
            raise UnreadableShardError(str(error)) from error
        self._keep(group, current)
        return table, current

    def _keep(self, group: int, cursor: RowCursor) -> None:
        """Keeps the cursor of a group for the next one, within the memory limit."""
        if group + 1 == len(self._places) or self._places[group + 1].first_row == 0:
            cursor.close()
            return
        with self._lock:
            self._cursors[id(cursor)] = cursor
            while len(self._cursors) > 1 and sum(one.page_bytes for one in self._cursors.values()) > MAX_PAGE_BYTES:
                self._cursors.pop(next(iter(self._cursors))).close()

    def _open(self, place: _Place) -> RowCursor:
        """Returns a cursor that has read the rows before the group."""
        columns = self.columns[place.shard].present()
        source, file = self._file(place.shard)
        row_group = file.metadata.row_group(place.row_group)
        chunks = [row_group.column(index) for index in range(row_group.num_columns)]
        compressed_bytes = sum(chunk.total_compressed_size for chunk in chunks)
        batches = file.iter_batches(place.rows, [place.row_group], columns, use_threads=False)
        cursor = RowCursor(batches, source, row_group.total_byte_size / max(1, compressed_bytes))
        while cursor.rows_read < place.first_row:
            cursor.take(min(place.rows, place.first_row - cursor.rows_read))
        return cursor

    def texts_and_speakers(self) -> Iterator[pa.Table]:
        """Yields the columns text and speaker of all rows; reads no audio.

        Raises:
            UnreadableShardError: a file cannot be read, or is damaged.
        """
        for shard, record in enumerate(self.records):
            columns = self.columns[shard]
            names = [name for name in (columns.text, columns.speaker) if name is not None]

            def once(shard: int = shard, names: list[str] = names) -> pa.Table:
                _, file = self._file(shard)
                batches = file.iter_batches(_TEXT_ROWS, columns=names, use_threads=False)
                return pa.Table.from_batches(batches)

            table = self.folder.with_retries(once, record.name)
            speakers = table[columns.speaker] if columns.speaker else pa.nulls(table.num_rows, pa.string())
            yield pa.table({"text": table[columns.text], "speaker": speakers})

    def _file(self, shard: int) -> tuple["_RequestFile", pq.ParquetFile]:
        record = self.records[shard]
        source = _RequestFile(self.folder, record.name, record.bytes)
        return source, pq.ParquetFile(
            source,
            metadata=self._metadata_of(shard),
            pre_buffer=False,  # would load whole row groups into memory
            buffer_size=_READ_AHEAD_BYTES,
            page_checksum_verification=True,
        )

    def _load_metadata(self, record: ShardRecord) -> Any:
        metadata = read_footer(self.folder, record.name, record.bytes)
        if metadata.num_rows != record.clips:
            raise DataError(
                f"{self.folder.address}/{record.name}: has {metadata.num_rows} rows, {record.clips} when training "
                "began: it was replaced. Restore it, or start a new run."
            )
        return metadata


def open_rows(folder: RemoteFolder, names_and_sizes: Mapping[str, int], config: PrepareConfig) -> ParquetRows:
    """Reads the metadata of Parquet files.

    Raises:
        DataError: a file is not Parquet, lacks a column, or has a column of another type; or there are no rows.
        UnreadableShardError: the storage cannot be read.
    """

    def footer(entry: tuple[str, int]) -> Any:
        return read_footer(folder, *entry)

    records, columns, places = list[ShardRecord](), list[Columns](), list[_Place]()
    with ThreadPoolExecutor(_CONCURRENT_FOOTERS) as pool:
        for (name, size_bytes), metadata in zip(
            names_and_sizes.items(), pool.map(footer, names_and_sizes.items()), strict=True
        ):
            schema = metadata.schema.to_arrow_schema()
            chosen = choose_columns(f"{folder.address}/{name}", schema, config)
            if not metadata.num_rows:
                continue
            own = [
                place
                for number in range(metadata.num_row_groups)
                for place in _divided(len(records), number, metadata.row_group(number), chosen)
            ]
            records.append(ShardRecord(name, size_bytes, "", tuple(place.rows for place in own), 0, 0))
            columns.append(chosen)
            places += own
    if not records:
        raise DataError(f"{folder.address}: {counted(len(names_and_sizes), 'Parquet file')} without any rows.")
    return ParquetRows(folder, records, columns, places)


def _divided(shard: int, number: int, row_group: Any, columns: Columns) -> Iterator[_Place]:
    """Yields the groups of a row group, of equal numbers of rows."""
    chunks = [row_group.column(index) for index in range(row_group.num_columns)]
    size_bytes = sum(
        max(chunk.total_compressed_size, chunk.total_uncompressed_size)
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in columns.present()
    )
    rows = rows_per_group(row_group.num_rows, size_bytes)
    for first in range(0, row_group.num_rows, rows):
        yield _Place(shard, number, first, min(rows, row_group.num_rows - first))


def rows_per_group(rows: int, size_bytes: int) -> int:
    """Returns the number of rows in a group, for ``rows`` rows of ``size_bytes`` in all."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES * rows // max(1, size_bytes)))


class _RequestFile(SeekableFile):
    """A file object that reads with one request each time, retried as all requests are."""

    def __init__(self, folder: RemoteFolder, name: str, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._folder, self._name = folder, name
        self.largest_bytes = 0
        """Size of the largest request so far."""

    def read(self, size: int = -1) -> bytes:
        end = self._size_bytes if size < 0 else min(self._size_bytes, self._position + size)
        content = self._folder.read(self._name, self._position, end) if end > self._position else b""
        self._position += len(content)
        self.largest_bytes = max(self.largest_bytes, len(content))
        return content


# Columns


def choose_columns(location: str, schema: pa.Schema, config: PrepareConfig) -> Columns:
    """Returns the columns that ``config`` names, or else those of known names; for audio, the only one of its type.

    Raises:
        DataError: there is no audio or text column, several may be the audio, or one has another type.
    """
    names = schema.names
    embedded = [name for name in names if _is_embedded(schema.field(name).type)]
    audio = ("audio", "path") if "audio" in names or not embedded else ("audio", *embedded)
    if "audio" not in names and config.audio_column is None and len(embedded) > 1:
        raise DataError(
            f"{location}: the columns {' and '.join(embedded)} may be the audio. Name one with --audio_column."
        )
    columns = Columns.choose(location, names, config, audio)
    audio_type, text_type = schema.field(columns.audio).type, schema.field(columns.text).type
    if not (_is_embedded(audio_type) or _is_text(audio_type)):
        raise DataError(
            f"{location}: column {columns.audio} is {_shown(audio_type)}, not audio as datasets.Audio stores it "
            "(bytes and path), the content of files, or their names. Name another one with --audio_column."
        )
    if not _is_text(text_type):
        raise DataError(
            f"{location}: column {columns.text} is {_shown(text_type)}, not text. Name another one with --text_column."
        )
    return columns


def _is_embedded(kind: pa.DataType) -> bool:
    """Whether a column may hold the contents of files."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_embedded(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shown(kind: pa.DataType) -> str:
    return " ".join(str(kind).split())[:60]


def by_role(table: pa.Table, columns: Columns) -> pa.Table:
    """Returns the columns of a table by their role, as the fields of ``columns``; ``speaker`` is null if there is none.

    The column ``samples`` has the sizes of the encoded recordings, as their lengths are known only after decoding: by
    it a window is sorted.
    """
    by_name = {role: table[name] for role, name in vars(columns).items() if name is not None}
    by_name.setdefault("speaker", pa.nulls(table.num_rows, pa.string()))
    audio = by_name["audio"]
    content = pc.struct_field(audio, "bytes") if pa.types.is_struct(audio.type) else audio
    return pa.table({**by_name, "samples": pc.fill_null(pc.binary_length(content), 0).cast(pa.int64())})
