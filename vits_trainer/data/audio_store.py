"""Where a prepared folder keeps its recordings: files in wavs/, or row groups of shards. Both give clips by row."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from numpy.typing import NDArray

from vits_trainer.data.audio import PCM16_BYTES, WAV_HEADER_BYTES, Reason, read_pcm16_wav, reject
from vits_trainer.data.shards import FOLDER, Manifest, decode_audio
from vits_trainer.utils.errors import DataError


class AudioStore(Protocol):
    """The recordings of a prepared folder, by row."""

    @property
    def sizes_bytes(self) -> Sequence[int]:
        """Of each row's WAV file, or what it would have; 0 where it is missing."""

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """A recording's samples, (T,), and their rate in Hz.

        Raises:
            RecordingError: it cannot be used.
        """


class WavAudioStore:
    """Recordings as files of their own."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder.resolve()
        self._names = names

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """Of each row's file; 0 where it is missing."""
        paths = [self._folder / name for name in self._names]
        return [path.stat().st_size if path.is_file() else 0 for path in paths]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """A recording's samples, (T,), and their rate in Hz; :class:`RecordingError` where it cannot be used."""
        return read_pcm16_wav(self._path(self._names[row]))

    def _path(self, name: str) -> Path:
        """A clip's file; :class:`RecordingError` where it lies outside the folder, as a symbolic link may."""
        path = self._folder / name
        if "/" in name or path.is_symlink():  # for the rest there is nothing to resolve, which takes 30 us
            path = path.resolve()
            if not path.is_relative_to(self._folder):
                reject(Reason.PATH_OUTSIDE, f"{name} leads out of {self._folder}")
        return path


class AudioSubset:
    """Some rows of a store, as a store of their own."""

    def __init__(self, recordings: AudioStore, rows: Sequence[int]) -> None:
        self._recordings = recordings
        self._rows = rows

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """Of each row's file, or what it would have; 0 where it is missing."""
        sizes = self._recordings.sizes_bytes
        return [sizes[row] for row in self._rows]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """A recording's samples, (T,), and their rate in Hz; :class:`RecordingError` where it cannot be used."""
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
    """A row group that is in memory, and of which process."""

    process: int
    number: int
    audio: Any
    """Arrow's column of it."""


class ShardAudioStore:
    """Recordings in shards; a row group is read, and its checksums compared, when a clip of it is asked for."""

    def __init__(self, root: Path, manifest: Manifest, samples: NDArray[np.int32]) -> None:
        """Args:
        root: the prepared folder.
        manifest: of its shards.
        samples: of each row, (rows,): those that are used, from the first on.
        """
        self._folder = root / FOLDER
        self._manifest = manifest
        self._samples = samples
        self._places = [(shard.name, group) for shard in manifest.shards for group in range(len(shard.groups))]
        clips_of = [clips for shard in manifest.shards for clips in shard.groups]
        self._first_rows = [0, *accumulate(clips_of)]
        self._group: _Group | None = None

    @cached_property
    def sizes_bytes(self) -> list[int]:
        """What each row's file would have in wavs/."""
        return [WAV_HEADER_BYTES + PCM16_BYTES * samples for samples in self._samples.tolist()]

    def read(self, row: int) -> tuple[NDArray[np.int16], int]:
        """A recording's samples, (T,), and their rate in Hz; :class:`RecordingError` where its shard is damaged."""
        number = bisect_right(self._first_rows, row) - 1
        name, group = self._places[number]
        try:
            content = self._audio(number)[row - self._first_rows[number]].as_buffer()
            pcm = decode_audio(memoryview(content), self._manifest.encoding)
        except (pa.ArrowException, sf.SoundFileError, OSError, ValueError, IndexError) as error:
            reject(Reason.UNREADABLE_AUDIO, f"{self._folder / name} row group {group}: {error}")
        if len(pcm) != self._samples[row]:
            reject(Reason.TRUNCATED_AUDIO, f"{self._folder / name}: {len(pcm)} of {self._samples[row]} samples")
        return pcm, self._manifest.sampling_rate

    def _audio(self, number: int) -> Any:
        """The column of row group ``number``. The last one is kept: who reads in order reads each group once."""
        known = self._group
        # What was read before a fork is not relied upon: Arrow's memory is another's there.
        if known is None or known[:2] != (os.getpid(), number):
            name, group = self._places[number]
            # Opened anew each time, as that takes 0.1 ms and a file for each shard would stay open in each process.
            with pq.ParquetFile(self._folder / name, memory_map=True, page_checksum_verification=True) as shard:
                column = shard.read_row_group(group, columns=["audio"], use_threads=False)["audio"].combine_chunks()
            known = self._group = _Group(os.getpid(), number, column)
        return known.audio

    def __getstate__(self) -> dict[str, Any]:
        """Without what is in memory, on its way to another process."""
        return {**self.__dict__, "_group": None}


class ShardRows(NamedTuple):
    """What a clip's row in a shard holds beside its audio, a list for each column."""

    names: list[str]
    texts: list[str]
    speakers: list[str]
    samples: NDArray[np.int32]
    """(rows,)."""


def read_rows(root: Path, manifest: Manifest) -> ShardRows:
    """Everything but the audio, in the order of the shards. Sizes of the files and checksums of the pages are compared.

    Raises:
        DataError: a shard is missing, damaged, or not the one of the manifest.
    """
    tables = []
    for shard in manifest.shards:
        path = root / FOLDER / shard.name
        remedy = "Fetch it again, or run prepare_data --shards again."
        if not path.is_file():
            raise DataError(f"{path}: is missing. {remedy}")
        if path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, not {shard.bytes} as in shards.json. {remedy}")
        try:
            with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
                groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
                tables.append(file.read(["clip", "text", "speaker", "samples"], use_threads=False))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}). {remedy}") from error
        if groups != shard.groups:
            raise DataError(f"{path}: row groups of {groups} clips, not {shard.groups} as in shards.json. {remedy}")
    rows = pa.concat_tables(tables)
    names = rows["clip"].to_pylist()
    strange = next((name for name in names if "/" in name or "\\" in name or name in ("", ".", "..")), None)
    if strange is not None or len(set(names)) != len(names):
        raise DataError(f"{root / FOLDER}: {strange!r} is no name of a clip, or one stands twice. Prepare it again.")
    return ShardRows(names, rows["text"].to_pylist(), rows["speaker"].to_pylist(), rows["samples"].to_numpy())
