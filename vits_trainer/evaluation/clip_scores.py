"""Speech scores of recordings themselves, in worker processes: DNSMOS, and the errors of a recognizer's transcript.

Imports no torch and, unless scores are requested, no transformers: every worker process loads this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vits_trainer.data.audio import Rejection
from vits_trainer.data.quality.pieces import Piece, PreparedClip
from vits_trainer.data.quality.survey import PieceMeasurements, measure_clips

if TYPE_CHECKING:
    from vits_trainer.evaluation.speech_metrics import SpeechMetrics  # imports transformers


@dataclass(frozen=True)
class ScoreSettings:
    """What is measured of each clip."""

    rate_hz: int
    scores: tuple[str, ...] = ()
    """Of :data:`vits_trainer.config.check_data.CLIP_SCORES`."""
    asr: str = "auto"
    language: str | None = None


class ClipScores(NamedTuple):
    """Speech scores of a clip."""

    metrics: dict[str, float]
    transcript: str | None
    """What the recognizer heard."""


class PieceScores(NamedTuple):
    """Measurements of the clips of a piece, with speech scores."""

    measurements: PieceMeasurements
    scores: list[ClipScores]
    """One for each clip; without metrics if it cannot be read or no score was requested."""


def score_piece(piece: Piece, settings: ScoreSettings) -> PieceScores:
    """Reads a piece and measures its clips."""
    clips = piece.read()
    return PieceScores(measure_clips(clips, settings.rate_hz), _scores(clips, settings))


def _scores(clips: Sequence[PreparedClip], settings: ScoreSettings) -> list[ClipScores]:
    scored = []
    for clip in clips:
        if settings.scores and not isinstance(clip.pcm, Rejection) and len(clip.pcm):
            samples = clip.pcm.astype(np.float32) / np.float32(32768)
            scored.append(ClipScores(*speech_metrics(settings).measure(clip.text, samples, samples)))
        else:
            scored.append(ClipScores({}, None))
    return scored


@cache
def speech_metrics(settings: ScoreSettings) -> "SpeechMetrics":
    """Loads the models of the scores, once in a process.

    Raises:
        ConfigError: a package is not installed, or a model cannot be loaded.
    """
    from vits_trainer.evaluation.speech_metrics import SpeechMetrics  # noqa: PLC0415 - takes seconds

    return SpeechMetrics(settings.scores, settings.rate_hz, settings.asr, settings.language)
