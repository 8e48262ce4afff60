"""The torch dataset of streamed shards, local or remote, read in ``streaming_sampler``'s order without a disk cache.

Parquet is read with fsspec and pyarrow, as in ``datasets``, but not through its iterators: those lose the clips of
their shuffle buffers on a resume, and if the shards do not divide evenly among the ranks, each rank reads them all.
"""

import hashlib
import json
import logging
import traceback
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import get_worker_info
from transformers import VitsTokenizer

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.prepare import HUB_NAME
from vits_trainer.data.audio import RecordingError
from vits_trainer.data.clip_accounting import UNREADABLE, Incident
from vits_trainer.data.dataset import UNEXPECTED, Clip, ClipDataset
from vits_trainer.data.prepared import read_summary
from vits_trainer.data.remote_shards import GroupReader, RemoteFolder, ShardReader, metadata_of
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.data.shards import (
    FOLDER,
    MANIFEST,
    Encoding,
    Manifest,
    ShardRecord,
    decode_audio,
    longest_clip,
    require_clip_length,
    shard_format,
)
from vits_trainer.data.streaming_sampler import StreamedBatchSpec
from vits_trainer.utils.errors import DataError, UnreadableShardError
from vits_trainer.utils.strings import counted

logger = logging.getLogger(__name__)

_THREADS = 8
"""Maximum number of concurrent requests of a data worker."""
_VALIDATION_GROUPS = 8
"""Number of row groups to draw validation clips from, if they have enough clips: each is read whole."""


@dataclass(frozen=True)
class StreamedData:
    """An opened set of Parquet files; only their metadata have been read."""

    address: str
    shards: GroupReader
    summary: dict[str, Any]
    """Content of dataset.json; empty for shards without one."""

    @property
    def root(self) -> str:
        """The address, for messages."""
        return self.address

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Number of clips per row group, over all shards in order."""
        return tuple(clips for record in self.shards.records for clips in record.groups)

    @cached_property
    def shard_of_group(self) -> NDArray[np.int64]:
        """Index of the shard of each row group."""
        records = self.shards.records
        return np.repeat(np.arange(len(records)), [len(record.groups) for record in records])

    @cached_property
    def row_groups(self) -> NDArray[np.int64]:
        """Row group of each group, ascending."""
        return self.shards.row_groups

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Row after the last one of each row group."""
        ends: NDArray[np.int64] = np.cumsum(self.groups)
        return ends

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """First row of each row group."""
        begins: NDArray[np.int64] = self.ends - self.groups
        return begins

    @cached_property
    def shard_begins(self) -> NDArray[np.int64]:
        """First row of each shard, then the total number of rows."""
        return np.cumsum([0, *(record.clips for record in self.shards.records)])

    @cached_property
    def shard_names(self) -> list[str]:
        """Names of the shards, as used in clip ids."""
        return [record.name.removeprefix(f"{FOLDER}/") for record in self.shards.records]

    @property
    def clips(self) -> int:
        """Number of clips in all shards."""
        return int(self.ends[-1])

    @property
    def longest_samples(self) -> int:
        """Samples of the longest clip."""
        return max(record.longest_samples for record in self.shards.records)

    @property
    def speakers(self) -> list[str]:
        """Speaker names, sorted: a name's index is its id."""
        return sorted(self._counts_and_characters[0])

    @property
    def texts(self) -> list[str]:
        """Every character of the data set as a text of its own, enough to build a vocabulary."""
        return list(self._counts_and_characters[1])

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Returns a hash of the shards and ``rows``."""
        records = [(record.name, record.bytes, record.sha256, record.groups) for record in self.shards.records]
        return hashlib.sha256(json.dumps([records, list(rows)]).encode()).hexdigest()

    def hold_out(self, fraction: float, max_clips: int, seed: int) -> list[int]:
        """Draws the rows of the validation clips from a few row groups, so that few have to be read.

        Raises:
            DataError: no clip would be left to train on.
        """
        wanted = min(max_clips, max(1, round(fraction * self.clips))) if fraction > 0 else 0
        if wanted >= self.clips:
            raise DataError(
                f"{self.address} has {counted(self.clips, 'clip')}, too few to hold out {wanted} for validation. "
                "Prepare more clips, or pass --validation_fraction 0."
            )
        rng = np.random.default_rng(seed)
        each, rows = -(-wanted // _VALIDATION_GROUPS), list[int]()
        eligible = self._eligible(wanted)
        order = rng.permutation(len(self.groups))
        # A group within a row group is read after those before it: the first ones are the cheapest.
        depths = np.arange(len(order)) - np.searchsorted(self.row_groups, self.row_groups)
        for group in order[np.argsort(depths[order], kind="stable")]:
            shuffled = self.begins[group] + rng.permutation(self.groups[group])
            rows += shuffled[eligible[shuffled]][: min(each, wanted - len(rows))].tolist()
            if len(rows) == wanted:
                break
        # Some row groups have fewer clips than their share: draw the rest from all other rows.
        if len(rows) < wanted:
            rest = np.setdiff1d(np.flatnonzero(eligible), rows)
            rows += rng.permutation(rest)[: wanted - len(rows)].tolist()
        return sorted(rows)

    def _eligible(self, wanted: int) -> NDArray[np.bool_]:
        """Returns which rows may validate, (clips,): those whose text and samples no other clip has, if enough."""
        eligible = np.ones(self.clips, dtype=bool)
        for (begin, end), name in zip(pairwise(self.shard_begins.tolist()), self.shard_names, strict=True):
            bits = np.frombuffer(bytes.fromhex(self.summary.get("repeated", {}).get(name, "")), np.uint8)
            if len(bits):
                eligible[begin:end] = np.unpackbits(bits, count=end - begin) == 0
        if eligible.sum() < wanted:
            logger.warning(
                "%s: only %d of %d clips have a text and a recording that no other clip has, fewer than the %d clips "
                "for validation: validation shares texts with training.",
                self.address, eligible.sum(), self.clips, wanted,
            )  # fmt: skip
            eligible[:] = True
        return eligible

    def groups_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the row group of each row, and the index of the row within it."""
        groups = np.searchsorted(self.ends, rows, side="right")
        return groups, rows - self.begins[groups]

    def group_of(self, row: int) -> tuple[int, int]:
        """Returns the row group of a row, and the index of the row within it."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - int(self.begins[group])

    def name(self, row: int) -> str:
        """Returns the id of a clip: its shard and its row in the shard, from 0."""
        shard = int(np.searchsorted(self.shard_begins, row, side="right")) - 1
        return f"{self.shard_names[shard]}:{row - self.shard_begins[shard]}"

    @cached_property
    def _counts_and_characters(self) -> tuple[dict[str, int], str]:
        """Clips per speaker, and all characters of the texts: from dataset.json, or else read from all shards."""
        if self.summary.get("speaker_clips") and self.summary.get("characters"):
            return self.summary["speaker_clips"], self.summary["characters"]
        speakers: Counter[str] = Counter()
        characters: set[str] = set()
        for group in range(len(self.groups)):
            table = self.shards.read(group)
            speakers.update(speaker or "" for speaker in table["speaker"].to_pylist())
            texts = (text for text in table["text"].to_pylist() if text)
            characters.update(*(unicodedata.normalize("NFC", text) for text in texts))
        return dict(speakers), "".join(sorted(characters))


@dataclass(frozen=True)
class ShardedData(StreamedData):
    """Shards of prepare_data."""

    shards: ShardReader
    sampling_rate: int
    """In Hz."""
    encoding: Encoding


def open_stream(address: str) -> ShardedData:
    """Opens the shards at ``address``: a directory with shards.json, a glob pattern of shards, or a Hub dataset.

    Raises:
        DataError: there are no shards, or they do not match each other.
        UnreadableShardError: the storage cannot be read.
    """
    if "*" in address:
        root = address[: address.index("*")].rpartition("/")[0] or "."
        return _open_pattern(address, RemoteFolder(root), address.removeprefix(f"{root}/"))
    is_hub = HUB_NAME.fullmatch(address) and not Path(address).is_dir()
    return _open_folder(address, RemoteFolder(f"hf://datasets/{address}" if is_hub else address))


def _open_folder(address: str, folder: RemoteFolder) -> ShardedData:
    content = _read_if_present(folder, MANIFEST)
    if content is None:
        raise DataError(
            f"{folder.address} contains no {MANIFEST}. Create shards with: vits-trainer prepare_data --dataset SOURCE "
            "--shards 16 --output_dir FOLDER (for a folder with wavs/, omit --streaming)."
        )
    manifest = Manifest.parse(content, f"{folder.address}/{MANIFEST}")
    content = _read_if_present(folder, "dataset.json")
    summary = {} if content is None else read_summary(content, f"{folder.address}/dataset.json")
    records = [replace(record, name=f"{FOLDER}/{record.name}") for record in manifest.shards]
    return ShardedData(address, ShardReader(folder, records), summary, manifest.sampling_rate, manifest.encoding)


def _read_if_present(folder: RemoteFolder, name: str) -> bytes | None:
    """Reads a file; returns None if it does not exist."""
    try:
        return folder.read(name)
    except UnreadableShardError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _open_pattern(address: str, folder: RemoteFolder, pattern: str) -> ShardedData:
    records: list[ShardRecord] = []
    formats: set[tuple[int, Encoding]] = set()
    for name, size_bytes in folder.find(pattern):
        metadata = metadata_of(folder, name, size_bytes)
        source = f"{folder.address}/{name}"
        file_format = shard_format(metadata, source)
        formats.add((file_format["sampling_rate"], file_format["encoding"]))
        longest = longest_clip(metadata, source)
        require_clip_length(longest, file_format["sampling_rate"], source)
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        records.append(ShardRecord(name, size_bytes, "", groups, 0, longest))
    if len(formats) != 1:
        matches = " and ".join(f"{encoding} at {rate} Hz" for rate, encoding in sorted(formats)) or "no file"
        raise DataError(
            f"{address}: all shards must have one encoding and sampling rate, but the pattern matches {matches}. "
            "Correct the pattern."
        )
    ((sampling_rate, encoding),) = formats
    return ShardedData(address, ShardReader(folder, records), {}, sampling_rate, encoding)


class TrainedNames(Sequence[str]):
    """Ids of the training clips, as a lazy sequence."""

    def __init__(self, prepared: StreamedData, held_out: Sequence[int]) -> None:
        self._prepared = prepared
        self._held_out = np.asarray(sorted(held_out), np.int64)
        self._shard_indices = {name: number for number, name in enumerate(prepared.shard_names)}

    def __len__(self) -> int:
        return self._prepared.clips - len(self._held_out)

    def __getitem__(self, index: Any) -> Any:
        """Returns a clip's id, or for a slice a list of ids."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        before = np.searchsorted(self._held_out - np.arange(len(self._held_out)), index, side="right")
        return self._prepared.name(int(index + before))

    def position(self, name: str) -> int:
        """Returns the index of an id; raises KeyError if it is not a training clip's."""
        shard, _, number = name.rpartition(":")
        begin, end = self._prepared.shard_begins[self._shard_indices[shard] :][:2]
        row = int(begin) + int(number)
        before = int(np.searchsorted(self._held_out, row))
        if row >= end or row in self._held_out[before : before + 1]:
            raise KeyError(name)
        return row - before


class StreamedClipDataset(ClipDataset):
    """Reads row groups in DataLoader workers, and prefetches those of the next windows."""

    def __init__(
        self,
        prepared: StreamedData,
        longest_samples: int,
        tokenizer: VitsTokenizer,
        spec: AudioSpec,
        speaker_ids: dict[str, int] | None,
    ) -> None:
        super().__init__(tokenizer, spec, speaker_ids)
        self.prepared = prepared
        self.longest_frames = spec.frames(longest_samples)
        self._substreams: dict[int, dict[int, Future[tuple[pa.Table, Any]]]] = {}
        """Current row groups of each substream, fetched or being fetched."""
        self._cached_clips: dict[int, Clip | Incident] = {}
        """Clips read one by one, cached: validation reads the same clips again."""
        self._metadata: dict[int, dict[str, str]] = {}
        """Texts and speakers of clips read one by one."""

    def __getstate__(self) -> dict[str, Any]:
        """Drops what was fetched, for workers that are not forked."""
        return {**vars(self), "_substreams": {}, "_table": None, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        del self._table, self._pool  # cached properties: created again on first use

    def text(self, row: int) -> str:
        """Returns the text of a clip."""
        return self._metadata_of(row, "text")

    def speaker(self, row: int) -> str:
        """Returns the name of a clip's speaker."""
        return self._metadata_of(row, "speaker")

    def _metadata_of(self, row: int, column: str) -> str:
        if row not in self._metadata:
            group, position = self.prepared.group_of(row)
            text, speaker = self.text_and_speaker(self._table(group), position)
            self._metadata[row] = {"text": text, "speaker": speaker}
        return self._metadata[row][column]

    @abstractmethod
    def text_and_speaker(self, table: pa.Table, position: int) -> tuple[str, str]:
        """Returns both of a row of a group."""

    @abstractmethod
    def samples_of(self, name: str, table: pa.Table, position: int) -> NDArray[np.int16]:
        """Decodes the recording of a row of a group, with the clip's id ``name``, to (T,).

        Raises:
            RecordingError: the clip cannot be used; gives the reason.
        """

    def read(self, row: int) -> Clip | Incident:
        """Reads one clip and keeps it, or returns why it cannot be used."""
        if row not in self._cached_clips:
            group, _ = self.prepared.group_of(row)
            try:
                record = self._record(row, {group: self._table(group)})
            except UnreadableShardError as error:
                return _unreadable_shard(error)
            self._cached_clips[row] = record
        return self._cached_clips[row]

    def read_all(self, spec: MicroBatchSpec) -> list[Clip | Incident]:
        """Reads the clips of a micro-batch: of listed rows, or of a part of a window."""
        if not isinstance(spec, StreamedBatchSpec):
            return super().read_all(spec)
        try:
            tables = self._tables_of(spec)
        except UnreadableShardError as error:
            return [_unreadable_shard(error)]
        records = [self._record(row, tables) for row in rows_of_part(self.prepared, spec, tables)]
        return [self._stretched(record) for record in records] if spec.stretched else records

    def _tables_of(self, batch_spec: StreamedBatchSpec) -> dict[int, pa.Table]:
        needed = set(self.prepared.groups_of(np.asarray(batch_spec.indices, np.int64))[0].tolist())
        if batch_spec.substream is None:
            return {group: self._table(group) for group in needed}
        before = self._substreams.get(batch_spec.substream, {})
        # Without workers nothing can be prefetched.
        wanted = sorted(needed) if get_worker_info() is None else (*sorted(needed), *batch_spec.ahead)
        held: dict[int, Future[tuple[pa.Table, Any]]] = {}
        for group in wanted:
            held[group] = before.get(group) or self._fetch(group, held.get(group - 1) or before.get(group - 1))
        self._substreams[batch_spec.substream] = held
        return {group: held[group].result()[0] for group in needed}

    def _fetch(self, group: int, previous: Future[tuple[pa.Table, Any]] | None) -> Future[tuple[pa.Table, Any]]:
        """Fetches a group; if it is not the first of its row group, continues ``previous``."""
        row_groups = self.prepared.row_groups
        if group and row_groups[group] != row_groups[group - 1]:
            previous = None
        if get_worker_info() is not None:
            return self._pool.submit(self._read_after, group, previous)
        fetched: Future[tuple[pa.Table, Any]] = Future()
        fetched.set_result(self._read_after(group, previous))
        return fetched

    def _read_after(self, group: int, previous: Future[tuple[pa.Table, Any]] | None) -> tuple[pa.Table, Any]:
        # The pool starts its tasks in order, so that the previous one is running or done.
        return self.prepared.shards.read_after(group, None if previous is None else previous.result()[1])

    @cached_property
    def _table(self) -> Callable[[int], pa.Table]:
        """Reads a row group; the last few are cached."""
        return lru_cache(maxsize=_VALIDATION_GROUPS)(self.prepared.shards.read)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS)

    def _record(self, row: int, tables: dict[int, pa.Table]) -> Clip | Incident:
        group, position = self.prepared.group_of(row)
        name = self.prepared.name(row)
        try:
            pcm = self.samples_of(name, tables[group], position)
            return self.clip(name, pcm, *self.text_and_speaker(tables[group], position))
        except RecordingError as error:
            return Incident(name, "read", str(error.rejection.reason), error.rejection.detail)
        except UNEXPECTED as error:
            return Incident(name, "read", type(error).__name__, str(error), traceback.format_exc())

    def _stretched(self, record: Clip | Incident) -> Clip | Incident:
        """Repeats a clip's samples to the length of the longest clip, for the dry run."""
        if isinstance(record, Incident):
            return record
        return replace(record, pcm=np.resize(record.pcm, self.longest_frames * self.spec.hop))


class StreamingClipDataset(StreamedClipDataset):
    """Clips of the shards of prepare_data."""

    def __init__(
        self, prepared: ShardedData, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> None:
        super().__init__(prepared, prepared.longest_samples, tokenizer, spec, speaker_ids)
        self._encoding, self._rate_hz = prepared.encoding, prepared.sampling_rate

    def text_and_speaker(self, table: pa.Table, position: int) -> tuple[str, str]:
        """Returns the cells."""
        return table["text"][position].as_py() or "", table["speaker"][position].as_py() or ""

    def samples_of(self, name: str, table: pa.Table, position: int) -> NDArray[np.int16]:  # noqa: ARG002 - as above
        """Decodes a recording, (T,)."""
        content, samples = table["audio"][position].as_buffer(), table["samples"][position].as_py()
        return decode_audio(content and memoryview(content), self._encoding, samples or 0, self._rate_hz)


def rows_of_part(prepared: StreamedData, batch_spec: StreamedBatchSpec, tables: Mapping[int, pa.Table]) -> list[int]:
    """Returns the rows of a micro-batch: its part of the window, once sorted by length.

    Args:
        prepared: the shards.
        batch_spec: of the micro-batch.
        tables: by index, the row groups of its window, with the column samples.
    """
    rows = np.asarray(batch_spec.indices, np.int64)
    groups, positions = prepared.groups_of(rows)
    lengths = np.zeros(len(rows), np.int64)
    for group, table in tables.items():
        of_group = groups == group
        lengths[of_group] = table["samples"].fill_null(0).to_numpy()[positions[of_group]]
    by_length = rows[np.lexsort((rows, lengths))]
    part: list[int] = np.array_split(by_length, batch_spec.parts)[batch_spec.part].tolist()
    return part


def _unreadable_shard(error: UnreadableShardError) -> Incident:
    return Incident("no clip", "read", UNREADABLE, str(error))
