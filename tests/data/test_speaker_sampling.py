"""Sampling of speakers: exact quotas, even draws within a speaker, and the numbers in docs/training.md."""

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.support.orders import ORDERS, SIZES, clips_by_update, lengths
from vits_trainer.data.sampler import BucketBatchSampler
from vits_trainer.data.speaker_sampling import SpeakerTemperatureSampler


def balance(sizes: list[int], temperature: float, seed: int = 1) -> SpeakerTemperatureSampler:
    """A sampler of speakers a, b, c, ... with these numbers of clips, interleaved."""
    left = dict(zip("abcdefghij", sizes, strict=False))
    speakers = []
    while any(left.values()):
        speakers += [name for name, clips in left.items() if clips]
        left = {name: max(0, clips - 1) for name, clips in left.items()}
    return SpeakerTemperatureSampler(speakers, temperature, seed)


# 100 clips: at 0.5 the weights are 9, 4 and sqrt(3) = 1.7321, total 14.7321: 61.09, 27.15 and 11.76 draws.
@pytest.mark.parametrize(
    ("temperature", "quotas"), [(1, [81, 16, 3]), (0.5, [61, 27, 12]), (0, [34, 33, 33])], ids=str
)
def test_quotas(temperature: float, quotas: list[int]) -> None:
    assert balance([81, 16, 3], temperature).quotas(0).tolist() == quotas


def test_extra_draws_rotate_among_equal_remainders() -> None:
    rotating = balance([81, 16, 3], 0)
    assert [rotating.quotas(epoch).tolist() for epoch in (1, 2)] == [[33, 34, 33], [33, 33, 34]]
    # 7 clips for 5 speakers: two extra draws per epoch, so each has 7 of the 35 draws of five epochs.
    rotating = balance([3, 1, 1, 1, 1], 0)
    assert sum(rotating.quotas(epoch) for epoch in range(5)).tolist() == [7] * 5


@pytest.mark.parametrize("sizes", [[1], [5], [81, 16, 3], [7, 1, 1, 1], [2, 2, 2], [10] * 9 + [1]], ids=str)
@pytest.mark.parametrize("temperature", [0, 0.3, 0.5, 0.99, 1])
def test_draws_of_a_speakers_clips_differ_by_at_most_one(sizes: list[int], temperature: float) -> None:
    sampler = balance(sizes, temperature)
    for epoch in (0, 1, 7, 1000):
        drawn = Counter(sampler.draw(epoch).tolist())
        assert drawn.total() == sum(sizes)
        for speaker, quota in zip(sorted(set(sampler.speakers)), sampler.quotas(epoch), strict=True):
            counts = [drawn[index] for index, name in enumerate(sampler.speakers) if name == speaker]
            assert sum(counts) == quota
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_every_clip_is_drawn_over_several_epochs(temperature: float) -> None:
    sampler = balance([81, 16, 3], temperature)
    counts = sum(np.bincount(sampler.draw(epoch), minlength=100) for epoch in range(12))
    for number, speaker in enumerate("abc"):
        of_speaker = counts[np.asarray(sampler.speakers) == speaker]
        assert abs(of_speaker - 12 * 100 * sampler.shares[number] / len(of_speaker)).max() <= 2


def test_draws_depend_only_on_seed_and_epoch() -> None:
    def draws(epoch: int, seed: int) -> tuple[int, ...]:
        return tuple(balance([81, 16, 3], 0.5, seed).draw(epoch).tolist())

    assert draws(3, 1) == draws(3, 1)
    assert len({draws(epoch, seed) for epoch in range(4) for seed in range(4)}) == 16


@pytest.mark.parametrize("order", ORDERS[: len(SIZES) : 7], ids=lambda o: f"{len(o.rows)}x{o.update_clips}")
def test_temperature_one_gives_the_same_order_as_no_temperature(order: BucketBatchSampler) -> None:
    speakers = [f"{n % 5}" for n in range(len(order.rows))]
    settings = {field.name: getattr(order, field.name) for field in fields(order)}
    balanced = BucketBatchSampler(**{**settings, "draw_epoch": SpeakerTemperatureSampler(speakers, 1.0, 3).draw})
    for epoch in range(3):
        assert list(balanced.epoch(epoch, 0)) == list(order.epoch(epoch, 0))
    assert balanced.expected_counts(0).tolist() == [1] * len(order.rows)


def balanced_order(world: int, accumulation: int, temperature: float = 0.5) -> BucketBatchSampler:
    sampler = balance([81, 16, 3], temperature)
    return BucketBatchSampler(
        range(100), lengths(100), 5, 16 // (world * accumulation), world, accumulation, draw_epoch=sampler.draw
    )


def test_epoch_contains_the_drawn_clips_in_the_usual_number_of_updates() -> None:
    for epoch in range(4):
        order = balanced_order(2, 2)
        updates = clips_by_update(order, epoch)
        assert sum(updates, Counter()) == Counter(balance([81, 16, 3], 0.5).draw(epoch).tolist())
        assert len(updates) == order.updates_per_epoch == 7
        counts = np.bincount(list(sum(updates, Counter()).elements()), minlength=100)
        assert order.expected_counts(epoch).tolist() == counts.tolist()


def test_updates_do_not_depend_on_world_size_and_accumulation() -> None:
    expected = [clips_by_update(balanced_order(1, 1), epoch) for epoch in range(3)]
    for world, accumulation in ((2, 1), (4, 2), (1, 8)):
        assert [clips_by_update(balanced_order(world, accumulation), epoch) for epoch in range(3)] == expected


def test_resuming_continues_with_the_remaining_updates_and_counts_them() -> None:
    order = balanced_order(1, 2)
    complete = list(order.after(0, 14, rank=0))
    ends = [0, *(index for index, m in enumerate(complete, start=1) if m.closes_update)]
    for updates in range(1, 14):
        assert list(order.after(updates, 14, rank=0)) == complete[ends[updates] :]
        rest = sum(len(m.indices) for m in order.after(updates, -(-updates // 7) * 7, rank=0))
        assert order.clips_left(updates) == rest


def test_dry_run_has_the_longest_clips_even_if_the_first_epoch_lacks_them() -> None:
    # One speaker of 200 clips and 40 of one: an epoch draws each speaker 5 or 6 times, so few of the 200 clips.
    sampler = SpeakerTemperatureSampler(["many"] * 200 + [f"one{n}" for n in range(40)], 0, 1)
    absent = next(index for index in range(200) if index not in sampler.draw(0))
    frames = [600 if index == absent else 100 for index in range(240)]
    order = BucketBatchSampler(range(240), frames, 1, 8, 1, 1, draw_epoch=sampler.draw)
    assert absent in order.dry_run_batches(0)[0].indices
    assert len(order.dry_run_batches(0)[0].indices) == 8


def common_voice_shape() -> list[str]:
    """The example in docs/training.md: 300 speakers, the k-th with 600 / k clips."""
    return [f"speaker{k:03}" for k in range(1, 301) for _ in range(max(1, 600 // k))]


QUOTAS = {1: ((600, 60, 4, 2), 0), 0.5: ((114, 36, 9, 6), 1303), 0: ((13, 13, 12, 12), 2040)}
"""By temperature: draws per epoch of the speakers of 600, 60, 4 and 2 clips, and the clips without a draw."""


def test_draws_of_three_hundred_speakers() -> None:
    speakers = common_voice_shape()
    clips = Counter(speakers)
    ranked = sorted(clips)
    assert len(speakers) == 3644
    assert (clips[ranked[0]], clips[ranked[9]], clips[ranked[149]], clips[ranked[299]]) == (600, 60, 4, 2)
    for temperature in (1, 0.5, 0):
        sampler = SpeakerTemperatureSampler(speakers, temperature, 0)
        quotas = sampler.quotas(0)
        never = int((np.bincount(sampler.draw(0), minlength=len(speakers)) == 0).sum())
        assert (tuple(quotas[index] for index in (0, 9, 149, 299)), never) == QUOTAS[temperature]
    # Computed independently: the weight of 600 clips is sqrt(600), divided by the sum of all roots.
    by_hand = 600**0.5 / sum(count**0.5 for count in clips.values())
    assert SpeakerTemperatureSampler(speakers, 0.5, 0).shares[0] == pytest.approx(by_hand, abs=1e-9)
    page = Path(__file__).parents[2].joinpath("docs/training.md").read_text("utf-8")
    assert str(SpeakerTemperatureSampler(speakers, 0.5, 0)) in page.replace("\n    ", " ")
