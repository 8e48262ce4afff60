"""Characters of the texts that a voice's vocabulary lacks, which are logged before training."""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.strings import csv_cell

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
    def is_pronounced(self) -> bool:
        """Whether the character is a letter, a mark on a letter or a digit, and not punctuation."""
        return unicodedata.category(self.character)[0] in "LMN"

    def __str__(self) -> str:
        """Formats the character with count and example, for log lines."""
        return f"{self.character!r} {self.count} times ({self.example!r})" if self.count else repr(self.character)


def missing_characters(
    tokenizer: VoiceTokenizer, texts: Iterable[str], at_most: int | None = None
) -> list[MissingCharacter]:
    """Returns the characters of the verbalized ``texts`` that the vocabulary lacks, most frequent first.

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
        verbalized = tokenizer.verbalize(text)
        counts.update(verbalized)
        for character in set(verbalized) - examples.keys():
            examples[character] = text[:_EXAMPLE_CHARACTERS]
    missing: dict[str, MissingCharacter] = {}
    for original, count in counts.items():  # per character, because lowercasing each text takes a millisecond
        for character in set(tokenizer.lowercase(original)) - tokenizer.encoder.keys():
            if not character.isspace():
                before = missing.get(character, MissingCharacter(character, 0, examples[original]))
                missing[character] = replace(before, count=before.count + count)
    return sorted(missing.values(), key=lambda item: (-item.count, item.character))


def describe_missing(missing: Sequence[MissingCharacter]) -> list[str]:
    """Returns log lines: one for letters and digits and one for punctuation, if any are missing."""
    lines = []
    pronounced = [item for item in missing if item.is_pronounced]
    punctuation = [item for item in missing if not item.is_pronounced]
    if pronounced:
        shown = ", ".join(map(str, pronounced[:8]))
        lines.append(
            f"{len(pronounced)} letters or digits of the texts are not in the voice's vocabulary and are dropped: "
            f"{shown}{', ...' if len(pronounced) > 8 else ''}. vocabulary.csv lists them all; --extend_vocabulary "
            "true adds them."
        )
    if punctuation:
        characters = " ".join(item.character for item in punctuation[:20])
        lines.append(f"Punctuation that is not in the vocabulary is dropped, too: {characters}")
    return lines


def write_missing(path: Path, missing: Sequence[MissingCharacter]) -> None:
    """Writes a CSV file with character, Unicode name, count and example."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("character", "name", "count", "example"))
    for item in missing:
        name = unicodedata.name(item.character, "?")
        writer.writerow((csv_cell(item.character), name, item.count, csv_cell(item.example)))
    atomic_write(path, content.getvalue())
