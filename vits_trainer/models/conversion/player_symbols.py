"""Token ids of single code points, for players that look up each code point of a text by itself.

Piper decomposes texts (NFD) and does not lowercase them; sherpa-onnx lowercases ASCII only. So each code point gets an
id, capitals those of their small letters. A letter such as ç arrives in Piper as c and a cedilla: marks get ids beyond
the vocabulary, and pairs of ids are merged in the graph (``models/conversion/players``).
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from vits_trainer.text.normalization import EQUALS, Normalizer
from vits_trainer.text.tokenizer import VoiceTokenizer

DROPPED = -1
"""Final id of what has no sound of its own, such as a mark that no letter of the vocabulary has."""
_WHITE_SPACE = "\t\n\r\u00a0"
_COMPOSED_LETTERS = (*range(0xC0, 0x530), *range(0x1E00, 0x2000))
"""Code points of letters with marks: Latin, Greek and Cyrillic."""


@dataclass
class PlayerSymbols:
    """Ids of code points, and how sequences of them become token ids of the voice."""

    final_ids: list[int]
    """By id: the id of the vocabulary, or :data:`DROPPED`. Ids beyond the vocabulary are of marks and parts."""
    add_blank: bool
    ids: dict[str, int] = field(default_factory=dict)
    """By code point."""
    merges: dict[tuple[int, int], int] = field(default_factory=dict)
    """The id of a letter and of the mark after it, by the id of both together."""
    passes: int = 0
    """Maximum number of marks of a letter."""
    sentence_id: int | None = None
    """Of the start and end of a sentence, and of the blank of a voice without one: dropped by the graph. None without
    graph."""

    @property
    def needs_graph(self) -> bool:
        """Whether ids of code points are not yet the voice's token ids."""
        return self.sentence_id is not None

    def new_id(self, final_id: int) -> int:
        """Returns an id beyond the vocabulary."""
        self.final_ids.append(final_id)
        return len(self.final_ids) - 1


def player_symbols(tokenizer: VoiceTokenizer, vocab_size: int) -> PlayerSymbols:
    """Returns the ids of all code points that the tokenizer knows, or reads as one that it knows.

    Args:
        tokenizer: of the voice.
        vocab_size: number of embeddings.
    """
    symbols = PlayerSymbols(list(range(vocab_size)), tokenizer.add_blank)
    known = {symbol: index for symbol, index in tokenizer.encoder.items() if len(symbol) == 1 and index < vocab_size}
    equals = {character: _read_as(tokenizer, character) for character in _candidates(known)}
    composed = {symbol: unicodedata.normalize("NFD", symbol) for symbol in (*known, *equals)}
    composed = {symbol: parts for symbol, parts in composed.items() if len(parts) > 1}
    if tokenizer.phonemize or not composed.keys().isdisjoint(known):
        symbols.sentence_id = symbols.new_id(DROPPED)
        if tokenizer.add_blank:  # the graph drops blanks, and adds them again: a letter with their id needs its own
            known = {symbol: index or symbols.new_id(0) for symbol, index in known.items()}
    symbols.ids |= known
    symbols.ids |= {character: known[equal] for character, equal in equals.items() if equal in known}
    if symbols.needs_graph:
        for symbol, parts in sorted(composed.items(), key=lambda item: len(item[1])):
            if symbol in symbols.ids:
                _add_composed(symbols, symbol, parts)
    return symbols


def _candidates(known: Iterable[str]) -> list[str]:
    """Returns characters that may be read as known ones: capitals, letters with other marks, and equal characters."""
    letters = {form for symbol in known for form in (symbol, symbol.upper()) if len(form) == 1}
    bases = {unicodedata.normalize("NFD", letter)[0] for letter in letters}
    marked = {one for one in map(chr, _COMPOSED_LETTERS) if unicodedata.normalize("NFD", one)[0] in bases}
    return sorted({*letters, *marked, *"".join(EQUALS), *_WHITE_SPACE, "I"} - set(known))


def _read_as(tokenizer: VoiceTokenizer, character: str) -> str:
    """Returns the character, or characters, as which a voice reads one of a text or of its phonemes."""
    if character.isspace():
        return " "
    if tokenizer.phonemize:
        text, _ = Normalizer(tokenizer.encoder, tokenizer.language, lowers=False).resolve(character)
    else:
        text, _ = tokenizer.resolve(character)
    return "".join(one for one in text if one in tokenizer.encoder)


def _add_composed(symbols: PlayerSymbols, symbol: str, parts: str) -> None:
    """Adds what merges the ``parts`` of a ``symbol``: shorter symbols were added before."""
    current = _id_of(symbols, parts[0])
    for number, mark in enumerate(parts[1:], start=1):
        mark_id = _id_of(symbols, mark)
        if number == len(parts) - 1:
            symbols.merges[current, mark_id] = symbols.ids[symbol]
        elif (current, mark_id) not in symbols.merges:
            symbols.merges[current, mark_id] = symbols.new_id(symbols.final_ids[current])
        current = symbols.merges[current, mark_id]
    symbols.passes = max(symbols.passes, len(parts) - 1)


def _id_of(symbols: PlayerSymbols, part: str) -> int:
    if part not in symbols.ids:
        symbols.ids[part] = symbols.new_id(DROPPED)
    return symbols.ids[part]
