"""Error rates of transcripts, after the same normalization of reference and hypothesis."""

import re
import unicodedata
from functools import cache

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from vits_trainer.evaluation.optional_packages import load_package
from vits_trainer.text.languages import is_english
from vits_trainer.text.numbers import numbers_to_words

_BRACKETS = re.compile(r"[()\[\]<>{}]")


def transcript_errors(text: str, transcript: str, language: str | None = None) -> dict[str, float]:
    """Returns character and word error rate of ``transcript`` against ``text``, both as :func:`spoken_form`.

    Empty if the text has no letters, as the rates are then undefined.
    """
    jiwer = load_package("cer")
    reference, hypothesis = spoken_form(text, language), spoken_form(transcript, language)
    if not reference:
        return {}
    return {"cer": float(jiwer.cer(reference, hypothesis)), "wer": float(jiwer.wer(reference, hypothesis))}


def spoken_form(text: str, language: str | None = None) -> str:
    """Normalizes text, so that spellings of the same words are equal.

    Lower case, no apostrophes or punctuation, single spaces. Numbers: in English as digits, with contractions and
    titles in full (Whisper's normalizer: "Mr. Smith's 2nd" and "mister smith's second"); in other languages as words.

    Args:
        text: one text or transcript.
        language: as named by voices (None = unknown: numbers are kept as they are).
    """
    # Whisper's normalizer deletes words in brackets.
    words = (
        _english_normalizer()(_BRACKETS.sub(" ", text)) if is_english(language) else numbers_to_words(text, language)
    )
    kept = [character for character in unicodedata.normalize("NFKC", words).lower() if character not in "'’"]
    return " ".join("".join(character if _is_spoken(character) else " " for character in kept).split())


@cache
def _english_normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer({})  # without its table of British and American spellings, which no package contains


def _is_spoken(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")
