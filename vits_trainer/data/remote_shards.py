"""Shards where they lie, on this machine or in an object store: read row group by row group, each by one request.

Addresses are fsspec's (``s3://``, ``gs://``, ``hf://``, ``https://`` ...; a path is one too). Whatever fails may be
well a moment later: it is tried again with growing pauses, and then reported with the shard's name.
"""

import io
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vits_trainer.data.shards import ShardRecord
from vits_trainer.utils.errors import DataError, UnreadableShardError
from vits_trainer.utils.strings import first_line

logger = logging.getLogger("vits_trainer")

Value = TypeVar("Value")

RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Pauses before an object store is asked again; a quarter of each is drawn at random, as all ranks fail together."""
_TAIL_BYTES = 2**16
"""Read at a shard's end first: the metadata of a hundred row groups."""
_KEPT_METADATA = 64
"""Shards whose metadata a process keeps, each of some 100 kB."""


class RemoteFolder:
    """A folder of files, by its address."""

    def __init__(self, address: str) -> None:
        """Raises :class:`DataError` where the address is of a kind that is not installed or not known."""
        self.address = address.rstrip("/")
        try:
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(address))
        except (ImportError, ValueError) as error:
            raise DataError(f"{address}: {error}. Install what it needs (such as s3fs), or correct it.") from error
        self.is_local = fsspec.utils.get_protocol(address) in ("file", "local")
        self._process: int | None = None
        self._opened: tuple[Any, str] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "is_local": self.is_local}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=None, _opened=None, _lock=threading.Lock())

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes ``start`` to before ``stop`` of file ``name`` (counted from its end if below 0).

        Raises:
            UnreadableShardError: it cannot be read, however often it was tried.
        """

        def once() -> bytes:
            filesystem, root = self._filesystem()
            content: bytes = filesystem.cat_file(f"{root}/{name}", start=start, end=stop)
            wanted = None if start is None or stop is None else stop - start
            if wanted is not None and len(content) != wanted:
                raise EOFError(f"{len(content)} bytes came, where {wanted} were asked for")
            return content

        return self.with_retries(once, name)

    def with_retries(self, once: Callable[[], Value], name: str) -> Value:
        """What ``once`` gives, with pauses between attempts; ``name`` is what it reads.

        Raises:
            UnreadableShardError: it failed each time, or in a way that does not pass.
        """
        for attempts, wait_s in enumerate((*(() if self.is_local else RETRY_WAITS_S), None), start=1):
            try:
                return once()
            except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
                raise UnreadableShardError(self._words(name, error, attempts)) from error
            except (OSError, EOFError, pa.ArrowException, *_network_errors()) as error:
                if wait_s is None:
                    raise UnreadableShardError(self._words(name, error, attempts)) from error
                pause_s = wait_s * float(np.random.default_rng().uniform(0.75, 1))
                logger.warning("%s/%s: %s. Trying again in %.1f s.", self.address, name, first_line(error), pause_s)
            time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _words(self, name: str, error: Exception, attempts: int) -> str:
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        return (
            f"{self.address}/{name}: cannot be read{tried}: {first_line(error)}. Check the address, the connection "
            "and your rights there; a damaged shard must be prepared or copied again."
        )

    def _filesystem(self) -> tuple[Any, str]:
        with self._lock:
            # After a fork the old one's threads and connections are the parent's.
            if self._opened is None or self._process != os.getpid():
                self._opened = fsspec.core.url_to_fs(self.address, skip_instance_cache=True)
                self._process = os.getpid()
            return self._opened

    def find(self, pattern: str) -> list[tuple[str, int]]:
        """Names and sizes, in bytes, of the files that match ``pattern``, sorted.

        Raises:
            UnreadableShardError: the folder cannot be listed.
        """

        def once() -> list[tuple[str, int]]:
            filesystem, root = self._filesystem()
            found = filesystem.glob(f"{root}/{pattern}", detail=True)
            return sorted((path.removeprefix(f"{root}/"), int(info["size"])) for path, info in found.items())

        return self.with_retries(once, pattern)


class ShardReader:
    """The row groups of a folder's shards, numbered over all of them. Threads may share it."""

    def __init__(self, folder: RemoteFolder, records: Sequence[ShardRecord]) -> None:
        """``records`` of the shards, whose names are paths in ``folder``."""
        self.folder = folder
        self.records = records
        self._places = [(shard, group) for shard, record in enumerate(records) for group in range(len(record.groups))]
        self._metadata: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_metadata", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _metadata=OrderedDict(), _lock=threading.Lock())

    def place(self, group: int) -> tuple[ShardRecord, int]:
        """A row group's shard, and its number there."""
        shard, number = self._places[group]
        return self.records[shard], number

    def read(self, group: int) -> pa.Table:
        """All clips of row group ``group``, by one request (and one or two for the first of a shard).

        Raises:
            UnreadableShardError: it cannot be read, or what came is not what was written.
        """
        shard, number = self._places[group]
        record = self.records[shard]

        def once() -> pa.Table:
            metadata = self._metadata_of(shard)
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

        return self.folder.with_retries(once, record.name)

    def _metadata_of(self, shard: int) -> Any:
        with self._lock:
            if shard in self._metadata:
                self._metadata.move_to_end(shard)
                return self._metadata[shard]
        found = metadata_of(self.folder, self.records[shard].name, self.records[shard].bytes)
        with self._lock:
            self._metadata[shard] = found
            while len(self._metadata) > _KEPT_METADATA:
                self._metadata.popitem(last=False)
        return found


def metadata_of(folder: RemoteFolder, name: str, size_bytes: int) -> Any:
    """Parquet's metadata of a shard, from the end of its file.

    Raises:
        UnreadableShardError: it cannot be read, or is no shard of prepare_data.
    """

    def once() -> Any:
        tail = folder.read(name, max(0, size_bytes - _TAIL_BYTES), size_bytes)
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < needed <= size_bytes:
            tail = folder.read(name, size_bytes - needed, size_bytes)
        return pq.read_metadata(io.BytesIO(tail))

    found = folder.with_retries(once, name)
    if b"vits_trainer" not in (found.metadata or {}):
        raise DataError(
            f"{folder.address}/{name}: is no shard of prepare_data. Prepare the data set first: vits-trainer "
            "prepare_data --dataset SOURCE --shards 16 --output_dir FOLDER"
        )
    return found


class _ByteRangeFile(io.RawIOBase):
    """A file of which only one piece is there."""

    def __init__(self, content: bytes, start: int, size_bytes: int) -> None:
        self._content, self._start, self._size_bytes = memoryview(content), start, size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        begin = self._position - self._start
        end = len(self._content) if size < 0 else begin + size
        if not 0 <= begin <= end <= len(self._content):
            raise EOFError(f"bytes {self._position} to {self._position + size} are not in this piece")
        self._position += end - begin
        return bytes(self._content[begin:end])


def _network_errors() -> tuple[type[Exception], ...]:
    """Of the libraries that are loaded: errors of the network that are no OSError."""
    known = (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("httpx", "HTTPError"),
        ("httpx2", "HTTPError"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in known if module in sys.modules)
