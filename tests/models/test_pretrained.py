"""Loading and exporting voices."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, VitsConfig, VitsModel, pipeline

from tests.support.models import SMALL, TOKENIZER, copied, new_voice, speech
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import (
    MAX_TOKEN_S,
    audio_spec,
    clamp_token_durations,
    export,
    load_model,
    speaker_ids,
)
from vits_trainer.utils.errors import ConfigError, ModelError


def decoder_weight_norms(names) -> list[str]:
    return [name for name in names if name.startswith("decoder.") and ("parametrizations" in name or "weight_" in name)]


def test_layerdrop_defaults_to_zero(published):
    assert load_model(str(published)).text_encoder.encoder.layerdrop == 0
    assert load_model(str(published), layerdrop=0.3).text_encoder.encoder.layerdrop == 0.3
    assert new_voice().text_encoder.encoder.layerdrop == 0
    assert new_model(SMALL, TOKENIZER, [], layerdrop=0.2).text_encoder.encoder.layerdrop == 0.2


def test_loaded_voice_is_in_eval_mode(published):
    model = load_model(str(published))
    assert not model.training
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    assert not any(part.training for part in model.children())


def test_decoder_weight_norm_is_restored_without_changing_output(published):
    as_published, trainable = VitsModel.from_pretrained(published), load_model(str(published))
    assert decoder_weight_norms(as_published.state_dict()) == []
    assert len(decoder_weight_norms(trainable.state_dict())) == 2 * (4 + 4 * 4)  # upsampling, residual blocks
    torch.testing.assert_close(speech(trainable), speech(as_published), atol=1e-5, rtol=1e-4)


def test_flow_has_weight_norm_only_in_wavenets(published):
    names = {name for name in load_model(str(published)).state_dict() if name.startswith("flow.")}
    assert any("wavenet.in_layers.0.parametrizations" in name for name in names)
    assert not [name for name in names if ("conv_pre" in name or "conv_post" in name) and "parametrizations" in name]


def test_export_reproduces_the_original_checkpoint(published, tmp_path):
    export(load_model(str(published)), TOKENIZER, None, tmp_path / "out")
    again, report = VitsModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = VitsModel.from_pretrained(published).state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    assert decoder_weight_norms(load_file(tmp_path / "out" / "model.safetensors")) == []


def test_export_does_not_modify_the_trained_voice(tmp_path):
    model = new_voice().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, TOKENIZER, None, tmp_path / "out")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_continues_after_export(tmp_path):
    model = new_voice()
    before = speech(model)
    export(model, TOKENIZER, None, tmp_path / "out")
    assert torch.equal(speech(model), before)


def test_legacy_weight_norm_names_are_loaded_and_saved_under_current_names(published, tmp_path):
    old = tmp_path / "old"
    TOKENIZER.save_pretrained(old)
    (old / "config.json").write_text((published / "config.json").read_text())
    weights = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(published / "model.safetensors").items()
    }
    assert any(name.endswith("weight_g") for name in weights)
    save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(str(old))
    expected = load_model(str(published)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    export(loaded, TOKENIZER, None, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in written if name.endswith(("weight_g", "weight_v"))]


def test_pipeline_loads_the_exported_voice(tmp_path):
    model = new_voice()
    before = speech(model).flatten()
    export(model, TOKENIZER, Discriminator(DiscriminatorShape((2,), 8)), tmp_path / "out")
    speaker = pipeline("text-to-speech", model=str(tmp_path / "out"))
    torch.manual_seed(5)
    spoken = speaker("silav dinya")
    assert spoken["sampling_rate"] == 16000
    torch.testing.assert_close(torch.from_numpy(spoken["audio"]).flatten(), before, atol=1e-5, rtol=1e-3)


def test_export_keeps_the_previous_voice_and_leaves_no_other_files(tmp_path):
    export(new_voice(), TOKENIZER, None, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    before = (tmp_path / "out/model.safetensors").read_bytes()
    (tmp_path / "out/notes").write_text("mine")
    other = new_voice()
    nn.init.ones_(other.text_encoder.project.bias)
    export(other, TOKENIZER, None, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out_versions"]
    assert [path.name for path in (tmp_path / "out_versions").iterdir()] == ["0"]
    assert (tmp_path / "out_versions/0/model.safetensors").read_bytes() == before
    assert (tmp_path / "out/notes").read_text() == "mine"


def test_export_does_not_replace_other_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(ConfigError, match="contains mine and is not a voice"):
        export(new_voice(), TOKENIZER, None, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_export_that_differs_from_the_trained_voice_is_rejected_and_the_old_voice_kept(tmp_path):
    export(new_voice(), TOKENIZER, None, tmp_path / "out")
    broken = new_voice()
    nn.init.constant_(broken.text_encoder.project.bias, math.nan)  # never equals itself
    with pytest.raises(ModelError, match=r"text_encoder\.project\.bias"):
        export(broken, TOKENIZER, None, tmp_path / "out")
    size = load_file(tmp_path / "out" / "model.safetensors")
    assert size["text_encoder.project.bias"].isfinite().all()


def test_speakers_are_saved_with_the_voice_in_order(tmp_path):
    export(new_voice("ava", "bo", "cem"), TOKENIZER, None, tmp_path / "out")
    config = VitsConfig.from_pretrained(tmp_path / "out")
    assert config.num_speakers == 3
    assert config.speakers == ["ava", "bo", "cem"]
    assert speaker_ids(config, ["bo", "cem"]) == {"ava": 0, "bo": 1, "cem": 2}
    assert load_model(str(tmp_path / "out")).config.speakers == ["ava", "bo", "cem"]


def test_unknown_speaker_is_rejected():
    config = new_voice("ava", "bo").config
    with pytest.raises(ModelError, match="but not cem"):
        speaker_ids(config, ["ava", "cem"])


def test_single_speaker_voice_has_no_speaker_ids():
    config = new_voice("ava").config
    assert (config.num_speakers, config.speaker_embedding_size) == (1, 0)
    assert speaker_ids(config, ["ava"]) is None


def test_missing_directory_is_rejected(tmp_path):
    with pytest.raises(ModelError, match=r"cannot load a voice .*Pass a local directory"):
        load_model(str(tmp_path / "absent"))


def test_other_model_type_is_rejected(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_type is bert, not a VITS voice"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("size", [0, 100, 20000], ids=["empty", "in the header", "in the weights"])
def test_damaged_weights_are_rejected(published, tmp_path, size):
    weights = copied(published, tmp_path / "voice") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(tmp_path / "voice"))


@pytest.mark.parametrize(
    "change",
    [
        "missing",
        "unexpected",
        pytest.param("mismatched"),
    ],
)
def test_mismatched_weights_are_listed(published, tmp_path, change):
    path = copied(published, tmp_path / "voice") / "model.safetensors"
    weights, name = load_file(path), "text_encoder.embed_tokens.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        name = "text_encoder.novelty.weight"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(3, 16)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_model(str(tmp_path / "voice"))


def test_damaged_configuration_is_rejected(published, tmp_path):
    (copied(published, tmp_path / "voice") / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_model(str(tmp_path / "voice"))


@pytest.mark.parametrize("stochastic", [True, False])
def test_durations_of_a_diverged_voice_are_limited(stochastic: bool) -> None:
    """Log durations of 20 correspond to 485 million frames per token."""
    model = new_voice(architecture=replace(SMALL, use_stochastic_duration_prediction=stochastic)).eval()
    tokens = torch.ones((1, 5), dtype=torch.long)
    hop = audio_spec(model.config).hop
    frames_a_token = MAX_TOKEN_S * 16000 / hop
    diverged = model.duration_predictor.register_forward_hook(lambda *_: torch.full((1, 1, 5), 20.0))
    with clamp_token_durations(model), torch.no_grad():
        spoken = model(tokens).waveform
    diverged.remove()
    assert spoken.shape[1] <= 5 * (frames_a_token + 1) * hop
    with torch.no_grad():
        torch.manual_seed(0)
        free = model(tokens).waveform
        torch.manual_seed(0)
        with clamp_token_durations(model):
            assert torch.equal(model(tokens).waveform, free)
    assert not model.duration_predictor._forward_hooks
