"""Speech is found, and cut in its pauses only."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import recordings
from tests.support.recordings import RATE_HZ, chords, joined
from vits_trainer.data.segmentation import speech
from vits_trainer.data.segmentation.speech import FRAME_S, Span, find_clips, load_detector, speech_probabilities
from vits_trainer.utils.errors import ConfigError


def talk(*lengths_s: float) -> NDArray[np.float32]:
    """Probabilities of pause, speech, pause ... of these lengths."""
    return np.concatenate(
        [np.full(round(length_s / FRAME_S), row % 2, np.float32) for row, length_s in enumerate(lengths_s)]
    )


def bounds(spans: list[Span]) -> list[tuple[float, float]]:
    return [(round(span.start_s, 1), round(span.end_s, 1)) for span in spans]


@pytest.mark.parametrize(
    ("lengths_s", "expected"),
    [
        ((1, 3, 1), [(0.8, 4.2)]),  # a margin of 0.2 s
        ((0.1, 3, 0.1), [(0.0, 3.2)]),  # no more than there is
        ((1, 3, 0.6, 3, 1), [(0.8, 4.2), (4.4, 7.8)]),
        ((1, 3, 0.3, 3, 1), [(0.8, 7.5)]),  # no end of a sentence
        ((1, 1.5, 0.6, 3, 1), [(0.8, 6.3)]),  # too little for a clip of its own
        ((1, 1.5, 1.2, 3, 1), [(0.8, 2.7), (3.5, 6.9)]),
        ((1, 8, 0.3, 5, 0.4, 4, 1), [(0.8, 14.5), (14.5, 18.9)]),  # too long: cut in the longest pause
        ((1, 8, 0.1, 9, 1), [(0.8, 18.3)]),  # a pause within a word: not cut
        ((1, 0.05, 1, 3, 1), [(1.9, 5.2)]),  # a click
        ((2,), []),
    ],
)
def test_clips_end_in_pauses(lengths_s: tuple[float, ...], expected: list[tuple[float, float]]) -> None:
    found = bounds(find_clips(talk(*lengths_s)))
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), atol=0.11)


def test_any_talk_is_cut_into_separate_clips_that_cover_it() -> None:
    draw = np.random.default_rng(0)
    lengths_s = [draw.choice([0.25, 0.4, 0.7, 1.5]) if row % 2 == 0 else draw.uniform(0.3, 6) for row in range(201)]
    probabilities = talk(*lengths_s)
    clips = find_clips(probabilities)
    assert all(left.end_s <= right.start_s for left, right in pairwise(clips))
    assert max(clip.duration_s for clip in clips) <= 15
    inside = np.zeros(len(probabilities), bool)
    for clip in clips:
        inside[round(clip.start_s / FRAME_S) : round(clip.end_s / FRAME_S)] = True
    assert inside[probabilities > 0.5].all()


def test_human_speech_is_found_between_pauses_in_blocks_of_any_size() -> None:
    samples, spans = joined()
    detect = load_detector()
    whole = speech_probabilities([samples], detect())
    parts = speech_probabilities(np.split(samples, range(7000, len(samples), 7000)), detect())
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    clips = find_clips(whole)
    assert len(clips) == len(spans)
    np.testing.assert_allclose(np.array(clips), np.array(spans), atol=0.45)
    for clip, (start_s, end_s) in zip(clips, spans, strict=True):  # nothing that is heard is lost
        sentence = np.abs(samples[round(start_s * RATE_HZ) : round(end_s * RATE_HZ)])
        audible_s = start_s + np.flatnonzero(sentence > 0.05 * sentence.max())[[0, -1]] / RATE_HZ
        assert clip.start_s < audible_s[0]
        assert audible_s[1] < clip.end_s


def test_music_noise_and_silence_are_no_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 8 * RATE_HZ).astype(np.float32)
    detect = load_detector()
    for samples in (chords(8), noise, np.zeros(8 * RATE_HZ, np.float32), np.zeros(0, np.float32)):
        assert find_clips(speech_probabilities([samples], detect())) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recordings.RATE_HZ == speech.SPEECH_RATE_HZ
    monkeypatch.setattr(speech, "find_spec", lambda name: None if name == "silero_vad" else object())
    with pytest.raises(ConfigError, match=r"packages \(silero_vad\): pip install .*\[segment\]"):
        load_detector()
