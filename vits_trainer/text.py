"""From text to token ids, through transformers' own ``VitsTokenizer``."""

import copy
import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import VitsTokenizer

from vits_trainer.errors import ModelError
from vits_trainer.pronunciation import espeak_language, phonemes, romanised, spelled_out

BLANK = "<pad>"
UNKNOWN = "<unk>"
SPELLS_NUMBERS = "spell_numbers"
"""In tokenizer_config.json; transformers keeps it, and does nothing with it."""


def load_tokenizer(name_or_dir: str, language: str | None = None, spell_numbers: bool = False) -> VitsTokenizer:
    """The tokenizer of a voice, from a local folder or the Hub.

    Args:
        name_or_dir: of the voice.
        language: of the texts, which is saved with the tokenizer (None = the voice's own).
        spell_numbers: write numbers as words, which is saved likewise (False = as the voice does).

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    changes: dict[str, Any] = {"language": language} if language else {}
    changes |= {SPELLS_NUMBERS: True} if spell_numbers else {}
    try:
        return VitsTokenizer.from_pretrained(name_or_dir, **changes)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name_or_dir}: no tokenizer could be loaded ({_first_line(error)}). Give a voice that has vocab.json."
        ) from error


def build_tokenizer(
    texts: Iterable[str], language: str | None = None, spell_numbers: bool = False, phonemize: bool = False
) -> VitsTokenizer:
    """A tokenizer for these texts, as MMS-TTS has them: lower case, a blank (id 0) around each character.

    Args:
        texts: whose characters, or whose phonemes' characters, become the vocabulary.
        language: of the texts.
        spell_numbers: write numbers as words.
        phonemize: look up phonemes, in the language, rather than letters.
    """
    settings = {"language": language, "phonemize": phonemize, SPELLS_NUMBERS: spell_numbers}
    settings = {name: value for name, value in settings.items() if value}
    bare = _tokenizer([BLANK, UNKNOWN], settings)
    characters = sorted(set().union(*(spoken_form(bare, text).lower() for text in texts)))
    return _tokenizer([BLANK, *characters, UNKNOWN], settings)


def _tokenizer(tokens: Sequence[str], settings: Mapping[str, Any]) -> VitsTokenizer:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vocab.json"
        vocabulary = {token: index for index, token in enumerate(tokens)}
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return VitsTokenizer(str(path), pad_token=BLANK, unk_token=UNKNOWN, **{"phonemize": False, **settings})


def encode(tokenizer: VitsTokenizer, text: str) -> NDArray[np.int64]:
    """Token ids of ``text``, (S,). Characters that the vocabulary lacks are left out; it may be empty.

    Raises:
        ConfigError: the voice reads texts by a package that is not there, or in a language that it does not have.
    """
    looked_up = _looking_up(tokenizer)
    spoken = spoken_form(tokenizer, text)
    if not looked_up.prepare_for_tokenization(spoken)[0]:
        return np.empty(0, dtype=np.int64)  # with blanks, even nothing would become one token
    return np.asarray(looked_up(spoken).input_ids, dtype=np.int64)


def spoken_form(tokenizer: VitsTokenizer, text: str) -> str:
    """``text`` as the voice reads it: numbers as words, in Latin letters, as phonemes, where it does so.

    What transformers' tokenizer does itself, but for one instance of uroman, and phonemes in the voice's language
    rather than always American English. Raises as :func:`encode` does.
    """
    language = espeak_language(tokenizer.language)
    if tokenizer.init_kwargs.get(SPELLS_NUMBERS):
        text = spelled_out(text, language)
    if rewrites(tokenizer) and tokenizer.normalize:
        text = tokenizer.normalize_text(text)
    if tokenizer.is_uroman:
        text = romanised(text)
    return phonemes(text, language) if tokenizer.phonemize else text


def rewrites(tokenizer: VitsTokenizer) -> bool:
    """Whether what is looked up are other characters than the text's."""
    return bool(tokenizer.is_uroman or tokenizer.phonemize)


def _looking_up(tokenizer: VitsTokenizer) -> VitsTokenizer:
    """The tokenizer for what is in its spoken form already."""
    if not rewrites(tokenizer):
        return tokenizer
    plain = copy.copy(tokenizer)
    plain.normalize = True if tokenizer.phonemize else tokenizer.normalize  # phonemes that it lacks have no id
    plain.is_uroman = plain.phonemize = False
    return plain


@dataclass(frozen=True)
class Missing:
    """A character of the texts, as the voice reads them, that its vocabulary lacks."""

    character: str
    times: int
    """0 where nobody has counted, as in a stream."""
    example: str
    """The first text with it."""

    @property
    def name(self) -> str:
        """Of the character, as Unicode has it."""
        return f"U+{ord(self.character):04X} {unicodedata.name(self.character, '')}".strip()

    def __str__(self) -> str:
        """For people."""
        shown = f"{self.character} " if self.character.isprintable() and not self.character.isspace() else ""
        return f"{shown}({self.name}){f' {self.times} times' if self.times else ''}"


def missing_characters(tokenizer: VitsTokenizer, texts: Iterable[str]) -> list[Missing]:
    """What would be left out of these texts, most frequent first. Raises as :func:`encode` does."""
    times: Counter[str] = Counter()
    examples: dict[str, str] = {}
    spells = bool(tokenizer.init_kwargs.get(SPELLS_NUMBERS))
    for text in texts:
        spoken = spoken_form(tokenizer, text) if spells or rewrites(tokenizer) else text
        for character in set(spoken) - examples.keys():
            examples[character] = text
        times.update(spoken)
    looked_up = _looking_up(tokenizer)
    lacking: dict[str, Missing] = {}
    for written, count in times.items():  # character by character, as normalising a text takes 1 ms
        for character in set(_normalised(looked_up, written)) - looked_up.encoder.keys():
            before = lacking.get(character, Missing(character, 0, examples[written]))
            lacking[character] = Missing(character, before.times + count, before.example)
    return sorted(lacking.values(), key=lambda missing: (-missing.times, missing.character))


def _normalised(tokenizer: VitsTokenizer, character: str) -> str:
    text: str = tokenizer._preprocess_char(tokenizer.normalize_text(character) if tokenizer.normalize else character)
    return text


def extended(tokenizer: VitsTokenizer, characters: Sequence[str]) -> VitsTokenizer:
    """A tokenizer that knows these characters, too: behind all ids that there were, which stay."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        path = Path(directory) / "vocab.json"
        vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        vocabulary |= tokenizer.added_tokens_encoder  # <unk> may have an id behind the vocabulary's
        first = max(vocabulary.values()) + 1
        vocabulary |= {character: first + number for number, character in enumerate(characters)}
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(directory)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
