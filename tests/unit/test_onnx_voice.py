"""A voice in onnxruntime says what it says in transformers: any length, any speaker, either duration predictor."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import VitsModel

from tests.unit.test_models import SMALL, TOKENIZER
from vits_trainer import onnx_voice
from vits_trainer.errors import InstallationError, ModelError
from vits_trainer.models import folded, new_model
from vits_trainer.onnx_voice import OnnxVoice

TINY = replace(
    SMALL, hidden_size=16, num_hidden_layers=1, ffn_dim=32, upsample_initial_channel=32, prior_encoder_num_flows=2
)
VOICES = {
    "one speaker, stochastic": ([], True),
    "three speakers, stochastic": (["ava", "bo", "cem"], True),
    "one speaker, plain": ([], False),
    "three speakers, plain": (["ava", "bo", "cem"], False),
}


def voice_of(speakers: list[str], stochastic: bool) -> VitsModel:
    """As if trained: no layer that is zero at the start is."""
    torch.manual_seed(1)
    model = new_model(replace(TINY, use_stochastic_duration_prediction=stochastic), TOKENIZER, speakers)
    for name, parameter in model.named_parameters():
        if name.endswith(("conv_post.weight", "conv_proj.weight", "cond.weight")):
            nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(model.get_submodule("decoder").conv_post.weight, 0.5)
    return model.eval()


@pytest.fixture(scope="module", params=VOICES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VitsModel, Path]:
    model = voice_of(*VOICES[request.param])
    path = tmp_path_factory.mktemp("onnx") / "voice.onnx"
    onnx_voice.export(model, TOKENIZER, path)
    return model, path


def spoken_by_transformers(model: VitsModel, ids: np.ndarray, length_scale: float, speaker: int | None) -> np.ndarray:
    model = folded(model)
    model.noise_scale = model.noise_scale_duration = 0.0
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None], speaker_id=speaker, speaking_rate=1 / length_scale).waveform[0].numpy()


def test_waveform_is_transformers_own_for_any_length_speed_and_speaker(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    voice = OnnxVoice(path)
    speakers = [None] if model.config.num_speakers == 1 else [0, 2]
    heard = []
    for length in (1, 2, 24, 97, 300):  # the example that it was exported with has 24
        ids = np.random.default_rng(length).integers(0, len(TOKENIZER), length)
        for length_scale in (1.0, 1.7):
            for speaker in speakers:
                expected = spoken_by_transformers(model, ids, length_scale, speaker)
                spoken = voice.speak(ids, 0.0, length_scale, 0.0, speaker or 0)
                assert spoken.shape == expected.shape
                np.testing.assert_allclose(spoken, expected, atol=1e-3, rtol=0)
                heard.append(expected)
    assert len({len(samples) for samples in heard}) > 5
    assert max(np.abs(samples).max() for samples in heard) > 0.01


def test_noise_scales_are_inputs(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    voice = OnnxVoice(path)
    ids = np.arange(60) % len(TOKENIZER)
    still = [voice.speak(ids, 0.0, 1.0, 0.0) for _ in range(2)]
    assert np.array_equal(*still)
    varied = [voice.speak(ids, 0.667, 1.0, 0.0) for _ in range(2)]
    assert varied[0].shape == still[0].shape
    assert not np.array_equal(*varied)
    lengths = {len(voice.speak(ids, 0.0, 1.0, 1.5)) for _ in range(6)}
    assert (len(lengths) > 1) is model.config.use_stochastic_duration_prediction


def test_file_carries_rate_vocabulary_and_speakers(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    session = onnxruntime.InferenceSession(str(path))
    said = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["sampling_rate"] == 16000
    assert said["vocabulary"] == TOKENIZER.encoder
    assert said["speakers"] == (["ava", "bo", "cem"] if model.config.num_speakers > 1 else ["0"])
    assert (said["add_blank"], said["noise_scale"], said["length_scale"]) == (True, 0.667, 1.0)
    names = {entry.name for entry in session.get_inputs()}
    assert names == {"tokens", "noise_scale", "length_scale", "noise_scale_duration"} | (
        {"speaker_id"} if model.config.num_speakers > 1 else set()
    )
    assert [path.name for path in path.parent.iterdir()] == ["voice.onnx"]


def test_comparison_tells_both_times_and_the_difference(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    compared = onnx_voice.compare(model, path, tokens=40, rounds=1)
    assert 0 < compared.difference < 1e-3
    assert min(compared.audio_s, compared.onnx_s, compared.torch_s) > 0
    assert "real-time factor" in str(compared)
    other = voice_of([f"s{n}" for n in range(3)] if model.config.num_speakers > 1 else [], True)
    nn.init.normal_(other.get_submodule("text_encoder").embed_tokens.weight)
    with pytest.raises(ModelError, match="speaks otherwise"):
        onnx_voice.compare(other, path, tokens=40, rounds=1)


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_voice, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InstallationError, match=r"needs onnxscript: pip install 'vits-trainer\[onnx\]'"):
        onnx_voice.require_packages()


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="onnxruntime cannot open it"):
        OnnxVoice(tmp_path / "voice.onnx")
