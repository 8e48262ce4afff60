"""Selection of the best update by one validation metric, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vits_trainer.config.options import HIGHER_IS_BETTER
from vits_trainer.evaluation.ranking import ERROR_RATES, rank

ClipValues = Mapping[str, Mapping[str, float]]
"""Values of metrics by clip: by the metric's name, then by clip."""
_STANDARD_ERRORS = 2.0
_MIN_CLIPS = 4
"""Fewer clips tell nothing of the spread: then any improvement counts."""


def is_clearly_better(metric: str, ours: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Whether a mean is better by two standard errors of the paired differences, over the clips that both have."""
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    gains = [sign * (ours[clip] - others[clip]) for clip in ours.keys() & others.keys()]
    if len(gains) < _MIN_CLIPS:
        return True
    mean = math.fsum(gains) / len(gains)
    variance = math.fsum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return mean > _STANDARD_ERRORS * math.sqrt(variance / len(gains))


@dataclass(frozen=True)
class Selection:
    """What validations have shown so far; part of the run's state, so that a resumed run continues it."""

    score: float | None = None
    """The metric at this very update; None if it was not validated."""
    score_before: float | None = None
    """Before the first update."""
    best_score: float | None = None
    """Of all updates validated so far."""
    best_update: int = 0
    validations_since_best: int = 0
    """Validations since the last clear improvement."""
    beats_start: bool = False
    """Whether any was clearly better than before training."""
    mel: float = 0.0
    """``validation/mel`` at this very update, if the metric is an error rate: it decides between equal rates."""
    best_mel: float = 0.0
    """At the best update."""
    clips_before: ClipValues = field(default_factory=dict)
    """The metric by clip, before the first update."""
    clips_of_progress: ClipValues = field(default_factory=dict)
    """At the last validation that was clearly better than the one that this replaced: the standard for the next."""

    def is_best(self, update: int) -> bool:
        """Whether ``update``, the current one, was validated and is the best one."""
        return self.score is not None and self.best_update == update


@dataclass(frozen=True)
class BestCheckpointTracker:
    """Compares validations by one metric."""

    metric: str
    """Without ``validation/``."""
    patience: int
    """Consecutive validations without a clear improvement that end the run; 0 disables early stopping."""

    def update(
        self, update: int, selection: Selection, metrics: Mapping[str, float], by_clip: ClipValues
    ) -> tuple[Selection, str]:
        """Adds a validation. The best update is the one with the best value, by however little.

        An improvement ends the waiting of ``patience``, or is reported, only if it is clear
        (:func:`is_clearly_better`).

        Args:
            update: that was validated; 0 is the baseline before training.
            selection: of the validations before.
            metrics: of this validation, by name with ``validation/``.
            by_clip: the same by clip, where known, by name without ``validation/``.

        Returns:
            The new selection, and a message if the voice became better than before training.
        """
        value = metrics.get(f"validation/{self.metric}")
        if value is None:  # for example a metric of speech, and no clip was voiced
            return selection, ""
        if not math.isfinite(value):  # nothing would ever be better than NaN
            return replace(selection, validations_since_best=selection.validations_since_best + (update > 0)), ""
        names = (self.metric, "mel") if self.metric in ERROR_RATES else (self.metric,)
        clips = {name: by_clip[name] for name in names if name in by_clip}
        if update == 0:
            return replace(selection, score_before=value, clips_before=clips), ""
        mel = metrics.get("validation/mel", 0.0) if self.metric in ERROR_RATES else 0.0
        now = replace(selection, score=value, mel=mel, validations_since_best=selection.validations_since_best + 1)
        best = selection.best_score
        if best is not None and rank(self.metric, value, mel) >= rank(self.metric, best, selection.best_mel):
            return now, ""
        if best is None or self._is_clear(value, best, clips, selection.clips_of_progress):
            now = replace(now, validations_since_best=0, clips_of_progress=clips)
        was_better, is_better = selection.beats_start, self._beats_start(value, clips, selection)
        now = replace(now, best_score=value, best_mel=mel, best_update=update, beats_start=was_better or is_better)
        if is_better and not was_better:
            before = f"{now.score_before:.4f} before training"
            return now, f"validation/{self.metric} is {value:.4f} at update {update}, {before}"
        return now, ""

    def reason_to_stop(self, update: int, selection: Selection) -> str:
        """Returns why the run ends with ``update``; empty if it goes on."""
        if not self.should_stop(selection):
            return ""
        best = selection.best_score
        state = (
            "has not been finite" if best is None
            else f"has not improved on {best:.4f} (update {selection.best_update})"
        )  # fmt: skip
        waited = selection.validations_since_best
        return f"Early stopping at update {update}: validation/{self.metric} {state} for {waited} validations"

    def should_stop(self, selection: Selection) -> bool:
        """Whether ``patience`` validations have brought no improvement."""
        return bool(self.patience) and selection.validations_since_best >= self.patience

    def _beats_start(self, value: float, clips: ClipValues, selection: Selection) -> bool:
        before = selection.score_before
        if before is None or rank(self.metric, value, 0) >= rank(self.metric, before, 0):
            return False
        return self._is_clear(value, before, clips, selection.clips_before)

    def _is_clear(self, value: float, other: float, clips: ClipValues, others: ClipValues) -> bool:
        """Whether the metric that decides between two values is clearly better; true if its clips are not known."""
        decides = "mel" if rank(self.metric, value, 0) == rank(self.metric, other, 0) else self.metric
        return is_clearly_better(decides, clips.get(decides, {}), others.get(decides, {}))
