"""``train_vits --extend_speakers``: a voice of one speaker gets two, is resumed, speaks, and is extended again."""

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
UNCHANGED = {"learning_rate": 1e-30, "weight_decay": 0, "max_updates": 1}
"""The rate is smaller than the last bit of any weight: the voice does not change."""


def train(folder: Path, **changes: Any) -> int:
    return main(["train_vits", *train_flags(folder, **changes)])


def copied_data(source: Path, folder: Path) -> Path:
    shutil.copytree(source / "training", folder / "training", ignore=shutil.ignore_patterns("runs"))
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of ava and bo, and a voice of ava only."""
    folder = tmp_path_factory.mktemp("one")
    many_speakers(folder, {"ava": 6, "bo": 6})
    flags = {"only_speakers": "ava", "max_clips_per_speaker": 5, "validation_fraction": 0.2, "report_to": "none"}
    assert train(folder, **flags, output_dir=folder / "ava") == 0
    assert "4 trained + 0 rejected + 1 validation = 5 clips" in (folder / "training/runs/run/train.log").read_text()
    return folder


@pytest.fixture(scope="module")
def two_speakers(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied_data(start, tmp_path_factory.mktemp("two"))
    assert train(folder, **FINE, model_name=start / "ava") == 0
    return folder


def test_extended_voice_starts_bit_exact_with_the_old_one(start: Path, tmp_path: Path) -> None:
    losses = []
    for extend in ("false", "true"):
        folder = copied_data(start, tmp_path / extend)
        assert train(folder, **{**FINE, **UNCHANGED, "extend_speakers": extend}, model_name=start / "ava") == 0
        line = next(line for line in metrics(folder) if "validation/mel" in line)
        assert line["update"] == 0
        losses.append({name: value for name, value in line.items() if name.startswith("validation/")})
    assert losses[0] == losses[1]
    assert {"validation/speaker_mel/ava", "validation/duration", "validation/kl"} <= losses[0].keys()
    warned, extended = ((tmp_path / name / "training/runs/run/train.log").read_text() for name in ("false", "true"))
    assert "all of them train the same one. --extend_speakers true adds" in warned
    assert "all of them train the same one" not in extended
    one = VitsModel.from_pretrained(start / "ava")
    several = VitsModel.from_pretrained(tmp_path / "true/final_model")
    speech = []
    for model, speaker_id in ((one, None), (several, 0), (several, 1)):
        torch.manual_seed(3)
        with torch.no_grad():
            speech.append(model(torch.tensor([[1, 2, 3, 4, 5]]), speaker_id=speaker_id).waveform)
    # Not bit-exact, because the decoder's weight norm is folded again from folded weights.
    torch.testing.assert_close(speech[1], speech[0], atol=1e-6, rtol=1e-4)
    assert torch.equal(speech[1], speech[2])


def test_speakers_are_saved_with_the_voice_and_selected_by_name(
    two_speakers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((two_speakers / "final_model/config.json").read_text())
    assert (config["speakers"], config["num_speakers"]) == (["ava", "bo"], 2)
    assert "| 0 | ava |\n| 1 | bo |" in (two_speakers / "final_model/README.md").read_text()
    voice = Voice(str(two_speakers / "final_model"))
    speech = [voice.synthesize("number", SynthesisOptions(speaker=name)) for name in ("ava", "bo")]
    assert not np.array_equal(*speech)
    arguments = ["--model", str(two_speakers / "final_model"), "--text", "number"]
    arguments += ["--output", str(two_speakers / "bo.wav")]
    assert main(["synthesize", *arguments, "--speaker", "bo"]) == 0
    written, _ = sf.read(two_speakers / "bo.wav")
    np.testing.assert_allclose(written, speech[1], atol=2**-15)
    assert main(["synthesize", *arguments, "--speaker", "Zin"]) == 2
    assert "or a name: ava, bo." in capsys.readouterr().err


def test_resumed_run_ends_with_the_same_weights(start: Path, two_speakers: Path, tmp_path: Path) -> None:
    folder = copied_data(start, tmp_path)
    assert train(folder, **{**FINE, "max_updates": 2}, model_name=start / "ava") == 0
    assert train(folder, **FINE, model_name=start / "ava", resume_from_checkpoint="latest") == 0
    assert weights(folder, 4) == weights(two_speakers, 4)


def test_resume_with_another_extend_speakers_is_rejected(
    two_speakers: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**FINE, "extend_speakers": "false", "model_name": start / "ava", "resume_from_checkpoint": "latest"}
    assert train(two_speakers, **flags) == 2
    assert "extend_speakers True -> False" in capsys.readouterr().err


def test_voice_of_several_speakers_gets_a_new_one_and_keeps_the_others(
    two_speakers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_speakers(tmp_path, {"bo": 4, "aza": 4})
    flags = {**FINE, **UNCHANGED, "model_name": two_speakers / "final_model"}
    assert train(tmp_path, **{**flags, "extend_speakers": "false"}) == 2
    assert "but not aza of the data. Add them with --extend_speakers true" in capsys.readouterr().err
    assert train(tmp_path, **flags) == 0
    config = json.loads((tmp_path / "final_model/config.json").read_text())
    assert config["speakers"] == ["ava", "bo", "aza"]
    before = load_file(two_speakers / "final_model/model.safetensors")["embed_speaker.weight"]
    after = load_file(tmp_path / "final_model/model.safetensors")["embed_speaker.weight"]
    assert torch.equal(after[:2], before)
    torch.testing.assert_close(after[2], (before[0] + before[1]) / 2)


def test_single_speaker_of_the_data_has_the_name_in_dataset_json(
    two_speakers: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """metadata.csv has no speaker column then."""
    many_speakers(tmp_path, {"zin": 6})
    metadata = tmp_path / "training/metadata.csv"
    metadata.write_text(metadata.read_text().replace("|zin", ""))
    summary = tmp_path / "training/dataset.json"
    summary.write_text(json.dumps({"sampling_rate": 16000, "speaker_clips": {"zin": 6}}))
    flags = {**FINE, **UNCHANGED, "model_name": two_speakers / "final_model"}
    assert train(tmp_path, **flags) == 0
    config = json.loads((tmp_path / "final_model/config.json").read_text())
    assert config["speakers"] == ["ava", "bo", "zin"]
    capsys.readouterr()
    again = {"checkpoint_dir": tmp_path / "again"}
    assert train(tmp_path, **{**flags, **again, "model_name": start / "ava"}) == 2
    assert "the voice and the data have one speaker each" in capsys.readouterr().err
    summary.write_text(json.dumps({"sampling_rate": 16000}))
    assert train(tmp_path, **{**flags, **again}) == 2
    assert "the data has clips without a speaker name" in capsys.readouterr().err


def test_trained_voice_gets_a_new_decoder_and_is_resumed(start: Path, tmp_path: Path) -> None:
    """Everything else is frozen; the decoder alone changes."""
    folder = copied_data(start, tmp_path)
    voice = start / "ava"
    sizes = "{upsample_initial_channel: 16, upsample_rates: [8, 8, 4], upsample_kernel_sizes: [16, 16, 8], "
    sizes += "resblock_kernel_sizes: [3], resblock_dilation_sizes: [[1]]}"
    frozen = "text_encoder,posterior_encoder,flow,duration_predictor"
    changes = {**FINE, "extend_speakers": "false", "model_name": voice, "decoder": sizes, "freeze": frozen}
    changes |= {"discriminator_warmup_updates": 1, "only_speakers": "ava"}
    assert train(folder, **changes | {"max_updates": 2}) == 0
    assert train(folder, **changes, resume_from_checkpoint="latest") == 0
    old, new = (VitsModel.from_pretrained(path) for path in (voice, folder / "final_model"))
    assert new.config.upsample_rates == [8, 8, 4]
    for name, weight in new.state_dict().items():
        assert name.startswith("decoder.") or torch.equal(weight, old.state_dict()[name]), name
    lines = [line for line in metrics(folder) if "generator/mel" in line]
    assert [line["update"] for line in lines] == [1, 2, 3, 4]
