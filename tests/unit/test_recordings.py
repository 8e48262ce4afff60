"""Audio in and out: what comes back is what was there, and each kind of damage has its own name."""

import pickle
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.speech import encode, voice
from vits_trainer.recordings import (
    Reason,
    RecordingError,
    read_pcm16_wav,
    read_recording,
    to_pcm16,
    to_rate,
    write_pcm16_wav,
)


def reason_of(source: Path | bytes) -> Reason:
    with pytest.raises(RecordingError) as caught:
        read_recording(source)
    return caught.value.rejection.reason


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [("WAV", "PCM_16", 4e-5), ("WAV", "FLOAT", 0), ("FLAC", "PCM_16", 4e-5), ("MP3", None, 0.05), ("OGG", None, 0.05)],
)
def test_formats_are_read_by_their_content_from_bytes_and_from_files(
    tmp_path: Path, kind: str, subtype: str | None, tolerance: float
) -> None:
    samples = voice(1.0, 44100)
    content = encode(samples, 44100, kind, subtype)
    misnamed = tmp_path / "clip.raw"
    misnamed.write_bytes(content)
    for source in (content, misnamed):
        read, rate_hz = read_recording(source)
        assert (rate_hz, read.dtype, read.shape) == (44100, np.float32, samples.shape)
        np.testing.assert_allclose(read, samples, atol=tolerance)


def test_channels_are_mixed_to_their_mean() -> None:
    left, right = voice(0.3, 16000, 100), voice(0.3, 16000, 300)
    read, _ = read_recording(encode(np.stack([left, right], axis=1), 16000, subtype="FLOAT"))
    np.testing.assert_allclose(read, (left + right) / 2, atol=1e-7)


def test_a_truncated_wav_is_told_from_a_whole_one() -> None:
    content = encode(voice(1.0, 16000), 16000)
    read_recording(content)
    assert reason_of(content[:-2]) is Reason.TRUNCATED_AUDIO
    assert reason_of(content[: len(content) // 2]) is Reason.TRUNCATED_AUDIO
    assert reason_of(content[:44]) is Reason.TRUNCATED_AUDIO


def test_a_wav_written_into_a_pipe_has_no_length_and_is_read_whole() -> None:
    content = bytearray(encode(voice(0.5, 16000), 16000))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert len(read_recording(bytes(content))[0]) == 8000


def test_a_chunk_before_the_audio_does_not_hide_that_it_is_truncated() -> None:
    content = encode(voice(0.5, 16000), 16000)
    place = content.index(b"data")
    note = b"note" + struct.pack("<I", 3) + b"abc\0"  # an odd size is padded
    padded = content[:place] + note + content[place:]
    assert len(read_recording(padded)[0]) == 8000
    assert reason_of(padded[:-1000]) is Reason.TRUNCATED_AUDIO


def test_a_truncated_mp3_is_told_from_a_whole_one() -> None:
    content = encode(voice(3.0, 32000), 32000, "MP3")
    assert len(read_recording(content)[0]) == 3 * 32000
    assert reason_of(content[: len(content) // 2]) is Reason.TRUNCATED_AUDIO


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", Reason.EMPTY_AUDIO, id="no bytes"),
        pytest.param(encode(voice(0.0001, 16000)[:0], 16000), Reason.EMPTY_AUDIO, id="no samples"),
        pytest.param(b"junk" * 500, Reason.UNREADABLE_AUDIO, id="junk"),
        pytest.param(encode(voice(1.0, 16000), 16000, "FLAC")[:9000], Reason.UNREADABLE_AUDIO, id="half a FLAC"),
        pytest.param(encode(voice(0.05, 16000), 16000), Reason.TOO_SHORT, id="0.05 s"),
        pytest.param(encode(voice(60.5, 8000), 8000), Reason.TOO_LONG, id="60.5 s"),
        pytest.param(encode(np.zeros((8000, 9), np.float32), 16000), Reason.UNSUPPORTED_AUDIO, id="9 channels"),
        pytest.param(encode(voice(0.5, 2000), 2000), Reason.UNSUPPORTED_AUDIO, id="2 kHz"),
    ],
)
def test_each_fault_has_its_reason(content: bytes, reason: Reason) -> None:
    assert reason_of(content) is reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    samples = voice(0.5, 16000)
    samples[100] = value
    assert reason_of(encode(samples, 16000, subtype="FLOAT")) is Reason.NON_FINITE_AUDIO


def test_a_long_recording_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sf.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    assert reason_of(encode(voice(61.0, 8000), 8000, "MP3")) is Reason.TOO_LONG


def test_a_missing_file_has_its_reason(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.wav") is Reason.MISSING_FILE
    assert reason_of(tmp_path) is Reason.UNREADABLE_AUDIO


def test_the_error_travels_between_processes() -> None:
    with pytest.raises(RecordingError) as caught:
        read_recording(b"junk" * 100)
    arrived = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert arrived.rejection == caught.value.rejection
    assert str(arrived) == str(caught.value) == "unreadable-audio: Format not recognised."


def test_resampling_keeps_pitch_level_and_length_and_removes_what_does_not_fit() -> None:
    time_s = np.arange(48000) / 48000
    kept, removed = np.sin(2 * np.pi * 1000 * time_s), np.sin(2 * np.pi * 11000 * time_s)
    resampled = to_rate((0.4 * kept + 0.4 * removed).astype(np.float32), 48000, 16000)
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert len(resampled) == 16000
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=1e-3)


def test_the_same_rate_changes_nothing() -> None:
    samples = voice(0.2, 16000)
    assert to_rate(samples, 16000, 16000) is samples


def test_16_bit_sources_come_back_unchanged_and_what_is_too_loud_is_clipped() -> None:
    every = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(to_pcm16(every.astype(np.float32) / 32768), every)
    loud = np.array([1.0, 1.5, -1.5, 0.99999], dtype=np.float32)
    assert to_pcm16(loud).tolist() == [32767, 32767, -32768, 32767]


def test_wav_files_come_back_and_others_read_them(tmp_path: Path) -> None:
    path, pcm = tmp_path / "a.wav", to_pcm16(voice(0.3, 22050))
    write_pcm16_wav(path, pcm, 22050)
    read, rate_hz = read_pcm16_wav(path)
    assert (rate_hz, read.dtype) == (22050, np.int16)
    np.testing.assert_array_equal(read, pcm)
    np.testing.assert_array_equal(sf.read(path, dtype="int16")[0], pcm)
    assert sf.info(path).subtype == "PCM_16"


def _damaged(path: Path, damage: str) -> None:
    pcm = to_pcm16(voice(0.3, 16000))
    write_pcm16_wav(path, pcm, 16000)
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "junk":
            path.write_bytes(b"junk" * 100)
        case "header only in part":
            path.write_bytes(content[:30])
        case "sizes that contradict one another":
            path.write_bytes(content[:16] + struct.pack("<I", 0xFFFFFF) + content[20:])
        case "truncated":
            path.write_bytes(content[:-101])
        case "stereo" | "8 bits":
            with wave.open(str(path), "wb") as file:
                file.setparams((2, 2, 16000, 0, "NONE", "") if damage == "stereo" else (1, 1, 16000, 0, "NONE", ""))
                file.writeframes(pcm.tobytes())
        case "float":
            path.write_bytes(encode(voice(0.3, 16000), 16000, subtype="FLOAT"))
        case "FLAC":
            path.write_bytes(encode(voice(0.3, 16000), 16000, "FLAC"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("missing", Reason.MISSING_FILE),
        ("empty", Reason.UNREADABLE_AUDIO),
        ("junk", Reason.UNREADABLE_AUDIO),
        ("header only in part", Reason.UNREADABLE_AUDIO),
        ("sizes that contradict one another", Reason.UNREADABLE_AUDIO),
        ("truncated", Reason.TRUNCATED_AUDIO),
        ("stereo", Reason.UNSUPPORTED_AUDIO),
        ("8 bits", Reason.UNSUPPORTED_AUDIO),
        ("float", Reason.UNREADABLE_AUDIO),
        ("FLAC", Reason.UNREADABLE_AUDIO),
    ],
)
def test_a_prepared_clip_that_is_none_is_named_in_an_error_that_travels(
    tmp_path: Path, damage: str, reason: Reason
) -> None:
    path = tmp_path / "audio_000000.wav"
    _damaged(path, damage)
    with pytest.raises(RecordingError) as caught:
        read_pcm16_wav(path)
    arrived = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert arrived.rejection.reason is reason
    assert str(path) in str(arrived)
