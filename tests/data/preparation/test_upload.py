"""Shards to the Hub. No Hub can be reached from here: a stand-in of its client notes what it is asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.preparation import lj_speech
from tests.support.shards import damage, write_shards
from vits_trainer.cli.main import main
from vits_trainer.data.preparation import upload
from vits_trainer.utils.errors import DataError


class StandIn:
    """What is used of ``huggingface_hub.HfApi``, with its names of parameters; keeps what is sent."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, object]] = {}
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None

    def create_repo(self, repo_id: str, **given: object) -> None:
        if self.error:
            raise self.error
        self.made[repo_id] = given

    def file_exists(self, repo_id: str, filename: str, *, repo_type: str) -> bool:
        return filename in self.files

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, repo_type: str, allow_patterns: list[str], delete_patterns: str,
        commit_message: str,
    ) -> SimpleNamespace:  # fmt: skip
        if self.error:
            raise self.error
        from huggingface_hub.utils import filter_repo_objects

        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        for name in filter_repo_objects(list(self.files), allow_patterns=delete_patterns):
            del self.files[name]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            self.files[name] = (folder_path / name).read_bytes()
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(upload, "HfApi", lambda: stand_in)
    return stand_in


def test_client_has_what_the_stand_in_has() -> None:
    import inspect

    from huggingface_hub import HfApi

    for name in ("create_repo", "file_exists", "upload_folder"):
        ours = inspect.signature(getattr(StandIn, name)).parameters
        theirs = inspect.signature(getattr(HfApi, name)).parameters
        assert ours.keys() - {"given"} <= theirs.keys()
    assert {"repo_type", "private", "exist_ok"} <= inspect.signature(HfApi.create_repo).parameters.keys()


def test_parts_are_pushed_once_all_are_there(tmp_path: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, out = lj_speech(tmp_path / "set", ["a"] * 8), tmp_path / "out"
    words = ["prepare_data", "--dataset", str(dataset), "--output_dir", str(out), "--shards", "4", "--processes", "1"]
    out.mkdir()
    (out / "runs").write_text("private")
    assert main([*words, "--part", "2/2", "--push_to_hub", "owner/name"]) == 0
    assert (hub.files, "Next: --part 1/2;" in capsys.readouterr().out) == ({}, True)
    hub.files["shards/shard_00099.parquet"] = b"of an earlier set"
    assert main([*words, "--part", "1/2", "--push_to_hub", "owner/name"]) == 0
    assert "On the Hub: https://hub/owner/name/commit/1" in capsys.readouterr().out
    assert hub.made == {"owner/name": {"repo_type": "dataset", "private": True, "exist_ok": True}}
    shards = [f"shards/shard_{n:05d}.parquet" for n in range(4)]
    assert sorted(hub.files) == ["README.md", "dataset.json", "rejected.csv", *sorted([*shards, "shards.json"])]
    assert all((out / name).read_bytes() == content for name, content in hub.files.items())


def test_card_of_the_owner_stays(tmp_path: Path, hub: StandIn) -> None:
    hub.files["README.md"] = b"mine"
    upload.push(write_shards(tmp_path / "set", [3]), "owner/name")
    assert hub.files["README.md"] == b"mine"


def test_damaged_shards_are_not_pushed(tmp_path: Path, hub: StandIn) -> None:
    folder = write_shards(tmp_path / "set", [3, 3])
    damage(folder / "shards" / "shard_00001.parquet")
    with pytest.raises(DataError, match=r"shard_00001\.parquet does not match its SHA-256"):
        upload.push(folder, "owner/name")
    assert hub.files == {}


def test_hub_that_refuses_is_told_before_the_work(
    tmp_path: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    import httpx
    from huggingface_hub import errors

    answer = httpx.Response(401, request=httpx.Request("POST", "https://hub"))
    words = ["prepare_data", "--dataset", str(lj_speech(tmp_path / "set", ["a"])), "--shards", "1"]
    for hub.error in (errors.HfHubHTTPError("401 Unauthorized", response=answer), ConnectionError("no route")):
        assert main([*words, "--output_dir", str(tmp_path / "out"), "--push_to_hub", "owner/name"]) == 2
        assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
