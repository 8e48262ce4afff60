"""The format of shards: clips in Parquet files whose row groups are read one by one, and a manifest of what is in them.

::

    shards/shard_00000.parquet   clip, audio, text, speaker, samples
    shards.json                  the manifest: rate, encoding; each shard's counts, size and SHA-256

A row group holds about :data:`GROUP_SAMPLES` samples, so that memory and requests depend on the speech in it and not on
how many clips there are. Pages carry checksums: a damaged byte is found without reading a whole shard.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from numpy.typing import NDArray

from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write, discard, fsync_dir, replace_file, sha256

MANIFEST = "shards.json"
FOLDER = "shards"
FORMAT = 1
GROUP_SAMPLES = 2**20
"""A row group is closed once it holds so many samples: 65 s and 2 MiB at 16 kHz."""
GROUP_CLIPS = 256
"""Or so many clips."""

Encoding = Literal["pcm16", "flac"]

SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),
        pa.field("audio", pa.binary(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("samples", pa.int32(), nullable=False),
    ]
)
"""``clip`` is the name that the clip would have in wavs/; ``audio`` is little-endian int16, or FLAC."""


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of one shard."""

    name: str
    """Of its file in ``shards/``."""
    bytes: int
    sha256: str
    groups: tuple[int, ...]
    """Clips in each row group."""
    samples: int
    """Of all clips together."""
    longest_samples: int
    """Of the longest clip."""

    @property
    def clips(self) -> int:
        """In all row groups."""
        return sum(self.groups)


@dataclass(frozen=True)
class Manifest:
    """``shards.json``."""

    sampling_rate: int
    """In Hz."""
    encoding: Encoding
    shards: tuple[ShardRecord, ...]

    @cached_property
    def clips(self) -> int:
        """In all shards."""
        return sum(shard.clips for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        content = {"format": FORMAT, **asdict(self)}
        atomic_write(folder / MANIFEST, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def parse(cls, content: str | bytes, place: str) -> "Manifest":
        """Reads the manifest that ``place`` holds.

        Raises:
            DataError: it is none, or of a newer version of this package.
        """
        try:
            record = json.loads(content)
            if record["format"] != FORMAT:
                raise DataError(
                    f"{place}: is of format {record['format']}, and this version reads {FORMAT}. Prepare the shards "
                    "again, or install the version that wrote them."
                )
            shards = tuple(_shard_record(shard) for shard in record["shards"])
            manifest = cls(int(record["sampling_rate"]), record["encoding"], shards)
            manifest.validate(place)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{place}: is no manifest of shards ({type(error).__name__}: {error}). Run prepare_data --shards again."
            ) from error
        return manifest

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """:meth:`parse` of the manifest in ``folder``.

        Raises:
            DataError: there is none that can be read.
        """
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}). Run prepare_data --shards again.") from error
        return cls.parse(content, str(path))

    def validate(self, place: str) -> None:
        """Raises :class:`DataError` where it speaks of files elsewhere, or of nothing."""
        if self.encoding not in ("pcm16", "flac") or self.sampling_rate <= 0:
            raise DataError(f"{place}: {self.encoding} at {self.sampling_rate} Hz is not known. Prepare again.")
        names = [shard.name for shard in self.shards]
        strange = [name for name in names if name in (".", "..") or "/" in name or "\\" in name or not name]
        if strange or len(set(names)) != len(names):
            raise DataError(f"{place}: {(strange or names)[0]!r} is no name of a shard, or stands twice. Correct it.")
        if not self.clips or any(clips <= 0 for shard in self.shards for clips in shard.groups):
            raise DataError(f"{place}: a shard without clips. Run prepare_data --shards again.")


def _shard_record(record: Mapping[str, Any]) -> ShardRecord:
    return ShardRecord(
        name=str(record["name"]),
        bytes=int(record["bytes"]),
        sha256=str(record["sha256"]),
        groups=tuple(map(int, record["groups"])),
        samples=int(record["samples"]),
        longest_samples=int(record["longest_samples"]),
    )


class ShardWriter:
    """Writes one shard, row group by row group; what is not closed in peace is not there."""

    def __init__(self, path: Path, rate_hz: int, encoding: Encoding) -> None:
        self.path = path
        self.rate_hz = rate_hz
        self.encoding = encoding
        self._part = path.with_name(f"{path.name}.part")
        self._groups: list[int] = []
        self._rows: list[tuple[str, bytes, str, str, int]] = []
        self._group_samples = self._samples = self._longest = 0
        metadata = {"vits_trainer": json.dumps({"format": FORMAT, "sampling_rate": rate_hz, "encoding": encoding})}
        self._writer = pq.ParquetWriter(
            self._part,
            SCHEMA.with_metadata(metadata),
            compression={"clip": "zstd", "text": "zstd", "speaker": "zstd", "samples": "zstd", "audio": "none"},
            use_dictionary=["speaker"],
            write_statistics=["samples"],
            write_page_checksum=True,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()

    def discard(self) -> None:
        """Leaves nothing of the shard."""
        try:
            self._writer.close()  # which writes, and on a full disk fails
        finally:
            discard(self._part)

    def add(self, clip: str, pcm: NDArray[np.int16], text: str, speaker: str) -> None:
        """Appends a clip, ``pcm`` (T,)."""
        self.add_encoded(clip, encode_audio(pcm, self.rate_hz, self.encoding), text, speaker, len(pcm))

    def add_encoded(self, clip: str, audio: bytes, text: str, speaker: str, samples: int) -> None:
        """Appends a clip of so many samples, whose ``audio`` is what :func:`encode_audio` gave."""
        self._rows.append((clip, audio, text, speaker, samples))
        self._group_samples += samples
        self._samples += samples
        self._longest = max(self._longest, samples)
        if self._group_samples >= GROUP_SAMPLES or len(self._rows) == GROUP_CLIPS:
            self._write_group()

    def close(self) -> ShardRecord:
        """Puts the shard in its place.

        Raises:
            DataError: it has no clip.
        """
        self._write_group()
        if not self._groups:
            raise DataError(f"{self.path}: no clip for this shard. Ask for fewer --shards.")
        self._writer.close()
        fsync_dir(self._part)
        record = ShardRecord(
            name=self.path.name,
            bytes=self._part.stat().st_size,
            sha256=sha256(self._part),
            groups=tuple(self._groups),
            samples=self._samples,
            longest_samples=self._longest,
        )
        replace_file(self._part, self.path)
        fsync_dir(self.path.parent)
        return record

    def _write_group(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        table = pa.table([pa.array(list(c), f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self._groups.append(len(self._rows))
        self._rows, self._group_samples = [], 0


def encode_audio(pcm: NDArray[np.int16], rate_hz: int, encoding: Encoding) -> bytes:
    """``pcm``, (T,), as it stands in the column ``audio``."""
    if encoding == "pcm16":
        return pcm.astype("<i2").tobytes()
    content = io.BytesIO()
    sf.write(content, pcm, rate_hz, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def decode_audio(content: bytes | memoryview, encoding: Encoding) -> NDArray[np.int16]:
    """The samples, (T,), of what :func:`encode_audio` gave; PCM is not copied.

    Raises:
        soundfile.SoundFileError: FLAC that is none.
    """
    if encoding == "pcm16":
        return np.frombuffer(content, dtype="<i2")
    samples: NDArray[np.int16] = sf.read(io.BytesIO(content), dtype="int16")[0]
    return samples


def record_of(path: Path) -> tuple[ShardRecord, int, Encoding]:
    """What a shard says of itself, with its rate in Hz and its encoding.

    Raises:
        DataError: it is no shard.
    """
    try:
        metadata = pq.read_metadata(path)
        own = json.loads((metadata.metadata or {})[b"vits_trainer"])
        samples = pq.read_table(path, columns=["samples"])["samples"].to_numpy()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: is no shard of prepare_data ({type(error).__name__}: {error}).") from error
    groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    record = ShardRecord(path.name, path.stat().st_size, sha256(path), groups, int(samples.sum()), int(samples.max()))
    return record, int(own["sampling_rate"]), own["encoding"]


def verify(folder: Path, manifest: Manifest) -> None:
    """Reads every shard of ``folder`` and compares it with the manifest.

    Raises:
        DataError: a shard is missing or not as the manifest says; all such are named.
    """
    wrong = [problem for shard in manifest.shards if (problem := _problem(folder / FOLDER / shard.name, shard))]
    if wrong:
        raise DataError(f"{folder}: {'; '.join(wrong)}. Fetch these shards again, or run prepare_data --shards again.")


def _problem(path: Path, record: ShardRecord) -> str | None:
    if not path.is_file():
        return f"{record.name} is missing"
    if path.stat().st_size != record.bytes:
        return f"{record.name} has {path.stat().st_size} bytes, not {record.bytes}"
    return None if sha256(path) == record.sha256 else f"{record.name} has not the content that was written"


def shard_name(number: int) -> str:
    """File name of shard ``number``, from 0."""
    return f"shard_{number:05d}.parquet"


def shard_sizes(clips: int, shards: int) -> Sequence[int]:
    """How many clips go into each of ``shards``, as even as can be."""
    return [clips // shards + (number < clips % shards) for number in range(shards)]
