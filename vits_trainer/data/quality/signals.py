"""Judges measurements: which clips are suspicious, why, and how much."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vits_trainer.config.check_data import Thresholds
from vits_trainer.data.quality.duplicates import equal_recordings, similar_recordings
from vits_trainer.data.quality.measurements import SoundMeasurements
from vits_trainer.data.quality.survey import Survey
from vits_trainer.utils.strings import comparable_text

_DIGIT_LETTERS = 4
"""Letters that a digit counts as: it is read as a word."""
_MIN_SPEAKER_CLIPS = 20
"""The clips of speakers with fewer are compared with all of these together."""
_MAD_TO_STD = 1.4826
_OUTLIER = 3.0
"""Values beyond this many deviations do not count for the deviation, as many faults would widen it."""
_PASSES = 3
_MAX_SEVERITY = 3.0
"""A single signal cannot outweigh three others."""
_LEVEL_DB = 6.0
_UNBOUNDED = 1e9

Values = NDArray[np.float64]


class Finding(NamedTuple):
    """Why a clip is suspicious."""

    signal: str
    severity: float
    """1 at the threshold, and more beyond it."""
    reason: str
    """For the reader."""


@dataclass(frozen=True)
class Suspicion:
    """A suspicious clip."""

    row: int
    findings: tuple[Finding, ...]
    """The most severe first."""

    @property
    def score(self) -> float:
        """Sum of the severities, for the ranking."""
        return sum(min(finding.severity, _MAX_SEVERITY) for finding in self.findings)


@dataclass(frozen=True)
class Measured:
    """Values of a signal for all clips, and the limits beyond which they are suspicious."""

    signal: str
    values: Values
    """(clips,); NaN if it is not known."""
    reason: str
    """Format of the reason, with ``value`` and ``shown``."""
    above: float = math.inf
    below: float = -math.inf
    shown: Values | None = None
    """What the reason shows of each clip in addition."""

    def findings(self) -> list[tuple[int, Finding]]:
        """Returns the suspicious rows, with reasons."""
        found = []
        suspicious = np.flatnonzero((self.values > self.above) | (self.values < self.below))
        for row in suspicious.tolist():
            value = float(self.values[row])
            shown = float(self.shown[row]) if self.shown is not None else math.nan
            found.append(
                (row, Finding(self.signal, self._severity(value), self.reason.format(value=value, shown=shown)))
            )
        return found

    def _severity(self, value: float) -> float:
        limit = self.above if value > self.above else self.below
        if limit == 0:
            return 1 + abs(value)
        if (value > 0) != (limit > 0):
            return _MAX_SEVERITY
        return max(value / limit, limit / value)


def deviations(values: Values, speakers: Sequence[str], floor: float) -> Values:
    """Returns the robust z-score of each value among the clips of its speaker, (clips,); NaN stays NaN.

    It is the distance from the median, divided by the scaled median absolute deviation (Hampel), at least ``floor``;
    both without outliers.
    """
    counts = Counter(speakers)
    numbers = {
        name: number for number, name in enumerate(name for name in counts if counts[name] >= _MIN_SPEAKER_CLIPS)
    }
    groups = np.array([numbers.get(speaker, -1) for speaker in speakers], dtype=np.int64)
    scores = np.full(len(values), np.nan)
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        known = values[rows][np.isfinite(values[rows])]
        if len(known):
            scores[rows] = _standardized(values[rows], known, floor)
    return scores


def _standardized(values: Values, known: Values, floor: float) -> Values:
    center = deviation = math.nan
    for _ in range(_PASSES):
        center = float(np.median(known))
        deviation = max(_MAD_TO_STD * float(np.median(np.abs(known - center))), floor)
        known = known[np.abs(known - center) <= _OUTLIER * deviation]
    return (values - center) / deviation


def letters(text: str) -> int:
    """Returns the letters of a text; a digit counts as the letters of its word."""
    return sum(_DIGIT_LETTERS if character.isdigit() else character.isalnum() for character in text)


def of_sound(survey: Survey, thresholds: Thresholds) -> list[Measured]:
    """Returns the signals of the recordings and of the speaking rate."""
    sounds = {name: survey.sound(name).astype(np.float64) for name in SoundMeasurements._fields}
    speech_s, level, bandwidth = sounds["speech_s"], sounds["level_dbfs"], sounds["bandwidth_hz"]
    count = np.array([letters(text) for text in survey.texts], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        pace_s = np.where((count > 0) & (speech_s > 0), speech_s / count, np.nan)
        rate = deviations(np.log(pace_s), survey.speakers, floor=0.05)
        known = bandwidth[np.isfinite(bandwidth)]
        relative = bandwidth / (np.median(known) if len(known) else np.nan)
    # A clip without letters or without speech: its text cannot be what is said.
    rate = np.where(np.isnan(pace_s) & ~np.isnan(speech_s), _UNBOUNDED, rate)
    level_deviation = deviations(level, survey.speakers, floor=_LEVEL_DB / thresholds.level)
    edges = np.maximum(sounds["leading_silence_s"], sounds["trailing_silence_s"])
    limits = thresholds
    return [
        Measured("rate", rate, "{shown:.3f} s per letter, {value:+.1f} deviations from usual: the text is too short or "
                 "too long", limits.rate, -limits.rate, pace_s),
        Measured("snr", sounds["snr_db"], "noise {value:.0f} dB below the speech", below=limits.snr_db),
        Measured("level", level_deviation, "level of {shown:.0f} dB, {value:+.1f} deviations from usual",
                 limits.level, -limits.level, level),
        Measured("bandwidth", relative, "nothing above {shown:.0f} Hz, as on a telephone", below=limits.bandwidth,
                 shown=bandwidth),
        Measured("clipping", sounds["clipped_fraction"], "{value:.2%} of the samples are clipped", limits.clipped),
        Measured("dc_offset", sounds["dc_offset"], "constant offset of {value:.1%}", limits.dc_offset),
        Measured("digital_silence", sounds["digital_silence_s"], "{value:.1f} s of digital silence",
                 limits.digital_silence_s),
        Measured("edge_silence", edges, "{value:.1f} s of silence at an end (--trim_silence true)",
                 limits.edge_silence_s),
    ]  # fmt: skip


def of_copies(survey: Survey, threshold: float) -> list[tuple[int, Finding]]:
    """Returns findings for copies of recordings: all but the first, or all if their texts differ."""
    found: dict[int, Finding] = {}
    speech_s = survey.sound("speech_s")
    for group in equal_recordings(survey.digests):
        speech_s[group[1:]] = np.nan  # a thousand equal clips would be half a million similar pairs
        for row, other in zip(group, [group[1], *[group[0]] * (len(group) - 1)], strict=True):
            _add_copy(found, survey, row, other, 1.0, threshold)
    for first, second, similarity in similar_recordings(survey.fingerprints, speech_s, threshold):
        for row, other in ((first, second), (second, first)):
            _add_copy(found, survey, row, other, similarity, threshold)
    return sorted(found.items())


def _add_copy(
    found: dict[int, Finding], survey: Survey, row: int, other: int, similarity: float, threshold: float
) -> None:
    same_text = comparable_text(survey.texts[row]) == comparable_text(survey.texts[other])
    if row in found or (same_text and row < other):
        return
    like = "equals" if survey.digests[row] == survey.digests[other] else f"sounds like ({similarity:.3f})"
    text = "" if same_text else ", which has another text"
    severity = _MAX_SEVERITY if not same_text else 1 + (similarity - threshold) / max(1 - threshold, 1e-6)
    found[row] = Finding("duplicate", severity, f"{like} {survey.names[other]}{text}")


def of_split(survey: Survey, held_out: Sequence[int]) -> list[tuple[int, Finding]]:
    """Returns a finding for each training clip whose text a validation clip has, too."""
    if not held_out:
        return []
    validation = set(held_out)
    by_text = {comparable_text(survey.texts[row]): row for row in held_out}
    return [
        (row, Finding("split", 1.0, f"the validation clip {survey.names[by_text[text]]} has the same text"))
        for row, text in enumerate(map(comparable_text, survey.texts))
        if row not in validation and text in by_text
    ]


def of_missing_alignments(rows: Sequence[int]) -> list[tuple[int, Finding]]:
    """Returns a finding for each clip that has no alignment."""
    reason = "no alignment: the text has no known character, or more tokens than the recording has frames"
    return [(row, Finding("alignment", _MAX_SEVERITY, reason)) for row in rows]


def of_rejections(survey: Survey) -> list[tuple[int, Finding]]:
    """Returns a finding for each clip that cannot be read."""
    return [
        (row, Finding("unreadable", _MAX_SEVERITY, f"{rejection.reason}: {rejection.detail}"))
        for row, rejection in survey.rejections.items()
    ]


def ranked(findings: Sequence[tuple[int, Finding]]) -> list[Suspicion]:
    """Returns the suspicious clips, the worst first."""
    by_row: dict[int, list[Finding]] = {}
    for row, finding in findings:
        by_row.setdefault(row, []).append(finding)
    suspicions = [
        Suspicion(row, tuple(sorted(mine, key=lambda finding: -finding.severity))) for row, mine in by_row.items()
    ]
    return sorted(suspicions, key=lambda suspicion: (-suspicion.score, suspicion.row))
