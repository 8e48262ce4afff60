"""Streaming datasets: correct clips, prefetching, validation clips, and errors of shards."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.shards import damage, write_shards
from tests.support.streams import SPEC, assert_holds, order_of, reader_of, written
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


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_epoch_contains_every_clip_once_unchanged(tmp_path, encoding, workers):
    folder = write_shards(tmp_path / "set", [9, 31, 2], encoding, group_clips=5)
    prepared = open_stream(str(folder))
    dataset, sampler, clips = reader_of(prepared), order_of(prepared, world_size=2), written(folder)
    names: Counter[str] = Counter()
    for rank in range(2):
        for batch in build_dataloader(dataset, sampler.after(0, 2 * sampler.updates_per_epoch, rank), workers):
            assert_holds(batch, clips, dataset)
            assert not batch.rejections
            names.update(batch.clip_ids)
    assert names == Counter(dict.fromkeys(clips, 2))


def test_windows_are_sorted_by_length(folder):
    prepared = open_stream(str(folder))
    dataset = reader_of(prepared)

    def padding(window: int) -> float:
        batches = list(build_dataloader(dataset, order_of(prepared, window=window).epoch(0, 0), 0))
        longest = sum(len(b.clip_ids) * int(b.frame_lengths.max()) for b in batches)
        return longest / sum(int(b.frame_lengths.sum()) for b in batches)

    assert padding(8) < 1 + 0.6 * (padding(1) - 1)


def test_validation_clips_are_read_once_and_cached(s3, folder):
    prepared = open_stream(s3.upload(folder, "held_out"))
    dataset = reader_of(prepared)
    rows = prepared.hold_out(0.1, 64, seed=1)
    first = list(build_dataloader(dataset, validation_batches(rows, 2, 0, 1), 0))
    requests = len(s3.requests)
    again = list(build_dataloader(dataset, validation_batches(rows, 2, 0, 1), 0))
    assert len(s3.requests) == requests
    clips = written(folder)
    for batch, same in zip(first, again, strict=True):
        assert batch.clip_ids == same.clip_ids
    assert [name for batch in first for name in batch.clip_ids] == [prepared.name(row) for row in rows]
    assert [dataset.text(row) for row in rows] == [clips[prepared.name(row)]["text"] for row in rows]


def test_validation_clips_come_from_several_row_groups_and_are_not_trained_on(folder):
    prepared = open_stream(str(folder))
    rows = prepared.hold_out(0.2, 64, seed=1)
    assert len(rows) == len(set(rows)) == round(0.2 * 76)
    assert len({prepared.group_of(row)[0] for row in rows}) == 8
    assert rows == prepared.hold_out(0.2, 64, seed=1) != prepared.hold_out(0.2, 64, seed=2)
    sampler = order_of(prepared, rows)
    trained = {row for m in sampler.epoch(0, 0) for row in m.indices}
    assert trained == set(range(76)) - set(rows)
    assert len(prepared.hold_out(0.99, 1000, seed=1)) == 75  # more than eight row groups contain
    with pytest.raises(DataError, match="too few to hold out 76"):
        prepared.hold_out(0.999, 1000, seed=1)


def test_validation_clips_have_a_text_and_a_recording_of_their_own(folder, caplog):
    prepared = open_stream(str(folder))
    every_other = {name: np.packbits([1, 0] * 16).tobytes().hex() for name in prepared.shard_names}
    marked = replace(prepared, summary={"repeated": every_other})
    rows = marked.hold_out(0.2, 64, seed=1)
    assert (len(rows), len(set(rows))) == (15, 15)
    begins = marked.shard_begins
    assert all((row - begins[np.searchsorted(begins, row, side="right") - 1]) % 2 == 1 for row in rows)
    assert not caplog.text
    assert replace(prepared, summary={"repeated": {}}).hold_out(0.2, 64, 1) == prepared.hold_out(0.2, 64, 1)
    assert len(marked.hold_out(0.9, 64, seed=1)) == 64
    assert "validation shares texts with training" in caplog.text


def test_names_map_to_positions_and_back(folder):
    prepared = open_stream(str(folder))
    held_out = [0, 5, 19, 20, 50, 75]
    names = TrainedNames(prepared, held_out)
    assert len(names) == 70
    assert names[:] == [prepared.name(row) for row in range(76) if row not in held_out]
    assert [names.position(name) for name in names[:]] == list(range(70))
    for unknown in ("shard_00000.parquet:0", "shard_00000.parquet:20", "shard_00009.parquet:1"):
        with pytest.raises(KeyError):
            names.position(unknown)
    accounting = ClipAccounting(names, ["shard_00000.parquet:0"], 0.01, position=names.position)
    accounting.count(names[:], ())
    summary = accounting.finish_epoch(0, accounting.counts())
    assert summary == "epoch 1: 70 trained + 0 rejected + 1 validation = 71 clips"


def test_worker_prefetches_row_groups(folder, monkeypatch):
    """Each row group is requested at least one micro-batch before it is needed, except at the start of a substream."""
    prepared = open_stream(str(folder))
    dataset, sampler = reader_of(prepared), order_of(prepared, accumulation=1, window=2)
    requested: set[int] = set()
    fetch = dataset._fetch

    def recorded(group, previous):
        requested.add(group)
        return fetch(group, previous)

    monkeypatch.setattr(dataset, "_fetch", recorded)
    monkeypatch.setattr("vits_trainer.data.streaming.get_worker_info", lambda: "a worker")
    waited, started = [], set()
    for number, spec in enumerate(sampler.after(0, 2 * sampler.updates_per_epoch, 0)):
        needed = set(prepared.groups_of(np.asarray(spec.indices))[0].tolist())
        is_start = spec.substream is None or spec.substream not in started  # the tail of an epoch has no substream
        if not needed <= requested and not is_start:
            waited.append(number)
        started.add(spec.substream)
        requested.clear()
        dataset[spec]
        requested |= {group for held in dataset._substreams.values() for group in held}
    assert len(started) > 3
    assert waited == []


def test_dataset_holds_only_row_groups_that_its_substreams_need(folder, monkeypatch):
    prepared = open_stream(str(folder))
    dataset, sampler = reader_of(prepared), order_of(prepared)
    for spec in sampler.after(0, 3 * sampler.updates_per_epoch, 0):
        dataset[spec]
        assert len(dataset._substreams) <= 8
        assert all(len(held) <= 3 for held in dataset._substreams.values())


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
def test_damaged_shard_is_detected_and_named(tmp_path, encoding):
    folder = write_shards(tmp_path / "set", [8, 8], encoding)
    damage(folder / "shards" / "shard_00001.parquet")
    prepared = open_stream(str(folder))
    batches = build_dataloader(reader_of(prepared), order_of(prepared).epoch(0, 0), 0)
    incidents = [incident for batch in batches for incident in batch.rejections]
    assert incidents
    assert {incident.kind for incident in incidents} == {UNREADABLE}
    assert all("shard_00001.parquet" in incident.message for incident in incidents)


def test_unusable_clip_is_an_incident(tmp_path):
    folder = write_shards(tmp_path / "set", [4], base_s=0.05)  # too short for its text
    dataset = reader_of(open_stream(str(folder)))
    incident = dataset.read(0)
    assert isinstance(incident, Incident)
    assert (incident.clip, incident.kind) == ("shard_00000.parquet:0", "text-too-long")
    unknown = StreamingClipDataset(dataset.prepared, build_tokenizer(["Silav"]), SPEC, {"somebody else": 0})
    assert unknown.read(3).kind in ("KeyError", "text-too-long", "no-known-characters")


def test_dry_run_has_the_length_of_the_longest_clip(folder):
    prepared = open_stream(str(folder))
    dataset = reader_of(prepared)
    longest, typical = (dataset[spec] for spec in order_of(prepared).dry_run_batches(0))
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


def test_dataset_can_be_pickled_for_workers_that_are_not_forked(folder):
    dataset = reader_of(open_stream(str(folder)))
    before = dataset[MicroBatchSpec((3, 4), 0, 0, True)]
    copied = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert isinstance(copied.read(3), Clip)
    assert copied[MicroBatchSpec((3, 4), 0, 0, True)].clip_ids == before.clip_ids
    spec = next(iter(order_of(copied.prepared).epoch(0, 0)))
    assert copied[spec].clip_ids == dataset[spec].clip_ids
