"""Clip accounting: epochs that add up, and errors for those that do not."""

import json

import numpy as np
import pytest

from vits_trainer.data.clip_accounting import ClipAccounting, Incident
from vits_trainer.utils.errors import AccountingError, TooManyRejectedError

CLIPS = [f"{n}.wav" for n in range(8)]


def accounting(allowed: float = 1.0) -> ClipAccounting:
    return ClipAccounting(CLIPS, ["v.wav", "w.wav"], allowed)


def rejected(clip: str, kind: str = "too-short") -> Incident:
    return Incident(clip, "read", kind, "why")


def totals(*ranks: ClipAccounting) -> np.ndarray:
    return np.sum([one.counts() for one in ranks], axis=0)


def test_counts_of_ranks_are_summed() -> None:
    first, second = accounting(), accounting()
    first.count(CLIPS[:4], ())
    second.count(CLIPS[4:7], CLIPS[7:])
    for rank in (first, second):
        rank.reject([rejected("7.wav")])
    expected = "epoch 1: 7 trained + 1 rejected + 2 validation = 10 clips"
    both = totals(first, second)
    assert first.finish_epoch(0, both) == second.finish_epoch(0, both) == expected
    assert not totals(first, second).any()  # the next epoch has started


def test_masked_clips_are_counted_separately() -> None:
    one = accounting()
    one.count(CLIPS, ())
    one.mask(CLIPS[:3])
    expected = "epoch 2: 5 trained + 0 rejected + 2 validation + 3 in masked updates = 10 clips"
    assert one.finish_epoch(1, totals(one)) == expected


def test_rejected_validation_clips_count_in_every_epoch() -> None:
    one = accounting()
    one.reject([rejected("w.wav")])
    for epoch in range(2):
        one.count(CLIPS, ())
        assert one.finish_epoch(epoch, totals(one)).endswith("8 trained + 1 rejected + 1 validation = 10 clips")


def test_interrupted_epoch_is_reported_and_continues() -> None:
    one = accounting()
    one.count(CLIPS[:5], ())
    assert one.finish_epoch(0, totals(one), not_reached=3).endswith(
        "+ 3 not reached before the run ended = 10 clips"
    )
    one.count(CLIPS[5:], ())
    assert one.finish_epoch(0, totals(one)).endswith("8 trained + 0 rejected + 2 validation = 10 clips")


@pytest.mark.parametrize(
    ("used", "message"),
    [
        (CLIPS[:7], "missing: 1 (7.wav)"),
        ([*CLIPS, "3.wav"], "Used more than once: 1 (3.wav)"),
        ([*CLIPS[:7], "3.wav"], r"once: 1 (3.wav); missing: 1 (7.wav)"),
    ],
)
def test_missing_or_repeated_clip_ends_the_run(used: list[str], message: str) -> None:
    one = accounting()
    one.count(used, ())
    with pytest.raises(AccountingError) as raised:
        one.finish_epoch(0, totals(one))
    assert message in str(raised.value)


def test_unknown_clip_ends_the_run() -> None:
    with pytest.raises(AccountingError, match=r"v\.wav"):
        accounting().count(["v.wav"], ())


def test_masking_clips_that_were_not_trained_is_detected() -> None:
    one = accounting()
    one.count(CLIPS, ())
    one.mask(["3.wav"])
    one.mask(["3.wav"])
    with pytest.raises(AccountingError):
        one.finish_epoch(0, totals(one))


@pytest.mark.parametrize(("allowed", "clips", "ends"), [(0.1, 1, False), (0.1, 2, True), (0, 1, True), (1, 8, False)])
def test_more_rejections_than_allowed_end_the_run_with_reasons(allowed: float, clips: int, ends: bool) -> None:
    one = accounting(allowed)
    names = [*CLIPS, "v.wav", "w.wav"][:clips]
    incidents = [rejected(name, "too-short" if n else "truncated-audio") for n, name in enumerate(names)]
    if not ends:
        one.reject(incidents)
        return
    with pytest.raises(TooManyRejectedError) as raised:
        one.reject(incidents)
    assert f"{clips} of 10 clips" in str(raised.value)
    assert "1 truncated-audio" in str(raised.value)
    assert "0.wav: truncated-audio (why)" in str(raised.value)


def test_rejecting_all_validation_clips_ends_the_run() -> None:
    one = accounting(1)
    one.reject([rejected("v.wav")])
    with pytest.raises(TooManyRejectedError, match="None of the 2 validation clips can be used: 2 too-short"):
        one.reject([rejected("w.wav")])


def test_repeated_rejection_of_a_clip_counts_once() -> None:
    one = accounting(0.1)
    one.reject([rejected("1.wav")])
    one.reject([rejected("1.wav")])
    assert one.rejected_by_kind == {"too-short": 1}


def test_epoch_without_a_trained_clip_ends_the_run() -> None:
    one = accounting()
    one.count((), CLIPS)
    one.reject([rejected(name) for name in CLIPS])
    with pytest.raises(TooManyRejectedError, match="Nothing was trained: 8 too-short"):
        one.finish_epoch(0, totals(one))


def test_resumed_epoch_continues_with_a_different_number_of_ranks() -> None:
    first, second = accounting(), accounting()
    first.count(CLIPS[:3], ["5.wav"])
    second.count(CLIPS[3:5], ())
    first.mask(["0.wav"])
    first.reject([rejected("5.wav")])
    saved = json.loads(json.dumps(first.save(totals(first, second))))
    resumed = [accounting() for _ in range(3)]
    for rank, one in enumerate(resumed):
        one.restore(saved, is_main=rank == 0, begins_epoch=False)
    resumed[1].count(["6.wav"], ())
    resumed[2].count(["7.wav"], ())
    summary = resumed[0].finish_epoch(0, totals(*resumed))
    assert summary == "epoch 1: 6 trained + 1 rejected + 2 validation + 1 in masked updates = 10 clips"


EXPECTED_COUNTS = np.array([3, 1, 2, 0, 1, 0, 1, 0])
"""Eight draws of eight clips: 3.wav, 5.wav and 7.wav are not drawn."""


def weighted_accounting() -> ClipAccounting:
    return ClipAccounting(CLIPS, ["v.wav", "w.wav"], 1.0, lambda epoch: np.roll(EXPECTED_COUNTS, epoch))


def draws(epoch: int = 0) -> list[str]:
    return [name for name, count in zip(CLIPS, np.roll(EXPECTED_COUNTS, epoch), strict=True) for _ in range(count)]


def test_draws_and_clips_add_up_with_repeated_clips() -> None:
    one = weighted_accounting()
    for epoch in range(2):
        one.count(draws(epoch), ())
        expected = f"epoch {epoch + 1}: 5 trained + 0 rejected + 2 validation + 3 not drawn = 10 clips"
        assert one.finish_epoch(epoch, totals(one)) == f"{expected}; 8 trained = 8 draws"


def test_repeated_clip_counts_once_as_a_clip_and_each_time_as_a_draw() -> None:
    one = weighted_accounting()
    one.count(["0.wav", "0.wav", "0.wav", "1.wav", "4.wav", "6.wav"], ["2.wav", "2.wav"])
    one.reject([rejected("2.wav")])
    one.mask(["0.wav", "0.wav", "1.wav"])
    assert one.finish_epoch(0, totals(one)) == (
        "epoch 1: 3 trained + 1 rejected + 2 validation + 1 in masked updates + 3 not drawn = 10 clips; "
        "3 trained + 3 masked + 2 rejected = 8 draws"
    )


def test_interrupted_epoch_of_draws_continues_after_a_resume_with_other_ranks() -> None:
    one = weighted_accounting()
    one.count(["0.wav", "0.wav", "2.wav", "4.wav"], ())
    assert one.finish_epoch(0, totals(one), not_reached=4) == (
        "epoch 1: 3 trained + 0 rejected + 2 validation + 3 not drawn + 2 not reached before the run ended = "
        "10 clips; 4 trained + 4 not reached = 8 draws"
    )
    saved = json.loads(json.dumps(one.save(totals(one))))
    resumed = [weighted_accounting(), weighted_accounting()]
    for rank, other in enumerate(resumed):
        other.restore(saved, is_main=rank == 0, begins_epoch=False)
    resumed[0].count(["0.wav", "1.wav"], ())
    resumed[1].count(["2.wav", "6.wav"], ())
    assert resumed[0].finish_epoch(0, totals(*resumed)).endswith("3 not drawn = 10 clips; 8 trained = 8 draws")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[1:], "more often than due: none; missing: 1 (0.wav), expected 0"),
        (lambda names: [*names, "2.wav"], "more often than due: 1 (2.wav); missing: none"),
        (lambda names: [*names, "7.wav"], "more often than due: 1 (7.wav)"),
        (lambda names: [*names[1:], "2.wav"], "due: 1 (2.wav); missing: 1 (0.wav)"),
    ],
)
def test_clip_used_more_or_less_often_than_due_ends_the_run(change, message: str) -> None:
    one = weighted_accounting()
    one.count(change(draws()), ())
    with pytest.raises(AccountingError) as raised:
        one.finish_epoch(0, totals(one))
    assert message in str(raised.value)


def test_counts_are_saved_bit_by_bit() -> None:
    one = accounting()
    one.count([CLIPS[0], CLIPS[7]], ())
    assert one.save(totals(one))["trained"] == "81"  # the format in checkpoints
    one.count([CLIPS[0], CLIPS[0]], ())
    assert one.save(totals(one))["trained"] == "8180"  # 3 and 1: lowest bits, then second bits


def test_rejection_that_ended_the_run_occurs_again() -> None:
    one = accounting(0.1)
    one.count((), ["1.wav"])
    one.reject([rejected("1.wav")])
    with pytest.raises(TooManyRejectedError):
        one.reject([rejected("2.wav")])
    saved = json.loads(json.dumps(one.save(totals(one))))
    resumed = accounting()
    resumed.restore(saved, is_main=False, begins_epoch=False)
    assert (resumed.knows("1.wav"), resumed.knows("2.wav")) == (True, False)
