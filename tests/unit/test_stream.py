"""Shards that are read where they lie: right clips, one request a row group, and honest words where that fails."""

import logging
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.object_store import Store, object_store
from tests.shards import damage, write_shards
from vits_trainer import remote, stream
from vits_trainer.accounts import UNREADABLE, Accounts, Incident
from vits_trainer.audio import AudioSpec
from vits_trainer.data import Batch, Clip
from vits_trainer.errors import DataError, UnreadableShardError
from vits_trainer.lanes import LaneOrder
from vits_trainer.loading import load
from vits_trainer.order import MicroBatch, held_out_places
from vits_trainer.shards import decode_audio
from vits_trainer.stream import StreamedSet, StreamReader, TrainedNames, open_stream
from vits_trainer.text import build_tokenizer, encode

SPEC = AudioSpec(16000)


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


def reader_of(prepared: StreamedSet) -> StreamReader:
    return StreamReader(prepared, build_tokenizer(prepared.texts), SPEC, None)


def order_of(prepared: StreamedSet, held_out=(), world_size=1, accumulation=2, window=3) -> LaneOrder:
    return LaneOrder(prepared.groups, prepared.shard_of_group, held_out, 5, 2, world_size, accumulation, window)


def written(folder: Path) -> dict[str, dict]:
    """Every clip of the shards, by another reader."""
    return {
        f"{path.name}:{number}": row
        for path in sorted((folder / "shards").iterdir())
        for number, row in enumerate(pq.read_table(path).to_pylist())
    }


def assert_holds(batch: Batch, clips: dict[str, dict], reader: StreamReader) -> None:
    """That a batch has the samples and tokens that were written, in the order of lengths."""
    for place, name in enumerate(batch.clip_ids):
        pcm = decode_audio(clips[name]["audio"], reader.prepared.encoding)
        frames = int(batch.frame_lengths[place])
        assert frames == len(pcm) // 256
        np.testing.assert_array_equal(batch.waveform[place, : frames * 256], pcm[: frames * 256])
        tokens = encode(reader.tokenizer, clips[name]["text"])
        np.testing.assert_array_equal(batch.tokens[place, : int(batch.token_lengths[place])], tokens)
    assert sorted(batch.frame_lengths.tolist()) == batch.frame_lengths.tolist()


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_epoch_holds_every_clip_once_as_it_was_written(tmp_path, encoding, workers):
    folder = write_shards(tmp_path / "set", [9, 31, 2], encoding, group_clips=5)
    prepared = open_stream(str(folder))
    reader, order, clips = reader_of(prepared), order_of(prepared, world_size=2), written(folder)
    names: Counter[str] = Counter()
    for rank in range(2):
        for batch in load(reader, order.after(0, 2 * order.updates_per_epoch, rank), workers):
            assert_holds(batch, clips, reader)
            assert not batch.rejections
            names.update(batch.clip_ids)
    assert names == Counter(dict.fromkeys(clips, 2))


def test_windows_are_sorted_by_length(folder):
    prepared = open_stream(str(folder))
    reader = reader_of(prepared)

    def padding(window: int) -> float:
        batches = list(load(reader, order_of(prepared, window=window).epoch(0, 0), 0))
        longest = sum(len(b.clip_ids) * int(b.frame_lengths.max()) for b in batches)
        return longest / sum(int(b.frame_lengths.sum()) for b in batches)

    assert padding(8) < 1 + 0.6 * (padding(1) - 1)


def test_held_out_clips_are_read_once_and_kept(s3, folder):
    prepared = open_stream(s3.upload(folder, "held_out"))
    reader = reader_of(prepared)
    rows = prepared.hold_out(0.1, 64, seed=1)
    first = list(load(reader, held_out_places(rows, 2, 0, 1), 0))
    asked = len(s3.requests)
    again = list(load(reader, held_out_places(rows, 2, 0, 1), 0))
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
    assert [names.place(name) for name in names[:]] == list(range(70))
    for foreign in ("shard_00000.parquet:0", "shard_00000.parquet:20", "shard_00009.parquet:1"):
        with pytest.raises(KeyError):
            names.place(foreign)
    accounts = Accounts(names, ["shard_00000.parquet:0"], 0.01, place=names.place)
    accounts.take(names[:], ())
    assert accounts.close(0, accounts.own()) == "epoch 1: 70 trained + 0 rejected + 1 validation = 71 clips"


def test_each_row_group_is_one_request(s3, folder):
    prepared = open_stream(s3.upload(folder, "requests"))
    s3.requests.clear()
    order = order_of(prepared)
    list(load(reader_of(prepared), order.epoch(0, 0), workers=0))
    ranges = Counter(request for request in s3.requests if "parquet" in request[0])
    assert all(asked_for.startswith("bytes=") for _, asked_for in ranges)
    groups = {row_group for m in order.epoch(0, 0) for row_group in {prepared.group_of(r)[0] for r in m.indices}}
    # Those at a cut between two lanes (here 8) and in the epoch's last update may come twice; three shards' metadata.
    assert len(groups) == len(prepared.groups) == 15
    assert len(groups) + 3 <= sum(ranges.values()) <= len(groups) + 3 + 8 + 2


def test_worker_fetches_ahead_of_need(folder, tmp_path, monkeypatch):
    """With a store that takes 0.2 s for a row group, batches that are asked for late are there at once."""
    import time

    whole = remote.Shards.read

    def slow(self, group):
        time.sleep(0.2)
        return whole(self, group)

    monkeypatch.setattr(remote.Shards, "read", slow)
    prepared = open_stream(str(folder))
    order = order_of(prepared, accumulation=1, window=2)
    batches = load(reader_of(prepared), order.after(0, 2 * order.updates_per_epoch, 0), 1)
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
        reader.__getitems__(place)
        assert len(reader._lanes) <= 8
        assert all(len(held) <= 3 for held in reader._lanes.values())


def test_store_that_fails_now_and_then_is_asked_again(s3, folder, monkeypatch, caplog):
    monkeypatch.setattr(remote, "RETRY_WAITS_S", (0.01,) * 6)
    address = s3.upload(folder, "now_and_then")
    here, there = open_stream(str(folder)), open_stream(address)
    s3.fails = lambda number, path: "parquet" in path and number % 4 == 0
    for ours, theirs in zip(
        load(reader_of(here), order_of(here).epoch(0, 0), 0),
        load(reader_of(there), order_of(there).epoch(0, 0), 0),
        strict=True,
    ):
        assert ours.clip_ids == theirs.clip_ids
        np.testing.assert_array_equal(ours.waveform, theirs.waveform)
    assert s3.failed >= 4


def test_errors_are_retried_with_growing_pauses_and_told(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "vits_trainer")
    pauses = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    folder = remote.Folder("memory://shards")
    attempts = iter([OSError("reset"), TimeoutError("late"), EOFError("3 bytes came"), None])

    def once() -> str:
        error = next(attempts)
        if error:
            raise error
        return "content"

    assert folder.trying(once, "a.parquet") == "content"
    assert [0.75 * wait_s <= pause_s <= wait_s for wait_s, pause_s in zip((1, 2, 4), pauses, strict=True)] == [True] * 3
    assert "memory://shards/a.parquet: reset. Trying again in" in caplog.text


@pytest.mark.parametrize("library", ["aiohttp", "botocore.exceptions", "httpx", "httpx2"])
def test_errors_of_the_networks_libraries_are_retried(library, monkeypatch):
    module = pytest.importorskip(library)
    errors = {
        "aiohttp": lambda: module.ClientPayloadError("cut"),
        "botocore.exceptions": lambda: module.EndpointConnectionError(endpoint_url="s3"),
    }
    attempts = iter([errors.get(library, lambda: module.ConnectError("gone"))(), None])
    monkeypatch.setattr(remote.time, "sleep", lambda pause_s: None)

    def once() -> str:
        error = next(attempts)
        if error:
            raise error
        return "content"

    assert remote.Folder("memory://shards").trying(once, "a.parquet") == "content"


def test_store_that_stays_away_is_an_incident_that_names_the_shard_and_ends_the_run(s3, folder, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_WAITS_S", (0.01,))
    prepared = open_stream(s3.upload(folder, "away"))
    reader = reader_of(prepared)
    s3.fails = lambda number, path: "shard_00001" in path
    place = next(m for m in order_of(prepared).epoch(0, 0) if {prepared.group_of(row)[0] for row in m.indices} & {5})
    batches = [batch for workers in (0, 1) for batch in load(reader, [place], workers)]
    found = [rejection for batch in batches for rejection in batch.rejections]
    assert len(found) == 2
    assert {incident.kind for incident in found} == {UNREADABLE}
    assert all("away/shards/shard_00001.parquet: cannot be read (2 attempts)" in incident.message for incident in found)
    accounts = Accounts(["a"], [], 1.0)
    with pytest.raises(UnreadableShardError, match=r"shard_00001.parquet.*Then go on with"):
        accounts.reject(found)


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
def test_damaged_shard_is_found_and_named(tmp_path, encoding):
    folder = write_shards(tmp_path / "set", [8, 8], encoding)
    damage(folder / "shards" / "shard_00001.parquet")
    prepared = open_stream(str(folder))
    found = [r for b in load(reader_of(prepared), order_of(prepared).epoch(0, 0), 0) for r in b.rejections]
    assert found
    assert {incident.kind for incident in found} == {UNREADABLE}
    assert all("shard_00001.parquet" in incident.message for incident in found)


def test_missing_shard_is_not_asked_for_again(s3, folder, monkeypatch):
    prepared = open_stream(s3.upload(folder, "missing"))
    monkeypatch.setattr(remote.time, "sleep", lambda pause_s: pytest.fail("waits for what is not there"))
    wrong = stream.replace(prepared.shards.records[0], name="shards/nowhere.parquet")
    with pytest.raises(UnreadableShardError, match=r"nowhere\.parquet: cannot be read"):
        remote.Shards(prepared.shards.folder, [wrong]).read(0)


def test_clip_that_cannot_be_used_is_a_record(tmp_path):
    folder = write_shards(tmp_path / "set", [4], base_s=0.05)  # too short for its text
    reader = reader_of(open_stream(str(folder)))
    found = reader[0]
    assert isinstance(found, Incident)
    assert (found.clip, found.kind) == ("shard_00000.parquet:0", "text-too-long")
    unknown = StreamReader(reader.prepared, build_tokenizer(["Silav"]), SPEC, {"somebody else": 0})
    assert unknown[3].kind in ("KeyError", "text-too-long", "no-known-characters")


def test_rehearsal_is_as_long_as_the_longest_clip(folder):
    prepared = open_stream(str(folder))
    reader = reader_of(prepared)
    longest, typical = (reader.__getitems__(place)[0] for place in order_of(prepared).rehearsal(0))
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
        batches = load(reader_of(by_pattern), order_of(by_pattern).epoch(0, 0), 0)
        assert sum(len(batch.clip_ids) for batch in batches) == 76


def test_fingerprint_changes_with_a_shard_and_the_rows(folder, tmp_path):
    ours = open_stream(str(folder))
    other = open_stream(str(write_shards(tmp_path / "set", [20, 31, 25], group_clips=7)))
    assert ours.fingerprint([1]) == open_stream(str(folder)).fingerprint([1])
    assert len({ours.fingerprint([1]), ours.fingerprint([2]), other.fingerprint([1])}) == 3


def test_addresses_that_lead_to_no_shards_are_explained(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    write_shards(mixed / "a", [2])
    write_shards(mixed / "b", [2], rate_hz=22050)
    (mixed / "c").mkdir()
    foreign = pq.read_table(folder / "shards" / "shard_00000.parquet").replace_schema_metadata()
    pq.write_table(foreign, mixed / "c/f.parquet")
    for address, said in (
        (tmp_path / "empty", "holds no shards.json. Make shards with"),
        (tmp_path / "nowhere", "holds no shards.json"),
        (f"{tmp_path}/empty/*.parquet", "leads to no file"),
        (f"{mixed}/*/shards/*.parquet", "pcm16 at 16000 Hz and pcm16 at 22050 Hz"),
        (f"{mixed}/c/*.parquet", "f.parquet: is no shard of prepare_data"),
        ("unheard://of", "unheard"),
    ):
        with pytest.raises(DataError, match=said):
            open_stream(str(address))
    (tmp_path / "empty" / "shards.json").write_text("{}")
    with pytest.raises(DataError, match=r"shards\.json: is no manifest"):
        open_stream(str(tmp_path / "empty"))


def test_name_of_the_hub_is_looked_for_there(monkeypatch):
    """The Hub cannot be reached here: this shows only where the question goes."""
    asked = []
    monkeypatch.setattr(stream, "_open_folder", lambda address, folder: asked.append(folder.address))
    open_stream("somebody/kurmanji-shards")
    assert asked == ["hf://datasets/somebody/kurmanji-shards"]


def test_reader_travels_to_workers_that_are_not_forked(folder):
    reader = reader_of(open_stream(str(folder)))
    before = reader.__getitems__(MicroBatch((3, 4), 0, 0, True))[0]
    copied = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert isinstance(copied[3], Clip)
    assert copied.__getitems__(MicroBatch((3, 4), 0, 0, True))[0].clip_ids == before.clip_ids
    place = next(iter(order_of(copied.prepared).epoch(0, 0)))
    assert copied.__getitems__(place)[0].clip_ids == reader.__getitems__(place)[0].clip_ids
