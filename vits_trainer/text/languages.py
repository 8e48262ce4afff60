"""Language names, and conversion of texts to phonemes and Latin letters.

phonemizer and uroman (the extra ``text``) are imported when a text first needs them.
"""

import importlib
import logging
import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.installation import install_command

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
"""espeak-ng's names of languages by the names that voices use, if they differ."""


def espeak_name(language: str | None) -> str:
    """Returns espeak-ng's name of a language: ``de`` for ``de``, ``deu`` and ``deu-script_latin``.

    Returns ``en-us`` for None, as transformers does.
    """
    name = (language or "en-us").lower().partition("-script")[0]
    return _OF_ISO_639.get(name, name)


def is_english(language: str | None) -> bool:
    """Returns whether a language, as named by voices, is English; False for None (unknown)."""
    return bool(language) and espeak_name(language).split("-")[0] == "en"


def romanize(text: str) -> str:
    """Converts ``text`` to Latin letters with uroman, which MMS's tokenizers of other scripts require.

    Raises:
        ModelError: uroman is not installed.
    """
    romanized: str = _uroman().romanize_string(text)
    return romanized


def to_phonemes(text: str, language: str | None) -> str:
    """Converts ``text`` to IPA phonemes with stress and punctuation, using espeak-ng.

    Args:
        text: one line.
        language: name as in voices or in espeak-ng (None = American English, as in transformers).

    Raises:
        ModelError: phonemizer is not installed, or espeak-ng does not support the language.
    """
    phonemes: str = _phonemizer(espeak_name(language)).phonemize([text], strip=True)[0] if text.strip() else ""
    return re.sub(r"\s+", " ", phonemes)


@lru_cache(maxsize=1)
def _uroman() -> Any:
    # Cached because it takes seconds; transformers creates one per text.
    return _package("uroman").Uroman()


@lru_cache(maxsize=4)
def _phonemizer(name: str) -> Any:
    backends, wrapper = _package("phonemizer.backend"), _package("phonemizer.backend.espeak.wrapper").EspeakWrapper
    espeak = _package("espeakng_loader")
    wrapper.set_library(espeak.get_library_path())
    wrapper.set_data_path(espeak.get_data_path())
    known = sorted(backends.EspeakBackend.supported_languages())
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ModelError(f"--language {name}: not supported by espeak-ng. {hint}Must be one of {', '.join(known)}.")
    # phonemizer warns about each text in which words are merged, such as "of the".
    quiet = logging.getLogger("vits_trainer.phonemizer")
    quiet.setLevel(logging.ERROR)
    return backends.EspeakBackend(
        name, preserve_punctuation=True, with_stress=True, language_switch="remove-flags", logger=quiet
    )


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            f"The voice or its texts require a package that is not installed ({error}): {install_command('text')}."
        ) from error
