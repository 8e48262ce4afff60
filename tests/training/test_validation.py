"""Validation speaker by speaker is what one clip at a time gives."""

from pathlib import Path

import pytest

from tests.support.small_networks import judged
from tests.support.voices import many_speakers
from vits_trainer.distributed.runtime import Runtime


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_speakers(tmp_path_factory.mktemp("speakers"), {"ava": 3, "zin": 2})


def test_a_speakers_mel_is_that_of_its_clips_one_at_a_time(data: Path) -> None:
    found = judged(Runtime("fp32", 1), data, batch_size=3)  # a batch of both speakers, and one of the second's alone
    alone = [judged(Runtime("fp32", 1), data, [row]).scalars["validation/mel"] for row in range(5)]
    # 0.80, 0.85 and 0.90 s at 16 kHz, and 0.82 and 0.87 s, in whole frames of 256 samples: all of each clip.
    frames = [50, 53, 56, 51, 54]
    by_hand = [
        sum(f * mel for f, mel in zip(frames[own], alone[own], strict=True)) / sum(frames[own])
        for own in (slice(0, 3), slice(3, 5))
    ]
    assert [(speaker.speaker, speaker.clips) for speaker in found.speakers] == [("ava", 3), ("zin", 2)]
    assert [speaker.mel for speaker in found.speakers] == pytest.approx(by_hand, rel=1e-4)
    assert abs(by_hand[0] - by_hand[1]) > 0.001 * by_hand[0]
    assert found.scalars["validation/speaker_mel/ava"] == found.speakers[0].mel
    assert found.scalars["validation/speaker_mel_worst"] == max(speaker.mel for speaker in found.speakers)
    everything = sum(f * mel for f, mel in zip(frames, alone, strict=True)) / sum(frames)
    assert found.scalars["validation/mel"] == pytest.approx(everything, rel=1e-4)


def test_clips_of_one_speaker_have_no_speakers_curves(data: Path) -> None:
    found = judged(Runtime("fp32", 1), data, [0, 1])
    assert found.speakers == ()
    assert not [name for name in found.scalars if "speaker" in name]
