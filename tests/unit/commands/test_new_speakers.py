"""``train_vits`` from a voice of one speaker, on data of several: each becomes a speaker of its own."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import VitsModel

from tests.voices import MINIATURE, many_speakers, train_flags
from vits_trainer.__main__ import main

SETTINGS = {
    "max_updates": 2, "save_every_updates": 1, "validation_samples": 0, "report_to": "none", "validation_fraction": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three speakers, and a voice that learnt one of them."""
    folder = tmp_path_factory.mktemp("single")
    many_speakers(folder, {"ava": 4, "bo": 4, "cem": 3})
    flags = train_flags(folder, **SETTINGS, only_speakers="ava", output_dir=folder / "voice", run_name="first",
                        checkpoint_dir=folder / "first")  # fmt: skip
    assert main(["train_vits", *flags]) == 0
    return folder


def tuning(folder: Path) -> dict[str, object]:
    """What tunes the voice rather than starting one."""
    recipe = {key: value for key, value in MINIATURE.items() if key not in ("architecture", "discriminator")}
    (folder / "tuned.yaml").write_text(yaml.safe_dump({**recipe, "model_name": str(folder / "voice")}))
    return {**SETTINGS, "config": folder / "tuned.yaml"}


def mels(folder: Path, run: str) -> dict[tuple[str, str], float]:
    """Of each update and speaker."""
    with (folder / f"training/runs/{run}/speakers.csv").open(encoding="utf-8", newline="") as file:
        return {(row["update"], row["speaker"]): float(row["mel"]) for row in csv.DictReader(file)}


def test_one_speaker_was_chosen(single: Path) -> None:
    assert json.loads((single / "voice/config.json").read_text())["num_speakers"] == 1
    assert "4 clips" in (single / "training/runs/first/train.log").read_text()


def test_extended_voice_is_trained_resumed_and_spoken_with(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {**tuning(single), "extend_speakers": "true", "max_clips_per_speaker": 3}
    words = train_flags(single, **flags)
    assert main(["train_vits", *words, "--max_updates", "1"]) == 0
    assert main(["train_vits", *words, "--resume_from_checkpoint", "latest"]) == 0
    assert {speaker for _, speaker in mels(single, "run")} == {"ava", "bo", "cem"}
    model, report = VitsModel.from_pretrained(single / "final_model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.speakers == ["ava", "bo", "cem"]
    assert model.decoder.cond.weight.abs().max() > 0  # it has learnt
    assert torch.isfinite(model.embed_speaker.weight).all()
    say = ["synthesize", "--model", str(single / "final_model"), "--text", "number 2"]
    say += ["--output", str(single / "bo.wav")]
    assert main([*say, "--speaker", "bo"]) == 0
    capsys.readouterr()
    assert main([*say, "--speaker", "nobody"]) == 2
    assert "has no speaker nobody: it has ava, bo, cem." in capsys.readouterr().err


def test_resuming_without_the_new_speakers_is_refused(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = {"checkpoint_dir": single / "other", "output_dir": single / "other_model", "run_name": "other"}
    flags = {**tuning(single), **where}
    assert main(["train_vits", *train_flags(single, **flags, extend_speakers="true")]) == 0
    assert main(["train_vits", *train_flags(single, **{**flags, "resume_from_checkpoint": "latest"})]) == 2
    assert "extend_speakers True -> None" in capsys.readouterr().err


def test_without_the_flag_the_log_offers_it(single: Path) -> None:
    where = {"checkpoint_dir": single / "mixed", "output_dir": single / "mixed_model", "run_name": "mixed"}
    assert main(["train_vits", *train_flags(single, **{**tuning(single), **where})]) == 0
    assert "--extend_speakers true makes a speaker of each" in (single / "training/runs/mixed/train.log").read_text()
    assert json.loads((single / "mixed_model/config.json").read_text())["num_speakers"] == 1


def test_speaker_who_is_not_there_is_refused(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_vits", *train_flags(single, **tuning(single), only_speakers="ava,zin")]) == 2
    assert "Its speakers: ava, bo, cem" in capsys.readouterr().err
