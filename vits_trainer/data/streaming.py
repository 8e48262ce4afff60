"""From shards, wherever they lie, to batches, in ``streaming_sampler``'s order; nothing is kept on the disk.

Parquet is read by fsspec and pyarrow, as ``datasets`` does it, but not through its iterators: those lose the clips of
their shuffle buffers on a resume, and where the shards do not divide among the ranks each rank reads them all.
"""

import hashlib
import json
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile as sf
from numpy.typing import NDArray
from torch.utils.data import get_worker_info
from transformers import VitsTokenizer

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.prepare import HUB_NAME
from vits_trainer.data.audio import Reason, RecordingError, reject
from vits_trainer.data.clip_accounting import UNREADABLE, Incident
from vits_trainer.data.dataset import UNEXPECTED, Clip, ClipDataset
from vits_trainer.data.remote_shards import RemoteFolder, ShardReader, metadata_of
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.data.shards import FOLDER, MANIFEST, SCHEMA, Encoding, Manifest, ShardRecord, decode_audio
from vits_trainer.data.streaming_sampler import StreamedBatchSpec
from vits_trainer.utils.errors import DataError, UnreadableShardError

_THREADS = 8
"""Requests that a data worker has under way at most."""
_HELD_OUT_GROUPS = 8
"""The held-out clips come from so many row groups, if these hold enough: each is read as a whole."""


@dataclass(frozen=True)
class ShardedData:
    """A set of shards, opened: what is in them is known, and nothing of it read."""

    address: str
    shards: ShardReader
    sampling_rate: int
    """In Hz."""
    encoding: Encoding
    summary: dict[str, Any]
    """dataset.json, where it lies with the shards."""

    @property
    def root(self) -> str:
        """Where it lies, for messages."""
        return self.address

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Clips in each row group, of all shards one after another."""
        return tuple(clips for record in self.shards.records for clips in record.groups)

    @cached_property
    def shard_of_group(self) -> NDArray[np.int64]:
        """Number of each row group's shard."""
        records = self.shards.records
        return np.repeat(np.arange(len(records)), [len(record.groups) for record in records])

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Number of clips up to each row group's end."""
        ends: NDArray[np.int64] = np.cumsum(self.groups)
        return ends

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """The first row of each row group."""
        begins: NDArray[np.int64] = self.ends - self.groups
        return begins

    @cached_property
    def shard_begins(self) -> NDArray[np.int64]:
        """The first row of each shard, and the number of all."""
        return np.cumsum([0, *(record.clips for record in self.shards.records)])

    @cached_property
    def shard_names(self) -> list[str]:
        """As records of clips have them."""
        return [record.name.removeprefix(f"{FOLDER}/") for record in self.shards.records]

    @property
    def clips(self) -> int:
        """In all shards."""
        return int(self.ends[-1])

    @property
    def longest_samples(self) -> int:
        """Of the longest clip."""
        return max(record.longest_samples for record in self.shards.records)

    @property
    def speakers(self) -> list[str]:
        """Names of the speakers, sorted: a name's place is its id."""
        return sorted(self._known[0])

    @property
    def texts(self) -> list[str]:
        """Enough of the texts to make a vocabulary from: every character is in it."""
        return [self._known[1]]

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Changes when a shard does, or when other ``rows`` are meant."""
        records = [(record.name, record.bytes, record.sha256, record.groups) for record in self.shards.records]
        return hashlib.sha256(json.dumps([records, list(rows)]).encode()).hexdigest()

    def hold_out(self, fraction: float, most: int, seed: int) -> list[int]:
        """Rows to validate with: drawn from a few row groups, so that few are read for it.

        Raises:
            DataError: nothing would be left to train on.
        """
        wanted = min(most, max(1, round(fraction * self.clips))) if fraction > 0 else 0
        if wanted >= self.clips:
            raise DataError(
                f"{self.address} has {self.clips} clip(s), too few to hold out {wanted} for validation. "
                "Prepare more clips, or give --validation_fraction 0."
            )
        draw = np.random.default_rng(seed)
        each, rows = -(-wanted // _HELD_OUT_GROUPS), list[int]()
        for group in draw.permutation(len(self.groups)):
            take = min(each, wanted - len(rows), self.groups[group])
            if not take:
                break
            rows += (self.begins[group] + draw.permutation(self.groups[group])[:take]).tolist()
        # Row groups with fewer clips than their share: from what is left of the first ones.
        if len(rows) < wanted:
            rest = np.setdiff1d(np.arange(self.clips), rows)
            rows += draw.permutation(rest)[: wanted - len(rows)].tolist()
        return sorted(rows)

    def groups_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row groups that clips are in, and their places there."""
        groups = np.searchsorted(self.ends, rows, side="right")
        return groups, rows - self.begins[groups]

    def group_of(self, row: int) -> tuple[int, int]:
        """The row group that a clip is in, and its place there."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - int(self.begins[group])

    def name(self, row: int) -> str:
        """What a clip is called in records: its shard and its row there, from 0."""
        shard = int(np.searchsorted(self.shard_begins, row, side="right")) - 1
        return f"{self.shard_names[shard]}:{row - self.shard_begins[shard]}"

    @cached_property
    def _known(self) -> tuple[dict[str, int], str]:
        """Clips of each speaker, and every character of the texts: as dataset.json says, else read from all shards."""
        if self.summary.get("speaker_clips") and self.summary.get("characters"):
            return self.summary["speaker_clips"], self.summary["characters"]
        speakers: Counter[str] = Counter()
        characters: set[str] = set()
        for group in range(len(self.groups)):
            table = self.shards.read(group)
            speakers.update(table["speaker"].to_pylist())
            characters.update(*table["text"].to_pylist())
        return dict(speakers), "".join(sorted(characters))


def open_stream(address: str) -> ShardedData:
    """Opens the shards at ``address``: a folder with shards.json, a pattern of shards, or a data set on the Hub.

    Raises:
        DataError: there are no shards.
        UnreadableShardError: what holds them does not answer.
    """
    if "*" in address:
        root = address[: address.index("*")].rpartition("/")[0] or "."
        return _open_pattern(address, RemoteFolder(root), address.removeprefix(f"{root}/"))
    is_hub = HUB_NAME.fullmatch(address) and not Path(address).is_dir()
    return _open_folder(address, RemoteFolder(f"hf://datasets/{address}" if is_hub else address))


def _open_folder(address: str, folder: RemoteFolder) -> ShardedData:
    content = _content(folder, MANIFEST)
    if content is None:
        raise DataError(
            f"{folder.address} holds no {MANIFEST}. Make shards with: vits-trainer prepare_data --dataset SOURCE "
            "--shards 16 --output_dir FOLDER (a folder with wavs/ is trained on without --streaming)."
        )
    manifest = Manifest.parse(content, f"{folder.address}/{MANIFEST}")
    try:
        summary = dict(json.loads(_content(folder, "dataset.json") or "{}"))
    except ValueError as error:
        raise DataError(f"{folder.address}/dataset.json: is no JSON ({error}). Prepare again.") from error
    records = [replace(record, name=f"{FOLDER}/{record.name}") for record in manifest.shards]
    return ShardedData(address, ShardReader(folder, records), manifest.sampling_rate, manifest.encoding, summary)


def _content(folder: RemoteFolder, name: str) -> bytes | None:
    """Of a file; None where there is none."""
    try:
        return folder.read(name)
    except UnreadableShardError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _open_pattern(address: str, folder: RemoteFolder, pattern: str) -> ShardedData:
    records: list[ShardRecord] = []
    kinds: set[tuple[int, Encoding]] = set()
    for name, size_bytes in folder.find(pattern):
        metadata = metadata_of(folder, name, size_bytes)
        own = json.loads(metadata.metadata[b"vits_trainer"])
        kinds.add((int(own["sampling_rate"]), own["encoding"]))
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        longest = max(group.column(SCHEMA.get_field_index("samples")).statistics.max for group in groups)
        records.append(ShardRecord(name, size_bytes, "", tuple(group.num_rows for group in groups), 0, int(longest)))
    if len(kinds) != 1:
        found = " and ".join(f"{encoding} at {rate} Hz" for rate, encoding in sorted(kinds)) or "no file"
        raise DataError(f"{address}: shards of one kind are needed, and it leads to {found}. Correct the pattern.")
    ((sampling_rate, encoding),) = kinds
    return ShardedData(address, ShardReader(folder, records), sampling_rate, encoding, {})


class TrainedNames(Sequence[str]):
    """Names of the clips that are trained on, found when asked for."""

    def __init__(self, prepared: ShardedData, held_out: Sequence[int]) -> None:
        self._prepared = prepared
        self._held_out = np.asarray(sorted(held_out), np.int64)
        self._numbers = {name: number for number, name in enumerate(prepared.shard_names)}

    def __len__(self) -> int:
        return self._prepared.clips - len(self._held_out)

    def __getitem__(self, place: Any) -> Any:
        """A clip's name; of a slice, a list."""
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        before = np.searchsorted(self._held_out - np.arange(len(self._held_out)), place, side="right")
        return self._prepared.name(int(place + before))

    def place(self, name: str) -> int:
        """Where a name stands; raises KeyError for one that is not among them."""
        shard, _, number = name.rpartition(":")
        begin, end = self._prepared.shard_begins[self._numbers[shard] :][:2]
        row = int(begin) + int(number)
        before = int(np.searchsorted(self._held_out, row))
        if row >= end or row in self._held_out[before : before + 1]:
            raise KeyError(name)
        return row - before


class StreamingClipDataset(ClipDataset):
    """Fetches row groups where a DataLoader's worker asks for clips, those of the next windows ahead of their use."""

    def __init__(
        self, prepared: ShardedData, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> None:
        super().__init__(tokenizer, spec, speaker_ids)
        self.prepared = prepared
        self.longest_frames = spec.frames(prepared.longest_samples)
        self._lanes: dict[int, dict[int, Future[pa.Table]]] = {}
        """Row groups that each lane has to do with now, fetched or on their way."""
        self._single: dict[int, Clip | Incident] = {}
        """Clips that were asked for one by one: those that validation comes back to."""
        self._words: dict[int, dict[str, str]] = {}
        """Their texts and speakers."""

    def __getstate__(self) -> dict[str, Any]:
        """Where workers are not forked: what was fetched stays behind."""
        return {**vars(self), "_lanes": {}, "_table": None, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        del self._table, self._pool  # are made anew when asked for

    def text(self, row: int) -> str:
        """The text of a clip."""
        return self._told(row, "text")

    def speaker(self, row: int) -> str:
        """A clip's speaker, by name."""
        return self._told(row, "speaker")

    def _told(self, row: int, column: str) -> str:
        if row not in self._words:
            group, place = self.prepared.group_of(row)
            table = self._table(group)
            self._words[row] = {name: str(table[name][place]) for name in ("text", "speaker")}
        return self._words[row][column]

    def read(self, row: int) -> Clip | Incident:
        """Reads one clip and keeps it, or returns why it cannot be used."""
        if row not in self._single:
            group, _ = self.prepared.group_of(row)
            try:
                record = self._record(row, {group: self._table(group)})
            except UnreadableShardError as error:
                return _unreadable(error)
            self._single[row] = record
        return self._single[row]

    def read_all(self, spec: MicroBatchSpec) -> list[Clip | Incident]:
        """Reads the clips of a micro-batch: of listed rows, or of a part of a window."""
        if not isinstance(spec, StreamedBatchSpec):
            return super().read_all(spec)
        try:
            tables = self._tables_of(spec)
        except UnreadableShardError as error:
            return [_unreadable(error)]
        records = [self._record(row, tables) for row in self._part(spec, tables)]
        return [self._stretched(record) for record in records] if spec.stretched else records

    def _part(self, place: StreamedBatchSpec, tables: dict[int, pa.Table]) -> list[int]:
        """Rows of the part of a window that this micro-batch is."""
        rows = np.asarray(place.indices, np.int64)
        groups, places = self.prepared.groups_of(rows)
        lengths = np.zeros(len(rows), np.int64)
        for group, table in tables.items():
            of_group = groups == group
            lengths[of_group] = table["samples"].to_numpy()[places[of_group]]
        by_length = rows[np.lexsort((rows, lengths))]
        part: list[int] = np.array_split(by_length, place.parts)[place.part].tolist()
        return part

    def _tables_of(self, place: StreamedBatchSpec) -> dict[int, pa.Table]:
        needed = set(self.prepared.groups_of(np.asarray(place.indices, np.int64))[0].tolist())
        if place.substream is None:
            return {group: self._table(group) for group in needed}
        before = self._lanes.get(place.substream, {})
        # In the training process itself there is nobody to read ahead.
        wanted = needed if get_worker_info() is None else (*needed, *place.ahead)
        held = {group: before.get(group) or self._fetch(group) for group in wanted}
        self._lanes[place.substream] = held
        return {group: held[group].result() for group in needed}

    def _fetch(self, group: int) -> Future[pa.Table]:
        if get_worker_info() is not None:
            return self._pool.submit(self.prepared.shards.read, group)
        fetched: Future[pa.Table] = Future()
        fetched.set_result(self.prepared.shards.read(group))
        return fetched

    @cached_property
    def _table(self) -> Callable[[int], pa.Table]:
        """Reads a row group, or has it from the last few that were read so."""
        return lru_cache(maxsize=_HELD_OUT_GROUPS)(self.prepared.shards.read)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS)

    def _record(self, row: int, tables: dict[int, pa.Table]) -> Clip | Incident:
        group, place = self.prepared.group_of(row)
        name = self.prepared.name(row)
        try:
            table = tables[group]
            content = memoryview(table["audio"][place].as_buffer())
            return self.clip(name, self._pcm(content), str(table["text"][place]), str(table["speaker"][place]))
        except RecordingError as error:
            return Incident(name, "read", str(error.rejection.reason), error.rejection.detail)
        except UNEXPECTED as error:
            return Incident(name, "read", type(error).__name__, str(error), traceback.format_exc())

    def _pcm(self, content: memoryview) -> NDArray[np.int16]:
        try:
            return decode_audio(content, self.prepared.encoding)
        except sf.SoundFileError as error:
            reject(Reason.UNREADABLE_AUDIO, str(error))

    def _stretched(self, record: Clip | Incident) -> Clip | Incident:
        """A clip as long as the longest, to try what it takes."""
        if isinstance(record, Incident):
            return record
        return replace(record, pcm=np.resize(record.pcm, self.longest_frames * self.spec.hop))


def _unreadable(error: UnreadableShardError) -> Incident:
    return Incident("no clip", "read", UNREADABLE, str(error))
