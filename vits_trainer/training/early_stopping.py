"""Which update is the best so far by a validation's figure, and when to stop looking for a better one."""

from collections.abc import Mapping
from dataclasses import dataclass

from vits_trainer.config.options import HIGHER_IS_BETTER
from vits_trainer.training.checkpoint import TrainState


@dataclass(frozen=True)
class BestCheckpointTracker:
    """By one figure of the validations; what it has seen stands in the run's state, so that a resumed run goes on."""

    metric: str
    """Without ``validation/``."""
    patience: int
    """Validations in a row without a better one that end the run; 0 = none do."""

    def update(self, state: TrainState, found: Mapping[str, float]) -> list[str]:
        """Takes in the validation of the state's update; before the first update it is what to compare with.

        Returns:
            What is worth telling: that the voice became better than the one that the run began with.
        """
        value = found.get(f"validation/{self.metric}")
        if value is None:  # as of speech without any voice
            return []
        if state.update == 0:
            state.score_before = value
            return []
        state.score = value
        if state.best_score is not None and not self.is_better(value, state.best_score):
            state.validations_since_best += 1
            return []
        was_better = self._beats_start(state.best_score, state)
        state.best_score, state.best_update, state.validations_since_best = value, state.update, 0
        if self._beats_start(value, state) and not was_better:
            before = f"{state.score_before:.4f} before training"
            return [f"validation/{self.metric} is {value:.4f} at update {state.update}, {before}"]
        return []

    def should_stop(self, state: TrainState) -> bool:
        """Whether there has been nothing better for long enough."""
        return bool(self.patience) and state.validations_since_best >= self.patience

    def is_better(self, value: float, than: float) -> bool:
        """Than another value of the figure."""
        return value > than if self.metric in HIGHER_IS_BETTER else value < than

    def _beats_start(self, value: float | None, state: TrainState) -> bool:
        return value is not None and state.score_before is not None and self.is_better(value, state.score_before)
