"""Selection of the best update by one validation metric, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vits_trainer.evaluation.ranking import ERROR_RATES, rank


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
    mel: float = 0.0
    """``validation/mel`` at this very update, if the metric is an error rate: it decides between equal rates."""
    best_mel: float = 0.0
    """At the best update."""

    def is_best(self, update: int) -> bool:
        """Whether ``update``, the current one, was validated and is the best one."""
        return self.score is not None and self.best_update == update


@dataclass(frozen=True)
class BestCheckpointTracker:
    """Compares validations by one metric."""

    metric: str
    """Without ``validation/``."""
    patience: int
    """Consecutive validations without improvement that end the run; 0 disables early stopping."""

    def update(self, update: int, selection: Selection, metrics: Mapping[str, float]) -> tuple[Selection, str]:
        """Adds a validation.

        Args:
            update: that was validated; 0 is the baseline before training.
            selection: of the validations before.
            metrics: of this validation, by name with ``validation/``.

        Returns:
            The new selection, and a message if the voice became better than before training.
        """
        value = metrics.get(f"validation/{self.metric}")
        if value is None:  # for example a metric of speech, and no clip was voiced
            return selection, ""
        if not math.isfinite(value):  # nothing would ever be better than NaN
            return replace(selection, validations_since_best=selection.validations_since_best + (update > 0)), ""
        if update == 0:
            return replace(selection, score_before=value), ""
        mel = metrics.get("validation/mel", 0.0) if self.metric in ERROR_RATES else 0.0
        selection = replace(selection, score=value, mel=mel)
        best = selection.best_score
        if best is not None and rank(self.metric, value, mel) >= rank(self.metric, best, selection.best_mel):
            return replace(selection, validations_since_best=selection.validations_since_best + 1), ""
        was_better = self._beats_start(best, selection)
        now = replace(selection, best_score=value, best_mel=mel, best_update=update, validations_since_best=0)
        if self._beats_start(value, now) and not was_better:
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

    def _beats_start(self, value: float | None, selection: Selection) -> bool:
        before = selection.score_before
        return value is not None and before is not None and rank(self.metric, value, 0) < rank(self.metric, before, 0)
