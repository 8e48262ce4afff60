"""Import of Piper voices."""

from pathlib import Path

import pytest
import torch

from tests.support.foreign_checkpoints import (
    CASES,
    SMALL,
    assert_same_weights,
    expected_model,
    rewrite,
    speech,
    write_piper,
)
from tests.support.piper_voices import SIZES, piper_network, write_piper_checkpoint
from vits_trainer.models.conversion import importer
from vits_trainer.models.conversion.export_original import write_original
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.pretrained import fold_weight_norm
from vits_trainer.models.type2_decoder import Type2Decoder
from vits_trainer.utils.errors import ModelError


def test_piper_voice_of_letters_uses_no_phonemes(tmp_path: Path) -> None:
    checkpoint = write_piper(tmp_path, "single_sdp", Discriminator(SMALL))
    rewrite(tmp_path / "config.json", lambda config: config.update(phoneme_type="text"))
    voice = importer.import_voice(str(checkpoint))
    assert not voice.tokenizer.phonemize
    assert not any("phonemes of ku" in note for note in voice.notes)
    rewrite(tmp_path / "config.json", lambda config: config["phoneme_id_map"].update(q=[-9]))
    with pytest.raises(ModelError, match="phoneme_id_map has negative or too large ids"):
        importer.import_voice(str(checkpoint))


@pytest.mark.parametrize("case", CASES)
def test_piper_voice_has_the_original_weights(tmp_path: Path, case: str) -> None:
    discriminator = Discriminator(SMALL)
    voice = importer.import_voice(str(write_piper(tmp_path, case, discriminator)))
    assert voice.kind == "piper"
    assert_same_weights(voice.model, expected_model(case))
    assert voice.discriminator is not None
    assert voice.discriminator.shape == SMALL
    config = voice.model.config
    assert (config.noise_scale, config.noise_scale_duration, config.speaking_rate) == (0.6, 0.7, 1.25)
    assert getattr(config, "speakers", None) == (["ada", "bo", "cem", "dan"] if case == "multi_sdp" else None)
    assert [voice.tokenizer.encoder[symbol] for symbol in "_^$ ab"] == [0, 1, 2, 3, 4, 5]
    assert (voice.tokenizer.phonemize, voice.tokenizer.language) == (True, "ku")
    assert any("phonemes of ku" in note for note in voice.notes)
    assert any("transformers' own tokenizer would use American English phonemes" in note for note in voice.notes)
    assert any("aɪ" in note for note in voice.notes)


def test_medium_quality_speaks_as_piper(tmp_path: Path) -> None:
    network = piper_network()
    voice = importer.import_voice(str(write_piper_checkpoint(tmp_path, network)))
    assert isinstance(voice.model.decoder, Type2Decoder)
    assert voice.model.config.upsample_initial_channel == 2 * SIZES["upsample_initial_channel"]
    tokens = torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = network.infer(tokens, torch.tensor([29]), noise_scale=0, length_scale=1, noise_scale_w=0)[0]
    assert expected.abs().max() > 0.01
    for model in (voice.model, fold_weight_norm(voice.model)):
        torch.testing.assert_close(speech(model, tokens), expected[:, 0], atol=1e-5, rtol=0)


def test_medium_quality_keeps_every_weight_through_the_original_layout(tmp_path: Path) -> None:
    network = piper_network()
    voice = importer.import_voice(str(write_piper_checkpoint(tmp_path, network)))
    write_original(voice.model, voice.tokenizer, None, tmp_path / "original")
    back = torch.load(tmp_path / "original/G_0.pth")["model"]
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in network.state_dict().items())
    again = importer.import_voice(str(tmp_path / "original"))
    assert_same_weights(again.model, voice.model)
