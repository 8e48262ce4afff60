"""The clips of an epoch add up, or it is said that they do not."""

import json

import numpy as np
import pytest

from vits_trainer.data.clip_accounting import ClipAccounting, Incident
from vits_trainer.utils.errors import AccountingError, TooManyRejectedError

CLIPS = [f"{n}.wav" for n in range(8)]


def accounts(allowed: float = 1.0) -> ClipAccounting:
    return ClipAccounting(CLIPS, ["v.wav", "w.wav"], allowed)


def bad(clip: str, kind: str = "too-short") -> Incident:
    return Incident(clip, "read", kind, "why")


def totals(*ranks: ClipAccounting) -> np.ndarray:
    return np.sum([one.counts() for one in ranks], axis=0)


def test_ranks_add_up() -> None:
    first, second = accounts(), accounts()
    first.count(CLIPS[:4], ())
    second.count(CLIPS[4:7], CLIPS[7:])
    for rank in (first, second):
        rank.reject([bad("7.wav")])
    words = "epoch 1: 7 trained + 1 rejected + 2 validation = 10 clips"
    both = totals(first, second)
    assert first.finish_epoch(0, both) == second.finish_epoch(0, both) == words
    assert not totals(first, second).any()  # the next epoch begins


def test_masked_clips_are_counted_by_themselves() -> None:
    one = accounts()
    one.count(CLIPS, ())
    one.mask(CLIPS[:3])
    words = "epoch 2: 5 trained + 0 rejected + 2 validation + 3 in masked updates = 10 clips"
    assert one.finish_epoch(1, totals(one)) == words


def test_validation_clips_that_cannot_be_used_are_rejected_in_every_epoch() -> None:
    one = accounts()
    one.reject([bad("w.wav")])
    for epoch in range(2):
        one.count(CLIPS, ())
        assert one.finish_epoch(epoch, totals(one)).endswith("8 trained + 1 rejected + 1 validation = 10 clips")


def test_epoch_that_is_cut_says_so_and_goes_on() -> None:
    one = accounts()
    one.count(CLIPS[:5], ())
    assert one.finish_epoch(0, totals(one), not_reached=3).endswith(
        "+ 3 not reached before the run ended = 10 clips"
    )
    one.count(CLIPS[5:], ())
    assert one.finish_epoch(0, totals(one)).endswith("8 trained + 0 rejected + 2 validation = 10 clips")


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (CLIPS[:7], "missing: 1 (7.wav)"),
        ([*CLIPS, "3.wav"], "Used more than once: 1 (3.wav)"),
        ([*CLIPS[:7], "3.wav"], r"once: 1 (3.wav); missing: 1 (7.wav)"),
    ],
)
def test_clip_left_out_or_taken_twice_ends_the_run(taken: list[str], said: str) -> None:
    one = accounts()
    one.count(taken, ())
    with pytest.raises(AccountingError) as raised:
        one.finish_epoch(0, totals(one))
    assert said in str(raised.value)


def test_clip_that_is_none_of_the_training_clips_ends_the_run() -> None:
    with pytest.raises(AccountingError, match=r"v\.wav"):
        accounts().count(["v.wav"], ())


def test_mask_of_clips_that_were_not_trained_is_seen() -> None:
    one = accounts()
    one.count(CLIPS, ())
    one.mask(["3.wav"])
    one.mask(["3.wav"])
    with pytest.raises(AccountingError):
        one.finish_epoch(0, totals(one))


@pytest.mark.parametrize(("allowed", "clips", "ends"), [(0.1, 1, False), (0.1, 2, True), (0, 1, True), (1, 8, False)])
def test_more_rejections_than_allowed_end_the_run_with_the_reasons(allowed: float, clips: int, ends: bool) -> None:
    one = accounts(allowed)
    names = [*CLIPS, "v.wav", "w.wav"][:clips]
    found = [bad(name, "too-short" if n else "truncated-audio") for n, name in enumerate(names)]
    if not ends:
        one.reject(found)
        return
    with pytest.raises(TooManyRejectedError) as raised:
        one.reject(found)
    assert f"{clips} of 10 clips" in str(raised.value)
    assert "1 truncated-audio" in str(raised.value)
    assert "0.wav: truncated-audio (why)" in str(raised.value)


def test_nothing_left_to_validate_with_ends_the_run_whatever_is_allowed() -> None:
    one = accounts(1)
    one.reject([bad("v.wav")])
    with pytest.raises(TooManyRejectedError, match="None of the 2 validation clips can be used: 2 too-short"):
        one.reject([bad("w.wav")])


def test_the_same_clip_again_is_one() -> None:
    one = accounts(0.1)
    one.reject([bad("1.wav")])
    one.reject([bad("1.wav")])
    assert one.rejected_by_kind == {"too-short": 1}


def test_nothing_trained_is_no_success() -> None:
    one = accounts()
    one.count((), CLIPS)
    one.reject([bad(name) for name in CLIPS])
    with pytest.raises(TooManyRejectedError, match="Nothing was trained: 8 too-short"):
        one.finish_epoch(0, totals(one))


def test_resumed_epoch_goes_on_with_other_ranks() -> None:
    first, second = accounts(), accounts()
    first.count(CLIPS[:3], ["5.wav"])
    second.count(CLIPS[3:5], ())
    first.mask(["0.wav"])
    first.reject([bad("5.wav")])
    saved = json.loads(json.dumps(first.save(totals(first, second))))
    resumed = [accounts() for _ in range(3)]
    for rank, one in enumerate(resumed):
        one.restore(saved, is_main=rank == 0, begins_epoch=False)
    resumed[1].count(["6.wav"], ())
    resumed[2].count(["7.wav"], ())
    found = resumed[0].finish_epoch(0, totals(*resumed))
    assert found == "epoch 1: 6 trained + 1 rejected + 2 validation + 1 in masked updates = 10 clips"


DUE = np.array([3, 1, 2, 0, 1, 0, 1, 0])
"""Eight turns of eight clips: 3.wav, 5.wav and 7.wav have none."""


def uneven() -> ClipAccounting:
    return ClipAccounting(CLIPS, ["v.wav", "w.wav"], 1.0, lambda epoch: np.roll(DUE, epoch))


def turns(epoch: int = 0) -> list[str]:
    return [name for name, often in zip(CLIPS, np.roll(DUE, epoch), strict=True) for _ in range(often)]


def test_turns_and_clips_add_up_where_some_come_often() -> None:
    one = uneven()
    for epoch in range(2):
        one.count(turns(epoch), ())
        words = f"epoch {epoch + 1}: 5 trained + 0 rejected + 2 validation + 3 not drawn = 10 clips"
        assert one.finish_epoch(epoch, totals(one)) == f"{words}; 8 trained = 8 draws"


def test_clip_that_came_often_counts_once_as_a_clip_and_each_time_as_a_draw() -> None:
    one = uneven()
    one.count(["0.wav", "0.wav", "0.wav", "1.wav", "4.wav", "6.wav"], ["2.wav", "2.wav"])
    one.reject([bad("2.wav")])
    one.mask(["0.wav", "0.wav", "1.wav"])
    assert one.finish_epoch(0, totals(one)) == (
        "epoch 1: 3 trained + 1 rejected + 2 validation + 1 in masked updates + 3 not drawn = 10 clips; "
        "3 trained + 3 masked + 2 rejected = 8 draws"
    )


def test_cut_epoch_of_turns_goes_on_behind_a_checkpoint_and_other_ranks() -> None:
    one = uneven()
    one.count(["0.wav", "0.wav", "2.wav", "4.wav"], ())
    assert one.finish_epoch(0, totals(one), not_reached=4) == (
        "epoch 1: 3 trained + 0 rejected + 2 validation + 3 not drawn + 2 not reached before the run ended = "
        "10 clips; 4 trained + 4 not reached = 8 draws"
    )
    saved = json.loads(json.dumps(one.save(totals(one))))
    resumed = [uneven(), uneven()]
    for rank, other in enumerate(resumed):
        other.restore(saved, is_main=rank == 0, begins_epoch=False)
    resumed[0].count(["0.wav", "1.wav"], ())
    resumed[1].count(["2.wav", "6.wav"], ())
    assert resumed[0].finish_epoch(0, totals(*resumed)).endswith("3 not drawn = 10 clips; 8 trained = 8 draws")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda names: names[1:], "more often than due: none; missing: 1 (0.wav), expected 0"),
        (lambda names: [*names, "2.wav"], "more often than due: 1 (2.wav); missing: none"),
        (lambda names: [*names, "7.wav"], "more often than due: 1 (7.wav)"),
        (lambda names: [*names[1:], "2.wav"], "due: 1 (2.wav); missing: 1 (0.wav)"),
    ],
)
def test_clip_that_came_more_or_less_often_than_due_ends_the_run(changed, said: str) -> None:
    one = uneven()
    one.count(changed(turns()), ())
    with pytest.raises(AccountingError) as raised:
        one.finish_epoch(0, totals(one))
    assert said in str(raised.value)


def test_counts_of_one_are_saved_as_bits_and_larger_ones_behind_them() -> None:
    one = accounts()
    one.count([CLIPS[0], CLIPS[7]], ())
    assert one.save(totals(one))["trained"] == "81"  # as a checkpoint has it
    one.count([CLIPS[0], CLIPS[0]], ())
    assert one.save(totals(one))["trained"] == "8180"  # 3 and 1: the ones, then the twos


def test_rejection_that_ended_the_run_comes_again() -> None:
    one = accounts(0.1)
    one.count((), ["1.wav"])
    one.reject([bad("1.wav")])
    with pytest.raises(TooManyRejectedError):
        one.reject([bad("2.wav")])
    saved = json.loads(json.dumps(one.save(totals(one))))
    resumed = accounts()
    resumed.restore(saved, is_main=False, begins_epoch=False)
    assert (resumed.knows("1.wav"), resumed.knows("2.wav")) == (True, False)
