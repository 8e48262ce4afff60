"""Symbols as words."""

import pytest
from num2words import CONVERTER_CLASSES

from tests.support.vocabularies import TOKENIZERS, read
from vits_trainer.text.symbols import SYMBOLS, WORDS, symbols_to_words
from vits_trainer.text.tokenizer import tokenizer_from_symbols
from vits_trainer.text.vocabulary import unread_characters


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("en", "50% or 50 %", "50 percent or 50 percent"),
        ("en", "€3.50, $5, £1, 3€ and $3.00 £2", "3 euros 50, 5 dollars, 1 pound, 3 euros and 3 dollars 2 pounds"),
        ("en", "$5 million, $1,000", "5 million dollars, 1,000 dollars"),
        ("en", "20°C, 1 °F, 90°, 5–10%", "20 degrees Celsius, 1 degree Fahrenheit, 90 degrees, 5–10 percent"),
        ("en", "R&D: me@x.org, C++, a=b", "R and D: me at x.org, C plus plus, a equals b"),
        ("en", "#1, №2, §3", "number 1, number 2, section 3"),
        ("en", "US$5, £3.5m, €1.234,56", "5 dollars, 3.5 million pounds, 1234 euros 56"),
        ("fr", "n° 5, 5°", "numéro 5, 5 degrés"),
        ("de", "1 %, 1 €, 3,50 €, 2\u00a0€", "ein Prozent, ein Euro, 3 Euro 50, 2 Euro"),
        ("fr", "1 €, 2 €, 3,50 €", "1 euro, 2 euros, 3 euros 50"),
        ("ru", "1% 2% 5% 11% 21% 3,5%", "1 процент 2 процента 5 процентов 11 процентов 21 процент 3,5 процента"),
        ("pl", "1% 2$ 5$ 22$ 12$", "1 procent 2 dolary 5 dolarów 22 dolary 12 dolarów"),
        ("cs", "1% 2% 5% 22%", "1 procento 2 procenta 5 procent 22 procent"),
        ("tr", "%50 ve 50%", "yüzde 50 ve yüzde 50"),
        ("ru", "20 °C", "20 градусов Цельсия"),
        ("ja", "50%", "50%"),
        ("en", "a # b, 5 ‰", "a # b, 5 ‰"),
    ],
)  # fmt: skip
def test_symbols_become_words_in_the_order_of_speech(code, text, expected):
    assert symbols_to_words(text, code) == expected


@pytest.mark.parametrize("code", WORDS)
def test_every_symbol_of_the_table_has_a_word_and_no_symbol_remains(code):
    assert code in CONVERTER_CLASSES
    for symbol, word in WORDS[code].items():
        text = symbols_to_words(f"a {symbol} b 3{symbol}, {symbol}3", code)
        assert (symbol in text) == (not word), text
    assert len(WORDS[code]) == len(SYMBOLS)


def test_known_symbols_are_kept():
    assert read(tokenizer_from_symbols([*"_ 1234567890%a"], language="en"), "50% a") == "50% a"


def test_symbols_without_words_are_reported():
    assert unread_characters(TOKENIZERS["eng"], ["50% & more @ 3€"]) == ""
    assert unread_characters(TOKENIZERS["eng"], ["5 ‰ ≈ 3 👍"]) == "“‰”, “≈”, “👍”"
    assert unread_characters(TOKENIZERS["kmr-script_latin"], ["sêv % €"]) == "“%”, “€”"
