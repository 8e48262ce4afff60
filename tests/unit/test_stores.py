"""A folder of shards is taken like one of wavs/: the same clips, batches and figures; a damaged shard is named."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import speech
from tests.shards import damage, write_shards
from tests.unit.test_preparation import prepare_into
from tests.voices import metrics, prepared_folder, train_flags
from vits_trainer.__main__ import main
from vits_trainer.accounts import Incident
from vits_trainer.audio import AudioSpec
from vits_trainer.data import Batch, ClipReader, PreparedSet, open_prepared, split
from vits_trainer.errors import DataError
from vits_trainer.feedback import write_mix
from vits_trainer.loading import load
from vits_trainer.order import MicroBatch
from vits_trainer.recordings import read_pcm16_wav
from vits_trainer.shards import ShardWriter
from vits_trainer.text import build_tokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,"


def reader_of(prepared: PreparedSet) -> ClipReader:
    return ClipReader(prepared, build_tokenizer([CHARACTERS]), AudioSpec(16000), None)


def both(tmp_path: Path, several: bool, encoding: str) -> tuple[PreparedSet, PreparedSet]:
    voices = [speech.voice(0.4 + 0.05 * (n % 5), 16000, 90 + 3 * n) for n in range(40)]
    utterances = [
        speech.Utterance(f"{n}", f"text {n}.", speech.encode(v, 16000), client_id=f"s{n % 3 if several else 0}")
        for n, v in enumerate(voices)
    ]
    dataset = speech.write_parquet(tmp_path / "cv.parquet", utterances)
    prepare_into(tmp_path / "wavs", dataset)
    prepare_into(tmp_path / "shards", dataset, shards=3, encoding=encoding)
    return open_prepared(tmp_path / "wavs"), open_prepared(tmp_path / "shards")


@pytest.mark.parametrize(("several", "encoding"), [(True, "flac"), (False, "pcm16")])
def test_shards_are_the_same_data_as_wavs(tmp_path: Path, several: bool, encoding: str) -> None:
    wavs, shards = both(tmp_path, several, encoding)
    rows = range(40)
    assert wavs.rows.to_dict() == shards.rows.to_dict()
    assert (wavs.speakers, wavs.sampling_rate) == (shards.speakers, shards.sampling_rate)
    assert len(shards.speakers) == (3 if several else 1)
    assert wavs.fingerprint(rows) == shards.fingerprint(rows)
    assert wavs.frames(rows, 256) == shards.frames(rows, 256)
    assert split(wavs, 0.2, 64, 1) == split(shards, 0.2, 64, 1)
    place = MicroBatch((31, 2, 17), 0, 0, closes_update=True)
    (ours,), (theirs,) = (reader_of(prepared).__getitems__(place) for prepared in (wavs, shards))
    assert batch_bytes(ours) == batch_bytes(theirs)
    assert ours.clip_ids == theirs.clip_ids != ()


def batch_bytes(batch: Batch) -> list[bytes]:
    return [t.numpy().tobytes() for t in (batch.tokens, batch.waveform, batch.frame_lengths, batch.token_lengths)]


def test_only_the_first_clips_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [5, 4], group_clips=2)
    assert open_prepared(folder, 6).rows["filename"] == [f"audio_{n:06d}.wav" for n in range(6)]
    assert len(open_prepared(folder).rows) == 9


def test_training_from_shards_has_the_metrics_of_training_from_wavs(tmp_path: Path) -> None:
    given = {"max_updates": 2, "data_workers": 2, "validation_fraction": 0.2}
    prepared_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    prepare_into(tmp_path / "b" / "training", tmp_path / "a" / "source", shards=2)
    found = []
    for name in ("a", "b"):
        assert main(["train_vits", *train_flags(tmp_path / name, **given)]) == 0
        lines = metrics(tmp_path / name)
        timed = ("time/", "throughput/", "memory/")
        found.append([{k: v for k, v in line.items() if not k.startswith(timed) and k != "time"} for line in lines])
    assert found[0] == found[1]
    assert any("validation/mel" in line for line in found[0])


# Several processes


def _sum_of(reader: ClipReader, rows: list[int]) -> int:
    return sum(int(reader[row].pcm.astype(np.int64).sum()) for row in rows)


def test_forked_workers_read_what_the_process_has_read_before(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [20, 20], group_clips=7)
    reader, rows = reader_of(open_prepared(folder)), [3, 39, 4, 21, 3]
    here = _sum_of(reader, rows)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_sum_of, [(reader, rows)] * 4) == [here] * 4


def test_data_loader_gives_the_same_batches_whatever_the_workers(tmp_path: Path) -> None:
    reader = reader_of(open_prepared(write_shards(tmp_path / "set", [20, 20], group_clips=7)))
    places = [MicroBatch((n, 39 - n, 20), n, 0, closes_update=True) for n in range(12)]
    assert [batch_bytes(b) for b in load(reader, places, 2)] == [batch_bytes(b) for b in load(reader, places, 0)]


def test_reading_in_order_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vits_trainer import stores

    recordings = open_prepared(write_shards(tmp_path / "set", [20, 20], group_clips=7)).recordings
    real, opened = stores.pq.ParquetFile, []
    monkeypatch.setattr(stores.pq, "ParquetFile", lambda *a, **k: opened.append(a) or real(*a, **k))
    for row in range(40):
        recordings.read(row)
    assert len(opened) == 2 * 3
    assert len(pickle.dumps(recordings)) < 5000


# What is damaged


def test_damaged_page_makes_bad_records_and_never_other_audio(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [8, 8], group_clips=4)
    whole = [reader_of(open_prepared(folder))[row] for row in range(16)]
    damage(folder / "shards" / "shard_00001.parquet", 0.2)
    records = [reader_of(open_prepared(folder))[row] for row in range(16)]
    bad = [row for row, record in enumerate(records) if isinstance(record, Incident)]
    assert bad == [8, 9, 10, 11]
    assert records[8].kind == "unreadable-audio"
    assert "shard_00001.parquet row group 0" in records[8].message
    for ours, theirs in zip(whole, records, strict=True):
        assert isinstance(theirs, Incident) or ours.pcm.tobytes() == theirs.pcm.tobytes()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda file: file.unlink(), "shard_00001.parquet: is missing"),
        (lambda file: file.open("ab").write(b"x"), r"shard_00001.parquet: has \d+ bytes, not \d+"),
        (lambda file: damage(file, 0.9999), "shard_00001.parquet: is damaged"),
        (lambda file: shutil.copy(file.with_name("shard_00000.parquet"), file), "shard_00001.parquet: has"),
    ],
)
def test_damaged_shard_is_refused_by_name_when_the_folder_is_opened(tmp_path: Path, break_it, said: str) -> None:
    folder = write_shards(tmp_path / "set", [4, 5])
    break_it(folder / "shards" / "shard_00001.parquet")
    with pytest.raises(DataError, match=said):
        open_prepared(folder)


def test_clip_names_that_lead_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation writes files under the clips' names, and shards may come from anybody."""
    add = ShardWriter.add
    monkeypatch.setattr(ShardWriter, "add", lambda self, clip, *rest: add(self, f"../{clip}", *rest))
    folder = write_shards(tmp_path / "set", [3])
    with pytest.raises(DataError, match=r"'\.\./audio_000000\.wav' is no name of a clip"):
        open_prepared(folder)


def test_folder_without_the_newer_keys_of_dataset_json_is_accepted(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", [3])
    (folder / "dataset.json").write_text(json.dumps({"accepted": 3}))
    assert len(open_prepared(folder).rows) == 3


# Corrections


def test_clips_of_shards_are_replayed_among_corrections(tmp_path: Path) -> None:
    known = open_prepared(write_shards(tmp_path / "known", [4, 4], group_clips=3))
    new = open_prepared(write_shards(tmp_path / "new", [2], base_s=1.0))
    assert write_mix(tmp_path / "mix", new, [(known, range(8))], 0.5, 2, seed=0) == 4
    mix = open_prepared(tmp_path / "mix")
    recorded = {known.recordings.read(row)[0].tobytes() for row in range(8)}
    recorded |= {new.recordings.read(row)[0].tobytes() for row in range(2)}
    assert {read_pcm16_wav(path)[0].tobytes() for path in (tmp_path / "mix/wavs").iterdir()} <= recorded
    assert len(mix.rows) == 8
