"""Characters of the texts that a voice's vocabulary lacks: told before training, and added where that is asked for."""

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
"""So many texts tell enough, where each takes some milliseconds to be read."""
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class MissingCharacter:
    """One character that the vocabulary lacks."""

    character: str
    count: int
    """In all texts that were looked at; 0 where nobody has counted, as in a stream."""
    example: str
    """One of them."""

    @property
    def is_spoken(self) -> bool:
        """Whether something is lost to the ear: a letter, a mark on one, a digit; not punctuation."""
        return unicodedata.category(self.character)[0] in "LMN"

    def __str__(self) -> str:
        """For people."""
        return f"{self.character!r} {self.count} times ({self.example!r})" if self.count else repr(self.character)


def missing_characters(
    tokenizer: VoiceTokenizer, texts: Iterable[str], at_most: int | None = None
) -> list[MissingCharacter]:
    """What the vocabulary lacks of ``texts`` as they are read, the most frequent first.

    Args:
        tokenizer: whose vocabulary.
        texts: to be read.
        at_most: of texts that the tokenizer rewrites (uroman, phonemes), look at so many (None = at all).

    Raises:
        ModelError: a package that rewrites them is missing.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for text in islice(texts, at_most) if tokenizer.rewrites else texts:
        spoken = tokenizer.spoken(text)
        counts.update(spoken)
        for character in set(spoken) - examples.keys():
            examples[character] = text[:_EXAMPLE_CHARACTERS]
    lacking: dict[str, MissingCharacter] = {}
    for read, count in counts.items():  # character by character, as a whole text takes a millisecond
        for character in set(tokenizer.normalised(read)) - tokenizer.encoder.keys():
            if not character.isspace():
                before = lacking.get(character, MissingCharacter(character, 0, examples[read]))
                lacking[character] = replace(before, count=before.count + count)
    return sorted(lacking.values(), key=lambda missing: (-missing.count, missing.character))


def describe_missing(missing: Sequence[MissingCharacter]) -> list[str]:
    """The same for people: a line for what is lost to the ear and one for the rest, where there is any."""
    lines = []
    spoken = [found for found in missing if found.is_spoken]
    silent = [found for found in missing if not found.is_spoken]
    if spoken:
        shown = ", ".join(map(str, spoken[:8]))
        lines.append(
            f"{len(spoken)} letters or digits of the texts are not in the voice's vocabulary, and are left out: {shown}"
            f"{', ...' if len(spoken) > 8 else ''}. vocabulary.csv has them all; --extend_vocabulary true adds them."
        )
    if silent:
        signs = " ".join(found.character for found in silent[:20])
        lines.append(f"Punctuation that the voice does not know is left out, too: {signs}")
    return lines


def write_missing(path: Path, missing: Sequence[MissingCharacter]) -> None:
    """Writes ``path``: character, its name, count, example."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("character", "name", "count", "example"))
    for found in missing:
        name = unicodedata.name(found.character, "?")
        writer.writerow((csv_cell(found.character), name, found.count, csv_cell(found.example)))
    atomic_write(path, content.getvalue())
