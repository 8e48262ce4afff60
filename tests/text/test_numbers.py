"""Numbers as words."""

import pytest
from num2words import CONVERTER_CLASSES

from tests.support.vocabularies import TOKENIZERS, read
from vits_trainer.text.numbers import numbers_to_words
from vits_trainer.text.tokenizer import build_tokenizer, encode, tokenizer_from_symbols
from vits_trainer.text.vocabulary import unread_characters


@pytest.mark.parametrize(
    ("text", "language", "expected"),
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
        ("1.000.000,5", "it", "un milione virgola cinque"),  # num2words fails or loops forever from here on
        ("0," + "0" * 30 + "1", "id", " ".join(["nol koma nol", *["nol"] * 29, "satu"])),
        ("0," + "1" * 40, "sr", " ".join(["nula zapeta jedan", *["jedan"] * 39])),
        ("1" * 5000 + ",5", "de", " ".join(["eins"] * 5000) + " Komma fünf"),
        ("1537", "am", "አንድ አምስት ሦስት ሰባት"),
        ("999999999", "amh", " ".join(["ዘጠኝ"] * 9)),
        ("12 sêv", "kmr-script_latin", "12 sêv"),  # num2words has no Kurdish
        ("12", None, "12"),
        ("no number", "de", "no number"),
    ],
)
def test_numbers_become_words_if_the_language_is_supported(text, language, expected):
    assert numbers_to_words(text, language) == expected


def test_numbers_are_written_out_unless_the_vocabulary_has_all_digits():
    with_some = tokenizer_from_symbols([*"_ zwölfäpe12"], language="de")
    for tokenizer in (build_tokenizer(["zwölf äpfel"], "de"), with_some):
        assert encode(tokenizer, "12 Äpfel").tolist() == encode(tokenizer, "zwölf äpfel").tolist()
    with_all = build_tokenizer(["1234567890 äpfel"], "de")
    assert encode(with_all, "12").tolist() == [0, with_all.encoder["1"], 0, with_all.encoder["2"], 0]
    bengali = build_tokenizer(["০১২৩৪৫৬৭৮৯টি"], "ben")  # num2words supports Bengali, but the vocabulary has the digits
    assert encode(bengali, "৫").tolist() == encode(bengali, "5").tolist() == [0, bengali.encoder["৫"], 0]


def test_new_vocabulary_has_the_letters_of_numbers_instead_of_some_digits():
    tokenizer = build_tokenizer(["12 äpfel"], "de")
    assert tokenizer.encoder.keys().isdisjoint("0123456789")
    assert unread_characters(tokenizer, ["345 Äpfel, 67 890 und 21"]) == ""


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("fra", "12 500 km", "douze mille cinq cents km"),
        ("fra", "1 000\u00a0000,5", "un million virgule cinq"),
        ("pol", "10\u202f000", "dziesięć tysięcy"),
        ("rus", "10 000", "десять тысяч"),
        ("swe", "2 000", "tvåtusen"),
        ("deu", "12\u2009500, 12’500, 12'500", ", ".join(3 * ["zwölftausendfünfhundert"])),
        ("eng", "12 500", "twelve five hundred"),
        ("eng", "12\u00a0500", "twelve thousand, five hundred"),
        ("eng", "1 000 and 12 500 000", "one thousand and twelve million, five hundred thousand"),
        ("eng", "21ST", "twenty-first"),
        ("fra", "la 1re et la 1ère", "la première et la première"),
        ("eng", "1,00,000", "one hundred thousand"),
        ("eng", "1,000,000,000", "one billion"),
        ("fra", "06 123 456", "zéro six cent vingt-trois mille quatre cent cinquante-six"),
        ("fra", "2020 100", "deux mille vingt cent"),
        ("eng", "1st 2nd 23rd 100th", "first second twenty-third one hundredth"),
        ("eng", "the 1980s, '80s, 90’s and 1900s", "the nineteen eighties, eighties, nineties and nineteen hundreds"),
        ("fra", "le 1er et le 2e", "le premier et le deuxième"),
        ("spa", "1º 3.º", "primero tercero"),
        ("deu", "am 3. Mai", "am drei. Mai"),
        ("eng", "-5 −5 (-5) 10-5", "minus five minus five (minus five) ten five"),
        ("vie", "-5", "âm năm"),
        ("pol", "-5", "minus pięć"),
        ("ita", "3,5 3,05", "tre virgola cinque tre virgola zero cinque"),
        ("tur", "3,05", "üç virgül sıfır beş"),
        ("eng", "3-5 days, 10–12, 1-0", "three to five days, ten to twelve, one zero"),
        ("deu", "2–3", "zwei bis drei"),
        ("rus", "2–3", "два три"),
        ("eng", "10:30 or 10:00", "ten: thirty or ten o'clock"),
        ("deu", "10:30 Uhr, 9:00 Uhr", "zehn Uhr dreißig, neun Uhr"),
        ("eng", "1.2.3 1/2", "one point two. three one/ two"),
        ("eng", "Covid-19 5kg", "Covid- nineteen five kg"),
        ("hin", "१२", "१२"),  # num2words has no Hindi
        ("ara", "٣٫٥", "ثلاثة فاصلة خمسة"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_the_language_writes_them(language, text, expected):
    assert numbers_to_words(text, language) == expected


NUMBERS = ["9" * 9, "9" * 10, "9" * 5000, "1 000 000", "123 456 789 012 345", "123,456,789,012", "1'000", "٣", "१२"]
NUMBERS += ["0", "7", "007", "3", "3,5", "3,05", "3.5", "3.05", "-5", "5", "1,000", "1.000", "9:30", "5-9", "1st"]


@pytest.mark.parametrize("language", sorted(code for code in CONVERTER_CLASSES if "_" not in code))
def test_no_language_loses_digits_or_fails(language):
    words = {text: numbers_to_words(text, language) for text in NUMBERS}
    assert not any(map(str.isdecimal, "".join(words.values())))
    assert all(words.values())
    for first, second in (("3,5", "3,05"), ("3.5", "3.05"), ("3,5", "3"), ("7", "007")):
        assert words[first] != words.get(second)


def test_english_voice_with_some_digits_reads_every_number():
    tokenizer = TOKENIZERS["eng"]
    assert read(tokenizer, "7 of 19 cats in 1999: 9 8 7") == (
        "seven of nineteen cats in one thousand nine hundred and ninety-nine nine eight seven"
    )
    assert unread_characters(tokenizer, ["In 1999 there were 7 of 19 cats."]) == ""


def test_digits_remain_where_the_language_has_no_words():
    assert unread_characters(TOKENIZERS["kmr-script_latin"], ["12 sêv"]) == "“1”, “2”"
    some = tokenizer_from_symbols([*"_ sêv12"], language="kmr-script_latin")
    assert read(some, "12 sêv ٢") == "12 sêv 2"
