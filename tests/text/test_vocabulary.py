"""Characters that a vocabulary lacks: counts, examples, log lines and vocabulary.csv."""

import csv

from tests.support.models import TOKENIZER
from vits_trainer.text.tokenizer import build_tokenizer, tokenizer_from_symbols
from vits_trainer.text.vocabulary import describe_missing, missing_characters, write_missing

TEXTS = ["Silav dinya.", "Çêlek û çem!", "Silav, ç 5"]


def test_missing_characters_are_counted_with_an_example():
    missing = {m.character: (m.count, m.example) for m in missing_characters(TOKENIZER, TEXTS)}
    # Vocabulary: "silav dinya", in lower case
    assert missing["ç"] == (3, "Çêlek û çem!")
    assert missing["e"] == (2, "Çêlek û çem!")
    assert missing["5"] == (1, "Silav, ç 5")
    assert missing.keys() == set("çêeûkm5.,!")


def test_report_separates_letters_from_punctuation(tmp_path):
    missing = missing_characters(TOKENIZER, TEXTS)
    letters, punctuation = describe_missing(missing)
    assert letters.startswith("The voice's vocabulary lacks 7 letters or digits of the texts")
    assert "dropped: 'ç' 3 times ('Çêlek û çem!'), 'e' 2 times, " in letters
    assert "--extend_vocabulary true" in letters
    assert set(punctuation.rpartition(": ")[2].split()) == set(".,!")
    assert describe_missing([]) == []
    write_missing(tmp_path / "vocabulary.csv", missing)
    with (tmp_path / "vocabulary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "character": "ç", "name": "LATIN SMALL LETTER C WITH CEDILLA", "count": "3", "example": "Çêlek û çem!"
    }  # fmt: skip


def test_upper_case_of_the_vocabulary_is_not_missing():
    assert missing_characters(build_tokenizer(["ab"]), ["AB ab"]) == []
    upper = tokenizer_from_symbols(["_", "A", "b", " "])
    assert [(m.character, m.count) for m in missing_characters(upper, ["Ab aB"])] == [("a", 1)]


def test_cells_of_the_csv_file_are_not_formulas(tmp_path):
    write_missing(tmp_path / "vocabulary.csv", missing_characters(build_tokenizer(["ab"]), ["=a+b"]))
    with (tmp_path / "vocabulary.csv").open(newline="") as file:
        rows = [(row["character"], row["example"]) for row in csv.DictReader(file)]
    assert rows == [("'+", "'=a+b"), ("'=", "'=a+b")]


def test_missing_phonemes_are_found():
    tokenizer = build_tokenizer(["the end"], "en", phonemize=True)
    missing = {m.character for m in missing_characters(tokenizer, ["the fish"])}
    # The vowel of "the" differs before "end".
    assert missing == {"f", "ʃ", "ə"}
