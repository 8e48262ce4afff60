"""Long recordings are read forward, in blocks."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import voice
from vits_trainer.data.rejections import Reason, RecordingError
from vits_trainer.data.segmentation.reading import (
    SPEECH_RATE_HZ,
    SpanReader,
    declared_duration_s,
    open_recording,
    speech_blocks,
    to_speech,
)

SPANS = [(0.5, 1.25), (1.0, 1.1), (9.5, 12.0), (12.0, 30.0), (27.5, 40.0)]
"""Overlapping, across blocks of 10 s, and beyond the end."""


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_spans_are_those_of_the_whole_recording(tmp_path: Path, name: str) -> None:
    stereo = np.stack([voice(28.0, 8000, 110), voice(28.0, 8000, 220)], axis=1)
    sf.write(tmp_path / name, stereo, 8000)
    whole = sf.read(tmp_path / name, dtype="float32", always_2d=True)[0]
    with open_recording(tmp_path / name) as file:
        assert declared_duration_s(file) == pytest.approx(28, abs=0.1)
        reader = SpanReader(file)
        for start_s, end_s in SPANS:
            expected = whole[round(start_s * 8000) : round(end_s * 8000)]
            np.testing.assert_allclose(reader.read(start_s, end_s), expected, atol=1e-6)


def test_a_span_is_given_to_recognizers_as_mono_at_their_rate(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.stack([voice(2.0, 48000)] * 2, axis=1), 48000, subtype="FLOAT")
    with open_recording(tmp_path / "a.wav") as file:
        samples = to_speech(SpanReader(file).read_file(0.5, 1.5), 10)
    assert samples.shape == (SPEECH_RATE_HZ,)
    expected = voice(2.0, SPEECH_RATE_HZ)[8000:24000]
    assert np.abs(samples - expected)[200:-200].max() < 0.02


def test_channels_of_opposite_phase_do_not_cancel(tmp_path: Path) -> None:
    speech = voice(12.0, SPEECH_RATE_HZ)
    sf.write(tmp_path / "a.wav", np.stack([speech, -speech], axis=1), SPEECH_RATE_HZ, subtype="FLOAT")
    with open_recording(tmp_path / "a.wav") as file:
        np.testing.assert_allclose(np.abs(np.concatenate(list(speech_blocks(file)))), np.abs(speech), atol=1e-6)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    with sf.SoundFile(tmp_path / "a.wav", "w", 16000, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros(16000 * 60, np.int16))  # 38 MB
    tracemalloc.start()
    with open_recording(tmp_path / "a.wav") as recording:
        decoded = sum(map(len, speech_blocks(recording)))
    with open_recording(tmp_path / "a.wav") as recording:
        assert len(SpanReader(recording).read(1190, 1200)) == 160_000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoded == 1200 * SPEECH_RATE_HZ
    assert peak_bytes < 8e6


def test_what_is_no_recording_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"not audio")
    with pytest.raises(RecordingError) as caught, open_recording(tmp_path / "a.wav"):
        pass
    assert caught.value.rejection.reason is Reason.UNREADABLE_AUDIO
    sf.write(tmp_path / "b.wav", np.zeros((100, 9)), 16000)
    with pytest.raises(RecordingError, match="9 channels"), open_recording(tmp_path / "b.wav"):
        pass
