"""Characters of the texts that a voice's vocabulary lacks, which are logged before training."""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vits_trainer.text.normalization import is_spoken
from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.strings import counted, csv_cell, join_names

SAMPLE = 2000
"""Texts to examine if each takes milliseconds to convert; enough for a representative result."""
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class MissingCharacter:
    """A character that the vocabulary lacks."""

    character: str
    count: int
    """Occurrences in the examined texts; 0 if unknown, such as when streaming."""
    example: str
    """One of the texts, truncated."""

    @property
    def is_letter(self) -> bool:
        """Whether the character is a letter, a mark on a letter or a digit, which a vocabulary can learn."""
        return is_spoken(self.character) and unicodedata.category(self.character)[0] in "LMN"

    @property
    def is_symbol(self) -> bool:
        """Whether the character is read as a word or a name, such as % and emoji."""
        return is_spoken(self.character) and not self.is_letter

    def __str__(self) -> str:
        """Formats the character with its count, for log lines."""
        return f"{self.character!r} {counted(self.count, 'time')}" if self.count else repr(self.character)


def missing_characters(
    tokenizer: VoiceTokenizer, texts: Iterable[str], at_most: int | None = None
) -> list[MissingCharacter]:
    """Returns the characters of ``texts`` that the voice does not read, most frequent first.

    They are counted as the tokenizer reads the texts: after equal characters, words of numbers and symbols, and
    phonemes. White space and invisible characters are not listed.

    Args:
        tokenizer: tokenizer with the vocabulary.
        texts: texts to examine.
        at_most: maximum number of texts if the tokenizer converts them (uroman, phonemes), which is slow (None = all).

    Raises:
        ModelError: a package for the conversion is missing.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for text in islice(texts, at_most) if tokenizer.rewrites else texts:
        missing = tokenizer.resolve(text)[1]
        if not missing:
            continue
        counts.update(missing)
        for character in set(missing) - examples.keys():
            examples[character] = _excerpt(text, character)
    found = (MissingCharacter(character, count, examples[character]) for character, count in counts.items())
    return sorted(found, key=lambda item: (-item.count, item.character))


def unread_characters(tokenizer: VoiceTokenizer, texts: Iterable[str]) -> str:
    """Returns the letters, digits and symbols of ``texts`` that the voice does not read: “5”, “%”, in the texts' order.

    Raises:
        ModelError: a package for the conversion of the texts is missing.
    """
    missing = (character for text in texts for character in tokenizer.resolve(text)[1])
    return join_names([f"“{character}”" for character in dict.fromkeys(filter(is_spoken, missing))])


def describe_missing(missing: Sequence[MissingCharacter]) -> list[str]:
    """Returns log lines: one each for letters and digits, symbols, and punctuation, if any are missing."""
    lines = []
    letters = [item for item in missing if item.is_letter]
    symbols = [item for item in missing if item.is_symbol]
    punctuation = [item for item in missing if not is_spoken(item.character)]
    has_digits = any(item.character.isdecimal() for item in letters)
    spelling = "; numbers are spelled out if --language is one that num2words knows" if has_digits else ""
    if letters:
        lines.append(
            f"The voice's vocabulary lacks {counted(len(letters), 'letter or digit', 'letters or digits')} of the "
            f"texts, dropped: {_first(letters)}. vocabulary.csv lists them all; --extend_vocabulary true adds "
            f"them{spelling}."
        )
    if symbols:
        lines.append(
            f"The voice's language has no word for {counted(len(symbols), 'symbol')} of the texts, dropped: "
            f"{_first(symbols)}. Write them in the texts as they are spoken."
        )
    if punctuation:
        characters = " ".join(item.character for item in punctuation[:20])
        lines.append(f"Punctuation that is not in the vocabulary is dropped: {characters}")
    return lines


def _first(missing: Sequence[MissingCharacter]) -> str:
    """Returns the most frequent ones, with an example of the first."""
    example = f" ({missing[0].example!r})" if missing[0].example else ""
    return f"{missing[0]}{example}" + "".join(f", {item}" for item in missing[1:8]) + (", ..." * (len(missing) > 8))


def _excerpt(text: str, character: str) -> str:
    """Returns a part of ``text`` around a character, with an ellipsis where it is cut."""
    found = max(text.find(character), 0)  # a phoneme is not in the text
    start = max(0, min(found - _EXAMPLE_CHARACTERS // 2, len(text) - _EXAMPLE_CHARACTERS))
    end = start + _EXAMPLE_CHARACTERS
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def write_missing(path: Path, missing: Sequence[MissingCharacter]) -> None:
    """Writes a CSV file with character, Unicode name, count and example."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("character", "name", "count", "example"))
    for item in missing:
        name = unicodedata.name(item.character, "?")
        writer.writerow((csv_cell(item.character), name, item.count, csv_cell(item.example)))
    atomic_write(path, content.getvalue())
