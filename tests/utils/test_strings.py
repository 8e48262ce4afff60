"""String utilities."""

import pytest

from vits_trainer.utils import strings
from vits_trainer.utils.strings import one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Roj baş, hevalê min!", "Roj baş, hevalê min!"),
        ("a|b", "a b"),
        ("a\r\nb\nc\rd", "a b c d"),
        ("a\u2028b\u2029c\x85d\x0be\x0cf", "a b c d e f"),
        ("a\tb\0c", "a b c"),
        ("  a \u00a0 b ", "a b"),
        (" |\n\0", ""),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(text) == expected


def test_no_break_spaces_remain_between_digits_only():
    text = " 12\u00a0500\u202f000 km,\u00a0 10\u00a0Uhr 5\u00a0\u00a05 "
    assert one_line(text) == "12\u00a0500\u202f000 km, 10 Uhr 5 5"


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["Hello, World!", "hello world", "...", ""],
        ["Grüße", "GRÜSSE", "e\u0301", "\u0301alone", "ﬁn", "ΟΔΟΣ", "12 500", "a\u2028b"],
        ["two\nlines", "one"],
    ],
)
def test_texts_compared_all_at_once_are_those_compared_one_by_one(texts: list[str]) -> None:
    assert strings.comparable_texts(texts) == [strings.comparable_text(text) for text in texts]
