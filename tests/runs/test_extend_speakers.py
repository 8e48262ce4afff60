"""``train_vits --extend_speakers``: a voice of one speaker learns two, is resumed, speaks, and is extended again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file
from transformers import VitsModel

from tests.support.voices import many_speakers, metrics, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice

FINE = {
    "architecture": "null", "batch_size": 2, "validation_fraction": 0.25, "validation_samples": 0, "report_to": "none",
    "max_updates": 4, "save_every_updates": 2, "extend_speakers": "true",
}  # fmt: skip
UNTOUCHED = {"learning_rate": 1e-30, "weight_decay": 0, "max_updates": 1}
"""Smaller than the last bit of any weight: the voice is written as it started."""


def trained(folder: Path, **changes: Any) -> int:
    return main(["train_vits", *train_flags(folder, **changes)])


def copied_data(source: Path, folder: Path) -> Path:
    shutil.copytree(source / "training", folder / "training", ignore=shutil.ignore_patterns("runs"))
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of ava and bo, and a voice of ava alone."""
    folder = tmp_path_factory.mktemp("one")
    many_speakers(folder, {"ava": 6, "bo": 6})
    flags = {"only_speakers": "ava", "max_clips_per_speaker": 5, "validation_fraction": 0.2, "report_to": "none"}
    assert trained(folder, **flags, output_dir=folder / "ava") == 0
    assert "4 trained + 0 rejected + 1 validation = 5 clips" in (folder / "training/runs/run/train.log").read_text()
    return folder


@pytest.fixture(scope="module")
def choir(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied_data(start, tmp_path_factory.mktemp("two"))
    assert trained(folder, **FINE, model_name=start / "ava") == 0
    return folder


def test_start_is_the_old_voice_to_the_last_bit(start: Path, tmp_path: Path) -> None:
    losses = []
    for extend in ("false", "true"):
        folder = copied_data(start, tmp_path / extend)
        assert trained(folder, **{**FINE, **UNTOUCHED, "extend_speakers": extend}, model_name=start / "ava") == 0
        line = next(line for line in metrics(folder) if "validation/mel" in line)
        assert line["update"] == 0
        losses.append({name: value for name, value in line.items() if name.startswith("validation/")})
    assert losses[0] == losses[1]
    assert {"validation/speaker_mel/ava", "validation/duration", "validation/kl"} <= losses[0].keys()
    warned, extended = ((tmp_path / name / "training/runs/run/train.log").read_text() for name in ("false", "true"))
    assert "all of them will train the one. --extend_speakers true makes" in warned
    assert "all of them will train the one" not in extended
    one = VitsModel.from_pretrained(start / "ava")
    several = VitsModel.from_pretrained(tmp_path / "true/final_model")
    speech = []
    for model, speaker_id in ((one, None), (several, 0), (several, 1)):
        torch.manual_seed(3)
        with torch.no_grad():
            speech.append(model(torch.tensor([[1, 2, 3, 4, 5]]), speaker_id=speaker_id).waveform)
    # Not to the last bit, as decoders are written with their weight norm folded, again from what was folded before.
    torch.testing.assert_close(speech[1], speech[0], atol=1e-6, rtol=1e-4)
    assert torch.equal(speech[1], speech[2])


def test_speakers_are_kept_with_the_voice_and_speak_by_name(choir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((choir / "final_model/config.json").read_text())
    assert (config["speakers"], config["num_speakers"]) == (["ava", "bo"], 2)
    assert "| 0 | ava |\n| 1 | bo |" in (choir / "final_model/README.md").read_text()
    voice = Voice(str(choir / "final_model"))
    said = [voice.synthesize("number", SynthesisOptions(speaker=name)) for name in ("ava", "bo")]
    assert not np.array_equal(*said)
    words = ["--model", str(choir / "final_model"), "--text", "number", "--output", str(choir / "bo.wav")]
    assert main(["synthesize", *words, "--speaker", "bo"]) == 0
    written, _ = sf.read(choir / "bo.wav")
    np.testing.assert_allclose(written, said[1], atol=2**-15)
    assert main(["synthesize", *words, "--speaker", "Zin"]) == 2
    assert "or a name: ava, bo." in capsys.readouterr().err


def test_stopped_run_ends_with_the_very_weights(start: Path, choir: Path, tmp_path: Path) -> None:
    folder = copied_data(start, tmp_path)
    assert trained(folder, **{**FINE, "max_updates": 2}, model_name=start / "ava") == 0
    assert trained(folder, **FINE, model_name=start / "ava", resume_from_checkpoint="latest") == 0
    assert weights(folder, 4) == weights(choir, 4)


def test_resumed_run_cannot_extend_what_it_began_without(
    choir: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FINE, "extend_speakers": "false", "model_name": start / "ava", "resume_from_checkpoint": "latest"}
    assert trained(choir, **flags) == 2
    assert "extend_speakers True -> False" in capsys.readouterr().err


def test_voice_of_several_takes_a_new_one_and_keeps_the_old(
    choir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_speakers(tmp_path, {"bo": 4, "aza": 4})
    flags = {**FINE, **UNTOUCHED, "model_name": choir / "final_model"}
    assert trained(tmp_path, **{**flags, "extend_speakers": "false"}) == 2
    assert "but not aza of the data. Add them with --extend_speakers true" in capsys.readouterr().err
    assert trained(tmp_path, **flags) == 0
    config = json.loads((tmp_path / "final_model/config.json").read_text())
    assert config["speakers"] == ["ava", "bo", "aza"]
    before = load_file(choir / "final_model/model.safetensors")["embed_speaker.weight"]
    after = load_file(tmp_path / "final_model/model.safetensors")["embed_speaker.weight"]
    assert torch.equal(after[:2], before)
    torch.testing.assert_close(after[2], (before[0] + before[1]) / 2)


def test_single_speaker_of_the_data_goes_by_the_name_that_preparation_noted(
    choir: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """metadata.csv has no column of speakers then."""
    many_speakers(tmp_path, {"zin": 6})
    metadata = tmp_path / "training/metadata.csv"
    metadata.write_text(metadata.read_text().replace("|zin", ""))
    told = tmp_path / "training/dataset.json"
    told.write_text(json.dumps({"sampling_rate": 16000, "speaker_clips": {"zin": 6}}))
    flags = {**FINE, **UNTOUCHED, "model_name": choir / "final_model"}
    assert trained(tmp_path, **flags) == 0
    config = json.loads((tmp_path / "final_model/config.json").read_text())
    assert config["speakers"] == ["ava", "bo", "zin"]
    capsys.readouterr()
    again = {"checkpoint_dir": tmp_path / "again"}
    assert trained(tmp_path, **{**flags, **again, "model_name": start / "ava"}) == 2
    assert "the voice and the data have one speaker each" in capsys.readouterr().err
    told.write_text(json.dumps({"sampling_rate": 16000}))
    assert trained(tmp_path, **{**flags, **again}) == 2
    assert "the data has clips without a speaker name" in capsys.readouterr().err
