"""Import of Piper voices."""

from pathlib import Path

import pytest

from tests.support.foreign_checkpoints import CASES, SMALL, assert_same_weights, expected_model, rewrite, write_piper
from vits_trainer.models.conversion import importer
from vits_trainer.models.discriminator import Discriminator
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


def test_piper_voice_of_medium_quality_is_rejected_with_the_reason(tmp_path: Path) -> None:
    checkpoint = write_piper(tmp_path, "single_sdp", Discriminator(SMALL), resblock="2")
    with pytest.raises(ModelError, match=r"residual blocks of type 2 .*high quality"):
        importer.import_voice(str(checkpoint))
