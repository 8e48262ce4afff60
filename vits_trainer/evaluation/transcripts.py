"""Error rates of transcripts, after the same normalization of reference and hypothesis."""

import re
import unicodedata
from functools import cache

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from vits_trainer.evaluation.optional_packages import load_package
from vits_trainer.text.languages import is_english
from vits_trainer.text.numbers import numbers_to_words

_BRACKETS = re.compile(r"[()\[\]<>{}]")
_CLAUSE_ENDS = re.compile(r"[,;:.!?]+(?=\s|$)")


def transcript_errors(text: str, transcript: str, language: str | None = None) -> dict[str, float]:
    """Returns character and word error rate of ``transcript`` against ``text``, both as :func:`spoken_form`.

    At most 1 each: a recognizer that repeats itself would outweigh all other clips of a mean. Empty if the text has no
    letters, as the rates are then undefined.
    """
    jiwer = load_package("cer")
    reference, hypothesis = spoken_form(text, language), spoken_form(transcript, language)
    if not reference:
        return {}
    rates = {"cer": jiwer.cer(reference, hypothesis), "wer": jiwer.wer(reference, hypothesis)}
    return {name: min(1.0, float(rate)) for name, rate in rates.items()}


def spoken_form(text: str, language: str | None = None) -> str:
    """Normalizes text, so that spellings of the same words are equal.

    Lower case, no apostrophes or punctuation, single spaces. Numbers: in English as digits, with contractions and
    titles in full (Whisper's normalizer: "Mr. Smith's 2nd" and "mister smith's second"); in other languages as words.

    Args:
        text: one text or transcript.
        language: as named by voices (None = unknown: numbers are kept as they are).
    """
    words = _english_form(text) if is_english(language) else numbers_to_words(text, language)
    kept = [character for character in unicodedata.normalize("NFKC", words).lower() if character not in "'’"]
    return " ".join("".join(character if _is_spoken(character) else " " for character in kept).split())


def _english_form(text: str) -> str:
    """Whisper's normalization, but for two faults: it deletes words in brackets, and joins "sixty-nine, seventy"."""
    return " ".join(map(_english_normalizer(), _CLAUSE_ENDS.split(_BRACKETS.sub(" ", text))))


@cache
def _english_normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})  # without its table of British and American spellings, which no package contains


def _is_spoken(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")
