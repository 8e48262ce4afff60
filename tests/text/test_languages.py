"""Phonemes and romanization."""

import re
import subprocess
import sys
import unicodedata

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from tests.support.models import SMALL
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import export
from vits_trainer.text import languages
from vits_trainer.text.tokenizer import (
    VoiceTokenizer,
    build_tokenizer,
    encode,
    load_tokenizer,
    with_characters,
)
from vits_trainer.text.vocabulary import unread_characters
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.installation import install_command

pytest.importorskip("phonemizer", reason="the extra 'text' is not installed")
pytest.importorskip("uroman", reason="the extra 'text' is not installed")

GERMAN = "schöne grüße"


ESPEAK = """import ctypes, espeakng_loader, sys
library = ctypes.CDLL(espeakng_loader.get_library_path())
library.espeak_Initialize(2, 0, str(espeakng_loader.get_data_path()).encode(), 0x8000)
assert library.espeak_SetVoiceByName(sys.argv[2].encode()) == 0
library.espeak_TextToPhonemes.restype = ctypes.c_char_p
pointer = ctypes.c_char_p(sys.argv[1].encode())
phonemes = library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 0x02)  # UTF-8, IPA
sys.stdout.buffer.write(phonemes)
"""


def espeak(text: str, voice: str) -> str:
    """Returns phonemes from espeak-ng's library without phonemizer, in a process whose library nobody else uses."""
    command = [sys.executable, "-c", ESPEAK, text, voice]
    return subprocess.run(command, check=True, capture_output=True).stdout.decode()


@pytest.mark.parametrize("language", ["de", "deu", "deu-script_latin"])
def test_phonemes_are_those_of_the_language(language):
    ours = languages.to_phonemes(GERMAN, language)
    assert ours == espeak(GERMAN, "de")
    assert ours != languages.to_phonemes(GERMAN, "eng") == languages.to_phonemes(GERMAN, None)
    assert "øː" in ours


@pytest.mark.parametrize(("text", "language"), [("schöne grüße", "de"), ("tiếng việt", "vi")])
def test_texts_in_any_unicode_form_have_the_same_phonemes(text, language):
    tokenizer = build_tokenizer([text], language, phonemize=True)
    expected = encode(tokenizer, text).tolist()
    assert expected[1::2] == [tokenizer.encoder[one] for one in espeak(text, language)]
    assert encode(tokenizer, unicodedata.normalize("NFD", text).replace("n", "\u00adn")).tolist() == expected


def test_turkish_capital_i_has_the_phoneme_of_dotless_i():
    tokenizer = build_tokenizer(["ısparta istanbul"], "tur", phonemize=True)
    assert encode(tokenizer, "Isparta İstanbul").tolist() == encode(tokenizer, "ısparta istanbul").tolist()


def test_unknown_language_raises_and_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"--language 99: not supported by espeak-ng. Must be one of af, .*de"):
        languages.to_phonemes("a", "99")


def test_misspelt_language_suggests_the_closest():
    with pytest.raises(ModelError, match=r"--language germn: .* Did you mean"):
        languages.to_phonemes("a", "germn")


def test_every_mapped_language_is_supported_by_espeak():
    from phonemizer.backend import EspeakBackend

    languages.to_phonemes("a", "de")  # sets the library path
    assert set(languages._OF_ISO_639.values()) <= set(EspeakBackend.supported_languages())


def test_foreign_words_add_no_flags_and_blank_text_has_no_phonemes():
    assert "(" not in languages.to_phonemes("Das ist ein Download, nice Meeting.", "de")
    assert languages.to_phonemes("  ", "de") == ""


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (None, "en-us"), ("eng", "en-us"), ("en", "en-us"), ("deu", "de"), ("de", "de"), ("en-gb", "en-gb"),
        ("kmr-script_latin", "ku"), ("fra", "fr-fr"), ("DEU", "de"),
    ],
)  # fmt: skip
def test_languages_have_iso_or_espeak_names(language, expected):
    assert languages.espeak_name(language) == expected


def test_phoneme_tokenizer_encodes_and_loads_in_transformers(tmp_path):
    tokenizer = build_tokenizer([GERMAN], "de", phonemize=True)
    expected = espeak(GERMAN, "de")
    assert encode(tokenizer, "Schöne Grüße").tolist()[1::2] == [tokenizer.encoder[symbol] for symbol in expected]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert (again.language, again.phonemize) == ("de", True)
    assert encode(again, GERMAN).tolist() == encode(tokenizer, GERMAN).tolist()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__module__.startswith("transformers")
    assert theirs.get_vocab() == tokenizer.get_vocab()


def test_transformers_pipeline_accepts_the_tokenizer(tmp_path):
    """The usage that the model card of such a voice recommends."""
    tokenizer = build_tokenizer([GERMAN], "de", phonemize=True)
    torch.manual_seed(0)
    export(new_model(SMALL, tokenizer, []), tokenizer, None, tmp_path / "voice")
    speaker = pipeline("text-to-speech", str(tmp_path / "voice"), tokenizer=load_tokenizer(str(tmp_path / "voice")))
    assert speaker.preprocess(GERMAN)["input_ids"].tolist() == [encode(tokenizer, GERMAN).tolist()]
    assert speaker(GERMAN)["audio"].size > 0


def test_phonemes_that_the_vocabulary_lacks_are_dropped_and_reported():
    tokenizer = build_tokenizer(["schön"], "de", phonemize=True)
    known = [tokenizer.encoder[symbol] for symbol in espeak("schön im", "de") if symbol in tokenizer.encoder]
    assert encode(tokenizer, "Schön im").tolist()[1::2] == known
    assert unread_characters(tokenizer, ["Schön im"]) == "“ɪ”, “m”"
    assert unread_characters(tokenizer, ["Schön."]) == ""


@pytest.mark.slow
def test_uroman_is_created_once_and_agrees_with_transformers(tmp_path, monkeypatch):
    import uroman

    created = []
    init = uroman.Uroman.__init__
    monkeypatch.setattr(uroman.Uroman, "__init__", lambda self, *a, **k: (created.append(1), init(self, *a, **k))[1])
    languages._uroman.cache_clear()
    tokenizer = build_tokenizer(["abcdefghijklmnopqrstuvwxyz "])
    tokenizer.is_uroman = True
    ours = [encode(tokenizer, text).tolist() for text in ("Привет, мир", "добрый день", "plain")]
    assert len(created) == 1
    tokenizer.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.is_uroman = True
    assert theirs("Привет, мир").input_ids == ours[0] == encode(tokenizer, "privet mir").tolist()


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("uroman", lambda: languages.romanize("नमस्ते")),
        ("phonemizer.backend", lambda: languages.to_phonemes("a", "cy")),
    ],
)
def test_missing_package_is_named(module, call, monkeypatch):
    languages._uroman.cache_clear()
    languages._phonemizer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf"not installed \(.*{module}.*{re.escape(install_command('text'))}"):
        call()


def test_extended_vocabulary_keeps_the_ids_and_settings():
    tokenizer = build_tokenizer(["ab"], "de")
    larger = with_characters(tokenizer, "bäü")
    assert isinstance(larger, VoiceTokenizer)
    assert {symbol: larger.encoder[symbol] for symbol in tokenizer.encoder} == dict(tokenizer.encoder)
    assert (larger.encoder["ä"], larger.encoder["ü"]) == (4, 5)
    assert (larger.language, larger.add_blank, larger.normalize, larger.phonemize) == ("de", True, True, False)
    assert encode(larger, "AÄ").tolist() == [0, 1, 0, 4, 0]


def test_language_argument_overrides_the_voice(tmp_path):
    build_tokenizer(["ab"], "en", phonemize=True).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), "de").language == "de"
    assert load_tokenizer(str(tmp_path), "de").get_vocab() == load_tokenizer(str(tmp_path)).get_vocab()


def test_another_name_of_the_same_language_keeps_the_voices_name(tmp_path):
    """transformers maps a Romanian letter differently if the voice's language is ron."""
    build_tokenizer(["a\u0163"], "ron").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), "ro")
    assert tokenizer.language == "ron"
    assert encode(tokenizer, "a\u021b").tolist() == [0, 1, 0, 2, 0]
