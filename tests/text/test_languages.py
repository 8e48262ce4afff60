"""Phonemes in the right language, numbers as words, Latin letters from one uroman."""

import ctypes
import sys

import espeakng_loader
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from tests.support.models import SMALL
from vits_trainer.evaluation.synthesis import unknown_characters
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import export
from vits_trainer.text import languages
from vits_trainer.text.tokenizer import VoiceTokenizer, build_tokenizer, encode, load_tokenizer, with_characters
from vits_trainer.utils.errors import ModelError

pytest.importorskip("phonemizer", reason="needs vits-trainer[text]")
pytest.importorskip("uroman", reason="needs vits-trainer[text]")

GERMAN = "schöne grüße"


def espeak(text: str, voice: str) -> str:
    """Phonemes from espeak-ng's own library, not by phonemizer."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize(2, 0, str(espeakng_loader.get_data_path()).encode(), 0x8000)
    assert library.espeak_SetVoiceByName(voice.encode()) == 0
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    place = ctypes.c_char_p(text.encode())
    spoken = library.espeak_TextToPhonemes(ctypes.byref(place), 1, 0x02)  # UTF-8, IPA
    return spoken.decode()


@pytest.mark.parametrize("language", ["de", "deu", "deu-script_latin"])
def test_phonemes_are_german_where_the_text_is(language):
    ours = languages.phonemes(GERMAN, language)
    assert ours == espeak(GERMAN, "de")
    assert ours != languages.phonemes(GERMAN, "eng") == languages.phonemes(GERMAN, None)
    assert "øː" in ours


def test_unknown_language_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"--language 99: espeak-ng does not speak it. Give one of af, .*de"):
        languages.phonemes("a", "99")


def test_language_that_is_nearly_right_is_guessed():
    with pytest.raises(ModelError, match=r"--language germn: .* Did you mean"):
        languages.phonemes("a", "germn")


def test_every_language_of_the_table_is_one_of_espeaks():
    from phonemizer.backend import EspeakBackend

    languages.phonemes("a", "de")  # finds the library
    assert set(languages._OF_ISO_639.values()) <= set(EspeakBackend.supported_languages())


def test_foreign_words_leave_no_flags_and_nothing_has_no_phonemes():
    assert "(" not in languages.phonemes("Das ist ein Download, nice Meeting.", "de")
    assert languages.phonemes("  ", "de") == ""


@pytest.mark.parametrize(
    ("named", "espeaks"),
    [
        (None, "en-us"), ("eng", "en-us"), ("en", "en-us"), ("deu", "de"), ("de", "de"), ("en-gb", "en-gb"),
        ("kmr-script_latin", "ku"), ("fra", "fr-fr"), ("DEU", "de"),
    ],
)  # fmt: skip
def test_languages_go_by_iso_or_by_espeaks_names(named, espeaks):
    assert languages.espeak_name(named) == espeaks


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        ("12 Äpfel", "de", "zwölf Äpfel"),
        ("17 cats", "eng", "seventeen cats"),
        ("1,000 cats", "en", "one thousand cats"),
        ("1.000 Katzen, 3,5 Liter.", "deu", "eintausend Katzen, drei Komma fünf Liter."),
        ("3.5 litres.", "en-us", "three point five litres."),
        ("room 007", "en-us", "room zero zero seven"),
        ("5kg", "en-us", "five kg"),
        ("In 1984.", "de", "In eintausendneunhundertvierundachtzig."),
        ("21", "fra", "vingt et un"),
        ("٣", "en", "three"),
        ("0" + "1" * 400, "en", " ".join(["zero", *["one"] * 400])),
        ("1.000.000,5", "it", "un milione,cinque"),  # num2words fails at each of these, or never ends
        ("0," + "0" * 30 + "1", "id", " ".join(["nol,nol", *["nol"] * 29, "satu"])),
        ("0," + "1" * 40, "sr", " ".join(["nula,jedan", *["jedan"] * 39])),
        ("1" * 5000 + ",5", "de", " ".join(["eins"] * 5000) + ",fünf"),
        ("1537", "am", "አንድ አምስት ሦስት ሰባት"),
        ("999999999", "amh", " ".join(["ዘጠኝ"] * 9)),
        ("12 sêv", "kmr-script_latin", "12 sêv"),  # num2words has no Kurdish
        ("12", None, "12"),
        ("no number", "de", "no number"),
    ],
)
def test_numbers_become_words_where_the_language_has_them(text, language, said):
    assert languages.spelt_out(text, language) == said


def test_numbers_are_spelt_only_where_the_vocabulary_has_no_digits():
    without, with_digits = build_tokenizer(["zwölf äpfel"], "de"), build_tokenizer(["12 äpfel"], "de")
    assert encode(without, "12 Äpfel").tolist() == encode(without, "zwölf äpfel").tolist()
    assert len(encode(with_digits, "12")) == 5
    bengali = build_tokenizer(["৫টি"], "ben")  # num2words has Bengali, and the vocabulary the digit
    assert encode(bengali, "৫").tolist() == [0, bengali.encoder["৫"], 0]


def test_voice_of_phonemes_reads_them_and_loads_in_transformers(tmp_path):
    tokenizer = build_tokenizer([GERMAN], "de", reads_phonemes=True)
    sounds = espeak(GERMAN, "de")
    assert encode(tokenizer, "Schöne Grüße").tolist()[1::2] == [tokenizer.encoder[sign] for sign in sounds]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert (again.language, again.phonemize) == ("de", True)
    assert encode(again, GERMAN).tolist() == encode(tokenizer, GERMAN).tolist()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__module__.startswith("transformers")
    assert theirs.get_vocab() == tokenizer.get_vocab()


def test_transformers_pipeline_takes_the_tokenizer_that_reads_the_language(tmp_path):
    """What a card of such a voice advises."""
    tokenizer = build_tokenizer([GERMAN], "de", reads_phonemes=True)
    torch.manual_seed(0)
    export(new_model(SMALL, tokenizer, []), tokenizer, None, tmp_path / "voice")
    speaker = pipeline("text-to-speech", str(tmp_path / "voice"), tokenizer=load_tokenizer(str(tmp_path / "voice")))
    assert speaker.preprocess(GERMAN)["input_ids"].tolist() == [encode(tokenizer, GERMAN).tolist()]
    assert speaker(GERMAN)["audio"].size > 0


def test_phonemes_that_the_vocabulary_lacks_are_left_out_and_told():
    tokenizer = build_tokenizer(["schön"], "de", reads_phonemes=True)
    known = [tokenizer.encoder[sign] for sign in espeak("schön im", "de") if sign in tokenizer.encoder]
    assert encode(tokenizer, "Schön im").tolist()[1::2] == known
    assert unknown_characters(tokenizer, "Schön im") == "mɪ"
    assert unknown_characters(tokenizer, "Schön.") == ""


def test_uroman_is_made_once_and_says_what_transformers_says(tmp_path, monkeypatch):
    import uroman

    made = []
    whole = uroman.Uroman.__init__
    monkeypatch.setattr(uroman.Uroman, "__init__", lambda self, *a, **k: (made.append(1), whole(self, *a, **k))[1])
    languages._uroman.cache_clear()
    tokenizer = build_tokenizer(["abcdefghijklmnopqrstuvwxyz "])
    tokenizer.is_uroman = True
    ours = [encode(tokenizer, text).tolist() for text in ("Привет, мир", "добрый день", "plain")]
    assert len(made) == 1
    tokenizer.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.is_uroman = True
    assert theirs("Привет, мир").input_ids == ours[0] == encode(tokenizer, "privet mir").tolist()


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("uroman", lambda: languages.romanised("नमस्ते")),
        ("phonemizer.backend", lambda: languages.phonemes("a", "cy")),
    ],
)
def test_missing_package_is_named(module, call, monkeypatch):
    languages._uroman.cache_clear()
    languages._phonemizer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf"package that is missing \(.*{module}.*vits-trainer\[text\]'"):
        call()


def test_extended_vocabulary_keeps_the_ids_and_settings():
    tokenizer = build_tokenizer(["ab"], "de")
    larger = with_characters(tokenizer, "bäü")
    assert isinstance(larger, VoiceTokenizer)
    assert {sign: larger.encoder[sign] for sign in tokenizer.encoder} == dict(tokenizer.encoder)
    assert (larger.encoder["ä"], larger.encoder["ü"]) == (4, 5)
    assert (larger.language, larger.add_blank, larger.normalize, larger.phonemize) == ("de", True, True, False)
    assert encode(larger, "AÄ").tolist() == [0, 1, 0, 4, 0]


def test_other_language_can_be_given_to_a_voice(tmp_path):
    build_tokenizer(["ab"], "en", reads_phonemes=True).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), "de").language == "de"
    assert load_tokenizer(str(tmp_path), "de").get_vocab() == load_tokenizer(str(tmp_path)).get_vocab()


def test_other_name_of_a_voices_language_leaves_its_own(tmp_path):
    """transformers reads a Romanian letter otherwise where the voice says ron."""
    build_tokenizer(["a\u0163"], "ron").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), "ro")
    assert tokenizer.language == "ron"
    assert encode(tokenizer, "a\u021b").tolist() == [0, 1, 0, 2, 0]
