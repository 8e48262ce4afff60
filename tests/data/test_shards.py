"""The shard format: round trips through another Parquet reader, checksums, and the manifest."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.support.audio import voice
from tests.support.shards import damage, write_shards
from vits_trainer.data import shards
from vits_trainer.data.audio import to_pcm16
from vits_trainer.data.shards import Manifest, ShardWriter, decode_audio, encode_audio, shard_sizes, verify_shards
from vits_trainer.utils.errors import DataError


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
def test_clips_round_trip_bit_for_bit(tmp_path, encoding):
    pcm = [to_pcm16(voice(0.3 + 0.1 * n, 16000)) for n in range(5)]
    with ShardWriter(tmp_path / "a.parquet", 16000, encoding) as writer:
        for number, samples in enumerate(pcm):
            writer.add(f"audio_{number:06d}.wav", samples, f"text {number}", "ada")
        record = writer.close()
    rows = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows["text"] == [f"text {n}" for n in range(5)]
    assert rows["samples"] == [len(samples) for samples in pcm]
    for row, samples in zip(rows, pcm, strict=True):
        np.testing.assert_array_equal(decode_audio(row["audio"], encoding), samples)
    assert (record.clips, record.samples, record.longest_samples) == (5, sum(map(len, pcm)), len(pcm[-1]))
    assert record.sha256 == hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()


def test_row_groups_have_similar_amounts_of_speech(tmp_path):
    pcm = np.zeros(shards.GROUP_SAMPLES // 4, np.int16)
    with ShardWriter(tmp_path / "a.parquet", 16000, "pcm16") as writer:
        for number in range(10):
            writer.add(f"{number}", pcm, "", "")
        for number in range(shards.GROUP_CLIPS + 2):
            writer.add(f"short {number}", pcm[:100], "", "")
        record = writer.close()
    assert record.groups == (4, 4, shards.GROUP_CLIPS, 4)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == list(record.groups)


def test_flac_is_smaller_than_pcm():
    pcm = to_pcm16(voice(2, 16000))
    assert len(encode_audio(pcm, 16000, "flac")) < 0.8 * len(encode_audio(pcm, 16000, "pcm16"))


def test_unfinished_shard_leaves_no_file(tmp_path):
    with pytest.raises(pa.ArrowInvalid), ShardWriter(tmp_path / "a.parquet", 16000, "pcm16") as writer:
        writer.add("a", np.zeros(shards.GROUP_SAMPLES, np.int16), None, "")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="Reduce --shards"):
        ShardWriter(tmp_path / "b.parquet", 16000, "pcm16").close()


def test_damaged_page_is_detected_by_its_checksum(tmp_path):
    folder = write_shards(tmp_path / "set", [8])
    path = folder / "shards" / "shard_00000.parquet"
    damage(path)
    assert pq.read_table(path).num_rows == 8  # undetected without verification
    with pytest.raises((pa.ArrowException, OSError), match=r"(?i)crc|checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_manifest_and_shards_agree(tmp_path):
    folder = write_shards(tmp_path / "set", [5, 9, 3], group_clips=4)
    manifest = Manifest.read(folder)
    verify_shards(folder, manifest)
    assert (manifest.clips, [shard.groups for shard in manifest.shards]) == (17, [(4, 1), (4, 4, 1), (3,)])
    damage(folder / "shards" / "shard_00000.parquet")
    (folder / "shards" / "shard_00001.parquet").unlink()
    with (folder / "shards" / "shard_00002.parquet").open("ab") as file:
        file.write(b"x")
    expected = "shard_00000.parquet does not match.*shard_00001.parquet is missing.*shard_00002.parquet has .* bytes"
    with pytest.raises(DataError, match=expected):
        verify_shards(folder, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"encoding": "mp3"}, "mp3"),
        ({"shards": []}, "has no clips"),
        ({"sampling_rate": None}, "sampling_rate: expected int, found null"),
        ({"shards": [{"name": "../../etc/passwd", "bytes": 1, "sha256": "", "groups": [1], "samples": 1,
                      "longest_samples": 1}]}, "passwd"),
        ({"shards": [{"name": "a", "bytes": 1}]}, r"shards\[0\]\.sha256: missing"),
    ],
)  # fmt: skip
def test_invalid_manifest_is_named(tmp_path, change, message):
    folder = write_shards(tmp_path / "set", [2])
    path = folder / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        Manifest.read(folder)


def test_shard_sizes_are_even():
    assert list(shard_sizes(11, 3)) == [4, 4, 3]
    assert sum(shard_sizes(200_000, 16)) == 200_000
