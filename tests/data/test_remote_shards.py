"""Requests to an object store: their number, retries, errors."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

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


def test_each_row_group_is_one_request(s3, folder):
    prepared = open_stream(s3.upload(folder, "requests"))
    s3.requests.clear()
    sampler = order_of(prepared)
    list(build_dataloader(reader_of(prepared), sampler.epoch(0, 0), workers=0))
    ranges = Counter(request for request in s3.requests if "parquet" in request[0])
    assert all(byte_range.startswith("bytes=") for _, byte_range in ranges)
    groups = {row_group for m in sampler.epoch(0, 0) for row_group in {prepared.group_of(r)[0] for r in m.indices}}
    # Row groups cut between two substreams (here 8) or in the last update may be read twice; 3 shards' metadata.
    assert len(groups) == len(prepared.groups) == 15
    assert len(groups) + 3 <= sum(ranges.values()) <= len(groups) + 3 + 8 + 2


def test_intermittent_failures_are_retried(s3, folder, monkeypatch, caplog):
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


def test_errors_are_retried_with_backoff_and_logged(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "vits_trainer")
    pauses = []
    monkeypatch.setattr(remote_shards.time, "sleep", pauses.append)
    folder = remote_shards.RemoteFolder("memory://shards")
    attempts = iter([OSError("reset"), TimeoutError("late"), EOFError("3 of 5 requested bytes received"), None])

    def once() -> str:
        error = next(attempts)
        if error:
            raise error
        return "content"

    assert folder.with_retries(once, "a.parquet") == "content"
    assert [0.75 * wait_s <= pause_s <= wait_s for wait_s, pause_s in zip((1, 2, 4), pauses, strict=True)] == [True] * 3
    assert "memory://shards/a.parquet: reset. Retrying in" in caplog.text


@pytest.mark.parametrize("library", ["aiohttp", "botocore.exceptions", "httpx", "httpx2"])
def test_errors_of_network_libraries_are_retried(library, monkeypatch):
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


def test_permanent_failure_is_an_incident_that_names_the_shard_and_ends_the_run(s3, folder, monkeypatch):
    monkeypatch.setattr(remote_shards, "RETRY_WAITS_S", (0.01,))
    prepared = open_stream(s3.upload(folder, "away"))
    dataset = reader_of(prepared)
    s3.fails = lambda number, path: "shard_00001" in path
    spec = next(m for m in order_of(prepared).epoch(0, 0) if {prepared.group_of(row)[0] for row in m.indices} & {5})
    batches = [batch for workers in (0, 1) for batch in build_dataloader(dataset, [spec], workers)]
    incidents = [rejection for batch in batches for rejection in batch.rejections]
    assert len(incidents) == 2
    assert {incident.kind for incident in incidents} == {UNREADABLE}
    assert all("away/shards/shard_00001.parquet: cannot be read (2 attempts)" in one.message for one in incidents)
    accounting = ClipAccounting(["a"], [], 1.0)
    with pytest.raises(UnreadableShardError, match=r"shard_00001.parquet.*Then resume with"):
        accounting.reject(incidents)


def test_missing_shard_is_not_retried(s3, folder, monkeypatch):
    prepared = open_stream(s3.upload(folder, "missing"))
    monkeypatch.setattr(remote_shards.time, "sleep", lambda pause_s: pytest.fail("retried a missing file"))
    wrong = streaming.replace(prepared.shards.records[0], name="shards/nowhere.parquet")
    with pytest.raises(UnreadableShardError, match=r"nowhere\.parquet: cannot be read"):
        remote_shards.ShardReader(prepared.shards.folder, [wrong]).read(0)


def test_addresses_without_shards_are_explained(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    write_shards(mixed / "a", [2])
    write_shards(mixed / "b", [2], rate_hz=22050)
    (mixed / "c").mkdir()
    foreign = pq.read_table(folder / "shards" / "shard_00000.parquet").replace_schema_metadata()
    pq.write_table(foreign, mixed / "c/f.parquet")
    for address, message in (
        (tmp_path / "empty", "contains no shards.json. Create shards with"),
        (tmp_path / "nowhere", "contains no shards.json"),
        (f"{tmp_path}/empty/*.parquet", "matches no file"),
        (f"{mixed}/*/shards/*.parquet", "pcm16 at 16000 Hz and pcm16 at 22050 Hz"),
        (f"{mixed}/c/*.parquet", "f.parquet: is not a shard of prepare_data"),
        ("unknown://shards", "unknown"),
    ):
        with pytest.raises(DataError, match=message):
            open_stream(str(address))
    (tmp_path / "empty" / "shards.json").write_text("{}")
    with pytest.raises(DataError, match=r"shards\.json: field format: missing"):
        open_stream(str(tmp_path / "empty"))


def test_hub_name_is_opened_on_the_hub(monkeypatch):
    """Checks only the address, as tests cannot reach the Hub."""
    addresses = []
    monkeypatch.setattr(streaming, "_open_folder", lambda address, folder: addresses.append(folder.address))
    open_stream("somebody/kurmanji-shards")
    assert addresses == ["hf://datasets/somebody/kurmanji-shards"]
