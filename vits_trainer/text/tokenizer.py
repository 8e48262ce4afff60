"""From text to token ids, through transformers' own ``VitsTokenizer``."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import VitsTokenizer

from vits_trainer.text.languages import espeak_name, phonemes, romanised, spelt_out
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.strings import first_line

BLANK = "<pad>"
UNKNOWN = "<unk>"


class VoiceTokenizer(VitsTokenizer):  # type: ignore[misc]
    """transformers' own, with phonemes in the voice's language, one uroman for all texts, and numbers in words.

    Numbers become words where the vocabulary has no digits and the language is known: they would be left out. Phonemes
    that the vocabulary lacks are left out, like other characters; transformers makes them ``<unk>``.
    """

    is_uroman: bool
    phonemize: bool

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, normalize: bool | None = None, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """As transformers'; the text, ready to be split into characters, and ``kwargs``.

        Raises:
            ModelError: a package that the text needs is missing.
        """
        spoken = self.spoken(text)
        if self.rewrites:
            return "".join(character for character in spoken if character in self.encoder).strip(), kwargs
        prepared: tuple[str, dict[str, Any]]
        prepared = super().prepare_for_tokenization(spoken, is_split_into_words, normalize, **kwargs)
        return prepared

    def spoken(self, text: str) -> str:
        """``text`` as it is read: numbers in words, then Latin letters or phonemes where the voice reads those.

        Raises:
            ModelError: a package that the text needs is missing.
        """
        if not self.phonemize and not any(map(str.isdecimal, self.encoder)):
            text = spelt_out(text, self.language)
        if not self.rewrites:
            return text
        text = self.normalised(text)
        if self.is_uroman and not text.isascii():
            text = romanised(text)
        return phonemes(text, self.language) if self.phonemize else text

    def normalised(self, text: str) -> str:
        """In lower case, but for what the vocabulary has in upper case. Takes a millisecond for a sentence."""
        prepared: str = self._preprocess_char(self.normalize_text(text) if self.normalize else text)
        return prepared

    @property
    def rewrites(self) -> bool:
        """Whether what is looked up are other characters than the text's."""
        return bool(self.is_uroman or self.phonemize)


# The name by which transformers finds the class again: a voice loads there as it is.
VoiceTokenizer.__name__ = VitsTokenizer.__name__


def load_tokenizer(name_or_dir: str, language: str | None = None) -> VoiceTokenizer:
    """The tokenizer of a voice, from a local folder or the Hub.

    Args:
        name_or_dir: of the voice.
        language: of its texts, where the voice does not say it or says another.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        tokenizer = VoiceTokenizer.from_pretrained(name_or_dir, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name_or_dir}: no tokenizer could be loaded ({first_line(error)}). Give a voice that has vocab.json."
        ) from error
    # transformers knows some languages by the names that their voices have.
    is_same = language is None or (tokenizer.language and espeak_name(language) == espeak_name(tokenizer.language))
    return tokenizer if is_same else _like(tokenizer, tokenizer.encoder, language)


def build_tokenizer(texts: Iterable[str], language: str | None = None, reads_phonemes: bool = False) -> VoiceTokenizer:
    """A tokenizer for these texts, as MMS-TTS has them: lower case, a blank (id 0) around each character.

    Args:
        texts: every character of them gets an id.
        language: in which they are read.
        reads_phonemes: whether the characters are those of espeak-ng's phonemes.

    Raises:
        ModelError: phonemes are asked for, and cannot be made.
    """
    lowered = (text.lower() for text in texts)
    spoken = (phonemes(text, language) for text in lowered) if reads_phonemes else lowered
    characters = sorted(set().union(*spoken))
    vocabulary = {token: index for index, token in enumerate([BLANK, *characters, UNKNOWN])}
    return _made(vocabulary, pad_token=BLANK, unk_token=UNKNOWN, language=language, phonemize=reads_phonemes)


def with_characters(tokenizer: VoiceTokenizer, characters: Iterable[str]) -> VoiceTokenizer:
    """The same with more characters behind those that it has, whose ids stay."""
    free = 1 + max(tokenizer.encoder.values())  # ids may have gaps
    new = sorted(set(characters) - tokenizer.encoder.keys())
    vocabulary = tokenizer.encoder | {character: free + place for place, character in enumerate(new)}
    return _like(tokenizer, vocabulary, tokenizer.language)


def tokenizer_of(
    symbols: Sequence[str],
    unknown: str | None = None,
    add_blank: bool = True,
    phonemize: bool = False,
    language: str | None = None,
    is_uroman: bool = False,
) -> VoiceTokenizer:
    """A tokenizer with these symbols.

    Args:
        symbols: in the order of their ids; the first is the blank. Of a symbol that comes twice the last one counts, as
            in the original; the others, and empty ones, keep their ids under a name that no text has.
        unknown: the symbol for what is not among them (None = the blank, so that no id is beyond the embedding).
        add_blank: whether a blank stands around each symbol.
        phonemize: whether texts become phonemes first.
        language: of the phonemes (None = American English).
        is_uroman: whether texts are romanised first.
    """
    place = {symbol: index for index, symbol in enumerate(symbols)}
    names = [name if name and place[name] == index else f"<unused-{index}>" for index, name in enumerate(symbols)]
    return _made(
        {name: index for index, name in enumerate(names)},
        pad_token=names[0],
        unk_token=unknown or names[0],
        add_blank=add_blank,
        phonemize=phonemize,
        language=language,
        is_uroman=is_uroman,
    )


def _like(tokenizer: VoiceTokenizer, vocabulary: Mapping[str, int], language: str | None) -> VoiceTokenizer:
    kept = ("pad_token", "unk_token", "phonemize", "add_blank", "normalize", "is_uroman")
    return _made(vocabulary, language=language, **{name: getattr(tokenizer, name) for name in kept})


def _made(vocabulary: Mapping[str, int], **settings: Any) -> VoiceTokenizer:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return VoiceTokenizer(str(path), **settings)


def encode(tokenizer: VitsTokenizer, text: str) -> NDArray[np.int64]:
    """Token ids of ``text``, (S,). Characters that the vocabulary lacks are left out; it may be empty."""
    if not tokenizer.prepare_for_tokenization(text)[0]:
        return np.empty(0, dtype=np.int64)  # with blanks, even nothing would become one token
    return np.asarray(tokenizer(text).input_ids, dtype=np.int64)
