"""Uploads to a local stand-in for the Hub: one commit, rejections, failures."""

from pathlib import Path

import pytest

from tests.support.hub import TOKEN, client_of, hub_on_this_machine
from vits_trainer.config.train import TrainConfig
from vits_trainer.tracking.hub import check_can_push, push_voice
from vits_trainer.utils.errors import ConfigError, PublishingError
from vits_trainer.utils.files import MARKER


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """A folder with the files of a voice."""
    (tmp_path / "voice").mkdir()
    for name in ("README.md", "config.json", "model.safetensors"):
        (tmp_path / "voice" / name).write_text(name)
    return tmp_path / "voice"


def test_upload_is_one_commit_of_all_files(voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_on_this_machine() as hub:
        client_of(monkeypatch, hub.address)
        assert push_voice(voice, "owner/name", private=True) == f"{hub.address}/owner/name/commit/c0"
        # The marker, which allows the local folder to be replaced, is not uploaded.
        local = {path.name: path.read_bytes() for path in voice.iterdir() if path.name != MARKER}
        assert (hub.commits, hub.files) == (1, local)


@pytest.mark.parametrize("fails_at", ["repos/create", "objects/batch", "commit/main"])
def test_failed_upload_gives_the_command_to_retry(
    fails_at: str, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_this_machine(fails_at) as hub:
        client_of(monkeypatch, hub.address)
        with pytest.raises(PublishingError) as raised:
            push_voice(voice, "owner/name", private=True)
        assert hub.files == {}
    assert f"Upload it with: hf upload --private owner/name {voice}" in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_private_voice_is_not_uploaded_to_a_public_model(
    voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_this_machine(is_public=True) as hub:
        client_of(monkeypatch, hub.address)
        with pytest.raises(PublishingError, match=r"owner/name is public. .* or pass --hub_private false"):
            push_voice(voice, "owner/name", private=True)
        assert hub.files == {}


def test_unreachable_hub_is_a_failed_upload(voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_of(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(PublishingError, match=f"Upload it with: hf upload owner/name {voice}"):
        push_voice(voice, "owner/name", private=False)


@pytest.mark.parametrize(
    ("name", "token", "offline", "expected"),
    [
        ("owner/name", None, False, "hf auth login"),
        ("owner/name", TOKEN, True, "HF_HUB_OFFLINE"),
        ("name", TOKEN, False, "include the owner, as owner/name"),
        ("owner/na me", TOKEN, False, "--push_to_hub owner/na me"),
        ("a/b/c", TOKEN, False, "--push_to_hub a/b/c"),
    ],
)
def test_impossible_upload_is_rejected_before_the_run(
    name: str, token: str | None, offline: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vits_trainer.tracking.hub.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(ConfigError) as caught:
        check_can_push(TrainConfig(push_to_hub=name))
    assert expected in str(caught.value)
    check_can_push(TrainConfig())
