"""Residual blocks of type 2 against transformers' decoder of twice the width, and in training, saving and loading."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsModel
from transformers.models.vits.modeling_vits import VitsHifiGan

from tests.support.models import SMALL, TOKENIZER
from vits_trainer.models.decoder import decode
from vits_trainer.models.extension import add_speakers
from vits_trainer.models.initialization import init_vits_weights, new_model
from vits_trainer.models.pretrained import export, fold_weight_norm, inference_form, load_model, untrained
from vits_trainer.models.type2_decoder import Type2Decoder, doubled_weights
from vits_trainer.utils.errors import ModelError


def type2_voice(*speakers: str) -> VitsModel:
    torch.manual_seed(0)
    config = new_model(SMALL, TOKENIZER, list(speakers)).config
    config.resblock_type = 2
    model = untrained(config)
    init_vits_weights(model)
    return model.eval()



@pytest.mark.parametrize("speakers", [(), ("ava", "bo")])
def test_doubled_decoder_computes_the_same(speakers: tuple[str, ...]) -> None:
    model = type2_voice(*speakers)
    config = model.config
    narrow = inference_form(model).decoder
    wide = VitsHifiGan(config)
    wide.load_state_dict(doubled_weights(narrow.state_dict(), config))
    latents = 3 * torch.randn(2, config.flow_size, 20)
    condition = torch.randn(2, config.speaker_embedding_size, 1) if speakers else None
    with torch.no_grad():
        one, other = narrow(latents, condition), wide(latents, condition)
        trained = model.decoder(latents, condition)
    assert one.abs().max() > 0.01
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    torch.testing.assert_close(one, trained, atol=1e-6, rtol=0)


@pytest.mark.parametrize("speakers", [(), ("ava", "bo")])
def test_decode_in_training_equals_the_module(speakers: tuple[str, ...]) -> None:
    model = type2_voice(*speakers)
    latents = torch.randn(2, model.config.flow_size, 9)
    speaker = torch.randn(2, model.config.speaker_embedding_size, 1) if speakers else None
    assert torch.equal(decode(model.decoder, latents, speaker), model.decoder(latents, speaker))
    streams = []
    for block in model.decoder.resblocks:
        block.convs[1].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decode(model.decoder, latents, speaker).dtype == torch.float32
    assert set(streams) == {torch.float32}


def test_blocks_are_those_of_hifi_gan(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = pytest.importorskip("piper.train.vits.modules")
    theirs = modules.ResBlock2(32, 3, (1, 3))
    theirs.remove_weight_norm()
    block = Type2Decoder(type2_voice().config).resblocks[0]
    with torch.no_grad():
        for mine, original in zip(block.convs, theirs.convs, strict=True):
            mine.weight[:16, :16], mine.bias[:16] = original.weight[:16, :16], original.bias[:16]
            original.weight[16:] = original.weight[:, 16:] = original.bias[16:] = 0
        hidden = torch.randn(1, 16, 40)
        expected = theirs(torch.cat([hidden, torch.zeros_like(hidden)], dim=1))[:, :16]
        torch.testing.assert_close(block(hidden), expected)


def test_voice_is_saved_for_transformers_and_loaded_again(tmp_path: Path) -> None:
    model = type2_voice()
    export(model, TOKENIZER, None, tmp_path / "voice")
    plain = VitsModel.from_pretrained(tmp_path / "voice")
    assert type(plain.decoder) is VitsHifiGan
    assert plain.config.resblock_type == 2
    loaded = load_model(str(tmp_path / "voice"))
    assert isinstance(loaded.decoder, Type2Decoder)
    before, after = inference_form(model).state_dict(), inference_form(loaded).state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():  # weight norm multiplies and divides by the norm
        torch.testing.assert_close(weight, after[name], atol=1e-7, rtol=1e-6)
    export(loaded, TOKENIZER, None, tmp_path / "again")
    one, other = (load_file(tmp_path / f"{name}/model.safetensors") for name in ("voice", "again"))
    assert [name for name, tensor in one.items() if (tensor - other[name]).abs().max() > 1e-6] == []


def test_training_keeps_the_blocks_and_reaches_all_their_weights(tmp_path: Path) -> None:
    model = type2_voice().train()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.decoder(torch.randn(1, 32, 8)).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.decoder.parameters())
        optimizer.step()
    export(model, TOKENIZER, None, tmp_path / "voice")
    assert isinstance(load_model(str(tmp_path / "voice")).decoder, Type2Decoder)
    decoder = sum(p.numel() for p in model.decoder.parameters())
    doubled = sum(p.numel() for p in fold_weight_norm(model).decoder.parameters())
    assert doubled > 3 * decoder


def test_added_speakers_keep_the_blocks() -> None:
    extended = add_speakers(type2_voice(), ["ava", "bo"])
    assert isinstance(extended.decoder, Type2Decoder)
    assert extended.decoder.cond.out_channels == extended.decoder.conv_pre.out_channels


def test_voice_changed_elsewhere_is_named_with_the_remedy(tmp_path: Path) -> None:
    export(type2_voice(), TOKENIZER, None, tmp_path / "voice")
    weights = load_file(tmp_path / "voice/model.safetensors")
    weights["decoder.resblocks.0.convs2.0.bias"] += 1e-3
    save_file(weights, tmp_path / "voice/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"voice: config\.json states resblock_type 2, but 1 weights such as"):
        load_model(str(tmp_path / "voice"))
    config = json.loads((tmp_path / "voice/config.json").read_text())
    del config["resblock_type"]
    (tmp_path / "voice/config.json").write_text(json.dumps(config))
    assert type(load_model(str(tmp_path / "voice")).decoder) is VitsHifiGan
