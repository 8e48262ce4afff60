"""Metrics per speaker equal those of the clips validated one at a time."""

from pathlib import Path

import pytest

from tests.support.small_networks import validate
from tests.support.voices import many_speakers
from vits_trainer.distributed.runtime import Runtime


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_speakers(tmp_path_factory.mktemp("speakers"), {"ava": 3, "zin": 2})


def test_mel_of_a_speaker_equals_that_of_its_clips_one_at_a_time(data: Path) -> None:
    result = validate(Runtime("fp32", 1), data, batch_size=3)  # one batch of both speakers, one of the second speaker
    single = [validate(Runtime("fp32", 1), data, [row]).scalars["validation/mel"] for row in range(5)]
    # 0.80, 0.85 and 0.90 s at 16 kHz, and 0.82 and 0.87 s, in whole frames of 256 samples.
    frames = [50, 53, 56, 51, 54]
    by_hand = [
        sum(f * mel for f, mel in zip(frames[own], single[own], strict=True)) / sum(frames[own])
        for own in (slice(0, 3), slice(3, 5))
    ]
    assert [(speaker.speaker, speaker.clips) for speaker in result.speakers] == [("ava", 3), ("zin", 2)]
    assert [speaker.mel for speaker in result.speakers] == pytest.approx(by_hand, rel=1e-4)
    assert abs(by_hand[0] - by_hand[1]) > 0.001 * by_hand[0]
    assert result.scalars["validation/speaker_mel/ava"] == result.speakers[0].mel
    assert result.scalars["validation/speaker_mel_worst"] == max(speaker.mel for speaker in result.speakers)
    overall = sum(f * mel for f, mel in zip(frames, single, strict=True)) / sum(frames)
    assert result.scalars["validation/mel"] == pytest.approx(overall, rel=1e-4)


def test_single_speaker_has_no_metrics_per_speaker(data: Path) -> None:
    result = validate(Runtime("fp32", 1), data, [0, 1])
    assert result.speakers == ()
    assert not [name for name in result.scalars if "speaker" in name]
