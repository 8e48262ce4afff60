"""Reads prepared data piece by piece, a few clips at a time, in several processes.

Imports no torch, as worker processes import this.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.audio import RecordingError, Rejection
from vits_trainer.data.audio_store import WavAudioStore
from vits_trainer.data.preparation.workers import available_cores, new_pool
from vits_trainer.data.prepared import PreparedData
from vits_trainer.data.remote_shards import RemoteFolder, ShardReader
from vits_trainer.data.shards import Encoding, ShardRecord, decode_audio
from vits_trainer.utils.errors import VitsTrainerError

if TYPE_CHECKING:
    from vits_trainer.data.streaming import ShardedData  # imports torch

Result = TypeVar("Result")

_CLIPS_PER_PIECE = 32
_PIECES_IN_FLIGHT_PER_PROCESS = 4


class PreparedClip(NamedTuple):
    """A clip as it was prepared."""

    name: str
    text: str
    speaker: str
    pcm: NDArray[np.int16] | Rejection
    """(T,), or why it cannot be read."""


class Piece(Protocol):
    """A few clips. Can be sent to another process."""

    @property
    def clips(self) -> int:
        """Number of clips."""

    def read(self) -> list[PreparedClip]:
        """Reads all clips.

        Raises:
            UnreadableShardError: a shard cannot be read.
        """


@dataclass(frozen=True)
class WavPiece:
    """Clips of wavs/."""

    folder: Path
    names: Sequence[str]
    texts: Sequence[str]
    speakers: Sequence[str]

    @property
    def clips(self) -> int:
        """Number of clips."""
        return len(self.names)

    def read(self) -> list[PreparedClip]:
        """Reads all clips."""
        store = WavAudioStore(self.folder, self.names)
        read = (_or_rejection(_read, store, row) for row in range(len(self.names)))
        return [PreparedClip(*row) for row in zip(self.names, self.texts, self.speakers, read, strict=True)]


@dataclass(frozen=True)
class ShardPiece:
    """A row group of a shard."""

    address: str
    shard: ShardRecord
    group: int
    encoding: Encoding
    sampling_rate: int

    @property
    def clips(self) -> int:
        """Number of clips."""
        return self.shard.groups[self.group]

    def read(self) -> list[PreparedClip]:
        """Reads the row group with one request."""
        table = _reader(self.address, self.shard).read(self.group)
        columns = [table[name].to_pylist() for name in ("clip", "text", "speaker", "samples")]
        decode = partial(_decode, encoding=self.encoding, rate_hz=self.sampling_rate)
        return [
            PreparedClip(name or "", text or "", speaker or "", _or_rejection(decode, audio, samples or 0))
            for name, text, speaker, samples, audio in zip(*columns, table["audio"], strict=True)
        ]


def _read(store: WavAudioStore, row: int) -> NDArray[np.int16]:
    return store.read(row)[0]


def _decode(audio: Any, samples: int, encoding: Encoding, rate_hz: int) -> NDArray[np.int16]:
    content = audio.as_buffer()
    return decode_audio(content and memoryview(content), encoding, samples, rate_hz)


def _or_rejection(read: Callable[..., NDArray[np.int16]], *arguments: Any) -> NDArray[np.int16] | Rejection:
    try:
        return read(*arguments)
    except RecordingError as error:
        return error.rejection


@lru_cache(maxsize=4)
def _reader(address: str, shard: ShardRecord) -> ShardReader:
    """Returns a reader of one shard, which keeps its metadata: a process reads row groups of a shard in turn."""
    return ShardReader(RemoteFolder(address), [shard])


def pieces_of_wavs(prepared: PreparedData) -> list[Piece]:
    """Divides a folder with wavs/ into pieces, in its order."""
    rows = prepared.rows
    starts = range(0, len(rows), _CLIPS_PER_PIECE)
    columns = (rows.filename, rows.text, rows.speaker)
    return [
        WavPiece(prepared.root / "wavs", *(column[start : start + _CLIPS_PER_PIECE] for column in columns))
        for start in starts
    ]


def pieces_of_shards(shards: "ShardedData") -> list[Piece]:
    """Divides shards into their row groups, in their order."""
    address = shards.shards.folder.address
    return [
        ShardPiece(address, record, group, shards.encoding, shards.sampling_rate)
        for record in shards.shards.records
        for group in range(len(record.groups))
    ]


def map_pieces(
    pieces: Sequence[Piece], function: Callable[[Piece], Result], processes: int
) -> Iterator[tuple[Piece, Result]]:
    """Calls a function with each piece, in worker processes; yields pieces with results, in their order.

    Only a few pieces are in flight at a time.

    Args:
        pieces: of prepared data.
        function: can be sent to another process.
        processes: number of worker processes (0 = one per core; with 1, this process does the work).

    Raises:
        VitsTrainerError: a worker process was killed.
    """
    processes = processes or available_cores()
    if processes == 1:
        yield from ((piece, function(piece)) for piece in pieces)
        return
    pool = new_pool(processes)
    waiting: deque[tuple[Piece, Future[Result]]] = deque()
    try:
        for piece in pieces:
            waiting.append((piece, pool.submit(function, piece)))
            if len(waiting) == processes * _PIECES_IN_FLIGHT_PER_PROCESS:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(piece: Piece, future: Future[Result]) -> tuple[Piece, Result]:
    try:
        return piece, future.result()
    except BrokenProcessPool as error:
        raise VitsTrainerError(
            "a worker process of check_data was killed, perhaps for lack of memory. Repeat it with fewer --processes."
        ) from error
