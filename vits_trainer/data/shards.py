"""The shard format: clips in Parquet files, read row group by row group, and a manifest of their contents.

::

    shards/shard_00000.parquet   clip, audio, text, speaker, samples
    shards.json                  the manifest: sampling rate, encoding; counts, size and SHA-256 of each shard

A row group holds about :data:`GROUP_SAMPLES` samples, so that memory and request sizes depend on the amount of speech,
not on the number of clips. Pages have checksums: damage is detected without reading a whole shard.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from msgspec import Meta
from numpy.typing import NDArray

from vits_trainer.data.audio import MAX_DECODED_S, PCM16_BYTES, Reason, reject
from vits_trainer.data.decoding import decode_pcm16
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write, discard, fsync_dir, replace_file, sha256
from vits_trainer.utils.records import Count, PositiveInt

MANIFEST = "shards.json"
FOLDER = "shards"
FORMAT = 1
GROUP_SAMPLES = 2**20
"""A row group is closed once it has this many samples (65 s and 2 MiB at 16 kHz)."""
GROUP_CLIPS = 256
"""A row group is also closed at this many clips."""
MAX_GROUP_BYTES = 256 * 2**20
"""Larger row groups are not read. Those of :class:`ShardWriter` have at most 2 MiB and one clip."""

MAX_CLIP_S = 300
"""Maximum duration of a clip, as of prepare_data. The dry run allocates a batch of the longest clips."""
_REMEDY = "Run prepare_data --shards again."

Encoding = Literal["pcm16", "flac"]
RateHz = Annotated[int, Meta(ge=1, le=192_000)]

SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),
        pa.field("audio", pa.binary(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("samples", pa.int32(), nullable=False),
    ]
)
"""``clip`` is the file name that the clip would have in wavs/; ``audio`` is little-endian int16 or FLAC."""


_NAME = re.compile(r"[^/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,60}")
"""At most 240 bytes of UTF-8: file systems allow 255."""


class _Format(TypedDict):
    format: int


class ShardFormat(TypedDict):
    """Metadata of a shard itself."""

    format: int
    sampling_rate: RateHz
    encoding: Encoding


@dataclass(frozen=True)
class ShardRecord:
    """The manifest's entry for one shard."""

    name: str
    """File name in ``shards/``."""
    bytes: Count
    sha256: str
    groups: tuple[PositiveInt, ...]
    """Number of clips per row group."""
    samples: Count
    """Total samples of all clips."""
    longest_samples: Count
    """Samples of the longest clip."""

    @property
    def clips(self) -> int:
        """Number of clips in all row groups."""
        return sum(self.groups)


@dataclass(frozen=True)
class Manifest:
    """Content of ``shards.json``."""

    sampling_rate: RateHz
    """In Hz."""
    encoding: Encoding
    shards: tuple[ShardRecord, ...]

    @cached_property
    def clips(self) -> int:
        """Number of clips in all shards."""
        return sum(shard.clips for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Writes the manifest to ``folder``, atomically."""
        content = {"format": FORMAT, **asdict(self)}
        atomic_write(folder / MANIFEST, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def parse(cls, content: str | bytes, source: str) -> "Manifest":
        """Parses a manifest; ``source`` is its path or address, for error messages.

        Raises:
            DataError: it is not a manifest, or has an unsupported format version.
        """
        written = records.parse_json(content, source, _Format, DataError, _REMEDY)["format"]
        if written != FORMAT:
            raise DataError(
                f"{source}: has format {written}, but this version reads format {FORMAT}. Prepare the shards again, or "
                "install the version that wrote them."
            )
        manifest = records.parse_json(content, source, cls, DataError, _REMEDY)
        manifest.validate(source)
        return manifest

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads and parses the manifest in ``folder``.

        Raises:
            DataError: it cannot be read, or :meth:`parse` fails.
        """
        path = folder / MANIFEST
        return cls.parse(records.read_bytes(path, DataError, _REMEDY), str(path))

    def validate(self, source: str) -> None:
        """Raises :class:`DataError` if it has file names outside its folder or twice, or empty shards."""
        names = [shard.name for shard in self.shards]
        invalid = [name for name in names if name in (".", "..") or not _NAME.fullmatch(name)]
        if invalid or len(set(names)) != len(names):
            name = (invalid or names)[0][:80]
            raise DataError(f"{source}: {name!a} is not a valid name, or is duplicated. Correct it.")
        if not self.clips or not all(shard.groups for shard in self.shards):
            raise DataError(f"{source}: a shard has no clips. {_REMEDY}")
        require_clip_length(max(shard.longest_samples for shard in self.shards), self.sampling_rate, source)


def shard_format(metadata: Any, source: str) -> ShardFormat:
    """Checks the columns of a shard and returns its own description, from its Parquet ``metadata``.

    Raises:
        DataError: a column is missing or has another type, or the description is invalid.
    """
    expected = {field.name: field.type for field in SCHEMA}
    records.check_columns(metadata.schema.to_arrow_schema(), expected, source, DataError, _REMEDY)
    content = (metadata.metadata or {}).get(b"vits_trainer")
    return records.parse_json(content, source, ShardFormat, DataError, _REMEDY)


def longest_clip(metadata: Any, source: str) -> int:
    """Returns the samples of a shard's longest clip, from the statistics of its row groups.

    Raises:
        DataError: a row group has no clips or no statistics.
    """
    column = metadata.schema.names.index("samples")
    statistics = [metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)]
    if not statistics or not all(one is not None and one.has_min_max for one in statistics):
        raise DataError(f"{source}: a row group has no clips, or no statistics of its samples. {_REMEDY}")
    return max(int(one.max) for one in statistics)


def require_clip_length(longest_samples: int, rate_hz: int, source: object) -> None:
    """Raises :class:`DataError` if the longest clip is longer than prepare_data allows."""
    if longest_samples > MAX_CLIP_S * rate_hz:
        raise DataError(
            f"{source}: longest_samples: expected at most {MAX_CLIP_S * rate_hz} ({MAX_CLIP_S} s), found "
            f"{longest_samples}. {_REMEDY}"
        )


class ShardWriter:
    """Writes one shard, row group by row group. The file appears only once it is closed without an error."""

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
        """Deletes the unfinished shard."""
        try:
            self._writer.close()  # writes the footer: fails on a full disk
        finally:
            discard(self._part)

    def add(self, clip: str, pcm: NDArray[np.int16], text: str, speaker: str) -> None:
        """Appends a clip, ``pcm`` (T,)."""
        self.add_encoded(clip, encode_audio(pcm, self.rate_hz, self.encoding), text, speaker, len(pcm))

    def add_encoded(self, clip: str, audio: bytes, text: str, speaker: str, samples: int) -> None:
        """Appends a clip of ``samples`` samples; ``audio`` is the result of :func:`encode_audio`."""
        self._rows.append((clip, audio, text, speaker, samples))
        self._group_samples += samples
        self._samples += samples
        self._longest = max(self._longest, samples)
        if self._group_samples >= GROUP_SAMPLES or len(self._rows) == GROUP_CLIPS:
            self._write_group()

    def close(self) -> ShardRecord:
        """Finishes the shard and moves it to its path.

        Raises:
            DataError: the shard has no clips.
        """
        self._write_group()
        if not self._groups:
            raise DataError(f"{self.path}: no clips for this shard. Reduce --shards.")
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
    """Encodes ``pcm``, (T,), for the column ``audio``."""
    if encoding == "pcm16":
        return pcm.astype("<i2").tobytes()
    content = io.BytesIO()
    sf.write(content, pcm, rate_hz, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def decode_audio(
    content: bytes | memoryview | None, encoding: Encoding, samples: int, rate_hz: int
) -> NDArray[np.int16]:
    """Decodes the result of :func:`encode_audio` to samples, (T,); PCM is not copied.

    Args:
        content: cell of the column ``audio``.
        encoding: of the shards.
        samples: cell of the column ``samples``, T.
        rate_hz: sampling rate of the shards.

    Raises:
        RecordingError: it is empty, too long, damaged, or does not have this length, this rate and one channel. A
            length that does not match is found before decoding.
    """
    if content is None:
        reject(Reason.MISSING_FILE, "the row has no audio")
    if samples > MAX_DECODED_S * rate_hz:
        reject(Reason.TOO_LONG, f"{samples} samples, at most {MAX_DECODED_S:g} s")
    if encoding == "flac":
        return decode_pcm16(bytes(content), samples, rate_hz)
    size_bytes = memoryview(content).nbytes
    if size_bytes != PCM16_BYTES * samples:
        reject(Reason.TRUNCATED_AUDIO, f"{size_bytes / PCM16_BYTES:g} of {samples} samples")
    return np.frombuffer(content, dtype="<i2")


def verify_shards(folder: Path, manifest: Manifest) -> None:
    """Reads every shard of ``folder`` and compares it with the manifest.

    Raises:
        DataError: lists all shards that are missing or differ from the manifest.
    """
    problems = [problem for shard in manifest.shards if (problem := _problem(folder / FOLDER / shard.name, shard))]
    if problems:
        raise DataError(f"{folder}: {'; '.join(problems)}. Download these again, or run prepare_data --shards again.")


def _problem(path: Path, record: ShardRecord) -> str | None:
    if not path.is_file():
        return f"{record.name} is missing"
    if path.stat().st_size != record.bytes:
        return f"{record.name} has {path.stat().st_size} bytes, not {record.bytes}"
    return None if sha256(path) == record.sha256 else f"{record.name} does not match its SHA-256"


def shard_name(number: int) -> str:
    """Returns the file name of shard ``number``, from 0."""
    return f"shard_{number:05d}.parquet"


def shard_sizes(clips: int, shards: int) -> Sequence[int]:
    """Returns the number of clips of each shard, as even as possible."""
    return [clips // shards + (number < clips % shards) for number in range(shards)]
