"""Equal writings of characters: what a vocabulary has is kept, what it lacks is read as its equal or reported."""

import copy
import pickle
import random
import re
import time
import unicodedata
from pathlib import Path

import pytest
from transformers import VitsTokenizer

from tests.support.vocabularies import TOKENIZERS, read
from vits_trainer.text import normalization
from vits_trainer.text.normalization import EQUALS, Normalizer
from vits_trainer.text.tokenizer import build_tokenizer, encode, tokenizer_from_symbols, with_characters
from vits_trainer.text.vocabulary import missing_characters, unread_characters

WALKED = [*range(0x3400), *range(0x4E00, 0xD7FF, 97), *range(0xE000, 0xF900, 97), *range(0xF900, 0x10000)]
WALKED += [*range(0x10000, 0x20000, 7), *range(0xE0000, 0xE0200, 5)]
VOICES = pytest.mark.parametrize("language", TOKENIZERS)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, VitsTokenizer]:
    """The same vocabularies in transformers' own class."""
    tokenizers = {}
    for language, tokenizer in TOKENIZERS.items():
        folder = tmp_path_factory.mktemp("voice")
        tokenizer.save_pretrained(folder)
        tokenizers[language] = VitsTokenizer.from_pretrained(folder)
    return tokenizers


def may_be_silent(character: str) -> bool:
    """The documented characters without sound, from Unicode's categories."""
    if character in "%&@#§‰‱٪":
        return False
    kind = unicodedata.category(character)
    is_mark = "\ufe00" <= character <= "\ufe0f" or character >= "\U000e0100" or character in "\u034f\u0640`´"
    return kind[0] in "PZ" or kind in ("Cc", "Cf") or is_mark


@VOICES
def test_no_character_is_lost_unseen(language):
    tokenizer = TOKENIZERS[language]
    vowel = next(one for one in "aаاα" if one in tokenizer.encoder)
    without = len(tokenizer.resolve(f"{vowel}  {vowel}")[0])
    first = list(TOKENIZERS).index(language) % 3  # three vocabularies together see every character
    for character in map(chr, WALKED[first::3]):
        text = f"{vowel} {character} {vowel}"
        is_read = sum(one in tokenizer.encoder for one in tokenizer.resolve(text)[0]) > without
        forms = (unicodedata.normalize(form, character) for form in ("NFC", "NFKC"))
        is_silent = any(all(map(may_be_silent, form)) for form in forms)
        assert is_read or is_silent or unread_characters(tokenizer, [text]), hex(ord(character))


@VOICES
def test_known_characters_have_the_ids_of_transformers(language, theirs):
    ours = TOKENIZERS[language]
    letters = sorted(one for one in ours.encoder if len(one) == 1 and not one.isdecimal())
    rng = random.Random(0)
    for text in [*letters, *("".join(rng.choices(letters, k=30)) for _ in range(200))]:
        assert encode(ours, text).tolist() == (theirs[language](text).input_ids if text.strip() else [])
    capitals = "".join(rng.choices(letters, k=200)).upper()
    if ours.language != "tur":  # its I is ı
        assert encode(ours, capitals).tolist() == theirs[language](capitals).input_ids


@VOICES
def test_composed_and_decomposed_texts_have_the_same_ids_and_report(language):
    tokenizer = TOKENIZERS[language]
    letters = [chr(code) for code in [*range(0xC0, 0x250), *range(0x386, 0x3CF), *range(0x400, 0x460)]]
    letters += [chr(code) for code in range(0x1E00, 0x2000)] + ["각", "ئ", "क़"]
    for letter in filter(str.isalpha, letters):
        decomposed = unicodedata.normalize("NFD", letter)
        composed = unicodedata.normalize("NFC", letter)
        assert tokenizer.resolve(f"x{composed}x") == tokenizer.resolve(f"x{decomposed}x")


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("vie", "Tiê\u0301ng Viê\u0323t râ\u0301t đe\u0323p", "tiếng việt rất đẹp"),
        ("vie", "Vie\u0323\u0302t", "việt"),
        ("decomposed", "Vi\u1ec7t, \u1eb9\u0302 \u1eb9", "vie\u0323\u0302t, e\u0323\u0302 e\u0323".replace(",", "")),
        ("eng", "I’d we‘re sheʼll it`s I´m don＇t", "i'd we're she'll it's i'm don't"),
        ("deu", "wohl‐ und‑ a–b c—d", "wohl- und- a-b c-d"),
        ("eng", "ﬁne oﬃce Ｈｅｌｌｏ 𝐇𝐞𝐥𝐥𝐨 Ⅳ ㎏ K", "fine office hello hello iv kg k"),
        ("eng", "a\u00a0b\u2003c\td\ne\u3000f\u2028g", "a b c d e f g"),
        ("eng", "s\u00adof\u200bt\ufeff \u200fa\u200cb\u2060c", "soft abc"),
        ("eng", "wait…then and/or yes,no 'e.g.' (s)he", "wait then and or yes no 'eg' she"),
        ("eng", "a×b c^d e👍f (s)he U.S. a.b", "a b c d e f she us ab"),
        ("rus", "№ 5", "номер пять"),
        ("eng", "Cæsar’s œuvre", "caesar's oeuvre"),
        ("tur", "Isparta İSTANBUL ISLAK iğne", "ısparta istanbul ıslak iğne"),
        ("eng", "İstanbul", "istanbul"),
        ("tur", "ș Ș", "ş ş"),
        ("ara", "کتاب علی ٱلسلام سـلام", "كتاب علي السلام سلام"),
        ("ara", "١٢", "اثنا عشر"),
        ("rus", "“да” и „нет“", "«да« и «нет«"),
        ("ell", "ΟΔΟΣ ς", "οδοσ ς"),
        ("eng", "naïve", "naive"),
    ],
)  # fmt: skip
def test_equal_writings_are_read_alike(language, text, expected):
    assert read(TOKENIZERS[language], text) == expected


def test_romanian_letters_with_comma_and_cedilla_are_equal_for_every_vocabulary():
    for known, other in (("ș", "ş"), ("ş", "ș"), ("ț", "ţ"), ("ţ", "ț")):
        for language in ("ron", "ro", None):
            tokenizer = tokenizer_from_symbols(["_", "a", known], language=language)
            assert encode(tokenizer, f"a{other}{other.upper()}{known}").tolist() == [0, 1, 0, 2, 0, 2, 0, 2, 0]


def test_missing_letters_are_reported_composed_and_added_so():
    tokenizer = TOKENIZERS["eng"]
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "Grün, naïve")
        assert unread_characters(tokenizer, [text]) == "“ü”, “ï”"
    larger = with_characters(tokenizer, "üï")
    assert read(larger, unicodedata.normalize("NFD", "grün")) == "grün"


def test_characters_between_known_and_unknown_are_counted_once_per_occurrence():
    counts = {item.character: item.count for item in missing_characters(TOKENIZERS["deu"], ["é e\u0301 É", "Жé 👍👍"])}
    assert counts == {"é": 4, "ж": 1, "👍": 2}


def test_fractions_and_superscripts_are_not_read_as_other_numbers():
    for character in "½²①㎡⅓ª":
        assert unread_characters(TOKENIZERS["eng"], [f"a {character}"]) == f"“{character}”"


def test_new_vocabulary_has_one_writing_of_each_letter():
    tokenizer = build_tokenizer(["gru\u0308n grün", "ﬁne\u00a0\ufeffＨ"])
    assert {one for one in tokenizer.encoder if len(one) == 1} == set("grünefih ")
    assert unread_characters(tokenizer, ["gru\u0308n ﬁ"]) == ""


def test_tokenizers_can_be_copied_and_sent_to_workers():
    tokenizer = TOKENIZERS["eng"]
    expected = tokenizer.resolve("I’d ﬁ")
    sent = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - its own
    assert copy.deepcopy(tokenizer).resolve("I’d ﬁ") == sent.resolve("I’d ﬁ") == expected


def test_voices_that_keep_upper_case_keep_it():
    tokenizer = tokenizer_from_symbols([*"_ aABbI'"])
    assert read(tokenizer, "A’b BaI") == "A'b BaI"


def test_reading_a_text_is_faster_than_the_tokenizer_of_transformers(theirs):
    texts = [f"The quick brown fox doesn’t jump over {chr(97 + index % 26)} lazy dog" for index in range(100)]
    seconds = []
    for resolve in (TOKENIZERS["eng"].resolve, theirs["eng"].prepare_for_tokenization):
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            for text in texts:
                resolve(text)
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    assert seconds[0] < seconds[1]


def test_table_of_the_documentation_is_that_of_the_code():
    page = (Path(__file__).parents[2] / "docs/text.md").read_text(encoding="utf-8")
    table = re.findall(r"`` (.*?) ``", page.partition("## Equal characters")[2].partition("\n## ")[0])
    assert sorted(table) == sorted([*map(" ".join, EQUALS), *map(" ".join, normalization.EXPANSIONS.items())])


def test_vocabulary_without_space_or_letters_is_accepted():
    assert Normalizer(()).resolve("a\u00a0b") == ("a b", ("a", "b"))
