"""What languages are called, and what must be known of them to read a text aloud: phonemes, numbers, Latin letters.

The packages that know it (``pip install 'vits-trainer[text]'``) are loaded where a text first needs them, each once.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from vits_trainer.errors import ModelError

_TWO_LETTERS = {
    "afr": "af", "ara": "ar", "aze": "az", "bel": "be", "ben": "bn", "bul": "bg", "cat": "ca", "ces": "cs", "cym": "cy",
    "dan": "da", "deu": "de", "ell": "el", "eng": "en", "epo": "eo", "est": "et", "eus": "eu", "fas": "fa", "fin": "fi",
    "fra": "fr", "gle": "ga", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ind": "id", "isl": "is",
    "ita": "it", "jpn": "ja", "kat": "ka", "kaz": "kk", "kmr": "ku", "kor": "ko", "lit": "lt", "lav": "lv", "nld": "nl",
    "nob": "nb", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "slk": "sk", "slv": "sl", "spa": "es", "sqi": "sq",
    "srp": "sr", "swe": "sv", "swh": "sw", "tam": "ta", "tel": "te", "tha": "th", "tur": "tr", "ukr": "uk", "urd": "ur",
    "uzb": "uz", "vie": "vi", "cmn": "cmn",
}  # fmt: skip
"""ISO 639-3, as MMS voices name their language, to what espeak-ng and num2words call it."""
_ESPEAK = {"en": "en-us", "fr": "fr-fr"}
"""Where espeak-ng wants a country too."""
_INSTALL = "pip install 'vits-trainer[text]'"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")


def short_name(language: str | None) -> str | None:
    """``de`` for ``de``, ``deu`` or ``deu-script_latin``; None where no language is named."""
    if not language:
        return None
    code = language.partition("-script")[0]
    return _TWO_LETTERS.get(code, code)


def romanised(text: str) -> str:
    """``text`` in Latin letters, as MMS's tokenizers of other scripts ask for.

    Raises:
        ModelError: uroman is not installed.
    """
    romanised_text: str = _uroman().romanize_string(text)
    return romanised_text


def phonemes(text: str, language: str | None) -> str:
    """What espeak-ng makes of ``text`` in a language (None = American English, as transformers has it).

    Raises:
        ModelError: phonemizer is not installed, or espeak-ng does not know the language.
    """
    code = short_name(language) or "en"
    spoken: str = _phonemizer(_ESPEAK.get(code, code))([text], strip=True)[0]
    return re.sub(r"\s+", " ", spoken)


def spelt_out(text: str, language: str | None) -> str:
    """``text`` with its numbers as words, where num2words knows the language; else as it is."""
    code = short_name(language)
    if code is None or not _NUMBER.search(text):
        return text
    in_words = _number_words()
    try:
        in_words(1, lang=code)
    except NotImplementedError:
        return text
    return _NUMBER.sub(lambda number: str(in_words(_value(number.group()), lang=code)), text)


def _value(number: str) -> int | float:
    return int(number) if number.isdigit() else float(number.replace(",", "."))


@cache
def _uroman() -> Any:
    # Takes seconds: transformers makes one for each text.
    try:
        from uroman import Uroman  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"This voice reads Latin letters, and uroman, which makes them, is missing: {_INSTALL}"
        ) from error
    return Uroman()


@cache
def _phonemizer(code: str) -> Callable[..., list[str]]:
    try:
        import espeakng_loader  # noqa: PLC0415
        from phonemizer.backend import EspeakBackend  # noqa: PLC0415
        from phonemizer.backend.espeak.wrapper import EspeakWrapper  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"This voice reads phonemes, and phonemizer, which makes them, is missing: {_INSTALL}"
        ) from error
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    if not EspeakBackend.is_supported_language(code):
        known = ", ".join(sorted(EspeakBackend.supported_languages()))
        raise ModelError(f"--language {code}: espeak-ng does not speak it. Give one of {known}.")
    backend = EspeakBackend(code, preserve_punctuation=True, with_stress=True)
    phonemize: Callable[..., list[str]] = backend.phonemize
    return phonemize


@cache
def _number_words() -> Callable[..., str]:
    try:
        from num2words import num2words  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"The texts have numbers, the voice has no digits, and num2words is missing: {_INSTALL}; or write the "
            "numbers as words."
        ) from error
    words: Callable[..., str] = num2words
    return words
