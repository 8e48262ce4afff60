"""Upload of shards to the Hub, with a fake client that records the requests."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.preparation import lj_speech
from tests.support.shards import damage, write_shards
from vits_trainer.cli.main import main
from vits_trainer.data.preparation import upload
from vits_trainer.utils.errors import DataError


class FakeHfApi:
    """The methods of ``huggingface_hub.HfApi`` that are used, with its parameter names; stores what is uploaded."""

    def __init__(self) -> None:
        self.created: dict[str, dict[str, object]] = {}
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None

    def create_repo(self, repo_id: str, **options: object) -> None:
        if self.error:
            raise self.error
        self.created[repo_id] = options

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
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHfApi:
    fake = FakeHfApi()
    monkeypatch.setattr(upload, "HfApi", lambda: fake)
    return fake


def test_parameters_of_the_fake_exist_in_the_client() -> None:
    import inspect

    from huggingface_hub import HfApi

    for name in ("create_repo", "file_exists", "upload_folder"):
        ours = inspect.signature(getattr(FakeHfApi, name)).parameters
        theirs = inspect.signature(getattr(HfApi, name)).parameters
        assert ours.keys() - {"options"} <= theirs.keys()
    assert {"repo_type", "private", "exist_ok"} <= inspect.signature(HfApi.create_repo).parameters.keys()


def test_parts_are_uploaded_once_all_are_complete(
    tmp_path: Path, hub: FakeHfApi, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, out = lj_speech(tmp_path / "set", [f"a{n}" for n in range(8)]), tmp_path / "out"
    argv = ["prepare_data", "--dataset", str(dataset), "--output_dir", str(out), "--shards", "4", "--processes", "1"]
    out.mkdir()
    (out / "runs").write_text("private")
    assert main([*argv, "--part", "2/2", "--push_to_hub", "owner/name"]) == 0
    assert (hub.files, "Next: --part 1/2." in capsys.readouterr().out) == ({}, True)
    hub.files["shards/shard_00099.parquet"] = b"of an earlier set"
    assert main([*argv, "--part", "1/2", "--push_to_hub", "owner/name"]) == 0
    assert "On the Hub: https://hub/owner/name/commit/1" in capsys.readouterr().out
    assert hub.created == {"owner/name": {"repo_type": "dataset", "private": True, "exist_ok": True}}
    shards = [f"shards/shard_{n:05d}.parquet" for n in range(4)]
    assert sorted(hub.files) == ["README.md", "dataset.json", "rejected.csv", *sorted([*shards, "shards.json"])]
    assert all((out / name).read_bytes() == content for name, content in hub.files.items())


def test_an_existing_card_is_kept(tmp_path: Path, hub: FakeHfApi) -> None:
    hub.files["README.md"] = b"mine"
    upload.push_dataset(write_shards(tmp_path / "set", [3]), "owner/name")
    assert hub.files["README.md"] == b"mine"


def test_damaged_shards_are_not_uploaded(tmp_path: Path, hub: FakeHfApi) -> None:
    folder = write_shards(tmp_path / "set", [3, 3])
    damage(folder / "shards" / "shard_00001.parquet")
    with pytest.raises(DataError, match=r"shard_00001\.parquet does not match its SHA-256"):
        upload.push_dataset(folder, "owner/name")
    assert hub.files == {}


def test_missing_write_access_is_reported_before_preparation(
    tmp_path: Path, hub: FakeHfApi, capsys: pytest.CaptureFixture[str]
) -> None:
    import httpx
    from huggingface_hub import errors

    answer = httpx.Response(401, request=httpx.Request("POST", "https://hub"))
    argv = ["prepare_data", "--dataset", str(lj_speech(tmp_path / "set", ["a"])), "--shards", "1"]
    for hub.error in (errors.HfHubHTTPError("401 Unauthorized", response=answer), ConnectionError("no route")):
        assert main([*argv, "--output_dir", str(tmp_path / "out"), "--push_to_hub", "owner/name"]) == 2
        assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
