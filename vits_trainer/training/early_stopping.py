"""Selection of the best update by one validation metric, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vits_trainer.config.options import HIGHER_IS_BETTER


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
        if selection.best_score is not None and not self.is_better(value, selection.best_score):
            waited = selection.validations_since_best + 1
            return replace(selection, score=value, validations_since_best=waited), ""
        was_better = self._beats_start(selection.best_score, selection)
        now = replace(selection, score=value, best_score=value, best_update=update, validations_since_best=0)
        if self._beats_start(value, now) and not was_better:
            before = f"{now.score_before:.4f} before training"
            return now, f"validation/{self.metric} is {value:.4f} at update {update}, {before}"
        return now, ""

    def should_stop(self, selection: Selection) -> bool:
        """Whether ``patience`` validations have brought no improvement."""
        return bool(self.patience) and selection.validations_since_best >= self.patience

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value of the metric is better than another."""
        return value > than if self.metric in HIGHER_IS_BETTER else value < than

    def _beats_start(self, value: float | None, selection: Selection) -> bool:
        before = selection.score_before
        return value is not None and before is not None and self.is_better(value, before)
