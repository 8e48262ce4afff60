"""The decision on a voice that learnt corrections."""

import numpy as np
import pytest

from vits_trainer.feedback.decision import Decision, ErrorRateChange, MetricChange, student_quantile

SAME = [[0.5, 0.6], [0.7, 0.8]]


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 6.314), (2, 2.920), (3, 2.353), (4, 2.132), (9, 1.833), (30, 1.697), (1000, 1.646)]
)
def test_quantiles_of_students_distribution(freedom: int, expected: float) -> None:
    """From a printed table."""
    assert student_quantile(0.95, freedom) == pytest.approx(expected, rel=3e-3)


def test_change_by_hand() -> None:
    change = MetricChange.from_pairs([[1.0]] * 5, [[0.9]] * 5)
    assert (change.before, change.after) == (1.0, pytest.approx(0.9))
    assert (change.low, change.high) == (pytest.approx(-0.1), pytest.approx(-0.1))
    # log ratios of +-0.1: mean 0, deviation 0.1 * sqrt(6 / 5), t(5) = 2.015
    after = [[np.exp(sign * 0.1)] for sign in (1, -1, 1, -1, 1, -1)]
    change = MetricChange.from_pairs([[1.0]] * 6, after)
    assert change.high == pytest.approx(np.expm1(2.015 * 0.1 * (6 / 5) ** 0.5 / 6**0.5), rel=0.01)
    assert change.low == pytest.approx(np.expm1(-2.015 * 0.1 * (6 / 5) ** 0.5 / 6**0.5), rel=0.01)


@pytest.mark.parametrize("clips", [1, 2, 4, 8, 30])
def test_voice_that_learnt_nothing_is_accepted_at_most_once_in_twenty_times(clips: int) -> None:
    """Changes of 3 % that are chance."""
    rng = np.random.default_rng(clips)
    seeds = max(1, min(5, 20 // clips))
    accepted = 0
    for _ in range(2000):
        before = rng.uniform(0.4, 1, (clips, seeds))
        after = before * np.exp(rng.normal(0, 0.03, (clips, seeds)))
        accepted += MetricChange.from_pairs(before.tolist(), after.tolist()).is_improvement
    assert accepted / 2000 < 0.065


def test_unchanged_voice_is_rejected_and_the_interval_is_in_the_message() -> None:
    decision = Decision.from_metrics({"mel_from_text": MetricChange.from_pairs(SAME, SAME)}, None, 0.02)
    assert not decision.accepted
    assert "did not improve beyond chance: 0.6500 -> 0.6500 (+0.0%, +0.0% to +0.0%)" in decision.message


def test_only_mel_from_text_must_improve_on_corrections_and_nothing_may_regress() -> None:
    """A voice that sounds like the speaker already has nothing to learn but the words."""
    same = MetricChange.from_pairs(SAME, SAME)
    better = MetricChange.from_pairs(SAME, [[0.4, 0.5], [0.6, 0.7]])
    worse = MetricChange.from_pairs(SAME, [[0.52, 0.62], [0.72, 0.82]])
    unchanged = {"mel": same, "mel_from_text": same}
    assert Decision.from_metrics({"mel": same, "mel_from_text": better}, unchanged, 0.02).accepted
    for corrections, held_out, reason in (
        ({"mel": better, "mel_from_text": same}, unchanged, "mel_from_text on the corrections did not improve"),
        ({"mel": worse, "mel_from_text": better}, unchanged, "mel on the corrections regressed by"),
        ({"mel": same, "mel_from_text": better}, {**unchanged, "mel": worse}, "mel on the held-out clips regressed by"),
    ):
        decision = Decision.from_metrics(corrections, held_out, 0.02)
        assert not decision.accepted
        assert decision.message.startswith(f"REJECTED: {reason}")


def test_decision_is_read_back(tmp_path) -> None:
    better = MetricChange.from_pairs(SAME, [[0.4, 0.5], [0.6, 0.7]])
    understood = ErrorRateChange.from_pairs([[0.1]] * 6, [[0.1], [0.12], [0.1], [0.05], [0.1], [0.1]])
    decision = Decision.from_metrics({"mel_from_text": better}, {"mel_from_text": better}, 0.02, ["one"], 3, understood)
    assert decision.accepted
    decision.write(tmp_path / "verdict.json")
    assert Decision.read(tmp_path / "verdict.json") == decision


def test_change_of_the_error_rate_by_hand() -> None:
    # differences of +-0.1: mean 0, deviation 0.1 * sqrt(6 / 5), t(5) = 2.015
    after = [[0.3 + sign * 0.1] for sign in (1, -1, 1, -1, 1, -1)]
    change = ErrorRateChange.from_pairs([[0.3]] * 6, after)
    margin = 2.015 * 0.1 * (6 / 5) ** 0.5 / 6**0.5
    assert (change.low, change.high) == (pytest.approx(-margin, rel=0.01), pytest.approx(margin, rel=0.01))
    assert str(change).endswith("0.0 points, -9.0 to +9.0; 6 texts)")
    assert not change.is_regression


@pytest.mark.parametrize("texts", [1, 4, 16, 32])
def test_voice_that_is_understood_equally_well_is_rejected_at_most_once_in_twenty_times(texts: int) -> None:
    """Most texts are understood before and after; some are misheard by chance."""
    rng = np.random.default_rng(texts)
    seeds = max(1, -(-20 // texts))
    rejected = 0
    for _ in range(1000):
        before, after = rng.choice([0, 0, 0, 0.05, 0.1, 0.3], (2, texts, seeds))
        rejected += ErrorRateChange.from_pairs(before.tolist(), after.tolist()).is_regression
    assert rejected / 1000 < 0.065


def test_voice_that_became_harder_to_understand_is_rejected_although_its_mel_improved() -> None:
    better = {"mel_from_text": MetricChange.from_pairs(SAME, [[0.4, 0.5], [0.6, 0.7]])}
    before = [[0.0], [0.1], [0.0], [0.05], [0.0], [0.1], [0.0], [0.0]]
    after = [[0.2], [0.3], [0.0], [0.35], [0.1], [0.4], [0.2], [0.0]]
    understood = ErrorRateChange.from_pairs(before, after)
    decision = Decision.from_metrics(better, None, 0.02, understood=understood)
    assert not decision.accepted
    assert decision.message.startswith(
        "REJECTED: it is understood less well, beyond chance: character error rate 3.1% -> 19.4% (+16.2 points, "
    )
    unchanged = ErrorRateChange.from_pairs(before, before)
    assert Decision.from_metrics(better, None, 0.02, understood=unchanged).accepted
    assert (unchanged.low, unchanged.high) == (0, 0)
