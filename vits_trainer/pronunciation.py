"""How a text is read, before its characters are looked up: numbers as words, in Latin letters, as phonemes.

By optional packages: ``pip install 'vits-trainer[text]'``.
"""

import importlib
import re
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import espeakng_loader

from vits_trainer.errors import ConfigError

_LONGEST_NUMBER = 9
"""Digits; longer ones, and those that begin with 0, are read digit by digit."""

_NAMES = """
afr:af amh:am ara:ar asm:as aze:az azj:az bak:ba bel:be ben:bn bos:bs bul:bg cat:ca ces:cs chv:cv cym:cy dan:da deu:de
ell:el en:en-us eng:en-us epo:eo est:et eus:eu fas:fa fao:fo fin:fi fr:fr-fr fra:fr-fr gla:gd gle:ga grn:gn guj:gu
hat:ht heb:he hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jpn:ja kal:kl kan:kn kat:ka kaz:kk kir:ky kmr:ku kor:ko
kur:ku lat:la lav:lv lit:lt ltz:lb mal:ml mar:mr mkd:mk mlt:mt mri:mi msa:ms mya:my nep:ne nld:nl no:nb nob:nb nor:nb
npi:ne ori:or orm:om ory:or pan:pa pes:fa pol:pl por:pt que:qu ron:ro rus:ru sin:si slk:sk slv:sl snd:sd spa:es sqi:sq
srp:sr swa:sw swe:sv swh:sw tam:ta tat:tt tel:te tha:th tir:ti tsn:tn tuk:tk tur:tr uig:ug ukr:uk urd:ur uzb:uz vie:vi
zh:cmn zho:cmn zlm:ms
"""
_OF_ISO_639 = dict(pair.split(":") for pair in _NAMES.split())
"""Names of languages as voices have them, and espeak-ng's where they differ."""
_OF_NUM2WORDS = {"cmn": "zh", "kk": "kz", "nb": "no"}
_COMMA_GROUPS = frozenset({"en", "he", "ja", "ko", "th", "zh"})
_DOT_GROUPS = frozenset({"da", "de", "es", "id", "is", "it", "nl", "pt", "ro", "sl", "sr", "tr", "vi"})
"""Languages that write 1,000.5 and 1.000,5."""


def espeak_language(language: str | None) -> str:
    """espeak-ng's name for a language: ``deu`` and ``de`` are ``de``. None is ``en-us``, as transformers has it."""
    name = (language or "en-us").lower().partition("-script")[0]
    return _OF_ISO_639.get(name, name)


def phonemes(text: str, language: str) -> str:
    """``text`` in the International Phonetic Alphabet with stress and punctuation, by espeak-ng.

    Args:
        text: one line.
        language: espeak-ng's name.

    Raises:
        ConfigError: the package is not there, or espeak-ng does not have the language.
    """
    spoken: str = _phonemizer(language).phonemize([text], strip=True)[0] if text.strip() else ""
    return re.sub(r"\s+", " ", spoken)


@lru_cache(maxsize=4)
def _phonemizer(language: str) -> Any:
    backends, wrapper = _package("phonemizer.backend"), _package("phonemizer.backend.espeak.wrapper").EspeakWrapper
    wrapper.set_library(espeakng_loader.get_library_path())
    wrapper.set_data_path(espeakng_loader.get_data_path())
    known = sorted(backends.EspeakBackend.supported_languages())
    if language not in known:
        near = get_close_matches(language, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}."
        raise ConfigError(f"--language {language}: espeak-ng has no such language; {hint}")
    return backends.EspeakBackend(language, preserve_punctuation=True, with_stress=True, language_switch="remove-flags")


def romanised(text: str) -> str:
    """``text`` in Latin letters, by uroman, as transformers does it but with one instance: each takes seconds.

    Raises:
        ConfigError: the package is not there.
    """
    if text.isascii():
        return text
    latin: str = _uroman().romanize_string(text)
    return latin


@lru_cache(maxsize=1)
def _uroman() -> Any:
    return _package("uroman").Uroman()


def spelled_out(text: str, language: str) -> str:
    """``text`` with its numbers as words, by num2words: 1.000 and 3,5 as the language writes them.

    Numbers of more than nine digits, and those that begin with 0, are read digit by digit.

    Raises:
        ConfigError: the package is not there, or it does not have the language.
    """
    base = language.split("-")[0]
    code = _OF_NUM2WORDS.get(base, base)
    group, point = (",", ".") if code in _COMMA_GROUPS else (".", ",") if code in _DOT_GROUPS else ("", "")
    pattern = r"\d+"
    if group:
        pattern = rf"(?:\d{{1,3}}(?:{re.escape(group)}\d{{3}})+(?!\d)|\d+)(?:{re.escape(point)}\d+)?"

    def in_words(found: re.Match[str]) -> str:
        whole, _, fraction = (found[0].replace(group, "") if group else found[0]).partition(point or "\0")
        words = _number(whole, fraction, code)
        before = " " if found.string[: found.start()][-1:].isalpha() else ""
        behind = " " if found.string[found.end() :][:1].isalpha() else ""
        return f"{before}{words}{behind}"

    return re.sub(pattern, in_words, text)


def _number(whole: str, fraction: str, language: str) -> str:
    package = _package("num2words")
    if language not in package.CONVERTER_CLASSES:
        raise ConfigError(
            f"--spell_numbers true: num2words has no language {language}. Write the numbers of the texts as words "
            f"yourself, or give another --language: {', '.join(sorted(package.CONVERTER_CLASSES))}."
        )
    if not fraction and (len(whole) > _LONGEST_NUMBER or (len(whole) > 1 and int(whole[0]) == 0)):
        return " ".join(str(package.num2words(int(digit), lang=language)) for digit in whole)
    value = Decimal(f"{int(whole)}.{''.join(str(int(digit)) for digit in fraction)}") if fraction else int(whole)
    return str(package.num2words(value, lang=language))


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"The texts need a package that is not there ({error}): pip install 'vits-trainer[text]'."
        ) from error
