"""The model card of a run's voice, and its way to a Hub on this machine, by the real client."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, ModelCard, constants

from tests.limits import HANG_S
from tests.voices import metrics, train_flags
from vits_trainer import model_cards
from vits_trainer.__main__ import main
from vits_trainer.cli import parse
from vits_trainer.config import TrainConfig
from vits_trainer.errors import ConfigError, PublishingError
from vits_trainer.files import MARKER
from vits_trainer.model_cards import Story, check_can_push, model_card, push

TOKEN = "hf_" + "notarealtoken" * 2


@dataclass
class Hub:
    """What a Hub was told, and what it holds."""

    address: str = ""
    fails_at: str = ""
    """Requests whose path has this in it are answered by 500."""
    is_public: bool = False
    """A model of that name has been there before, for all to see."""
    made: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


class _Answers(http.server.BaseHTTPRequestHandler):
    """The Hub's HTTP interface, as far as an upload of model owner/name by LFS goes."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        path, hub = urlsplit(self.path).path, self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.fails_at and hub.fails_at in path:
            self._answer(403, {"error": f"no right to write, says the Hub of {TOKEN}"})
        elif path == "/api/repos/create":
            hub.made.append(json.loads(body))
            self._answer(200, {"url": f"{hub.address}/owner/name", "id": "owner/name"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/models/owner/name/preupload/main":
            files = json.loads(body)["files"]
            modes = [(f["path"], "lfs" if f["path"].endswith((".safetensors", ".wav")) else "regular") for f in files]
            self._answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        elif path == "/owner/name.git/info/lfs/objects/batch":
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.address}/blobs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif path == "/api/models/owner/name/commit/main":
            self._commit([json.loads(line) for line in body.decode().splitlines()])
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/blobs/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self._answer(200, {})

    def do_GET(self) -> None:
        private = not self.hub.is_public
        info = {"id": "owner/name", "sha": "c0" * 20, "siblings": [], "tags": [], "private": private}
        self._answer(*((200, info) if self.hub.made else (404, {"error": "no such model"})))

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]
        self.hub.commits += 1
        self._answer(200, {"commitUrl": f"{self.hub.address}/owner/name/commit/c0", "commitOid": "c0" * 20})


@contextmanager
def hub_on_this_machine(fails_at: str = "", is_public: bool = False) -> Iterator[Hub]:
    hub = Hub(fails_at=fails_at, is_public=is_public)
    answers = type("Answers", (_Answers,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


def train(hub_address: str, folder: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as the client reads HF_ENDPOINT when it is imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub_address, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # the stand-in speaks LFS
    }  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)
    flags = train_flags(folder, max_updates=1, **changes)
    command = [sys.executable, "-m", "vits_trainer", "train_vits", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)


def test_voice_reaches_the_hub_whole_and_private(folder: Path) -> None:
    with hub_on_this_machine() as hub:
        ended = train(hub.address, folder, push_to_hub="owner/name", validation_samples=1)
    assert ended.returncode == 0, ended.stderr
    assert f"The voice on the Hub: {hub.address}/owner/name/commit/c0" in ended.stderr
    (made,) = hub.made
    assert (made["name"], made["organization"]) == ("name", "owner")
    assert made.get("private") is True or made.get("visibility") == "private"
    assert hub.commits == 1
    voice = folder / "final_model"
    local = {path.relative_to(voice).as_posix(): path.read_bytes() for path in voice.rglob("*") if path.is_file()}
    # The marker says that the folder on this machine may be replaced.
    written = {name: content for name, content in local.items() if name != MARKER}
    assert hub.files == written
    whole = {"README.md", "config.json", "model.safetensors", "discriminator.safetensors", "sample_0.wav"}
    assert whole <= set(written)
    # The token goes to the Hub and nowhere else.
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in ended.stdout + ended.stderr
    assert not [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """Files as a voice has them."""
    (tmp_path / "voice").mkdir()
    for name in ("README.md", "config.json", "model.safetensors"):
        (tmp_path / "voice" / name).write_text(name)
    return tmp_path / "voice"


def client_of(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The real client, for a Hub at another address."""
    monkeypatch.setattr(model_cards, "HfApi", lambda: HfApi(endpoint=address, token=TOKEN))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS


def test_failed_upload_leaves_the_voice_and_ends_the_run_in_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_on_this_machine("commit/main") as hub:
        client_of(monkeypatch, hub.address)
        assert main(["train_vits", *train_flags(folder, max_updates=1, push_to_hub="owner/name")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vits-trainer: ")]
    assert f"Send it with: hf upload --private owner/name {folder / 'final_model'}" in line
    assert TOKEN not in line
    assert (folder / "final_model/model.safetensors").is_file()
    assert json.loads((folder / "training/runs/run/outcome.json").read_text())["outcome"] == "done"
    assert hub.files == {}


def test_upload_is_one_commit_of_all_files(voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_on_this_machine() as hub:
        client_of(monkeypatch, hub.address)
        assert push(voice, "owner/name", private=True) == f"{hub.address}/owner/name/commit/c0"
        # The marker says that the folder on this machine may be replaced.
        local = {path.name: path.read_bytes() for path in voice.iterdir() if path.name != MARKER}
        assert (hub.commits, hub.files) == (1, local)


@pytest.mark.parametrize("fails_at", ["repos/create", "objects/batch", "commit/main"])
def test_upload_that_fails_says_how_to_send_the_voice_later(
    fails_at: str, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_this_machine(fails_at) as hub:
        client_of(monkeypatch, hub.address)
        with pytest.raises(PublishingError) as told:
            push(voice, "owner/name", private=True)
        assert hub.files == {}
    assert f"Send it with: hf upload --private owner/name {voice}" in str(told.value)
    assert TOKEN not in str(told.value)


def test_model_that_all_can_see_takes_no_voice_that_is_to_be_private(
    voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_this_machine(is_public=True) as hub:
        client_of(monkeypatch, hub.address)
        with pytest.raises(PublishingError, match=r"owner/name is public. Name another, or give --hub_private false"):
            push(voice, "owner/name", private=True)
        assert hub.files == {}


def test_hub_that_is_not_there_is_a_failed_upload(voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_of(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(PublishingError, match=f"Send it with: hf upload owner/name {voice}"):
        push(voice, "owner/name", private=False)


def test_missing_login_is_known_before_anything_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vits_trainer.model_cards.get_token", lambda: None)
    assert main(["train_vits", *train_flags(folder, push_to_hub="owner/name")]) == 2
    assert "nobody is logged in to the Hub here" in capsys.readouterr().err
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "token", "offline", "words"),
    [
        ("owner/name", None, False, "hf auth login"),
        ("owner/name", TOKEN, True, "HF_HUB_OFFLINE"),
        ("name", TOKEN, False, "give the owner, too, as owner/name"),
        ("owner/na me", TOKEN, False, "--push_to_hub owner/na me"),
        ("a/b/c", TOKEN, False, "--push_to_hub a/b/c"),
    ],
)
def test_upload_that_cannot_be_is_refused_before_the_run(
    name: str, token: str | None, offline: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vits_trainer.model_cards.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(ConfigError) as caught:
        check_can_push(TrainConfig(push_to_hub=name))
    assert words in str(caught.value)
    check_can_push(TrainConfig())


def differences(one: TrainConfig, other: TrainConfig) -> set[str]:
    return {name for name, value in vars(one).items() if value != getattr(other, name)}


def test_card_of_a_run_tells_data_figures_settings_and_plays_samples(folder: Path) -> None:
    private = {"wandb_project": "a-secret-project", "asr": "/home/me/my_recogniser"}
    flags = train_flags(folder, validation_samples=1, ema_decay=0.5, **private)
    assert main(["train_vits", *flags]) == 0
    voice = folder / "final_model"
    text = (voice / "README.md").read_text("utf-8")
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-to-speech", "tags": ["vits"],
    }  # fmt: skip
    assert "source: 10 clips, 0.00 hours, 9 of the clips trained on" in text  # of the folder its name alone
    assert str(folder) not in text
    assert "a-secret-project" not in text
    assert "my_recogniser" not in text
    last = metrics(folder)[-1]
    assert f"| mel | {last['validation/mel']:.4f} |" in text
    assert f"| mel_raw | {last['validation/mel_raw']:.4f} |" in text
    assert "From scratch. Weights after 4 updates, averaged." in text
    assert "    vits-trainer prepare_data --dataset source --output_dir training --target_sr 16000\n" in text
    # Its settings are those of the run, but for the places.
    (folder / "settings.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    told = parse("train_vits", TrainConfig, ["--config", str(folder / "settings.yaml")])
    places = {"data_dir", "checkpoint_dir", "output_dir", "run_name", "wandb_project", "wandb_tags", "asr"}
    assert differences(told, parse("train_vits", TrainConfig, flags)) == places
    said = voice / "sample_0.wav"
    assert said.read_bytes() == (folder / "training/runs/run/samples/update-000004/0_speech.wav").read_bytes()
    assert 'src="sample_0.wav"' in text
    assert not list(voice.rglob("*recorded*"))


def test_card_of_a_tuned_voice_names_its_origin_and_licence(tmp_path: Path) -> None:
    story = Story(
        config=TrainConfig(model_name="facebook/mms-tts-eng", push_to_hub="me/mine"),
        data={"accepted": 5, "hours": 1.5, "source": {"kind": "hub", "dataset": "a/b", "revision": "r1"}},
        training_clips=0, speakers=("ann", "b|o"), phonemes_of=None, sampling_rate=16000, update=7,
        versions={"torch": "2"}, run_dir=tmp_path,
    )  # fmt: skip
    text = model_card(story)
    assert ModelCard(text).data.to_dict() | {"tags": None} == {
        "library_name": "transformers", "pipeline_tag": "text-to-speech", "tags": None,
        "license": "cc-by-nc-4.0", "base_model": "facebook/mms-tts-eng",
    }  # fmt: skip
    assert 'model="me/mine"' in text
    assert "a/b at revision r1: 5 clips, 1.50 hours." in text
    assert "| 0 | ann |\n| 1 | b\\|o |\n" in text
    assert "## Figures" not in text
    assert "load_tokenizer" not in text + model_card(replace(story, phonemes_of="en-us"))
    assert 'tokenizer=load_tokenizer("me/mine")' in model_card(replace(story, phonemes_of="de"))
    crowd = model_card(replace(story, speakers=tuple(f"s{n}" for n in range(17))))
    assert "<details><summary>Their names and ids" in crowd
    assert "\n| 16 | s16 |\n" in crowd
    for trained_on, words in ((False, "that it was not trained on"), (True, "that it was trained on")):
        config = TrainConfig(validate_on_training_clips=trained_on)
        assert f"Sentences {words}" in model_card(replace(story, config=config), {"sample_0.wav": "hello"})
    # Tuned again from a folder: origin and licence are those of its card.
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice/README.md").write_text(text, encoding="utf-8")
    again = model_card(replace(story, config=TrainConfig(model_name=str(tmp_path / "voice"))))
    assert ModelCard(again).data.license == "cc-by-nc-4.0"
    assert ModelCard(again).data.base_model == "facebook/mms-tts-eng"
    for header in ("- no: [header", "1: x", "tags: 5", "eval_results: x\nmodel_name: y"):
        (tmp_path / "voice/README.md").write_text(f"---\n{header}\n---\n", encoding="utf-8")
        unknown = model_card(replace(story, config=TrainConfig(model_name=str(tmp_path / "voice"))))
        assert "Fine-tuned from voice, whose licence is not known to the trainer" in unknown
