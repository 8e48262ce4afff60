"""Random access, by row, to the recordings of a prepared folder: files in wavs/, or row groups of shards."""

import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vits_trainer.data.audio import PCM16_BYTES, WAV_HEADER_BYTES, Reason, RecordingError, read_pcm16_wav, reject
from vits_trainer.data.shards import FOLDER, MAX_GROUP_BYTES, Manifest, decode_audio, shard_format
from vits_trainer.utils.errors import DataError


class AudioStore(Protocol):
    """The recordings of a prepared folder, indexed by row."""

    @property
    def sizes_bytes(self) -> Sequence[int]:
        """Size of each row's WAV file, actual or equivalent; 0 if it is missing."""

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """Reads a recording's samples, (T,), and sampling rate in Hz.

        Raises:
            RecordingError: the recording cannot be used.
        """


class WavAudioStore:
    """Recordings stored as one WAV file each."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder.resolve()
        self._names = names

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """Size of each row's file; 0 if it is missing."""
        folder = str(self._folder)
        return [_file_bytes(f"{folder}/{name}") for name in self._names]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """Reads a recording's samples, (T,), and rate in Hz; raises :class:`RecordingError` if it cannot be used."""
        return read_pcm16_wav(self._path(self._names[row]))

    def _path(self, name: str) -> Path:
        """Path of a clip; raises :class:`RecordingError` if it is outside the folder, as through a symbolic link."""
        path = self._folder / name
        if "/" in name or path.is_symlink():  # other names need no resolving, which takes 30 us
            path = path.resolve()
            if not path.is_relative_to(self._folder):
                reject(Reason.PATH_OUTSIDE, f"{name} is outside {self._folder}")
        return path


def _file_bytes(path: str) -> int:
    """Size of a file, 0 if there is none. ``Path.is_file`` and ``Path.stat`` take five times as long."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # missing; not a name that a file can have
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


class AudioSubset:
    """A subset of the rows of a store."""

    def __init__(self, recordings: AudioStore, rows: Sequence[int]) -> None:
        self._recordings = recordings
        self._rows = rows

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """Size of each row's WAV file, actual or equivalent; 0 if it is missing."""
        sizes = self._recordings.sizes_bytes
        return [sizes[row] for row in self._rows]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """Reads a recording's samples, (T,), and rate in Hz; raises :class:`RecordingError` if it cannot be used."""
        return self._recordings.read(self._rows[row])


class JoinedAudioStore:
    """Rows of several stores, one store after another."""

    def __init__(self, stores: Sequence[AudioStore]) -> None:
        self._stores = stores
        self._ends = list(accumulate(len(store.sizes_bytes) for store in stores))

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """Size of each row's file; 0 if it is missing."""
        return [size for store in self._stores for size in store.sizes_bytes]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """Samples, (T,), and their rate in Hz; raises :class:`RecordingError` if they cannot be read."""
        number = bisect_right(self._ends, row)
        return self._stores[number].read(row - (self._ends[number - 1] if number else 0))


class _Group(NamedTuple):
    """The cached row group, and the process that read it."""

    pid: int
    group_index: int
    audio: Any
    """Its Arrow column of audio."""


class ShardAudioStore:
    """Recordings in shards. Row groups are read, and their checksums verified, on access to one of their clips."""

    def __init__(self, root: Path, manifest: Manifest, samples: NDArray[np.int32]) -> None:
        """Args:
        root: the prepared folder.
        manifest: manifest of its shards.
        samples: index of samples of each row in use, (rows,), from the first on.
        """
        self._folder = root / FOLDER
        self._manifest = manifest
        self._samples = samples
        self._locations = [(shard.name, group) for shard in manifest.shards for group in range(len(shard.groups))]
        clips_per_group = [clips for shard in manifest.shards for clips in shard.groups]
        self._first_rows = [0, *accumulate(clips_per_group)]
        self._group: _Group | None = None

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """Size that each row's WAV file would have."""
        return [WAV_HEADER_BYTES + PCM16_BYTES * samples for samples in self._samples.tolist()]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """Reads a recording's samples, (T,), and rate in Hz; raises :class:`RecordingError` if its shard is damaged."""
        index = bisect_right(self._first_rows, row) - 1
        name, group = self._locations[index]
        try:
            content = self._audio(index)[row - self._first_rows[index]].as_buffer()
            rate_hz, samples = self._manifest.sampling_rate, int(self._samples[row])
            pcm = decode_audio(content and memoryview(content), self._manifest.encoding, samples, rate_hz)
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            reject(Reason.UNREADABLE_AUDIO, f"{self._folder / name} row group {group}: {error}")
        except RecordingError as error:
            reject(error.rejection.reason, f"{self._folder / name} row group {group}: {error.rejection.detail}")
        return pcm, rate_hz

    def _audio(self, index: int) -> Any:
        """Audio column of row group ``index``. The last one is cached, so reading in order reads each group once."""
        cached = self._group
        # A group read before a fork is not reused: Arrow's memory belongs to the parent.
        if cached is None or cached[:2] != (os.getpid(), index):
            name, group = self._locations[index]
            # Opened each time (0.1 ms): otherwise every process would keep a file open per shard.
            with pq.ParquetFile(self._folder / name, memory_map=True, page_checksum_verification=True) as shard:
                if shard.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
                    reject(Reason.TOO_LONG, f"more than {MAX_GROUP_BYTES >> 20} MiB")
                column = shard.read_row_group(group, columns=["audio"], use_threads=False)["audio"].combine_chunks()
            cached = self._group = _Group(os.getpid(), index, column)
        return cached.audio

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without the cached row group."""
        return {**self.__dict__, "_group": None}


class ShardRows(NamedTuple):
    """All columns of the shards except the audio."""

    names: list[str]
    texts: list[str]
    speakers: list[str]
    samples: NDArray[np.int32]
    """(rows,)."""


def read_rows(root: Path, manifest: Manifest) -> ShardRows:
    """Reads all columns except the audio, in shard order; verifies file sizes and page checksums.

    Raises:
        DataError: a shard is missing, damaged, or does not match the manifest.
    """
    tables = []
    for shard in manifest.shards:
        path = root / FOLDER / shard.name
        remedy = "Download it again, or run prepare_data --shards again."
        if not path.is_file():
            raise DataError(f"{path}: is missing. {remedy}")
        if path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, not {shard.bytes} as in shards.json. {remedy}")
        try:
            with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
                shard_format(file.metadata, str(path))
                groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
                tables.append(file.read(["clip", "text", "speaker", "samples"], use_threads=False))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}). {remedy}") from error
        if groups != shard.groups:
            raise DataError(f"{path}: row groups of {groups} clips, not {shard.groups} as in shards.json. {remedy}")
    rows = pa.concat_tables(tables)
    names = [name or "" for name in rows["clip"].to_pylist()]
    invalid = next((name for name in names if "/" in name or "\\" in name or name in ("", ".", "..")), None)
    if invalid is not None or len(set(names)) != len(names):
        raise DataError(f"{root / FOLDER}: {invalid!r} is not a valid clip name, or is duplicated. Prepare again.")
    texts, speakers = ([value or "" for value in rows[column].to_pylist()] for column in ("text", "speaker"))
    return ShardRows(names, texts, speakers, rows["samples"].fill_null(0).to_numpy())
