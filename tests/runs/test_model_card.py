"""The model card of a run's voice, and its upload to a local Hub server by the real client."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.support.hub import TOKEN, client_of, hub_on_this_machine
from tests.support.voices import metrics, train_flags
from vits_trainer.cli.main import main
from vits_trainer.config.parser import parse
from vits_trainer.config.train import TrainConfig
from vits_trainer.utils.files import MARKER


def test_voice_is_uploaded_completely_and_privately(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with hub_on_this_machine() as hub:
        client_of(monkeypatch, hub.address)
        flags = train_flags(folder, max_updates=1, push_to_hub="owner/name", validation_samples=1)
        assert main(["train_vits", *flags]) == 0
    assert f"Pushed the voice to {hub.address}/owner/name/commit/c0" in caplog.text
    (made,) = hub.made
    assert (made["name"], made["organization"]) == ("name", "owner")
    assert made.get("private") is True or made.get("visibility") == "private"
    assert hub.commits == 1
    voice = folder / "final_model"
    local = {path.relative_to(voice).as_posix(): path.read_bytes() for path in voice.rglob("*") if path.is_file()}
    # The marker says that the folder on this machine may be replaced.
    written = {name: content for name, content in local.items() if name != MARKER}
    assert hub.files == written
    expected = {"README.md", "config.json", "model.safetensors", "discriminator.safetensors", "sample_0.wav"}
    assert expected <= set(written)
    # The token is sent to the Hub only.
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(capfd.readouterr()) + caplog.text
    assert not [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_failed_upload_keeps_the_voice_and_fails_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_on_this_machine("commit/main") as hub:
        client_of(monkeypatch, hub.address)
        assert main(["train_vits", *train_flags(folder, max_updates=1, push_to_hub="owner/name")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vits-trainer: ")]
    assert f"Upload it with: hf upload --private owner/name {folder / 'final_model'}" in line
    assert TOKEN not in line
    assert (folder / "final_model/model.safetensors").is_file()
    assert json.loads((folder / "training/runs/run/outcome.json").read_text())["outcome"] == "done"
    assert hub.files == {}


def test_missing_login_is_reported_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vits_trainer.tracking.hub.get_token", lambda: None)
    assert main(["train_vits", *train_flags(folder, push_to_hub="owner/name")]) == 2
    assert "not logged in to the Hub" in capsys.readouterr().err
    assert not (folder / "checkpoints").exists()


def differences(one: TrainConfig, other: TrainConfig) -> set[str]:
    return {name for name, value in vars(one).items() if value != getattr(other, name)}


def test_card_has_data_metrics_settings_and_samples(folder: Path) -> None:
    private = {"wandb_project": "a-secret-project", "asr": "/home/me/my_recogniser", "best_metric": "mel"}
    flags = train_flags(folder, validation_samples=1, ema_decay=0.5, **private)
    assert main(["train_vits", *flags]) == 0
    voice = folder / "final_model"
    text = (voice / "README.md").read_text("utf-8")
    card = ModelCard(text)
    header = card.data.to_dict()
    (results,) = header.pop("model-index")
    assert header == {"library_name": "transformers", "pipeline_tag": "text-to-speech", "tags": ["vits"]}
    assert results["name"] == "VITS voice"
    assert "mel" in [metric["type"] for metric in results["results"][0]["metrics"]]
    assert "source: 10 clips, 0.00 hours, 9 of the clips trained on" in text  # the folder's name without its path
    assert str(folder) not in text
    assert "a-secret-project" not in text
    assert "my_recogniser" not in text
    last = metrics(folder)[-1]
    assert f"| mel | {last['validation/mel']:.4f} |" in text
    assert f"| mel_raw | {last['validation/mel_raw']:.4f} |" in text
    assert "Trained from scratch. Weights after 4 updates (EMA)." in text
    assert "    vits-trainer prepare_data --dataset source --output_dir training --target_sr 16000\n" in text
    # Its settings are those of the run, except for paths.
    (folder / "settings.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    settings = parse("train_vits", TrainConfig, ["--config", str(folder / "settings.yaml")])
    places = {"data_dir", "checkpoint_dir", "output_dir", "run_name", "wandb_project", "wandb_tags", "asr"}
    assert differences(settings, parse("train_vits", TrainConfig, flags)) == places
    sample = voice / "sample_0.wav"
    assert sample.read_bytes() == (folder / "training/runs/run/samples/update-000004/0_speech.wav").read_bytes()
    assert 'src="sample_0.wav"' in text
    assert not list(voice.rglob("*recorded*"))
