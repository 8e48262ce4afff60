"""Import of Coqui TTS voices."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.foreign_checkpoints import (
    CASES,
    SMALL,
    assert_same_weights,
    change_weights,
    coqui_name,
    expected_model,
    golden_weights,
    rewrite,
    speech,
    write_coqui,
)
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models.conversion import importer
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.text.tokenizer import encode
from vits_trainer.utils.errors import ModelError


def test_coqui_symbols_of_another_voice_are_rejected(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    rewrite(tmp_path / "config.json", lambda config: config["characters"].update(characters="abcdefghij" * 5))
    with pytest.raises(ModelError, match="there are 56 symbols for 40 embeddings"):
        importer.import_voice(str(checkpoint))
    change_weights(checkpoint, lambda weights: weights.pop("text_encoder.emb.weight"))
    with pytest.raises(ModelError, match=r"enc_p\.emb\.weight is missing"):
        importer.import_voice(str(checkpoint))


def test_coqui_symbols_from_vocab_equal_those_of_the_configuration(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    unsaid = {"periods_multi_period_discriminator": None}
    rewrite(tmp_path / "config.json", lambda config: config["model_args"].update(unsaid))
    letters = "abcdefghijklmnopqrstuvwxyz"
    (tmp_path / "v.txt").write_text("".join(f"{symbol}\n" for symbol in ["_", *"!.? ", *letters, "<BLNK>"]))
    expected, loaded = (
        importer.import_voice(str(checkpoint)),
        importer.import_voice(str(checkpoint), vocab=tmp_path / "v.txt"),
    )
    assert loaded.tokenizer.encoder == expected.tokenizer.encoder
    assert_same_weights(loaded.model, expected.model)


def test_names_of_the_synthetic_coqui_checkpoint_match_the_source_code() -> None:
    """Names from TTS/tts/layers/vits and TTS/vocoder/models/hifigan_generator.py."""
    named = {coqui_name(name) for case in CASES for name in golden_weights(case)[0]}
    assert {
        "emb_g.weight", "text_encoder.emb.weight", "text_encoder.encoder.attn_layers.1.emb_rel_k",
        "text_encoder.encoder.norm_layers_2.0.gamma", "text_encoder.proj.bias", "posterior_encoder.enc.cond_layer.bias",
        "flow.flows.3.enc.in_layers.0.weight_g", "flow.flows.0.post.weight", "waveform_decoder.cond_layer.weight",
        "waveform_decoder.ups.3.weight_v", "waveform_decoder.resblocks.11.convs2.2.weight_g",
        "duration_predictor.flows.0.translation", "duration_predictor.flows.0.log_scale",
        "duration_predictor.flows.4.convs.convs_sep.2.weight", "duration_predictor.post_flows.1.proj.weight",
        "duration_predictor.post_convs.norms_1.0.gamma", "duration_predictor.cond.weight",
    } <= named  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_coqui_voice_has_the_original_weights_and_output(tmp_path: Path, case: str) -> None:
    discriminator = Discriminator(DiscriminatorShape((2, 5), 16))
    voice = importer.import_voice(str(write_coqui(tmp_path, case, discriminator)))
    assert voice.kind == "coqui"
    model, expected = voice.model, expected_model(case)
    assert_same_weights(model, expected, but="text_encoder.embed_tokens.weight")
    assert (model.config.noise_scale, model.config.noise_scale_duration, model.config.speaking_rate) == (0.5, 0.9, 0.8)
    assert voice.discriminator is not None
    assert voice.discriminator.shape == discriminator.shape
    assert all(torch.equal(t, discriminator.state_dict()[name]) for name, t in voice.discriminator.state_dict().items())
    # Ids in Coqui TTS: _ 0, then ! . ? and the space, letters from 5 on, and the blank last.
    blank, letters = 5 + 26, [5 + "abcdefghijklmnopqrstuvwxyz".index(letter) for letter in "roj"]
    coqui_tokens = torch.tensor([[blank, letters[0], blank, letters[1], blank, letters[2], blank]])
    tokens = torch.from_numpy(encode(voice.tokenizer, "Roj"))[None]
    speaker = 2 if case == "multi_sdp" else None
    assert torch.equal(speech(model, tokens, speaker), speech(expected, coqui_tokens, speaker))
    assert getattr(model.config, "speakers", None) == (["ada", "bo", "cem", "dan"] if speaker else None)


def test_unsupported_coqui_voice_is_rejected_with_the_reason(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["use_d_vector_file"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"use_d_vector_file.*speaker ids"):
        importer.import_voice(str(checkpoint))
    config["model_args"]["use_d_vector_file"] = False
    config["characters"]["characters_class"] = "my.Own"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"characters_class Own.*--vocab.*<BLNK>"):
        importer.import_voice(str(checkpoint))


def test_sorted_coqui_characters_follow_the_special_symbols(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    config = json.loads((tmp_path / "config.json").read_text())
    config["characters"] = {
        "characters_class": "TTS.tts.utils.text.characters.Graphemes", "pad": "<PAD>", "eos": "<EOS>", "bos": "<BOS>",
        "blank": "<BLNK>", "characters": "bca", "punctuations": "! ", "is_unique": True, "is_sorted": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = importer.import_voice(str(checkpoint)).tokenizer
    by_id = sorted(tokenizer.encoder, key=tokenizer.encoder.get)
    assert by_id == ["<BLNK>", "<EOS>", "<BOS>", "<PAD>", "a", "b", "c", "!", " "]
