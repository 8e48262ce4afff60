"""A discriminator on the hidden states of a frozen speech encoder, against the encoder called by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.encoders import KINDS, new_encoder, write_encoder
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import TrainConfig
from vits_trainer.models.discriminator import (
    Discriminator,
    EncoderDiscriminator,
    load_discriminator,
    save_discriminator,
)
from vits_trainer.models.speech_encoder import SpeechEncoder, attach_speech_encoder, load_speech_encoder
from vits_trainer.utils.errors import ConfigError, ModelError, VitsTrainerError

SPEC = AudioSpec(16000)
SMALL = DiscriminatorShape((2,), 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "wavlm")


def config_of(encoder: Path | None, **changes: Any) -> TrainConfig:
    return TrainConfig(model_name="none", discriminator_encoder=None if encoder is None else str(encoder), **changes)


def with_encoder(encoder: Path, **changes: Any) -> Discriminator:
    discriminator = Discriminator(SMALL)
    assert attach_speech_encoder(discriminator, config_of(encoder, **changes), SPEC, is_resumed=False)
    return discriminator


@pytest.mark.parametrize(
    ("kind", "normalizes", "changes"),
    [
        ("wavlm", False, {}),
        ("hubert", True, {}),
        ("wav2vec2", True, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    ],
)
def test_hidden_states_are_those_of_the_encoder(tmp_path: Path, kind: str, normalizes: bool, changes: Any) -> None:
    write_encoder(tmp_path / kind, kind, normalizes, **changes)
    by_hand = KINDS[kind][1].from_pretrained(tmp_path / kind).eval()
    waveform = 3 + torch.randn(2, 1, 2000)
    given = waveform[:, 0].double()
    if normalizes:
        given = (given - given.mean(1, keepdim=True)) / given.std(1, keepdim=True, unbiased=False)
    with torch.no_grad():
        states = by_hand(given.float(), output_hidden_states=True).hidden_states
    for layers in ((), (1,), (0, 3)):
        expected = torch.cat([states[layer] for layer in layers or range(4)], 2).transpose(1, 2)
        hidden = load_speech_encoder(str(tmp_path / kind), layers, 16000)(waveform)
        assert hidden.shape == (2, 32 * (len(layers) or 4), 49)
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


def test_waveform_is_resampled_to_the_encoders_rate(folder: Path) -> None:
    encoder = load_speech_encoder(str(folder), (), 22050)
    sine = torch.sin(2 * math.pi * 440 * torch.arange(8192) / 22050)
    resampled = encoder.prepared(sine[None, None])[0]
    assert len(resampled) == math.ceil(8192 * 16000 / 22050)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(len(resampled)) / 16000)
    torch.testing.assert_close(resampled[50:-50], expected[50:-50], atol=0.01, rtol=0)


def test_gradient_reaches_the_waveform_and_not_the_encoder(folder: Path) -> None:
    discriminator = with_encoder(folder).double().train()
    model = discriminator.on_encoder.encoder.model.double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    waveform = torch.randn(2, 1, 2000, dtype=torch.float64, requires_grad=True)
    discriminator(waveform).scores[-1].sum().backward()
    direction = torch.randn_like(waveform)
    with torch.no_grad():
        above, below = (discriminator(waveform + step * direction).scores[-1].sum() for step in (1e-6, -1e-6))
    # Equal calls in training mode: the encoder has no dropout, layerdrop or masking.
    assert float((waveform.grad * direction).sum()) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.optim.AdamW(discriminator.parameters()).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_the_convolutions_are_saved_and_loaded_without_the_encoder(folder: Path, tmp_path: Path) -> None:
    discriminator = with_encoder(folder)
    own = Discriminator(SMALL).state_dict().keys()
    added = {name.split(".")[2] for name in discriminator.state_dict().keys() - own}
    assert added == {"projection", "convs", "conv_post"}
    path = tmp_path / "discriminator.safetensors"
    save_discriminator(discriminator, path)
    assert load_file(path).keys() == discriminator.state_dict().keys()
    loaded = load_discriminator(path)
    waveform = torch.randn(2, 1, 2000)
    with pytest.raises(ModelError, match="attach it"):
        loaded(waveform)
    assert not attach_speech_encoder(loaded, config_of(folder), SPEC, is_resumed=True)
    for actual, expected in zip(loaded(waveform).scores, discriminator(waveform).scores, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_spectrograms_are_added_before_the_encoder(folder: Path) -> None:
    discriminator = with_encoder(folder)
    waveform = torch.randn(2, 1, 2000)
    scores = discriminator(waveform).scores
    assert discriminator.add_resolutions([(512, 50, 240)])
    after = discriminator(waveform).scores
    assert len(after) == len(scores) + 1
    assert torch.equal(after[-1], scores[-1])


def test_voice_without_or_with_another_encoder(folder: Path, tmp_path: Path) -> None:
    """A new run follows its flags; a resumed one must have those of its checkpoint."""
    other = write_encoder(tmp_path / "hubert", "hubert")
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    discriminator = with_encoder(folder)
    weights = discriminator.on_encoder.projection.weight.clone()
    assert not attach_speech_encoder(discriminator, config_of(moved), SPEC, is_resumed=False)
    assert torch.equal(discriminator.on_encoder.projection.weight, weights)
    for flags in ({"encoder": other}, {"encoder": folder, "discriminator_encoder_layers": (1,)}):
        with pytest.raises(ConfigError, match=r"not the encoder and the layers of the checkpoint, layers \[0, 1, 2, 3"):
            attach_speech_encoder(discriminator, config_of(**flags), SPEC, is_resumed=True)
        assert attach_speech_encoder(with_encoder(folder), config_of(**flags), SPEC, is_resumed=False)
    with pytest.raises(ConfigError, match=r"Pass --discriminator_encoder"):
        attach_speech_encoder(discriminator, config_of(None), SPEC, is_resumed=True)
    with pytest.raises(ConfigError, match=r"the checkpoint has no discriminator on an encoder\. Omit it"):
        attach_speech_encoder(Discriminator(SMALL), config_of(folder), SPEC, is_resumed=True)
    assert not attach_speech_encoder(discriminator, config_of(None), SPEC, is_resumed=False)
    assert discriminator.state_dict().keys() == Discriminator(SMALL).state_dict().keys()


def test_bf16_has_the_gradient_of_float32(folder: Path) -> None:
    encoder = load_speech_encoder(str(folder), (), 16000)
    discriminator = EncoderDiscriminator(encoder.inputs, 1)
    discriminator.encoder = encoder
    waveform = torch.randn(2, 1, 2000, requires_grad=True)
    (expected,) = torch.autograd.grad(discriminator(waveform)[-1].sum(), waveform)
    with torch.autocast("cpu", torch.bfloat16):
        scores = discriminator(waveform)[-1]
    assert scores.dtype == torch.bfloat16
    (narrow,) = torch.autograd.grad(scores.float().sum(), waveform)
    assert torch.cosine_similarity(narrow.flatten(), expected.flatten(), 0) > 0.98


def test_compiled_discriminator_equals_the_eager_one(folder: Path) -> None:
    discriminator = with_encoder(folder)
    waveform = torch.randn(2, 1, 2000, requires_grad=True)
    expected = discriminator(waveform).scores[-1]
    discriminator.compile(backend="eager")
    compiled = discriminator(waveform).scores[-1]
    torch.testing.assert_close(compiled, expected)
    gradients = [torch.autograd.grad(scores.sum(), waveform)[0] for scores in (compiled, expected)]
    torch.testing.assert_close(*gradients)


def test_pickled_weights_are_read_without_running_code(folder: Path, tmp_path: Path) -> None:
    """As microsoft publishes WavLM: pytorch_model.bin only."""
    encoder = write_encoder(tmp_path / "pickled")
    torch.save(new_encoder("wavlm").state_dict(), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    assert load_speech_encoder(str(encoder), (), 16000).inputs == load_speech_encoder(str(folder), (), 16000).inputs
    torch.save({"encoder": json.JSONDecoder}, encoder / "pytorch_model.bin")
    with pytest.raises(VitsTrainerError, match="JSONDecoder"):
        load_speech_encoder(str(encoder), (), 16000)


def damaged(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    values = json.loads((folder / "config.json").read_text())
    if damage == "missing":
        del weights["feature_projection.projection.weight"]
    elif damage == "other size":
        weights["feature_projection.projection.weight"] = torch.zeros(2, 2)
    elif damage == "Inf":
        weights["feature_projection.projection.bias"][0] = math.inf
    elif damage == "no extractor":
        (folder / "preprocessor_config.json").unlink()
    elif damage == "no weights":
        path.unlink()
    else:
        changes = {"hidden_size": "many"} if damage == "text for a number" else {"model_type": damage}
        (folder / "config.json").write_text(json.dumps({**values, **changes}))
    if path.is_file():
        save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"missing or of another shape: feature_projection\.projection\.weight"),
        ("other size", r"missing or of another shape: feature_projection\.projection\.weight"),
        ("Inf", r"NaN or infinity in the weights feature_projection\.projection\.bias"),
        ("no extractor", "preprocessor_config"),
        ("no weights", "model.safetensors"),
        ("vits", "model_type is vits, not a speech encoder that takes waveforms"),
        ("whisper", "model_type is whisper, not a speech encoder"),
        ("own", "model_type is own, not a speech encoder"),
        ("text for a number", "hidden_size"),
    ],
)
def test_folder_that_is_no_encoder_is_rejected(tmp_path: Path, damage: str, message: str) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    damaged(encoder, damage)
    with pytest.raises(ModelError, match=message) as raised:
        load_speech_encoder(str(encoder), (), 16000)
    assert str(raised.value).startswith(f"--discriminator_encoder {encoder}: ")
    assert "\n" not in str(raised.value)


def test_name_that_cannot_be_downloaded_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"--discriminator_encoder nobody/nothing: cannot load.*HF_HUB_OFFLINE is set"):
        load_speech_encoder("nobody/nothing", (), 16000)


def test_absent_layers_and_short_segments_are_rejected(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers \[1, 4\]: the encoder has the hidden states 0 to 3, not 4"):
        load_speech_encoder(str(folder), (1, 4), 16000)
    encoder = load_speech_encoder(str(folder), (), 22050)
    encoder.require_segment(7, 9)  # 63 samples are 46 of the encoder: (8 - 1) * 5 + 10 = 45 are needed
    assert encoder(torch.randn(1, 1, 63)).shape[-1] == 1
    with pytest.raises(ConfigError, match=r"--segment_frames 6: 40 samples at 16000 Hz are too short .* at least 7"):
        encoder.require_segment(6, 9)


def test_settings_without_an_encoder_or_discriminators_are_rejected() -> None:
    config = config_of(Path("x"))
    for changes, message in (
        ({"discriminator_encoder": None, "discriminator_encoder_layers": (1,)}, "needs --discriminator_encoder"),
        ({"discriminator_encoder_layers": (1, 1)}, "contains a layer twice"),
        ({"objective": "mel"}, "has no discriminators"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **changes)


def test_damaged_description_of_the_encoder_is_rejected(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "discriminator.safetensors"
    save_discriminator(with_encoder(folder), path)
    tensors = load_file(path)
    metadata = {"shape": json.dumps({"periods": [2], "channels_divisor": 16})}
    for encoder in ('{"layers": [], "channels": 1, "digest": ""}', '{"layers": [0], "channels": 9, "digest": ""}', "["):
        save_file(tensors, path, {**metadata, "encoder": encoder})
        with pytest.raises(ModelError, match=r"discriminator\.safetensors: .*Delete it"):
            load_discriminator(path)


def test_encoder_is_no_part_of_the_network(folder: Path) -> None:
    encoder = with_encoder(folder).on_encoder.encoder
    assert isinstance(encoder, SpeechEncoder)
    assert not isinstance(encoder, torch.nn.Module)
