"""Streamed runs under the launcher: every clip once over ranks and workers, exact resume, a failing store."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import clips_by_update, finish, start
from tests.support.object_store import Store, object_store
from tests.support.shards import write_shards
from tests.support.voices import weights

pytestmark = pytest.mark.ranks

SHARDS = (20, 31, 25)
STREAMED = {
    "streaming": "true",
    "streaming_window": 3,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "data_workers": 2,
    "validation_fraction": 0.1,
    "validation_samples": 0,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("streaming") / "set", SHARDS, group_clips=6)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 1.5 epochs, on two ranks with two data workers each."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, output = finish(start(folder, shards, "cpu_2proc", max_updates=14, **STREAMED))
    assert code == 0, output
    return folder


def log(folder: Path) -> str:
    return (folder / "training/runs/run/train.log").read_text()


def test_every_clip_is_read_once_by_two_ranks_with_two_workers_each(uninterrupted: Path) -> None:
    assert "epoch 1: 68 trained + 0 rejected + 8 validation = 76 clips" in log(uninterrupted)
    clips = clips_by_update(uninterrupted, ranks=2)
    names = {f"shard_{shard:05d}.parquet:{n}" for shard, clips in enumerate(SHARDS) for n in range(clips)}
    epoch = sum((clips[update] for update in range(1, 10)), Counter())
    assert set(epoch.values()) == {1}
    assert len(epoch) == 68
    assert epoch.keys() < names
    assert [sum(clips[update].values()) for update in range(1, 15)] == [8] * 7 + [6, 6] + [8] * 5


def test_run_from_a_failing_store_resumed_within_a_window_ends_with_the_same_weights(
    store: Store, uninterrupted: Path, shards: Path, tmp_path: Path
) -> None:
    """Substreams alternate in groups of four, so update 6 of the epoch's 9 is within a window."""
    address = store.upload(shards, "now_and_then")
    store.fails = lambda number, path: "parquet" in path and number % 4 == 0
    for updates in (6, 14):
        code, output = finish(start(tmp_path, address, "cpu_2proc", max_updates=updates, **STREAMED))
        assert code == 0, output
    assert store.failed > 8
    assert clips_by_update(tmp_path, ranks=2) == clips_by_update(uninterrupted, ranks=2)
    assert weights(tmp_path, 14) == weights(uninterrupted, 14)


def test_unavailable_store_ends_the_run_after_saving(
    store: Store, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = store.upload(shards, "away")
    store.requests.clear()
    store.fails = lambda number, path: number > 30 and "shard_00001" in path
    changes = {"data_workers": 1, "max_updates": 40}
    impatient = str(Path(__file__).with_name("programs") / "impatient_store_client.py")
    flags = {**STREAMED, **changes}
    code, output = finish(start(tmp_path, address, "cpu", script=impatient, **flags))
    assert code == 1, output
    assert "away/shards/shard_00001.parquet: cannot be read (3 attempts)" in output
    assert "Then resume with --resume_from_checkpoint latest." in output
    (saved,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    assert int(saved.name.partition("-")[2]) >= 1
    store.fails = lambda number, path: False
    resumed = {**flags, "max_updates": int(saved.name.partition("-")[2]) + 2}
    code, output = finish(start(tmp_path, address, "cpu", script=impatient, resume_from_checkpoint="auto", **resumed))
    assert code == 0, output
