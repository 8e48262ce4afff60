"""How texts are read: against the packages and espeak-ng's own library, called another way."""

import json
import subprocess
import sys
from collections.abc import Callable

import espeakng_loader
import pytest

from vits_trainer import pronunciation
from vits_trainer.errors import ConfigError
from vits_trainer.pronunciation import espeak_language, phonemes, romanised, spelled_out

SENTENCES = {
    "de": "Guten Morgen, schöne Welt! Die Straße ist zwölf Meter lang.",
    "en-us": "The rain fell softly on the old stone bridge.",
    "tr": "Günaydın dünya, bugün hava çok güzel.",
    "ku": "Silav, hûn çawa ne?",
}
ESPEAK = """
import ctypes, json, sys
library, data, voice, text = sys.argv[1:]
espeak = ctypes.CDLL(library)
assert espeak.espeak_Initialize(2, 0, data.encode(), 0x8000) > 0
assert espeak.espeak_SetVoiceByName(voice.encode()) == 0
espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
left, found = ctypes.c_char_p(text.encode()), []
while left.value:
    found.append(espeak.espeak_TextToPhonemes(ctypes.byref(left), 1, 2).decode())
print(json.dumps(found))
"""


def espeaks_phonemes(text: str, voice: str) -> str:
    """By the C library itself, in a process of its own."""
    words = [espeakng_loader.get_library_path(), espeakng_loader.get_data_path(), voice, text]
    ended = subprocess.run([sys.executable, "-c", ESPEAK, *words], capture_output=True, text=True, check=True)
    return " ".join(json.loads(ended.stdout))


def letters(spoken: str) -> str:
    """Without punctuation, which espeak-ng swallows."""
    return "".join(character for character in spoken if character not in ",.!?;: ")


@pytest.mark.parametrize("language", SENTENCES)
def test_phonemes_are_espeaks_in_that_language(language: str) -> None:
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    spoken = phonemes(SENTENCES[language], language)
    assert letters(spoken) == letters(espeaks_phonemes(SENTENCES[language], language))
    assert [mark for mark in spoken if mark in ",.!?"] == [mark for mark in SENTENCES[language] if mark in ",.!?"]


def test_german_phonemes_are_not_english_ones() -> None:
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    german, english = (phonemes("ich spreche schöne Wörter", language) for language in ("de", "en-us"))
    assert all(sound in german for sound in ("ç", "øː", "œ"))
    assert not any(sound in english for sound in ("ç", "øː", "œ"))


def test_foreign_words_leave_no_flags() -> None:
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    assert "(" not in phonemes("Das ist ein Download, nice Meeting.", "de")


def test_nothing_has_no_phonemes() -> None:
    assert phonemes("  ", "de") == ""


@pytest.mark.parametrize(
    ("named", "espeaks"),
    [
        (None, "en-us"), ("eng", "en-us"), ("en", "en-us"), ("deu", "de"), ("de", "de"), ("en-gb", "en-gb"),
        ("kmr-script_latin", "ku"), ("fra", "fr-fr"), ("DEU", "de"),
    ],
)  # fmt: skip
def test_languages_go_by_iso_or_by_espeaks_names(named: str | None, espeaks: str) -> None:
    assert espeak_language(named) == espeaks


def test_every_language_of_the_table_is_one_of_espeaks() -> None:
    backend = pytest.importorskip("phonemizer.backend", reason="phonemes need phonemizer-fork")
    phonemes("a", "de")  # finds the library
    assert set(pronunciation._OF_ISO_639.values()) <= set(backend.EspeakBackend.supported_languages())


def test_language_that_espeak_does_not_have_is_refused() -> None:
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    with pytest.raises(ConfigError, match="--language germn: espeak-ng has no such language"):
        phonemes("Guten Tag", "germn")


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("17 cats", "en-us", "seventeen cats"),
        ("17 Katzen", "de", "siebzehn Katzen"),
        ("1,000 cats", "en-us", "one thousand cats"),
        ("1.000 Katzen, 3,5 Liter.", "de", "eintausend Katzen, drei Komma fünf Liter."),
        ("3.5 litres.", "en-us", "three point five litres."),
        ("room 007", "en-us", "room zero zero seven"),
        ("5kg", "en-us", "five kg"),
        ("In 1984.", "de", "In eintausendneunhundertvierundachtzig."),
        ("21", "fr-fr", "vingt et un"),
        ("٣", "en-us", "three"),
        ("no number", "en-us", "no number"),
    ],
)
def test_numbers_become_words(text: str, language: str, words: str) -> None:
    pytest.importorskip("num2words", reason="numbers as words need num2words")
    assert spelled_out(text, language) == words


def test_long_numbers_are_read_digit_by_digit() -> None:
    pytest.importorskip("num2words", reason="numbers as words need num2words")
    assert spelled_out("0" + "1" * 400, "en-us").split() == ["zero", *["one"] * 400]


def test_language_that_num2words_does_not_have_is_refused_where_there_is_a_number() -> None:
    pytest.importorskip("num2words", reason="numbers as words need num2words")
    assert spelled_out("Silav", "ku") == "Silav"
    with pytest.raises(ConfigError, match="num2words has no language ku"):
        spelled_out("3 sêv", "ku")


def test_one_instance_of_uroman_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    uroman = pytest.importorskip("uroman", reason="romanisation needs uroman")
    made = []
    build = uroman.Uroman

    def counted() -> object:
        made.append(build())
        return made[-1]

    monkeypatch.setattr(uroman, "Uroman", counted)
    pronunciation._uroman.cache_clear()
    assert [romanised(text) for text in ("नमस्ते", "Привет", "plain", "你好")] == ["namaste", "Privet", "plain", "nihao"]
    assert len(made) == 1


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("uroman", lambda: romanised("नमस्ते")),
        ("num2words", lambda: spelled_out("3", "de")),
        ("phonemizer.backend", lambda: phonemes("a", "cy")),
    ],
)
def test_missing_package_is_said_with_the_remedy(
    module: str, call: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pronunciation._uroman.cache_clear()
    pronunciation._phonemizer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'vits-trainer\[text\]'"):
        call()
