"""Numbers as words: groups of digits, decimals, signs, ranges, times and ordinals."""

import re
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from num2words import CONVERTER_CLASSES, num2words

from vits_trainer.text.languages import espeak_name
from vits_trainer.utils.strings import GROUP_SPACES

_OF_NUM2WORDS = {"cmn": "zh", "kk": "kz", "nb": "no"}
_TABLE = """
ar - ٫ فاصلة سالب -
az - , - mənfi -
be _ , - мінус -
bn , . দশমিক - -
ca ._ , coma menys a
cs _ , - mínus až
cy - - - minws -
da ._ , komma minus til
de ._ , Komma minus bis
en , . point minus to
eo - - - minus -
es ._ , coma menos a
fa - ٫ ممیز منفی -
fi _ , pilkku miinus -
fr _ , virgule moins à
he , . - מינוס -
hu _ , - mínusz -
id . , koma minus sampai
is . , - mínus -
it ._ , virgola meno a
ja , . - マイナス -
kn , . - - -
ko , . - 마이너스 -
kz _ , бүтін минус -
lt _ , - minus -
lv _ , - mīnus -
nl . , komma min tot
no _ , komma minus til
pl _ , - minus do
pt ._ , vírgula menos a
ro ._ , virgulă minus -
ru _ , - минус -
sk _ , - mínus až
sl ._ , - minus -
sr ._ , zapeta minus -
sv _ , komma minus till
te , . - - -
tg - - - минус -
th , . - ลบ -
tr . , virgül eksi -
uk _ , - мінус -
vi . , phẩy âm -
"""


class _Conventions(NamedTuple):
    """How a language writes and reads numbers: "" where it is unknown."""

    groups: str = ""
    """What separates thousands, in addition to apostrophes, no-break and thin spaces, which all languages may write."""
    point: str = ""
    point_word: str = ""
    """Of languages that read decimals digit by digit. num2words reads others, but loses digits of some of these."""
    minus: str = ""
    to: str = ""
    """Between the numbers of a range; without it, there is a pause."""


_CONVENTIONS = {
    code: _Conventions(groups.replace("_", " ").strip("-"), *("" if cell == "-" else cell for cell in cells))
    for code, groups, *cells in map(str.split, _TABLE.strip().splitlines())
}
_ORDINALS = {
    "en": r"(\d+)(?i:st|nd|rd|th)\b",
    "es": r"(\d+)\.?[º]",
    "fr": r"(\d+)(?:er|re|ère|e|ème|eme)\b",
    "it": r"(\d+)[º]",
    "nl": r"(\d+)(?:ste|de|e)\b",
    "pt": r"(\d+)\.?[º]",
    "sv": r"(\d+):[ae]\b",
}
"""Ordinals that are written unlike anything else; 3. may also end a sentence."""
_LONGEST_NUMBER = 9
"""In digits, without groups. Longer numbers, and those that start with 0, are read digit by digit."""
_LONGEST_GROUPED = 15
"""In digits, with groups such as 1,000,000,000."""
_SHORTER = {"am": 3}
"""Maximum digits for languages in which num2words loops forever or fails on longer numbers."""
_NO_WORDS = (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError)
"""Errors of num2words for unsupported numbers."""
ALL_NUMBER_WORDS = " ".join(map(str, [*range(101), 1000, 10**6, 10**9]))
"""A text whose words have the letters of all numbers."""
_APOSTROPHES = "'’٬"
"""Separators in all languages: the Swiss and the Arabic one."""


def number_language(language: str | None) -> str | None:
    """Returns num2words' name of a language as named by voices, or None if num2words lacks it."""
    base = espeak_name(language).split("-")[0] if language else ""
    code = _OF_NUM2WORDS.get(base, base)
    return code if code in CONVERTER_CLASSES else None


def numbers_to_words(text: str, language: str | None) -> str:
    """Replaces numbers in ``text`` with words. Returns ``text`` unchanged if num2words lacks the language.

    Separators such as in 1.000, 12 500 and 3,5 are read according to the language. Numbers of more than nine digits
    without separators, and those that start with 0, are read digit by digit.
    """
    code = number_language(language)
    if code is None or not any(map(str.isdecimal, text)):
        return text
    if code == "en":
        text = re.sub(r"(?<!\w)['’]?(\d+)['’]?s\b", lambda match: _english_plural(match[1]), text)
        text = re.sub(r"(?<![\d:.])(\d{1,2}):00(?![\d:])", r"\1 o'clock", text)
    if code == "de":
        text = re.sub(r"(?<![\d:.])(\d{1,2}):([0-5]\d) ?Uhr\b", _german_time, text)
    if code in _ORDINALS:
        text = re.sub(rf"(?<![\w.,]){_ORDINALS[code]}", lambda match: _ordinal(match, code), text)
    text = re.sub(r"(?<![\d.,:/–-])(\d+)([–-])(\d+)(?![\d:/–-]|[.,]\d)", lambda match: _range(match, code), text)
    if minus := _conventions(code).minus:
        text = re.sub(r"(?<![\w.,)\]])[-−–](?=\d)|−(?=\d)", f"{minus} ", text)
    return _number_pattern(code).sub(lambda match: _separated(match, _match_to_words(match, code)), text)


def _conventions(code: str) -> _Conventions:
    return _CONVENTIONS.get(code, _Conventions())


@lru_cache(maxsize=64)
def _number_pattern(code: str) -> re.Pattern[str]:
    groups, point = _conventions(code)[:2]
    marks, spaces = groups.strip() + _APOSTROPHES, GROUP_SPACES + groups[len(groups.rstrip()) :]
    grouped = rf"(?!0)\d{{1,3}}(?:(?:[{spaces}]\d{{3}})+|(?P<mark>[{marks}])\d{{3}}(?:(?P=mark)\d{{3}})*)"
    zeros = r"|(?!0)\d{1,3}(?: \d{3})* 000"  # in all languages: 000 is no number of its own
    indian = r"|\d{1,2}(?:,\d{2})+,\d{3}" if "," in groups else ""
    fraction = rf"(?:{re.escape(point)}(?P<fraction>\d+))?" if point else "(?P<fraction>(?!))?"
    return re.compile(rf"(?P<whole>(?<!\d)(?:{grouped}{zeros}{indian})(?!\d)|\d+){fraction}")


def _match_to_words(match: re.Match[str], code: str) -> str:
    digits = "".join(filter(str.isdecimal, match["whole"]))
    longest = _LONGEST_NUMBER if digits == match["whole"] else _LONGEST_GROUPED
    return _number_to_words(digits, match["fraction"] or "", code, longest)


def _separated(match: re.Match[str], words: str) -> str:
    """Returns ``words``, separated from adjacent letters, and from what is before a mark (3.5, 10:30, B-2)."""
    before, after = match.string[: match.start()][-2:], match.string[match.end() :][:2]
    is_joined = before[-1:].isalpha() or (len(before) == 2 and before[0].isalnum() and before[1] in "-–.:,/'’+")
    return f"{' ' if is_joined else ''}{words}{' ' if after[:1].isalpha() else ''}"


def _number_to_words(whole: str, fraction: str, code: str, longest: int = _LONGEST_NUMBER) -> str:
    if fraction:
        integer = _number_to_words(whole, "", code, longest)
        if word := _conventions(code).point_word:
            return f"{integer} {word} {_digit_by_digit(fraction, code)}"
        if len(whole) <= longest:
            digits = "".join(str(int(digit)) for digit in fraction)
            with suppress(*_NO_WORDS):
                return str(num2words(Decimal(f"{int(whole)}.{digits}"), lang=code))
        return f"{integer}{_conventions(code).point} {_digit_by_digit(fraction, code)}"
    if len(whole) <= _SHORTER.get(code, longest) and (len(whole) == 1 or int(whole[0]) != 0):
        with suppress(*_NO_WORDS):
            return str(num2words(int(whole), lang=code))
    return _digit_by_digit(whole, code)


def _digit_by_digit(digits: str, code: str) -> str:
    return " ".join(str(num2words(int(digit), lang=code)) for digit in digits)


def _range(match: re.Match[str], code: str) -> str:
    """Returns a range with its word: 3–5, 3-5 or 1939-1945; 555-1234 and 3-1 are two numbers."""
    first, dash, last = match.groups()
    is_short = len(first) <= len(last) <= 3 or len(first) == len(last) == 4
    is_range = dash == "–" or (is_short and int(first) < int(last))
    to = _conventions(code).to if is_range else ""
    return f"{first} {to} {last}" if to else f"{first} {last}"


def _ordinal(match: re.Match[str], code: str) -> str:
    if len(match[1]) <= _LONGEST_NUMBER:
        with suppress(*_NO_WORDS):
            words = str(num2words(int(match[1]), lang=code, to="ordinal"))
            return "première" if code == "fr" and match[0].endswith("re") else words
    return match[0]


def _english_plural(digits: str) -> str:
    """Returns decades and other plurals: 1980s, '80s, 747s."""
    if len(digits) > _LONGEST_NUMBER:
        return f"{digits} s"
    words = str(num2words(int(digits), lang="en", to="year" if len(digits) == 4 else "cardinal"))
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}es" if words.endswith("x") else f"{words}s"


def _german_time(match: re.Match[str]) -> str:
    hour, minute = match.groups()
    return f"{hour} Uhr" if int(minute) == 0 else f"{hour} Uhr {int(minute)}"
