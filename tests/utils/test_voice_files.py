"""Finding the files of a voice."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub import client_of
from vits_trainer.utils.voice_files import find_voice_file


def test_file_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.json").mkdir()
    assert find_voice_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert find_voice_file(str(tmp_path), "vocab.json") is None
    assert find_voice_file(str(tmp_path), "absent.json") is None


def test_name_that_is_neither_folder_nor_on_the_hub_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such folder; no Hub name either"):
        find_voice_file(str(tmp_path / "absent"), "config.json")


def test_mistyped_folder_is_answered_with_the_one_that_exists(tmp_path: Path) -> None:
    (tmp_path / "final_model").mkdir()
    with pytest.raises(OSError, match=r"no such folder \(did you mean .*final_model\?\); no Hub name either"):
        find_voice_file(str(tmp_path / "final_modell"), "config.json")


# The Hub: a local server, with the real client


class _Answers(http.server.BaseHTTPRequestHandler):
    """A Hub that has owner/voice with a config.json, and nothing else."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path == "/owner/voice/resolve/main/config.json"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "c0" * 20)
        else:
            of_voice = self.path.startswith("/owner/voice/")
            self.send_header("X-Error-Code", "EntryNotFound" if of_voice else "RepoNotFound")
            self.send_header("X-Repo-Commit", "c0" * 20)
        self.send_header("Content-Length", "2" if found else "0")
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(b"{}")

    do_HEAD = do_GET  # noqa: N815


def direct_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Directs downloads, whose address the client keeps from its import."""
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        client_of(monkeypatch, address)
        direct_to(monkeypatch, address)
        yield address
        server.shutdown()


def test_voice_of_the_hub_has_and_lacks_files(hub: str) -> None:
    path = find_voice_file("owner/voice", "config.json")
    assert path is not None
    assert path.read_text() == "{}"
    assert find_voice_file("owner/voice", "discriminator.safetensors") is None
    with pytest.raises(OSError, match="no such folder; no such Hub name: a private or gated one needs HF_TOKEN"):
        find_voice_file("owner/another", "config.json")
    with pytest.raises(OSError, match="no such folder; no Hub name either"):
        find_voice_file("a/b/c", "config.json")


def test_folder_of_a_similar_name_does_not_hide_a_voice_of_the_hub(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/voices").mkdir(parents=True)
    assert find_voice_file("owner/voice", "config.json") is not None
    with pytest.raises(OSError, match=r"did you mean owner/voices\?\); no such Hub name"):
        find_voice_file("owner/voicess", "config.json")


def test_unreachable_hub_is_an_error_unless_the_file_or_its_absence_is_known(
    hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_voice_file("owner/voice", "config.json")
    find_voice_file("owner/voice", "discriminator.safetensors")
    direct_to(monkeypatch, "http://127.0.0.1:9")
    assert find_voice_file("owner/voice", "config.json") is not None
    assert find_voice_file("owner/voice", "discriminator.safetensors") is None
    for voice, name in (("owner/voice", "vocab.json"), ("owner/another", "config.json")):
        with pytest.raises(OSError, match=f"the Hugging Face Hub cannot be reached, and {name} is not in its cache"):
            find_voice_file(voice, name)


def test_offline_a_voice_of_the_cache_has_what_is_there(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_voice_file("owner/voice", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_voice_file("owner/voice", "config.json") is not None
    assert find_voice_file("owner/voice", "vocab.json") is None
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set, and config\.json is not in its cache"):
        find_voice_file("owner/another", "config.json")
