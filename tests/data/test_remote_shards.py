"""Requests to an object store: how many, retries, errors."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.support.object_store import Store, object_store
from tests.support.shards import write_shards
from tests.support.streams import order_of, reader_of
from vits_trainer.data import remote_shards, streaming
from vits_trainer.data.clip_accounting import UNREADABLE, ClipAccounting
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.streaming import open_stream
from vits_trainer.utils.errors import DataError, UnreadableShardError


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


def test_each_row_group_is_one_request(s3, folder):
    prepared = open_stream(s3.upload(folder, "requests"))
    s3.requests.clear()
    order = order_of(prepared)
    list(build_dataloader(reader_of(prepared), order.epoch(0, 0), workers=0))
    ranges = Counter(request for request in s3.requests if "parquet" in request[0])
    assert all(asked_for.startswith("bytes=") for _, asked_for in ranges)
    groups = {row_group for m in order.epoch(0, 0) for row_group in {prepared.group_of(r)[0] for r in m.indices}}
    # Those at a cut between two lanes (here 8) and in the epoch's last update may come twice; three shards' metadata.
    assert len(groups) == len(prepared.groups) == 15
    assert len(groups) + 3 <= sum(ranges.values()) <= len(groups) + 3 + 8 + 2


def test_store_that_fails_now_and_then_is_asked_again(s3, folder, monkeypatch, caplog):
    monkeypatch.setattr(remote_shards, "RETRY_WAITS_S", (0.01,) * 6)
    address = s3.upload(folder, "now_and_then")
    here, there = open_stream(str(folder)), open_stream(address)
    s3.fails = lambda number, path: "parquet" in path and number % 4 == 0
    for ours, theirs in zip(
        build_dataloader(reader_of(here), order_of(here).epoch(0, 0), 0),
        build_dataloader(reader_of(there), order_of(there).epoch(0, 0), 0),
        strict=True,
    ):
        assert ours.clip_ids == theirs.clip_ids
        np.testing.assert_array_equal(ours.waveform, theirs.waveform)
    assert s3.failed >= 4


def test_errors_are_retried_with_growing_pauses_and_told(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "vits_trainer")
    pauses = []
    monkeypatch.setattr(remote_shards.time, "sleep", pauses.append)
    folder = remote_shards.RemoteFolder("memory://shards")
    attempts = iter([OSError("reset"), TimeoutError("late"), EOFError("3 bytes came"), None])

    def once() -> str:
        error = next(attempts)
        if error:
            raise error
        return "content"

    assert folder.with_retries(once, "a.parquet") == "content"
    assert [0.75 * wait_s <= pause_s <= wait_s for wait_s, pause_s in zip((1, 2, 4), pauses, strict=True)] == [True] * 3
    assert "memory://shards/a.parquet: reset. Retrying in" in caplog.text


@pytest.mark.parametrize("library", ["aiohttp", "botocore.exceptions", "httpx", "httpx2"])
def test_errors_of_the_networks_libraries_are_retried(library, monkeypatch):
    module = pytest.importorskip(library)
    errors = {
        "aiohttp": lambda: module.ClientPayloadError("cut"),
        "botocore.exceptions": lambda: module.EndpointConnectionError(endpoint_url="s3"),
    }
    attempts = iter([errors.get(library, lambda: module.ConnectError("gone"))(), None])
    monkeypatch.setattr(remote_shards.time, "sleep", lambda pause_s: None)

    def once() -> str:
        error = next(attempts)
        if error:
            raise error
        return "content"

    assert remote_shards.RemoteFolder("memory://shards").with_retries(once, "a.parquet") == "content"


def test_store_that_stays_away_is_an_incident_that_names_the_shard_and_ends_the_run(s3, folder, monkeypatch):
    monkeypatch.setattr(remote_shards, "RETRY_WAITS_S", (0.01,))
    prepared = open_stream(s3.upload(folder, "away"))
    reader = reader_of(prepared)
    s3.fails = lambda number, path: "shard_00001" in path
    place = next(m for m in order_of(prepared).epoch(0, 0) if {prepared.group_of(row)[0] for row in m.indices} & {5})
    batches = [batch for workers in (0, 1) for batch in build_dataloader(reader, [place], workers)]
    found = [rejection for batch in batches for rejection in batch.rejections]
    assert len(found) == 2
    assert {incident.kind for incident in found} == {UNREADABLE}
    assert all("away/shards/shard_00001.parquet: cannot be read (2 attempts)" in incident.message for incident in found)
    accounts = ClipAccounting(["a"], [], 1.0)
    with pytest.raises(UnreadableShardError, match=r"shard_00001.parquet.*Then resume with"):
        accounts.reject(found)


def test_missing_shard_is_not_asked_for_again(s3, folder, monkeypatch):
    prepared = open_stream(s3.upload(folder, "missing"))
    monkeypatch.setattr(remote_shards.time, "sleep", lambda pause_s: pytest.fail("waits for what is not there"))
    wrong = streaming.replace(prepared.shards.records[0], name="shards/nowhere.parquet")
    with pytest.raises(UnreadableShardError, match=r"nowhere\.parquet: cannot be read"):
        remote_shards.ShardReader(prepared.shards.folder, [wrong]).read(0)


def test_addresses_that_lead_to_no_shards_are_explained(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    write_shards(mixed / "a", [2])
    write_shards(mixed / "b", [2], rate_hz=22050)
    (mixed / "c").mkdir()
    foreign = pq.read_table(folder / "shards" / "shard_00000.parquet").replace_schema_metadata()
    pq.write_table(foreign, mixed / "c/f.parquet")
    for address, said in (
        (tmp_path / "empty", "contains no shards.json. Create shards with"),
        (tmp_path / "nowhere", "contains no shards.json"),
        (f"{tmp_path}/empty/*.parquet", "matches no file"),
        (f"{mixed}/*/shards/*.parquet", "pcm16 at 16000 Hz and pcm16 at 22050 Hz"),
        (f"{mixed}/c/*.parquet", "f.parquet: is not a shard of prepare_data"),
        ("unheard://of", "unheard"),
    ):
        with pytest.raises(DataError, match=said):
            open_stream(str(address))
    (tmp_path / "empty" / "shards.json").write_text("{}")
    with pytest.raises(DataError, match=r"shards\.json: is not a shard manifest"):
        open_stream(str(tmp_path / "empty"))


def test_name_of_the_hub_is_looked_for_there(monkeypatch):
    """The Hub cannot be reached here: this shows only where the question goes."""
    asked = []
    monkeypatch.setattr(streaming, "_open_folder", lambda address, folder: asked.append(folder.address))
    open_stream("somebody/kurmanji-shards")
    assert asked == ["hf://datasets/somebody/kurmanji-shards"]
