"""ONNX export: output of onnxruntime equals transformers for all lengths, speakers and duration predictors."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import VitsModel

from tests.support.loud_voices import loud_voice
from vits_trainer.models.conversion import onnx as onnx_conversion
from vits_trainer.models.conversion.onnx import OnnxVoice
from vits_trainer.models.pretrained import fold_weight_norm
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.utils.errors import ModelError

pytestmark = pytest.mark.slow

TOKENIZER = build_tokenizer(["silav dinya"])

# test_players exports a voice of one speaker with stochastic durations.
VOICES = {
    "three speakers, stochastic": (["ava", "bo", "cem"], True),
    "one speaker, plain": ([], False),
}


@pytest.fixture(scope="module", params=VOICES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VitsModel, Path]:
    model = loud_voice(TOKENIZER, *VOICES[request.param])
    path = tmp_path_factory.mktemp("onnx") / "voice.onnx"
    onnx_conversion.export_onnx(model, TOKENIZER, path)
    return model, path


def transformers_speech(model: VitsModel, ids: np.ndarray, length_scale: float, speaker: int | None) -> np.ndarray:
    model = fold_weight_norm(model)
    model.noise_scale = model.noise_scale_duration = 0.0
    with torch.no_grad():
        spoken = model(torch.from_numpy(ids)[None], speaker_id=speaker, speaking_rate=1 / length_scale)
    return spoken.waveform[0].numpy()


def test_waveform_equals_transformers_for_all_lengths_speeds_and_speakers(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    voice = OnnxVoice(path)
    speakers = [None] if model.config.num_speakers == 1 else [0, 2]
    waveforms = []
    for length in (1, 2, 24, 97, 300):  # the example input of the export has 24
        ids = np.random.default_rng(length).integers(0, len(TOKENIZER), length)
        for length_scale in (1.0, 1.7):
            for speaker in speakers:
                expected = transformers_speech(model, ids, length_scale, speaker)
                spoken = voice.speak(ids, 0.0, length_scale, 0.0, speaker or 0)
                assert spoken.shape == expected.shape
                np.testing.assert_allclose(spoken, expected, atol=1e-3, rtol=0)
                waveforms.append(expected)
    assert len({len(samples) for samples in waveforms}) > 5
    assert min(np.abs(samples).max() for samples in waveforms) > 0.1
    assert max(map(len, waveforms)) < 300 * 256 * 20


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


def test_file_has_sampling_rate_vocabulary_and_speakers(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    session = onnxruntime.InferenceSession(str(path))
    metadata = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["sampling_rate"] == 16000
    assert metadata["vocabulary"] == TOKENIZER.encoder
    assert metadata["speakers"] == (["ava", "bo", "cem"] if model.config.num_speakers > 1 else ["0"])
    assert (metadata["add_blank"], metadata["noise_scale"], metadata["length_scale"]) == (True, 0.667, 1.0)
    names = {entry.name for entry in session.get_inputs()}
    assert names == {"tokens", "noise_scale", "length_scale", "noise_scale_duration"} | (
        {"speaker_id"} if model.config.num_speakers > 1 else set()
    )
    assert [path.name for path in path.parent.iterdir()] == ["voice.onnx"]


def test_comparison_reports_times_and_difference(exported: tuple[VitsModel, Path]) -> None:
    model, path = exported
    compared = onnx_conversion.compare_onnx(model, path, tokens=40, rounds=1)
    assert 0 < compared.difference < 1e-3
    assert min(compared.audio_s, compared.onnx_s, compared.torch_s) > 0
    assert "real-time factor" in str(compared)
    names = ["x", "y", "z"] if model.config.num_speakers > 1 else []
    other = loud_voice(TOKENIZER, names, model.config.use_stochastic_duration_prediction, seed=2)
    with pytest.raises(ModelError, match="output differs from the voice"):
        onnx_conversion.compare_onnx(other, path, tokens=40, rounds=1)


def test_failed_export_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, f: Path, **__: object) -> None:
        f.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(OSError, match="No space"):
        onnx_conversion.export_onnx(loud_voice(TOKENIZER, [], False), TOKENIZER, tmp_path / "voice.onnx")
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        OnnxVoice(tmp_path / "voice.onnx")
