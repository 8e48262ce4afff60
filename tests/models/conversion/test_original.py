"""Import of original VITS and MMS voices."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.foreign_checkpoints import (
    CASES,
    SMALL,
    SYMBOLS,
    assert_same_weights,
    expected_model,
    golden_weights,
    write_original,
)
from vits_trainer.diagnostics import golden
from vits_trainer.models.conversion import importer
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.text.tokenizer import encode


@pytest.mark.parametrize("case", CASES)
def test_original_voice_has_the_sizes_and_values_of_its_weights(tmp_path: Path, case: str) -> None:
    discriminator = Discriminator(SMALL)
    voice = importer.import_voice(str(write_original(tmp_path, case, discriminator)))
    assert voice.kind == "original"
    assert_same_weights(voice.model, expected_model(case))
    sizes = golden.vits_config(golden_weights(case)[1]).to_dict()
    config = voice.model.config.to_dict()
    differing = {name for name in sizes if config[name] != sizes[name]}
    assert differing <= {"hidden_dropout", "attention_dropout", "activation_dropout", "resblock_kernel_sizes"}
    assert list(config["resblock_kernel_sizes"]) == list(sizes["resblock_kernel_sizes"])
    assert voice.discriminator is not None
    assert all(torch.equal(t, discriminator.state_dict()[name]) for name, t in voice.discriminator.state_dict().items())


def test_mms_symbols_are_the_lines_of_vocab_txt(tmp_path: Path) -> None:
    write_original(tmp_path)
    tokenizer = importer.import_voice(str(tmp_path)).tokenizer  # a directory with one checkpoint
    assert encode(tokenizer, "Şû a").tolist() == [
        0, SYMBOLS.index("ş"), 0, SYMBOLS.index("û"), 0, SYMBOLS.index(" "), 0, SYMBOLS.index("a"), 0
    ]  # fmt: skip
    twice = max(index for index, symbol in enumerate(SYMBOLS) if symbol == "ê")
    assert tokenizer.encoder["ê"] == twice  # as in the original's dictionary
    assert len(tokenizer) == 40


def test_uroman_and_phonemes_are_detected_from_the_configuration(tmp_path: Path) -> None:
    write_original(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["data"]["training_files"] = "train.uroman"
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = importer.import_voice(str(tmp_path)).tokenizer
    assert (tokenizer.is_uroman, tokenizer.phonemize, tokenizer.add_blank) == (True, False, True)
    config["data"] |= {"training_files": "filelists/train.txt", "text_cleaners": ["english_cleaners2", "shout"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    voice = importer.import_voice(str(tmp_path))
    assert (voice.tokenizer.is_uroman, voice.tokenizer.phonemize) == (False, True)
    assert any("shout" in note for note in voice.notes)


def test_newest_checkpoint_of_a_directory_is_read(tmp_path: Path) -> None:
    write_original(tmp_path, number=9000)
    write_original(tmp_path, number=10000)
    for path, value in ((tmp_path / "G_9000.pth", 1.0), (tmp_path / "G_10000.pth", 2.0)):
        content = torch.load(path)
        content["model"]["enc_p.emb.weight"].fill_(value)
        torch.save(content, path)
    assert importer.import_voice(str(tmp_path)).model.text_encoder.embed_tokens.weight[0, 0] == 2
