"""The best so far, when it became better than the start, and when nothing better came for long enough."""

import pytest

from vits_trainer.training.checkpoint import TrainState
from vits_trainer.training.early_stopping import BestCheckpointTracker


def heard(
    selection: BestCheckpointTracker, values: list[float], first: int = 1
) -> tuple[TrainState, list[list[str]], list[bool]]:
    state, told, over = TrainState(), [], []
    for update, value in enumerate(values, start=first):
        state.update = update
        told.append(selection.update(state, {f"validation/{selection.metric}": value}))
        over.append(selection.should_stop(state))
    return state, told, over


def test_best_is_the_least_loss_and_the_first_of_equals():
    state, _, _ = heard(BestCheckpointTracker("mel", 0), [0.9, 0.7, 0.8, 0.7])
    assert (state.best_update, state.best_score, state.validations_since_best, state.score) == (2, 0.7, 2, 0.7)


def test_best_is_the_greatest_where_more_is_better():
    state, _, _ = heard(BestCheckpointTracker("speaker_similarity", 0), [0.5, 0.9, 0.7])
    assert (state.best_update, state.best_score) == (2, 0.9)


def test_patience_counts_validations_in_a_row():
    _, _, over = heard(BestCheckpointTracker("mel", 2), [0.9, 1.0, 0.8, 0.85, 0.81])
    assert over == [False, False, False, False, True]
    _, _, over = heard(BestCheckpointTracker("mel", 0), [0.9] + [1.0] * 20)
    assert not any(over)


def test_better_than_before_training_is_told_once():
    state, told, _ = heard(BestCheckpointTracker("mel", 0), [0.6, 0.8, 0.59, 0.5], first=0)
    assert [len(words) for words in told] == [0, 0, 1, 0]
    assert told[2] == ["validation/mel is 0.5900 at update 2, 0.6000 before training"]
    assert state.score_before == 0.6
    assert state.best_update == 3


def test_voice_before_training_is_no_best_checkpoint():
    state, _, _ = heard(BestCheckpointTracker("mel", 1), [0.1, 0.9], first=0)
    assert (state.best_update, state.validations_since_best) == (1, 0)


@pytest.mark.parametrize("found", [{}, {"validation/kl": 1.0}])
def test_figure_that_is_absent_decides_nothing(found):
    state = TrainState(update=5)
    assert BestCheckpointTracker("log_f0_rmse", 1).update(state, found) == []
    assert (state.best_score, state.validations_since_best) == (None, 0)
