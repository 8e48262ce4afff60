"""Reads shards, local or in an object store, row group by row group with one request each.

Addresses are those of fsspec: ``s3://``, ``gs://``, ``hf://``, ``https://``, ..., or a local path. Failed requests are
retried with exponential backoff, then reported with the shard's name.
"""

import io
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vits_trainer.data.shards import MAX_GROUP_BYTES, ShardRecord, shard_format
from vits_trainer.utils.errors import DataError, UnreadableShardError
from vits_trainer.utils.strings import first_line

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Pauses between retries, with up to 25 % of random jitter, as all ranks fail at the same time."""
_TAIL_BYTES = 2**16
"""Size of the first read at a shard's end: enough for the metadata of a hundred row groups."""
_MAGIC = b"PAR1"
"""The last bytes of every Parquet file."""
_MAX_CACHED_METADATA = 64
"""Maximum number of shards whose metadata a process caches, about 100 kB each."""


class RemoteFolder:
    """A folder of files, local or remote."""

    def __init__(self, address: str) -> None:
        """Raises :class:`DataError` if the protocol of the address is unknown or its package not installed."""
        self.address = address.rstrip("/")
        try:
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(address))
        except (ImportError, ValueError) as error:
            raise DataError(f"{address}: {error}. Install its package (such as s3fs), or correct it.") from error
        self.is_local = fsspec.utils.get_protocol(address) in ("file", "local")
        self._process: int | None = None
        self._opened: tuple[Any, str] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "is_local": self.is_local}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=None, _opened=None, _lock=threading.Lock())

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Reads bytes ``start`` to ``stop`` (exclusive) of file ``name``; negative offsets count from its end.

        Raises:
            UnreadableShardError: the file cannot be read, after all retries.
        """

        def once() -> bytes:
            filesystem, root = self._filesystem()
            content: bytes = filesystem.cat_file(f"{root}/{name}", start=start, end=stop)
            wanted = None if start is None or stop is None else stop - start
            if wanted is not None and len(content) != wanted:
                raise EOFError(f"{len(content)} of {wanted} requested bytes received")
            return content

        return self.with_retries(once, name)

    def with_retries(self, once: Callable[[], Value], name: str) -> Value:
        """Calls ``once``, which reads ``name``, until it succeeds, with pauses between attempts.

        Raises:
            UnreadableShardError: all attempts failed, or the error is permanent.
        """
        for attempts, wait_s in enumerate((*(() if self.is_local else RETRY_WAITS_S), None), start=1):
            try:
                return once()
            except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
                raise UnreadableShardError(self._error_message(name, error, attempts)) from error
            except (OSError, EOFError, pa.ArrowException, *_network_errors()) as error:
                if wait_s is None:
                    raise UnreadableShardError(self._error_message(name, error, attempts)) from error
                pause_s = wait_s * float(np.random.default_rng().uniform(0.75, 1))
                logger.warning("%s/%s: %s. Retrying in %.1f s.", self.address, name, first_line(error), pause_s)
            time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _error_message(self, name: str, error: Exception, attempts: int) -> str:
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        return (
            f"{self.address}/{name}: cannot be read{tried}: {first_line(error)}. Check the address, the connection "
            "and your permissions; prepare or copy a damaged shard again."
        )

    def _filesystem(self) -> tuple[Any, str]:
        with self._lock:
            # After a fork, the threads and connections belong to the parent.
            if self._opened is None or self._process != os.getpid():
                self._opened = fsspec.core.url_to_fs(self.address, skip_instance_cache=True)
                self._process = os.getpid()
            return self._opened

    def find(self, pattern: str) -> list[tuple[str, int]]:
        """Returns names and sizes in bytes of the files that match ``pattern``, sorted.

        Raises:
            UnreadableShardError: the folder cannot be listed.
        """

        def once() -> list[tuple[str, int]]:
            filesystem, root = self._filesystem()
            matches = filesystem.glob(f"{root}/{pattern}", detail=True)
            return sorted((path.removeprefix(f"{root}/"), int(info["size"])) for path, info in matches.items())

        return self.with_retries(once, pattern)

    def size_bytes(self, name: str) -> int:
        """Returns the size of file ``name``.

        Raises:
            UnreadableShardError: there is no such file, or the storage cannot be read.
        """

        def once() -> int:
            filesystem, root = self._filesystem()
            return int(filesystem.info(f"{root}/{name}")["size"])

        return self.with_retries(once, name)


class GroupReader(Protocol):
    """Reads groups of rows of several files, numbered over all files. Thread-safe."""

    records: Sequence[ShardRecord]
    """Of the files; ``groups`` are the numbers of rows of their groups."""

    @property
    def row_groups(self) -> NDArray[np.int64]:
        """Row group of each group, ascending. Groups of one row group are best read in their order."""

    def locate(self, group: int) -> tuple[ShardRecord, int]:
        """Returns the file of a group, and the index of the group within it."""

    def read(self, group: int) -> pa.Table:
        """Reads a group."""

    def read_after(self, group: int, previous: Any) -> tuple[pa.Table, Any]:
        """Reads a group, and what reads the next one of the same row group.

        Args:
            group: to read.
            previous: the second result for the group before, or None.
        """


class ShardReader:
    """Reads row groups of a folder's shards, numbered over all shards. Thread-safe."""

    def __init__(self, folder: RemoteFolder, records: Sequence[ShardRecord]) -> None:
        """The names in ``records`` are paths relative to ``folder``."""
        self.folder = folder
        self.records = records
        self._groups = [(shard, group) for shard, record in enumerate(records) for group in range(len(record.groups))]
        self._metadata: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_metadata", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _metadata=OrderedDict(), _lock=threading.Lock())

    def locate(self, group: int) -> tuple[ShardRecord, int]:
        """Returns the shard of a row group, and the index of the group within it."""
        shard, number = self._groups[group]
        return self.records[shard], number

    @property
    def row_groups(self) -> NDArray[np.int64]:
        """Row group of each group, ascending: here each is one. Groups of a row group are read in their order."""
        return np.arange(len(self._groups))

    def read_after(self, group: int, previous: Any) -> tuple[pa.Table, Any]:  # noqa: ARG002 - of subclasses
        """Reads a group, and what reads the next one of the same row group.

        Args:
            group: to read.
            previous: the second result for the group before, or None.
        """
        return self.read(group), None

    def read(self, group: int) -> pa.Table:
        """Reads row group ``group`` with one request (one or two more for the first group of a shard).

        Raises:
            UnreadableShardError: the row group cannot be read, or is damaged.
        """
        shard, number = self._groups[group]
        record = self.records[shard]

        def once() -> pa.Table:
            metadata = self._metadata_of(shard)
            if metadata.row_group(number).total_byte_size > MAX_GROUP_BYTES:
                limit_mib = MAX_GROUP_BYTES >> 20
                raise UnreadableShardError(
                    f"{self.folder.address}/{record.name}: row group {number} has more than {limit_mib} MiB. Prepare "
                    "the shard again with prepare_data --shards."
                )
            columns = [metadata.row_group(number).column(column) for column in range(metadata.num_columns)]
            start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
            stop = max(
                (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
                for column in columns
            )
            content = self.folder.read(record.name, start, stop)
            file = pq.ParquetFile(
                _ByteRangeFile(content, start, record.bytes), metadata=metadata, page_checksum_verification=True
            )
            return file.read_row_group(number, use_threads=False)

        try:
            return self.folder.with_retries(once, record.name)
        except DataError as error:  # a data worker reports only unreadable shards
            raise UnreadableShardError(str(error)) from error

    def _metadata_of(self, shard: int) -> Any:
        with self._lock:
            if shard in self._metadata:
                self._metadata.move_to_end(shard)
                return self._metadata[shard]
        metadata = self._load_metadata(self.records[shard])
        with self._lock:
            self._metadata[shard] = metadata
            while len(self._metadata) > _MAX_CACHED_METADATA:
                self._metadata.popitem(last=False)
        return metadata

    def _load_metadata(self, record: ShardRecord) -> Any:
        metadata = metadata_of(self.folder, record.name, record.bytes)
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        if groups != record.groups:
            raise DataError(
                f"{self.folder.address}/{record.name}: row groups of {groups} clips, not {record.groups} as in its "
                "manifest. Download it again, or run prepare_data --shards again."
            )
        return metadata


def metadata_of(folder: RemoteFolder, name: str, size_bytes: int) -> Any:
    """Reads the Parquet metadata of a shard.

    Raises:
        UnreadableShardError: the file cannot be read.
        DataError: it is not a shard of prepare_data.
    """
    metadata = read_footer(folder, name, size_bytes)
    if b"vits_trainer" not in (metadata.metadata or {}):
        raise DataError(
            f"{folder.address}/{name}: is not a shard of prepare_data. Stream other Parquet files with --dataset "
            f"{folder.address}/{name} instead of --data_dir, or prepare them: vits-trainer prepare_data --dataset "
            "SOURCE --shards 16 --output_dir FOLDER"
        )
    shard_format(metadata, f"{folder.address}/{name}")
    return metadata


def read_footer(folder: RemoteFolder, name: str, size_bytes: int) -> Any:
    """Reads the metadata of any Parquet file from its end.

    Raises:
        UnreadableShardError: the file cannot be read.
        DataError: it is not a Parquet file.
    """

    def once() -> Any:
        tail = folder.read(name, max(0, size_bytes - _TAIL_BYTES), size_bytes)
        if tail[-len(_MAGIC) :] != _MAGIC:
            raise DataError(
                f"{folder.address}/{name}: is not a complete Parquet file. Download it again, or correct the address."
            )
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < needed <= size_bytes:
            tail = folder.read(name, size_bytes - needed, size_bytes)
        return pq.read_metadata(io.BytesIO(tail))

    return folder.with_retries(once, name)


class SeekableFile(io.RawIOBase):
    """A read-only file object of known size; subclasses read from its position on."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position, and returns it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position


class _ByteRangeFile(SeekableFile):
    """A file object over one byte range of a file."""

    def __init__(self, content: bytes, start: int, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._content, self._start = memoryview(content), start

    def read(self, size: int = -1) -> bytes:
        begin = self._position - self._start
        end = len(self._content) if size < 0 else begin + size
        if not 0 <= begin <= end <= len(self._content):
            raise EOFError(f"bytes {self._position} to {self._position + size} are outside this byte range")
        self._position += end - begin
        return bytes(self._content[begin:end])


def _network_errors() -> tuple[type[Exception], ...]:
    """Returns network errors of the imported libraries that are not OSErrors."""
    known = (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("httpx", "HTTPError"),
        ("httpx2", "HTTPError"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in known if module in sys.modules)
