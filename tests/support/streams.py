"""Streams of synthetic shards."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vits_trainer.config.framing import AudioSpec
from vits_trainer.data.dataset import Batch
from vits_trainer.data.shards import decode_audio
from vits_trainer.data.streaming import ShardedData, StreamingClipDataset
from vits_trainer.data.streaming_sampler import StreamingBatchSampler
from vits_trainer.text.tokenizer import build_tokenizer, encode

SPEC = AudioSpec(16000)


def reader_of(prepared: ShardedData) -> StreamingClipDataset:
    return StreamingClipDataset(prepared, build_tokenizer(prepared.texts), SPEC, None)


def order_of(prepared: ShardedData, held_out=(), world_size=1, accumulation=2, window=3) -> StreamingBatchSampler:
    return StreamingBatchSampler(
        prepared.groups, prepared.shard_of_group, held_out, 5, 2, world_size, accumulation, window
    )


def written(folder: Path) -> dict[str, dict]:
    """Returns every clip of the shards, read by pyarrow."""
    return {
        f"{path.name}:{number}": row
        for path in sorted((folder / "shards").iterdir())
        for number, row in enumerate(pq.read_table(path).to_pylist())
    }


def assert_holds(batch: Batch, clips: dict[str, dict], reader: StreamingClipDataset) -> None:
    """Asserts that a batch has the samples and tokens that were written, sorted by length."""
    for index, name in enumerate(batch.clip_ids):
        pcm = decode_audio(clips[name]["audio"], reader.prepared.encoding, clips[name]["samples"], 16000)
        frames = int(batch.frame_lengths[index])
        assert frames == len(pcm) // 256
        np.testing.assert_array_equal(batch.waveform[index, : frames * 256], pcm[: frames * 256])
        tokens = encode(reader.tokenizer, clips[name]["text"])
        np.testing.assert_array_equal(batch.tokens[index, : int(batch.token_lengths[index])], tokens)
    assert sorted(batch.frame_lengths.tolist()) == batch.frame_lengths.tolist()
