"""Synthetic shards: short clips with different lengths, texts and speakers."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.audio import voice
from vits_trainer.data import shards
from vits_trainer.data.audio import to_pcm16
from vits_trainer.data.shards import Encoding, Manifest, ShardWriter
from vits_trainer.utils.files import sha256

TEXTS = ("Silav.", "Roj baş, heval.", "Tu çawa yî?", "Ez baş im.")


def write_shards(
    folder: Path,
    clips_of: Sequence[int],
    encoding: Encoding = "pcm16",
    rate_hz: int = 16000,
    group_clips: int = shards.GROUP_CLIPS,
    speakers: Sequence[str] = ("unknown",),
    base_s: float = 0.6,
) -> Path:
    """Writes ``folder`` as prepare_data --shards does, with ``clips_of`` clips in each shard."""
    (folder / shards.FOLDER).mkdir(parents=True)
    records, number, texts, spoken = [], 0, [], Counter()
    with mock.patch.object(shards, "GROUP_CLIPS", group_clips):
        for index, clips in enumerate(clips_of):
            with ShardWriter(folder / shards.FOLDER / shards.shard_name(index), rate_hz, encoding) as writer:
                for _ in range(clips):
                    duration_s = base_s + 0.016 * (number * 7 % 40)
                    pcm = to_pcm16(voice(duration_s, rate_hz, 100 + number % 90))
                    text, speaker = TEXTS[number % len(TEXTS)], speakers[number % len(speakers)]
                    writer.add(f"audio_{number:06d}.wav", pcm, text, speaker)
                    texts.append(text)
                    spoken[speaker] += 1
                    number += 1
                records.append(writer.close())
    manifest = Manifest(rate_hz, encoding, tuple(records))
    manifest.write(folder)
    summary = {
        "accepted": number,
        "sampling_rate": rate_hz,
        "seconds": sum(record.samples for record in records) / rate_hz,
        "speakers": len(spoken),
        "speaker_clips": dict(sorted(spoken.items())),
        "characters": "".join(sorted(set("".join(texts)))),
    }
    (folder / "dataset.json").write_text(json.dumps(summary))
    return folder


def damage(path: Path, at: float = 0.3) -> None:
    """Flips one bit of a file, at a fraction of its length."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content.tobytes())


def write_rows(folder: Path, rows: Sequence[dict[str, object]], encoding: Encoding, rate_hz: int = 16000) -> Path:
    """Writes one shard of any cells, null included, as another program may."""
    (folder / shards.FOLDER).mkdir(parents=True)
    path = folder / shards.FOLDER / shards.shard_name(0)
    metadata = {"vits_trainer": json.dumps({"format": shards.FORMAT, "sampling_rate": rate_hz, "encoding": encoding})}
    schema = pa.schema([field.with_nullable(True) for field in shards.SCHEMA], metadata=metadata)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    record = shards.ShardRecord(path.name, path.stat().st_size, sha256(path), (len(rows),), 0, 100_000)
    Manifest(rate_hz, encoding, (record,)).write(folder)
    return folder
