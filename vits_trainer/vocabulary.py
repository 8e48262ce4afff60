"""Characters of the texts that a voice's vocabulary lacks: told before training, and added where that is asked for."""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from transformers import VitsModel

from vits_trainer.files import write_whole
from vits_trainer.ledger import csv_cell
from vits_trainer.text import VoiceTokenizer, extended

SAMPLE = 2000
"""So many texts tell enough, where each takes some milliseconds to be read."""
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class Missing:
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


def missing_characters(tokenizer: VoiceTokenizer, texts: Iterable[str], at_most: int | None = None) -> list[Missing]:
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
    lacking: dict[str, Missing] = {}
    for read, count in counts.items():  # character by character, as a whole text takes a millisecond
        for character in set(tokenizer.normalised(read)) - tokenizer.encoder.keys():
            if not character.isspace():
                before = lacking.get(character, Missing(character, 0, examples[read]))
                lacking[character] = replace(before, count=before.count + count)
    return sorted(lacking.values(), key=lambda missing: (-missing.count, missing.character))


def report(missing: Sequence[Missing]) -> list[str]:
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


def write(path: Path, missing: Sequence[Missing]) -> None:
    """Writes ``path``: character, its name, count, example."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("character", "name", "count", "example"))
    for found in missing:
        name = unicodedata.name(found.character, "?")
        writer.writerow((csv_cell(found.character), name, found.count, csv_cell(found.example)))
    write_whole(path, content.getvalue())


def extend(model: VitsModel, tokenizer: VoiceTokenizer, texts: Iterable[str]) -> VoiceTokenizer:
    """Gives ``model`` an embedding for each letter, mark and digit of ``texts`` that the vocabulary lacks.

    Old ids and their embeddings stay to the last bit; new ones start at the mean of the old ones. Changes ``model``.

    Returns:
        The tokenizer that knows them.
    """
    missing = missing_characters(tokenizer, texts)
    # Of phonemes every sign counts: stress marks and lengths are no letters.
    added = [found.character for found in missing if found.is_spoken or tokenizer.phonemize]
    if not added:
        return tokenizer
    larger = extended(tokenizer, added)
    old = model.text_encoder.embed_tokens.weight.detach()
    known = 1 + max(tokenizer.encoder.values())
    padding = model.text_encoder.embed_tokens.padding_idx
    embedding = nn.Embedding(max(1 + max(larger.encoder.values()), len(old)), old.shape[1], padding_idx=padding)
    with torch.no_grad():
        embedding.weight[: len(old)] = old
        # Some voices have more rows than tokens.
        embedding.weight[known:] = old[:known].mean(dim=0)
    model.text_encoder.embed_tokens = embedding
    model.config.vocab_size = len(embedding.weight)
    return larger
