"""Whisper listens to the packaged voice, and to the same voice damaged."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vits_trainer.evaluation import recognizers
from vits_trainer.evaluation.recognizers import has_whisper
from vits_trainer.feedback.decision import ErrorRateChange
from vits_trainer.feedback.intelligibility import ListeningTest
from vits_trainer.utils.installation import install_command
from vits_trainer.utils.packaged import BASE_VOICE

SENTENCES = (
    "Turn left at the church.", "There are 12 people at the station.", "Please wait for your sister.",
    "The old man opened the door.", "?!",
)  # fmt: skip
TEXTS = [(text, "") for text in SENTENCES]
needs_whisper = pytest.mark.skipif(not has_whisper(), reason="the extra 'asr' is not installed")


@pytest.mark.slow
@needs_whisper
def test_damaged_voice_is_understood_less_well(tmp_path: Path) -> None:
    damaged = shutil.copytree(BASE_VOICE, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    torch.manual_seed(0)
    symbols = weights["text_encoder.embed_tokens.weight"]
    symbols += 2 * symbols.std() * torch.randn_like(symbols)
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})

    test = ListeningTest.create("auto", "en", 16000, TEXTS, seed=7)
    assert test is not None
    assert [len(test.texts), list(test.seeds)] == [4, [7, 8, 9, 10, 11]]  # the text without letters is left out
    test = replace(test, seeds=[7, 8])
    good, bad = test.error_rates(str(BASE_VOICE)), test.error_rates(str(damaged))
    assert [len(good), *map(len, good)] == [4, 2, 2, 2, 2]
    assert sum(map(sum, good)) / 8 < 0.25
    change = ErrorRateChange.from_pairs(good, bad)
    assert change.is_regression
    assert not ErrorRateChange.from_pairs(bad, good).is_regression
    assert all(0 <= rate <= 1 for rates in bad for rate in rates)


@needs_whisper
def test_built_in_sentences_are_spoken_if_nothing_is_held_out() -> None:
    test = ListeningTest.create("auto", "en", 16000, [], seed=1)
    assert test is not None
    assert (len(test.texts), list(test.seeds)) == (32, [1])
    assert test.texts[0] == "The rain fell softly on the old stone bridge."


@pytest.mark.parametrize(
    ("is_there", "language", "asr", "reason"),
    [
        (False, "en", "auto", f"whisper-tiny.en is not installed ({install_command('asr')})"),
        (True, "deu", "auto", "the voice speaks deu, for which --asr auto has no recognizer"),
        (True, None, "auto", "the voice names no language"),
        (True, "deu", "whisper-small", "no clip is held out"),
    ],
)
def test_without_recognizer_or_texts_one_line_says_that_the_mel_decides(
    monkeypatch, caplog, is_there: bool, language: str | None, asr: str, reason: str
) -> None:
    monkeypatch.setattr(recognizers, "is_installed", lambda need: is_there)
    with caplog.at_level(logging.INFO):
        assert ListeningTest.create(asr, language, 16000, [], seed=1) is None
    (record,) = caplog.records
    expected = f"The mel loss alone judges the new voice, not the character error rate: {reason}"
    assert record.getMessage().startswith(expected)
