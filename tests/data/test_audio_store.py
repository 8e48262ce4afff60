"""Folders with shards are equivalent to folders with wavs/; damaged shards are named."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support import audio
from tests.support.preparation import prepare_into
from tests.support.shards import damage, write_shards
from vits_trainer.config.framing import AudioSpec
from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import Batch, PreparedClipDataset
from vits_trainer.data.prepared import PreparedData, open_prepared, train_validation_split
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.data.shards import ShardWriter
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.utils.errors import DataError

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,"


def dataset_of(prepared: PreparedData) -> PreparedClipDataset:
    return PreparedClipDataset(prepared, build_tokenizer([CHARACTERS]), AudioSpec(16000), None)


def both(tmp_path: Path, several: bool, encoding: str) -> tuple[PreparedData, PreparedData]:
    voices = [audio.voice(0.4 + 0.05 * (n % 5), 16000, 90 + 3 * n) for n in range(40)]
    utterances = [
        audio.Utterance(f"{n}", f"text {n}.", audio.encode(v, 16000), client_id=f"s{n % 3 if several else 0}")
        for n, v in enumerate(voices)
    ]
    source = audio.write_parquet(tmp_path / "cv.parquet", utterances)
    prepare_into(tmp_path / "wavs", source)
    prepare_into(tmp_path / "shards", source, shards=3, encoding=encoding)
    return open_prepared(tmp_path / "wavs"), open_prepared(tmp_path / "shards")


@pytest.mark.parametrize(("several", "encoding"), [(True, "flac"), (False, "pcm16")])
def test_shards_are_the_same_data_as_wavs(tmp_path: Path, several: bool, encoding: str) -> None:
    wavs, shards = both(tmp_path, several, encoding)
    rows = range(40)
    assert wavs.rows == shards.rows
    assert (wavs.speakers, wavs.sampling_rate) == (shards.speakers, shards.sampling_rate)
    assert len(shards.speakers) == (3 if several else 1)
    assert wavs.fingerprint(rows) == shards.fingerprint(rows)
    assert wavs.frames(rows, 256) == shards.frames(rows, 256)
    assert train_validation_split(wavs, 0.2, 64, 1) == train_validation_split(shards, 0.2, 64, 1)
    spec = MicroBatchSpec((31, 2, 17), 0, 0, closes_update=True)
    ours, theirs = (dataset_of(prepared)[spec] for prepared in (wavs, shards))
    assert batch_bytes(ours) == batch_bytes(theirs)
    assert ours.clip_ids == theirs.clip_ids != ()


def batch_bytes(batch: Batch) -> list[bytes]:
    return [t.numpy().tobytes() for t in (batch.tokens, batch.waveform, batch.frame_lengths, batch.token_lengths)]


def test_max_samples_selects_the_first_clips(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [5, 4], group_clips=2)
    assert open_prepared(folder, 6).rows.filename == [f"audio_{n:06d}.wav" for n in range(6)]
    assert len(open_prepared(folder).rows) == 9


# Several processes


def _sum_of(dataset: PreparedClipDataset, rows: list[int]) -> int:
    return sum(int(dataset.read(row).pcm.astype(np.int64).sum()) for row in rows)


def test_forked_workers_read_the_same_as_the_parent(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [20, 20], group_clips=7)
    dataset, rows = dataset_of(open_prepared(folder)), [3, 39, 4, 21, 3]
    here = _sum_of(dataset, rows)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_sum_of, [(dataset, rows)] * 4) == [here] * 4


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    dataset = dataset_of(open_prepared(write_shards(tmp_path / "set", [20, 20], group_clips=7)))
    specs = [MicroBatchSpec((n, 39 - n, 20), n, 0, closes_update=True) for n in range(12)]
    assert [batch_bytes(b) for b in build_dataloader(dataset, specs, 2)] == [
        batch_bytes(b) for b in build_dataloader(dataset, specs, 0)
    ]


def test_reading_in_order_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vits_trainer.data import audio_store

    recordings = open_prepared(write_shards(tmp_path / "set", [20, 20], group_clips=7)).recordings
    real, opened = audio_store.pq.ParquetFile, []
    monkeypatch.setattr(audio_store.pq, "ParquetFile", lambda *a, **k: opened.append(a) or real(*a, **k))
    for row in range(40):
        recordings.read(row)
    assert len(opened) == 2 * 3
    assert len(pickle.dumps(recordings)) < 5000


# Damaged data


def test_damaged_page_gives_incidents_and_never_wrong_audio(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [8, 8], group_clips=4)
    intact = [dataset_of(open_prepared(folder)).read(row) for row in range(16)]
    damage(folder / "shards" / "shard_00001.parquet", 0.2)
    records = [dataset_of(open_prepared(folder)).read(row) for row in range(16)]
    bad = [row for row, record in enumerate(records) if isinstance(record, Incident)]
    assert bad == [8, 9, 10, 11]
    assert records[8].kind == "unreadable-audio"
    assert "shard_00001.parquet row group 0" in records[8].message
    for ours, theirs in zip(intact, records, strict=True):
        assert isinstance(theirs, Incident) or ours.pcm.tobytes() == theirs.pcm.tobytes()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda file: file.unlink(), "shard_00001.parquet: is missing"),
        (lambda file: file.open("ab").write(b"x"), r"shard_00001.parquet: has \d+ bytes, not \d+"),
        (lambda file: damage(file, 0.9999), "shard_00001.parquet: is damaged"),
        (lambda file: shutil.copy(file.with_name("shard_00000.parquet"), file), "shard_00001.parquet: has"),
    ],
)
def test_damaged_shard_is_named_when_the_folder_is_opened(tmp_path: Path, break_it, message: str) -> None:
    folder = write_shards(tmp_path / "set", [4, 5])
    break_it(folder / "shards" / "shard_00001.parquet")
    with pytest.raises(DataError, match=message):
        open_prepared(folder)


def test_clip_names_outside_the_folder_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation writes files with the clips' names, and shards may come from an untrusted source."""
    add = ShardWriter.add
    monkeypatch.setattr(ShardWriter, "add", lambda self, clip, *rest: add(self, f"../{clip}", *rest))
    folder = write_shards(tmp_path / "set", [3])
    with pytest.raises(DataError, match=r"'\.\./audio_000000\.wav' is not a valid clip name"):
        open_prepared(folder)


def test_folder_without_the_newer_keys_of_dataset_json_is_accepted(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [3])
    (folder / "dataset.json").write_text(json.dumps({"accepted": 3}))
    assert len(open_prepared(folder).rows) == 3
