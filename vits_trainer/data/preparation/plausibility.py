"""Checks over all accepted clips: whether texts fit their recordings, and which clips are copies of others."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.preparation.journal import AcceptedClip
from vits_trainer.utils.strings import comparable_text, counted, digest_number

_PAUSE_S, _LONGEST_LETTER_S = 1.0, 0.4
"""A text is too short for its recording if it would take a pause and longer than this for each letter.

Slow readers need 0.15 s for a letter of an alphabet, and 0.3 s for a Chinese character."""
_UNUSUAL_FACTOR = 4
"""Clips that differ in seconds per letter from the median by more than this factor are reported."""
_MIN_LETTERS = 5
"""The pace of shorter texts says little."""
_MANY_TAKES = 3
"""A text that one speaker says this often, in different recordings, is repeated. Two takes are usual."""
_CLIPS_PER_TEXT = 4
"""More clips of a text are reported, also if they are of several speakers."""
_MIN_CLIPS = 5
"""Fewer clips are reported only."""
_EXAMPLES = 3


class ClipFacts(NamedTuple):
    """What the checks know of an accepted clip; small, as it is kept for every clip."""

    name: str
    """Of the prepared clip."""
    duration_s: float
    letters: int
    """Letters and digits of the text."""
    text: int
    """Digest of the text, as :func:`comparable_text` writes it."""
    spoken: int
    """Digest of the text and the speaker."""
    audio: int
    """Digest of the samples; 0 if it is not known."""

    @property
    def too_short(self) -> bool:
        """Whether the text is far too short for the recording."""
        return self.duration_s > _PAUSE_S + _LONGEST_LETTER_S * self.letters


@dataclass(frozen=True)
class Plausibility:
    """Result of the checks."""

    warnings: tuple[str, ...]
    """One line each."""
    problem: str | None
    """Why most of the clips cannot be right; None if they may be."""
    copies: tuple[tuple[str, ...], ...]
    """Names of the clips that have the same samples."""


def clip_facts(name: str, clip: AcceptedClip, rate_hz: int) -> ClipFacts:
    """Returns the facts of an accepted clip."""
    text = comparable_text(clip.text)
    return ClipFacts(
        name=name,
        duration_s=round(clip.samples / rate_hz, 3),
        letters=sum(map(str.isalnum, text)),
        text=digest_number(text),
        spoken=digest_number(f"{clip.speaker}|{text}"),
        audio=int(clip.audio_digest or "0", 16),
    )


def examine(facts: Sequence[ClipFacts]) -> Plausibility:
    """Checks the accepted clips of a data set. Copies of a recording count once."""
    copies = _copies(facts)
    later = {name for names in copies for name in names[1:]}
    originals = [fact for fact in facts if fact.name not in later]
    too_short = [fact for fact in originals if fact.too_short]
    takes = Counter(fact.spoken for fact in originals)
    repeated = [fact for fact in originals if takes[fact.spoken] >= _MANY_TAKES]
    warnings, problem = [], None
    for clips, fault in (
        (too_short, "have a text far too short for the recording"),
        (repeated, f"have a text that the same speaker says {_MANY_TAKES} times or more"),
    ):
        if clips:
            sentence = f"{len(clips)} of {len(originals)} clips {fault}, such as {_named(clips)}"
            warnings.append(f"{sentence}.")
            if len(originals) >= _MIN_CLIPS and 2 * len(clips) > len(originals):
                problem = problem or sentence
    texts = len({fact.text for fact in originals})
    if 0 < _CLIPS_PER_TEXT * texts <= len(originals) and not repeated:
        warnings.append(
            f"{len(originals)} clips have only {counted(texts, 'different text')}, such as that of "
            f"{_named(originals[:1])}."
        )
    unusual = _unusual(originals)
    if unusual:
        warnings.append(
            f"{len(unusual)} of {len(originals)} clips have over {_UNUSUAL_FACTOR} times as many or as few seconds per "
            f"letter as the median, such as {_named(unusual)}: listen to them."
        )
    if copies:
        warnings.append(
            f"{len(later)} of {len(facts)} clips have the samples of another one, such as {copies[0][1]} of "
            f"{copies[0][0]}. They are kept; a clip and its copies are all trained on, or all validated."
        )
    return Plausibility(tuple(warnings), problem, copies)


def repeated(facts: Sequence[ClipFacts]) -> NDArray[np.bool_]:
    """Returns which clips share their text or their samples with another, (clips,)."""
    texts = Counter(fact.text for fact in facts)
    recordings = Counter(fact.audio for fact in facts if fact.audio)
    return np.array([texts[fact.text] > 1 or recordings[fact.audio] > 1 for fact in facts], dtype=bool)


def _copies(facts: Iterable[ClipFacts]) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.audio:
            names[fact.audio].append(fact.name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _unusual(facts: Sequence[ClipFacts]) -> list[ClipFacts]:
    """Returns the clips with texts of several letters whose pace is far from the median."""
    paced = [fact for fact in facts if fact.letters >= _MIN_LETTERS]
    if len(paced) < _MIN_CLIPS:
        return []
    typical = median(fact.duration_s / fact.letters for fact in paced)
    limit = math.log(_UNUSUAL_FACTOR)
    return [fact for fact in paced if abs(math.log(fact.duration_s / fact.letters / typical)) > limit]


def _named(facts: Sequence[ClipFacts]) -> str:
    return ", ".join(f"{fact.name} ({fact.duration_s:.1f} s for {fact.letters} letters)" for fact in facts[:_EXAMPLES])
