"""From text to token ids, through transformers' own ``VitsTokenizer``."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import VitsTokenizer

from vits_trainer.errors import ModelError

BLANK = "<pad>"
UNKNOWN = "<unk>"


def load_tokenizer(name_or_dir: str) -> VitsTokenizer:
    """The tokenizer of a voice, from a local folder or the Hub.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return VitsTokenizer.from_pretrained(name_or_dir)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name_or_dir}: no tokenizer could be loaded ({_first_line(error)}). Give a voice that has vocab.json."
        ) from error


def build_tokenizer(texts: Iterable[str]) -> VitsTokenizer:
    """A character tokenizer for these texts, as MMS-TTS has them: lower case, a blank (id 0) around each character."""
    characters = sorted(set().union(*(text.lower() for text in texts)))
    return tokenizer_of([BLANK, *characters, UNKNOWN], unknown=UNKNOWN)


def tokenizer_of(
    symbols: Sequence[str],
    unknown: str | None = None,
    add_blank: bool = True,
    phonemize: bool = False,
    is_uroman: bool = False,
) -> VitsTokenizer:
    """A tokenizer with these symbols.

    Args:
        symbols: in the order of their ids; the first is the blank. Of a symbol that comes twice the last one counts, as
            in the original; the others, and empty ones, keep their ids under a name that no text has.
        unknown: the symbol for what is not among them (None = the blank, so that no id is beyond the embedding).
        add_blank: whether a blank stands around each symbol.
        phonemize: whether texts become phonemes first; transformers then takes espeak's American English.
        is_uroman: whether texts are romanised first.
    """
    place = {symbol: index for index, symbol in enumerate(symbols)}
    names = [name if name and place[name] == index else f"<unused-{index}>" for index, name in enumerate(symbols)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vocab.json"
        path.write_text(json.dumps({name: i for i, name in enumerate(names)}, ensure_ascii=False), encoding="utf-8")
        return VitsTokenizer(
            str(path),
            pad_token=names[0],
            unk_token=unknown or names[0],
            add_blank=add_blank,
            phonemize=phonemize,
            is_uroman=is_uroman,
        )


def encode(tokenizer: VitsTokenizer, text: str) -> NDArray[np.int64]:
    """Token ids of ``text``, (S,). Characters that the vocabulary lacks are left out; it may be empty."""
    if not tokenizer.prepare_for_tokenization(text)[0]:
        return np.empty(0, dtype=np.int64)  # with blanks, even nothing would become one token
    return np.asarray(tokenizer(text).input_ids, dtype=np.int64)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
