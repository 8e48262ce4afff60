"""The shard format: round trips through another Parquet reader, checksums, and the manifest."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.support.audio import encode, voice
from tests.support.shards import damage, write_rows, write_shards
from vits_trainer.config.framing import AudioSpec
from vits_trainer.data import audio_store, remote_shards, shards
from vits_trainer.data.audio import to_pcm16
from vits_trainer.data.clip_accounting import UNREADABLE, Incident
from vits_trainer.data.dataset import Clip, PreparedClipDataset
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.shards import Manifest, ShardWriter, decode_audio, encode_audio, shard_sizes, verify_shards
from vits_trainer.data.streaming import StreamingClipDataset, open_stream
from vits_trainer.text.tokenizer import build_tokenizer
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
        np.testing.assert_array_equal(decode_audio(row["audio"], encoding, len(samples), 16000), samples)
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


# Clips of shards that another program wrote, through both readers

GOOD = voice(0.6, 16000)


def flac_of(samples: np.ndarray, rate_hz: int = 16000, subtype: str = "PCM_16") -> bytes:
    return encode(samples, rate_hz, "FLAC", subtype)


def declaring_half(content: bytes) -> bytes:
    packed = int.from_bytes(content[18:26], "big")
    return content[:18] + (packed - len(GOOD) // 2).to_bytes(8, "big") + content[26:]


def row(audio: bytes | None, samples: int | None = len(GOOD), text: str | None = "Silav.") -> dict[str, object]:
    return {"clip": "bad.wav", "audio": audio, "text": text, "speaker": "ada", "samples": samples}


STEREO = np.stack([GOOD, GOOD], axis=1)
PCM = to_pcm16(GOOD).tobytes()
DAY = 20 * 3600 * 16000
BAD_ROWS = [
    pytest.param("flac", row(flac_of(STEREO)), "unsupported-audio", id="stereo FLAC"),
    pytest.param("flac", row(flac_of(GOOD, subtype="PCM_24")), "unsupported-audio", id="24-bit FLAC"),
    pytest.param("flac", row(flac_of(GOOD, 8000)), "wrong-rate", id="8 kHz FLAC"),
    pytest.param("flac", row(declaring_half(flac_of(GOOD)), len(GOOD) // 2), "truncated-audio", id="half declared"),
    pytest.param("flac", row(flac_of(GOOD)[:5000]), "truncated-audio", id="half a FLAC"),
    pytest.param("flac", row(b"no audio" * 50), "unreadable-audio", id="junk"),
    pytest.param("flac", row(b""), "unreadable-audio", id="no bytes of FLAC"),
    pytest.param("flac", row(flac_of(GOOD), 2 * len(GOOD)), "truncated-audio", id="FLAC shorter than samples"),
    pytest.param("flac", row(flac_of(GOOD), 100), "truncated-audio", id="FLAC longer than samples"),
    pytest.param("flac", row(flac_of(GOOD), -1), "truncated-audio", id="negative samples of FLAC"),
    pytest.param("flac", row(flac_of(GOOD), DAY), "too-long", id="a day declared"),
    pytest.param("pcm16", row(PCM, len(GOOD) - 1), "truncated-audio", id="PCM longer than samples"),
    pytest.param("pcm16", row(PCM[:-1]), "truncated-audio", id="odd bytes"),
    pytest.param("pcm16", row(PCM, -5), "truncated-audio", id="negative samples"),
    pytest.param("pcm16", row(PCM, None), "truncated-audio", id="null samples"),
    pytest.param("pcm16", row(None), "missing-file", id="null audio"),
    pytest.param("flac", row(None), "missing-file", id="null FLAC"),
    pytest.param("pcm16", row(PCM, text=None), "empty-text", id="null text"),
    pytest.param("pcm16", row(PCM, text=""), "empty-text", id="empty text"),
]


def read_both_ways(folder: Path) -> list[list[Clip | Incident]]:
    """Reads the rows of a folder by row, and as a stream."""
    tokenizer, spec = build_tokenizer(["Silav."]), AudioSpec(16000)
    by_row = PreparedClipDataset(open_prepared(folder), tokenizer, spec, None)
    streamed = StreamingClipDataset(open_stream(str(folder)), tokenizer, spec, None)
    count = pq.read_table(folder / "shards").num_rows
    return [[dataset.read(number) for number in range(count)] for dataset in (by_row, streamed)]


@pytest.mark.parametrize(("encoding", "bad", "reason"), BAD_ROWS)
def test_bad_clip_of_a_shard_is_an_incident_in_both_readers(tmp_path, encoding, bad, reason):
    good = row(PCM if encoding == "pcm16" else flac_of(GOOD)) | {"clip": "000.wav"}  # the first by name
    for clip, incident in read_both_ways(write_rows(tmp_path / "set", [good, bad], encoding)):
        np.testing.assert_array_equal(clip.pcm, to_pcm16(GOOD)[: len(clip.pcm)])
        assert (incident.kind, incident.traceback) == (reason, "")


def test_long_flac_is_rejected_without_decoding_it(tmp_path):
    """20 hours of silence take 4 MB as FLAC, and would take 2.3 GB decoded; here 10 minutes."""
    samples = 600 * 16000
    bad = row(flac_of(np.zeros(samples, np.float32)), samples)
    tracemalloc.start()
    readers = read_both_ways(write_rows(tmp_path / "set", [bad], "flac"))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert [records[0].kind for records in readers] == ["too-long", "too-long"]


def test_row_group_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    folder = write_rows(tmp_path / "set", [row(PCM)], "pcm16")
    for module in (audio_store, remote_shards):
        monkeypatch.setattr(module, "MAX_GROUP_BYTES", len(PCM))
    by_row, streamed = read_both_ways(folder)
    assert (by_row[0].kind, streamed[0].kind) == ("too-long", UNREADABLE)
