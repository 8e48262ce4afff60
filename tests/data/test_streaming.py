"""Shards that are read where they lie: right clips, one request a row group, and honest words where that fails."""

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.support.object_store import Store, object_store
from tests.support.shards import damage, write_shards
from tests.support.streams import SPEC, assert_holds, order_of, reader_of, written
from vits_trainer.data import remote_shards
from vits_trainer.data.clip_accounting import UNREADABLE, ClipAccounting, Incident
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import Clip
from vits_trainer.data.sampler import MicroBatchSpec, validation_batches
from vits_trainer.data.streaming import StreamingClipDataset, TrainedNames, open_stream
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.utils.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("streamed") / "set", [20, 31, 25], group_clips=6)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as found:
        yield found


@pytest.fixture
def s3(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own attempts, beside ours
    store.requests.clear()
    yield store
    store.fails = lambda number, path: False


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_epoch_holds_every_clip_once_as_it_was_written(tmp_path, encoding, workers):
    folder = write_shards(tmp_path / "set", [9, 31, 2], encoding, group_clips=5)
    prepared = open_stream(str(folder))
    reader, order, clips = reader_of(prepared), order_of(prepared, world_size=2), written(folder)
    names: Counter[str] = Counter()
    for rank in range(2):
        for batch in build_dataloader(reader, order.after(0, 2 * order.updates_per_epoch, rank), workers):
            assert_holds(batch, clips, reader)
            assert not batch.rejections
            names.update(batch.clip_ids)
    assert names == Counter(dict.fromkeys(clips, 2))


def test_windows_are_sorted_by_length(folder):
    prepared = open_stream(str(folder))
    reader = reader_of(prepared)

    def padding(window: int) -> float:
        batches = list(build_dataloader(reader, order_of(prepared, window=window).epoch(0, 0), 0))
        longest = sum(len(b.clip_ids) * int(b.frame_lengths.max()) for b in batches)
        return longest / sum(int(b.frame_lengths.sum()) for b in batches)

    assert padding(8) < 1 + 0.6 * (padding(1) - 1)


def test_held_out_clips_are_read_once_and_kept(s3, folder):
    prepared = open_stream(s3.upload(folder, "held_out"))
    reader = reader_of(prepared)
    rows = prepared.hold_out(0.1, 64, seed=1)
    first = list(build_dataloader(reader, validation_batches(rows, 2, 0, 1), 0))
    asked = len(s3.requests)
    again = list(build_dataloader(reader, validation_batches(rows, 2, 0, 1), 0))
    assert len(s3.requests) == asked
    clips = written(folder)
    for batch, same in zip(first, again, strict=True):
        assert batch.clip_ids == same.clip_ids
    assert [name for batch in first for name in batch.clip_ids] == [prepared.name(row) for row in rows]
    assert [reader.text(row) for row in rows] == [clips[prepared.name(row)]["text"] for row in rows]


def test_held_out_clips_are_spread_over_row_groups_and_not_trained_on(folder):
    prepared = open_stream(str(folder))
    rows = prepared.hold_out(0.2, 64, seed=1)
    assert len(rows) == len(set(rows)) == round(0.2 * 76)
    assert len({prepared.group_of(row)[0] for row in rows}) == 8
    assert rows == prepared.hold_out(0.2, 64, seed=1) != prepared.hold_out(0.2, 64, seed=2)
    order = order_of(prepared, rows)
    trained = {row for m in order.epoch(0, 0) for row in m.indices}
    assert trained == set(range(76)) - set(rows)
    assert len(prepared.hold_out(0.99, 1000, seed=1)) == 75  # more than eight row groups hold
    with pytest.raises(DataError, match="too few to hold out 76"):
        prepared.hold_out(0.999, 1000, seed=1)


def test_names_lead_to_places_and_back(folder):
    prepared = open_stream(str(folder))
    held_out = [0, 5, 19, 20, 50, 75]
    names = TrainedNames(prepared, held_out)
    assert len(names) == 70
    assert names[:] == [prepared.name(row) for row in range(76) if row not in held_out]
    assert [names.position(name) for name in names[:]] == list(range(70))
    for foreign in ("shard_00000.parquet:0", "shard_00000.parquet:20", "shard_00009.parquet:1"):
        with pytest.raises(KeyError):
            names.position(foreign)
    accounts = ClipAccounting(names, ["shard_00000.parquet:0"], 0.01, position=names.position)
    accounts.count(names[:], ())
    assert accounts.finish_epoch(0, accounts.counts()) == "epoch 1: 70 trained + 0 rejected + 1 validation = 71 clips"


def test_worker_fetches_ahead_of_need(folder, tmp_path, monkeypatch):
    """With a store that takes 0.2 s for a row group, batches that are asked for late are there at once."""
    import time

    whole = remote_shards.ShardReader.read

    def slow(self, group):
        time.sleep(0.2)
        return whole(self, group)

    monkeypatch.setattr(remote_shards.ShardReader, "read", slow)
    prepared = open_stream(str(folder))
    order = order_of(prepared, accumulation=1, window=2)
    batches = build_dataloader(reader_of(prepared), order.after(0, 2 * order.updates_per_epoch, 0), 1)
    waits_s = []
    for _ in range(order.updates_per_epoch - 1):  # the last update's clips are not read ahead
        began = time.perf_counter()
        next(batches)
        waits_s.append(time.perf_counter() - began)
        time.sleep(0.1)
    list(batches)
    assert max(waits_s[:4]) > 0.1  # each lane's first
    assert sum(wait_s > 0.05 for wait_s in waits_s[8:]) <= 3


def test_reader_holds_no_more_than_its_lanes_need(folder, monkeypatch):
    prepared = open_stream(str(folder))
    reader, order = reader_of(prepared), order_of(prepared)
    for place in order.after(0, 3 * order.updates_per_epoch, 0):
        reader[place]
        assert len(reader._substreams) <= 8
        assert all(len(held) <= 3 for held in reader._substreams.values())


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
def test_damaged_shard_is_found_and_named(tmp_path, encoding):
    folder = write_shards(tmp_path / "set", [8, 8], encoding)
    damage(folder / "shards" / "shard_00001.parquet")
    prepared = open_stream(str(folder))
    found = [r for b in build_dataloader(reader_of(prepared), order_of(prepared).epoch(0, 0), 0) for r in b.rejections]
    assert found
    assert {incident.kind for incident in found} == {UNREADABLE}
    assert all("shard_00001.parquet" in incident.message for incident in found)


def test_clip_that_cannot_be_used_is_a_record(tmp_path):
    folder = write_shards(tmp_path / "set", [4], base_s=0.05)  # too short for its text
    reader = reader_of(open_stream(str(folder)))
    found = reader.read(0)
    assert isinstance(found, Incident)
    assert (found.clip, found.kind) == ("shard_00000.parquet:0", "text-too-long")
    unknown = StreamingClipDataset(reader.prepared, build_tokenizer(["Silav"]), SPEC, {"somebody else": 0})
    assert unknown.read(3).kind in ("KeyError", "text-too-long", "no-known-characters")


def test_rehearsal_is_as_long_as_the_longest_clip(folder):
    prepared = open_stream(str(folder))
    reader = reader_of(prepared)
    longest, typical = (reader[place] for place in order_of(prepared).dry_run_batches(0))
    assert int(longest.frame_lengths.min()) == prepared.longest_samples // 256
    assert int(typical.frame_lengths.max()) < prepared.longest_samples // 256
    clips = [record.longest_samples for record in prepared.shards.records]
    assert prepared.longest_samples == max(clips) == max(row["samples"] for row in written(folder).values())


def test_pattern_gives_the_same_clips_as_the_folder(s3, folder):
    address = s3.upload(folder, "pattern")
    by_folder = open_stream(str(folder))
    for pattern in (f"{folder}/shards/*.parquet", f"{address}/shards/shard_*.parquet"):
        by_pattern = open_stream(pattern)
        assert by_pattern.groups == by_folder.groups
        assert by_pattern.longest_samples == by_folder.longest_samples
        assert by_pattern.speakers == by_folder.speakers
        assert by_pattern.texts == by_folder.texts
        batches = build_dataloader(reader_of(by_pattern), order_of(by_pattern).epoch(0, 0), 0)
        assert sum(len(batch.clip_ids) for batch in batches) == 76


def test_fingerprint_changes_with_a_shard_and_the_rows(folder, tmp_path):
    ours = open_stream(str(folder))
    other = open_stream(str(write_shards(tmp_path / "set", [20, 31, 25], group_clips=7)))
    assert ours.fingerprint([1]) == open_stream(str(folder)).fingerprint([1])
    assert len({ours.fingerprint([1]), ours.fingerprint([2]), other.fingerprint([1])}) == 3


def test_reader_travels_to_workers_that_are_not_forked(folder):
    reader = reader_of(open_stream(str(folder)))
    before = reader[MicroBatchSpec((3, 4), 0, 0, True)]
    copied = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert isinstance(copied.read(3), Clip)
    assert copied[MicroBatchSpec((3, 4), 0, 0, True)].clip_ids == before.clip_ids
    place = next(iter(order_of(copied.prepared).epoch(0, 0)))
    assert copied[place].clip_ids == reader[place].clip_ids
