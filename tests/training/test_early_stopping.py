"""Selection of the best update, improvement on the start, and early stopping."""

import pytest

from vits_trainer.training.early_stopping import BestCheckpointTracker, Selection, is_clearly_better


def validated(
    tracker: BestCheckpointTracker, values: list[float], first: int = 1
) -> tuple[Selection, list[str], list[bool]]:
    selection, messages, stops = Selection(), [], []
    for update, value in enumerate(values, start=first):
        selection, message = tracker.update(update, selection, {f"validation/{tracker.metric}": value}, {})
        messages.append(message)
        stops.append(tracker.should_stop(selection))
    return selection, messages, stops


def test_best_is_the_lowest_loss_and_the_first_of_equals() -> None:
    selection, _, _ = validated(BestCheckpointTracker("mel", 0), [0.9, 0.7, 0.8, 0.7])
    assert selection == Selection(score=0.7, best_score=0.7, best_update=2, validations_since_best=2)


def test_best_is_the_highest_if_higher_is_better() -> None:
    selection, _, _ = validated(BestCheckpointTracker("speaker_similarity", 0), [0.5, 0.9, 0.7])
    assert (selection.best_update, selection.best_score) == (2, 0.9)


def test_patience_counts_consecutive_validations() -> None:
    _, _, stops = validated(BestCheckpointTracker("mel", 2), [0.9, 1.0, 0.8, 0.85, 0.81])
    assert stops == [False, False, False, False, True]
    _, _, stops = validated(BestCheckpointTracker("mel", 0), [0.9] + [1.0] * 20)
    assert not any(stops)


def test_improvement_on_the_start_is_reported_once() -> None:
    selection, messages, _ = validated(BestCheckpointTracker("mel", 0), [0.6, 0.8, 0.59, 0.5], first=0)
    assert messages == ["", "", "validation/mel is 0.5900 at update 2, 0.6000 before training", ""]
    assert selection.score_before == 0.6
    assert selection.best_update == 3


def test_voice_before_training_is_no_best_checkpoint() -> None:
    selection, _, _ = validated(BestCheckpointTracker("mel", 1), [0.1, 0.9], first=0)
    assert (selection.best_update, selection.validations_since_best) == (1, 0)


@pytest.mark.parametrize("metrics", [{}, {"validation/kl": 1.0}])
def test_missing_metric_changes_nothing(metrics: dict[str, float]) -> None:
    assert BestCheckpointTracker("log_f0_rmse", 1).update(5, Selection(), metrics, {}) == (Selection(), "")


def judged(values: list[tuple[float, float]], patience: int = 2) -> tuple[Selection, list[bool]]:
    """Validates a voice by (CER, mel) of each update."""
    tracker, selection, stops = BestCheckpointTracker("cer", patience), Selection(), []
    for update, (cer, mel) in enumerate(values, start=1):
        selection, _ = tracker.update(update, selection, {"validation/cer": cer, "validation/mel": mel}, {})
        stops.append(tracker.should_stop(selection))
    return selection, stops


def test_mel_decides_while_nothing_is_understood() -> None:
    """From scratch: the CER is chance at first, and patience must not end the run."""
    values = [(0.98, 2.0), (1.0, 1.5), (1.05, 1.2), (0.9, 1.0), (0.95, 0.9), (0.4, 0.95), (0.3, 0.97)]
    selection, stops = judged(values)
    assert not any(stops)
    assert (selection.best_update, selection.best_score, selection.best_mel) == (7, 0.3, 0.97)


def test_listener_decides_against_the_mel_and_the_mel_between_equals() -> None:
    selection, stops = judged([(0.10, 0.5), (0.12, 0.4), (0.10, 0.45), (0.11, 0.3), (0.10, 0.45)])
    assert (selection.best_update, selection.best_mel) == (3, 0.45)
    assert stops == [False, False, False, False, True]


def test_run_whose_metric_is_never_finite_says_so() -> None:
    selection, _, stops = validated(BestCheckpointTracker("mel", 2), [float("nan")] * 2)
    assert stops == [False, True]
    reason = BestCheckpointTracker("mel", 2).reason_to_stop(2, selection)
    assert reason == "Early stopping at update 2: validation/mel has not been finite for 2 validations"


def by_clip(mean: float, spread: float, clips: int = 20) -> dict[str, dict[str, float]]:
    """Values of 20 clips that differ by ``spread`` from others of the same mean."""
    return {"mel": {str(clip): mean + spread * (-1) ** clip for clip in range(clips)}}


def with_clips(values: list[tuple[float, float]], patience: int = 2) -> tuple[Selection, list[str], list[bool]]:
    """Validates by (mean, spread) of each update; the first is before training."""
    tracker, selection, messages, stops = BestCheckpointTracker("mel", patience), Selection(), [], []
    for update, (mean, spread) in enumerate(values):
        metrics = {"validation/mel": mean}
        selection, message = tracker.update(update, selection, metrics, by_clip(mean, spread))
        messages.append(message)
        stops.append(tracker.should_stop(selection))
    return selection, messages, stops


def test_difference_within_the_spread_of_its_clips_is_none() -> None:
    """As 5.7605 after 5.7641 before training."""
    selection, messages, stops = with_clips([(5.7641, 0.0), (5.7605, 0.05), (5.7603, -0.05), (5.76, -0.05)])
    assert not any(messages)
    assert stops == [False, False, False, True]
    assert (selection.best_update, selection.best_score) == (3, 5.76)  # the best checkpoint all the same


def test_small_difference_of_all_clips_is_one() -> None:
    _, messages, stops = with_clips([(5.7641, 0.0), (5.7605, 0.0), (5.757, 0.0), (5.754, 0.001)])
    assert [bool(message) for message in messages] == [False, True, False, False]
    assert not any(stops)


def test_many_unclear_steps_add_up_to_a_clear_one() -> None:
    values = [(2.0, 0.0), *((1.9 - 0.015 * n, 0.05 * (-1) ** n) for n in range(8))]
    _, _, stops = with_clips(values, patience=4)
    assert not any(stops)


def test_few_clips_have_no_margin() -> None:
    assert is_clearly_better("mel", {"a": 0.9, "b": 1.3}, {"a": 1.0, "b": 1.2})


def test_higher_may_be_better() -> None:
    low, high = ({str(n): value + 0.001 * n for n in range(9)} for value in (0.5, 0.6))
    assert is_clearly_better("speaker_similarity", high, low)
    assert not is_clearly_better("speaker_similarity", low, high)
    assert is_clearly_better("mel", low, high)
