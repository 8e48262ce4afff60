"""Text tokenization with transformers' ``VitsTokenizer``."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import VitsTokenizer

from vits_trainer.text.languages import espeak_name, romanize, to_phonemes
from vits_trainer.text.normalization import Normalizer, ordinary
from vits_trainer.text.numbers import ALL_NUMBER_WORDS, number_language, numbers_to_words
from vits_trainer.text.symbols import symbols_to_words
from vits_trainer.text.tokenizer_files import check_tokenizer_files
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.strings import first_line

BLANK = "<pad>"
UNKNOWN = "<unk>"


class VoiceTokenizer(VitsTokenizer):  # type: ignore[misc]
    """``VitsTokenizer`` for texts as people write them, with phonemes in the voice's language and a cached uroman.

    Characters that the vocabulary lacks are replaced with equal ones that it has, symbols and numbers with words. A
    text of known characters has the same tokens as in transformers. Unknown phonemes are dropped, like other
    characters; transformers maps them to ``<unk>``.
    """

    is_uroman: bool
    phonemize: bool

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, normalize: bool | None = None, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Overrides transformers' method. Returns the text to split into characters, and ``kwargs``.

        Raises:
            ModelError: a package that the text needs is missing.
        """
        resolved, _ = self.resolve(text)
        if self.rewrites:
            return "".join(character for character in resolved if character in self.encoder).strip(), kwargs
        prepared: tuple[str, dict[str, Any]]
        prepared = super().prepare_for_tokenization(resolved, is_split_into_words, normalize, **kwargs)
        return prepared

    def resolve(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Returns ``text`` as the voice reads it, and the characters that its vocabulary lacks, in their order.

        Raises:
            ModelError: a package that the text needs is missing.
        """
        normalizer = self._normalizer
        if self.rewrites:
            text = ordinary(text, self.language)  # the vocabulary is that of the result
        elif normalizer.is_plain(text):
            return text, ()
        text = text if self.phonemize else self._verbalize(text if self.rewrites else normalizer.fold(text))
        text = self.lowercase(text)
        if self.is_uroman and not text.isascii():
            text = romanize(text)
        return normalizer.resolve(to_phonemes(text, self.language) if self.phonemize else text)

    def _verbalize(self, text: str) -> str:
        """Replaces symbols that the vocabulary lacks, and numbers unless it has all digits, with words."""
        code = number_language(self.language)
        if code is None:
            return text
        text = symbols_to_words(text, code, self._normalizer.known)
        return text if self._normalizer.has_all_digits else numbers_to_words(text, self.language)

    @cached_property
    def _normalizer(self) -> Normalizer:
        return Normalizer(self.encoder, self.language, lowers=self.normalize)

    def lowercase(self, text: str) -> str:
        """Lowercases ``text``, except upper-case symbols of the vocabulary."""
        prepared: str = self._preprocess_char(self.normalize_text(text) if self.normalize else text)
        return prepared

    def normalize_text(self, input_string: str) -> str:
        """Overrides transformers' method: the same result without its millisecond per sentence."""
        if self._has_mixed_symbols:
            lowered: str = super().normalize_text(input_string)
            return lowered
        return self._normalizer.lower(input_string)

    @cached_property
    def _has_mixed_symbols(self) -> bool:
        """Whether symbols of several characters protect upper-case letters within them."""
        symbols = [*self.encoder, *self.added_tokens_encoder]
        return any(len(symbol) > 1 and symbol != symbol.lower() for symbol in symbols)

    def _preprocess_char(self, text: str) -> str:
        """Overrides transformers' method, which replaces a Romanian letter even if the vocabulary lacks the new one."""
        prepared: str = super()._preprocess_char(text) if "ţ" in self.encoder else text
        return prepared

    @property
    def rewrites(self) -> bool:
        """Whether texts are converted to Latin letters or phonemes before the vocabulary lookup."""
        return bool(self.is_uroman or self.phonemize)


# Saved voices contain the class name, and must load in transformers without this package.
VoiceTokenizer.__name__ = VitsTokenizer.__name__


def load_tokenizer(name_or_dir: str, language: str | None = None) -> VoiceTokenizer:
    """Loads the tokenizer of a voice from a local folder or the Hub.

    Args:
        name_or_dir: folder or Hub name of the voice.
        language: language of the texts, if the voice specifies none or another one.

    Raises:
        ModelError: there is no tokenizer, or it cannot be read.
    """
    try:
        check_tokenizer_files(name_or_dir)
        tokenizer = VoiceTokenizer.from_pretrained(name_or_dir, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ModelError(
            f"{name_or_dir}: no tokenizer could be loaded ({first_line(error)}). Give a voice that has vocab.json."
        ) from error
    # Voices name some languages differently from espeak-ng, such as deu and de.
    is_same = language is None or (tokenizer.language and espeak_name(language) == espeak_name(tokenizer.language))
    return tokenizer if is_same else _copy_with(tokenizer, tokenizer.encoder, language)


def build_tokenizer(texts: Iterable[str], language: str | None = None, phonemize: bool = False) -> VoiceTokenizer:
    """Builds a tokenizer for ``texts`` as in MMS-TTS: lower case, a blank (id 0) around each character.

    Args:
        texts: texts whose characters become the vocabulary.
        language: language of the texts.
        phonemize: use espeak-ng's phonemes of the texts instead of their characters.

    Raises:
        ModelError: the phonemes cannot be computed.
    """
    written = [ordinary(text, language) for text in texts]
    digits = {character for text in written for character in text if character.isdecimal()}
    if digits and not phonemize and not Normalizer(digits).has_all_digits:
        written = [numbers_to_words(text, language) for text in [*written, ALL_NUMBER_WORDS]]
    lowered = (text.lower() for text in written)
    symbols = (to_phonemes(text, language) for text in lowered) if phonemize else lowered
    characters = sorted(set().union(*symbols))
    vocabulary = {token: index for index, token in enumerate([BLANK, *characters, UNKNOWN])}
    return _create(vocabulary, pad_token=BLANK, unk_token=UNKNOWN, language=language, phonemize=phonemize)


def with_characters(tokenizer: VoiceTokenizer, characters: Iterable[str]) -> VoiceTokenizer:
    """Returns a copy with ``characters`` appended to the vocabulary. Existing ids do not change."""
    next_id = 1 + max(tokenizer.encoder.values())  # ids may have gaps
    new = sorted(set(characters) - tokenizer.encoder.keys())
    vocabulary = tokenizer.encoder | {character: next_id + index for index, character in enumerate(new)}
    return _copy_with(tokenizer, vocabulary, tokenizer.language)


def tokenizer_from_symbols(
    symbols: Sequence[str],
    unknown: str | None = None,
    add_blank: bool = True,
    phonemize: bool = False,
    language: str | None = None,
    is_uroman: bool = False,
) -> VoiceTokenizer:
    """Builds a tokenizer with the given symbols.

    Args:
        symbols: symbols in the order of their ids; the first is the blank. The last one of duplicate symbols counts, as
            in the original VITS; the others, and empty symbols, keep their ids under placeholder names.
        unknown: symbol for characters that are not in ``symbols`` (None = the blank, so that all ids have an
        embedding). add_blank: whether to insert a blank around each symbol.
        phonemize: whether to convert texts to phonemes first.
        language: language of the phonemes (None = American English).
        is_uroman: whether to romanize texts first.
    """
    last_index = {symbol: index for index, symbol in enumerate(symbols)}
    names = [name if name and last_index[name] == index else f"<unused-{index}>" for index, name in enumerate(symbols)]
    return _create(
        {name: index for index, name in enumerate(names)},
        pad_token=names[0],
        unk_token=unknown or names[0],
        add_blank=add_blank,
        phonemize=phonemize,
        language=language,
        is_uroman=is_uroman,
    )


def _copy_with(tokenizer: VoiceTokenizer, vocabulary: Mapping[str, int], language: str | None) -> VoiceTokenizer:
    copied = ("pad_token", "unk_token", "phonemize", "add_blank", "normalize", "is_uroman")
    return _create(vocabulary, language=language, **{name: getattr(tokenizer, name) for name in copied})


def _create(vocabulary: Mapping[str, int], **settings: Any) -> VoiceTokenizer:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return VoiceTokenizer(str(path), **settings)


def encode(tokenizer: VitsTokenizer, text: str) -> NDArray[np.int64]:
    """Returns the token ids of ``text``, (S,). Drops characters that the vocabulary lacks; may be empty."""
    if not tokenizer.prepare_for_tokenization(text)[0]:
        return np.empty(0, dtype=np.int64)  # with blanks, an empty text would become one token
    return np.asarray(tokenizer(text).input_ids, dtype=np.int64)
