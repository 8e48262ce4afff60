"""Characters of the texts that a voice's vocabulary lacks: told before training, and added where that is asked for."""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from transformers import VitsModel

from vits_trainer.files import write_whole
from vits_trainer.text import VoiceTokenizer, extended

_SAMPLE = 2000
"""Of texts that must be rewritten to know their characters, which takes a millisecond each."""
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class Missing:
    """One character that the vocabulary lacks."""

    character: str
    count: int
    """In all texts that were looked at."""
    example: str
    """One of them."""

    @property
    def is_spoken(self) -> bool:
        """Whether something is lost to the ear: a letter, a mark on one, a digit; not punctuation."""
        return unicodedata.category(self.character)[0] in "LMN"


def missing_characters(tokenizer: VoiceTokenizer, texts: Iterable[str]) -> list[Missing]:
    """What the vocabulary lacks of ``texts``, the most frequent first.

    Of texts that the tokenizer rewrites (uroman, phonemes) the first 2,000 are looked at.

    Raises:
        ModelError: a package that rewrites them is missing.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    rewritten = tokenizer.is_uroman or tokenizer.phonemize
    for text in islice(texts, _SAMPLE) if rewritten else texts:
        needed = tokenizer.needed(text)
        for character in set(needed) - tokenizer.encoder.keys():
            if not character.isspace():
                counts[character] += needed.count(character)
                examples.setdefault(character, text[:_EXAMPLE_CHARACTERS])
    return [Missing(character, count, examples[character]) for character, count in counts.most_common()]


def report(missing: Sequence[Missing]) -> list[str]:
    """The same for people: a line for what is lost to the ear and one for the rest, where there is any."""
    lines = []
    spoken = [found for found in missing if found.is_spoken]
    silent = [found for found in missing if not found.is_spoken]
    if spoken:
        shown = ", ".join(f"{found.character!r} {found.count} times ({found.example!r})" for found in spoken[:8])
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
        writer.writerow((found.character, unicodedata.name(found.character, "?"), found.count, found.example))
    write_whole(path, content.getvalue())


def extend(model: VitsModel, tokenizer: VoiceTokenizer, texts: Iterable[str]) -> VoiceTokenizer:
    """Gives ``model`` an embedding for each letter, mark and digit of ``texts`` that the vocabulary lacks.

    Old ids and their embeddings stay to the last bit; new ones start at the mean of the old ones. Changes ``model``.

    Returns:
        The tokenizer that knows them.
    """
    rewritten = tokenizer.is_uroman or tokenizer.phonemize
    needed = {character for text in texts for character in tokenizer.needed(text)}
    unknown = [Missing(character, 1, "") for character in needed - tokenizer.encoder.keys()]
    # Of phonemes every sign counts, stress marks and lengths are no letters.
    added = [found.character for found in unknown if found.is_spoken or (rewritten and not found.character.isspace())]
    if not added:
        return tokenizer
    larger = extended(tokenizer, added)
    old = model.text_encoder.embed_tokens.weight.detach()
    known = len(tokenizer.encoder)
    padding = model.text_encoder.embed_tokens.padding_idx
    embedding = nn.Embedding(max(len(larger.encoder), len(old)), old.shape[1], padding_idx=padding)
    with torch.no_grad():
        embedding.weight[: len(old)] = old
        # Some voices have more rows than tokens.
        embedding.weight[known:] = old[:known].mean(dim=0)
    model.text_encoder.embed_tokens = embedding
    model.config.vocab_size = len(embedding.weight)
    return larger
