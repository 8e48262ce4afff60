"""Audio round trips, loudness, trimming, resampling, and the reason of each kind of damage."""

import os
import pickle
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import encode, voice
from vits_trainer.data.audio import (
    Reason,
    RecordingError,
    loudness_dbfs,
    read_pcm16_wav,
    read_recording,
    require_duration,
    require_loudness,
    to_loudness,
    to_pcm16,
    to_rate,
    trim_silence,
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
def test_formats_are_detected_by_content_in_bytes_and_files(
    tmp_path: Path, kind: str, subtype: str | None, tolerance: float
) -> None:
    samples = voice(1.0, 44100)
    content = encode(samples, 44100, kind, subtype)
    wrong_suffix = tmp_path / "clip.raw"
    wrong_suffix.write_bytes(content)
    for source in (content, wrong_suffix):
        read, rate_hz = read_recording(source)
        assert (rate_hz, read.dtype, read.shape) == (44100, np.float32, samples.shape)
        np.testing.assert_allclose(read, samples, atol=tolerance)


def test_channels_are_mixed_to_their_mean() -> None:
    left, right = voice(0.3, 16000, 100), voice(0.3, 16000, 300)
    read, _ = read_recording(encode(np.stack([left, right], axis=1), 16000, subtype="FLOAT"))
    np.testing.assert_allclose(read, (left + right) / 2, atol=1e-7)


LEFT = voice(0.5, 16000)
NOTHING = np.zeros_like(LEFT)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        pytest.param([LEFT, -LEFT], LEFT, id="opposite phases"),
        pytest.param([-0.98 * LEFT, LEFT], LEFT, id="nearly opposite phases"),
        pytest.param([NOTHING, LEFT], 0.5 * LEFT, id="a dead channel"),
        pytest.param([NOTHING + 0.5, LEFT], 0.5 * LEFT + 0.25, id="a dead channel with an offset"),
        pytest.param([NOTHING, NOTHING, LEFT, NOTHING, NOTHING, NOTHING], LEFT, id="one of six channels"),
        pytest.param([LEFT, LEFT], LEFT, id="the same twice"),
        pytest.param([LEFT, 0.5 * LEFT], 0.75 * LEFT, id="one softer"),
    ],
)
def test_channel_is_chosen_where_the_mean_is_much_softer(channels: list[np.ndarray], expected: np.ndarray) -> None:
    read, _ = read_recording(encode(np.stack(channels, axis=1), 16000, subtype="FLOAT"))
    np.testing.assert_allclose(read, expected, atol=1e-6)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("full_scale", [2.0**15, 2.0**23, 2.0**31])
@pytest.mark.parametrize("level", [0.1, 0.5, 1.9])
def test_floats_in_the_range_of_integers_are_scaled_by_their_full_scale(
    subtype: str, full_scale: float, level: float
) -> None:
    loud = level * LEFT
    for values in (loud * full_scale, np.rint(loud * full_scale)):
        read, _ = read_recording(encode(values.astype(np.float64), 16000, subtype=subtype))
        np.testing.assert_allclose(read, loud, atol=4e-5)


@pytest.mark.parametrize("peak", [1.0001, 1.3, 1.5, 2.5, 10.0])
def test_peaks_beyond_full_scale_are_scaled_down_and_not_clipped(peak: float) -> None:
    values = LEFT / np.abs(LEFT).max() * peak
    read, _ = read_recording(encode(values, 16000, subtype="FLOAT"))
    np.testing.assert_allclose(read, values / peak * 32767 / 32768, atol=1e-6)
    assert np.count_nonzero(np.abs(to_pcm16(read)) >= 32767) == np.count_nonzero(np.abs(values) > 0.99999 * peak)


def test_samples_beyond_32_bits_are_rejected() -> None:
    assert reason_of(encode(LEFT * 1e12, 16000, subtype="FLOAT")) is Reason.OUT_OF_RANGE_AUDIO
    assert reason_of(encode(LEFT.astype(np.float64) * 1e200, 16000, subtype="DOUBLE")) is Reason.NON_FINITE_AUDIO


@pytest.mark.parametrize(
    ("samples", "subtype"),
    [
        pytest.param(NOTHING, "PCM_16", id="digital silence"),
        pytest.param(np.stack([NOTHING, NOTHING], axis=1), "PCM_16", id="digital silence in stereo"),
        pytest.param(NOTHING + 0.3, "PCM_16", id="a constant"),
        pytest.param(NOTHING + 20000.0, "FLOAT", id="a constant beyond full scale"),
        pytest.param(np.stack([NOTHING + 0.3, NOTHING - 0.2], axis=1), "PCM_16", id="two constants"),
        pytest.param(LEFT * 1e-4, "FLOAT", id="80 dB below speech"),
        pytest.param(np.sign(LEFT) / 32768, "PCM_16", id="one step of 16 bits"),
    ],
)
def test_silence_is_rejected(samples: np.ndarray, subtype: str) -> None:
    assert reason_of(encode(samples, 16000, subtype=subtype)) is Reason.TOO_QUIET


def test_soft_speech_and_speech_with_an_offset_are_kept() -> None:
    for samples in (LEFT * 0.01, LEFT + 0.4):
        read, _ = read_recording(encode(samples, 16000, subtype="FLOAT"))
        np.testing.assert_allclose(read, samples, atol=1e-7)


SUBTYPES = [
    *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_24", "PCM_32", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM")),
    *(("WAV", subtype) for subtype in ("MS_ADPCM", "GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_32")),
    *(("AU", subtype) for subtype in ("G721_32", "G723_24", "G723_40")),
    *(("AIFF", subtype) for subtype in ("GSM610", "IMA_ADPCM", "DWVW_16", "PCM_S8")),
    *(("W64", "GSM610"), ("CAF", "ALAC_16"), ("XI", "DPCM_16"), ("XI", "DPCM_8"), ("SVX", "PCM_S8")),
]


@pytest.mark.parametrize(("kind", "subtype"), SUBTYPES)
@pytest.mark.parametrize("rate_hz", [8000, 16000])
def test_codecs_are_decoded_to_the_end(kind: str, subtype: str, rate_hz: int) -> None:
    """libsndfile cannot seek in half of them."""
    low = np.sin(2 * np.pi * 200 * np.arange(2 * rate_hz) / rate_hz).astype(np.float32) / 2
    read, _ = read_recording(encode(low, rate_hz, kind, subtype))
    assert 0 <= len(read) - len(low) < 1100  # whole blocks
    assert np.abs(np.fft.rfft(read[: len(low)])).argmax() == 2 * 200
    assert np.sqrt(np.mean(read[: len(low)] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("error", [ValueError("frames"), RuntimeError(), MemoryError(), IndexError(), TypeError()])
def test_whatever_a_decoder_raises_is_a_rejection(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sf.SoundFile, "read", failing)
    assert reason_of(encode(LEFT, 16000)) is Reason.UNREADABLE_AUDIO


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG", "AIFF", "W64", "RF64", "CAF", "AU", "NIST", "VOC"])
def test_damaged_bytes_raise_nothing_but_rejections(kind: str, seed: int) -> None:
    content = encode(LEFT, 16000, kind)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(content), 400), 4):
            damaged[at] = rng.integers(256)
        try:
            read, _ = read_recording(bytes(damaged))
        except RecordingError:
            continue
        assert np.isfinite(read).all()
        assert np.abs(read).max() <= 1


def test_recording_of_unknown_length_is_decoded_up_to_the_limit_only() -> None:
    content = encode(voice(3.0, 16000), 16000, "WAV")
    assert reason_of(content[:40] + b"\xff\xff\xff\xff" + content[44:] * 25) is Reason.TOO_LONG


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        assert reason_of(path) is Reason.UNREADABLE_AUDIO
        with pytest.raises(RecordingError, match="not a regular file"):
            read_pcm16_wav(path)


def test_prepared_clip_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "0.wav"
    write_pcm16_wav(path, to_pcm16(LEFT), 16000)
    with path.open("ab") as file:
        file.truncate(2**33)
    with pytest.raises(RecordingError, match="too-long"):
        read_pcm16_wav(path)
    write_pcm16_wav(path, np.zeros(301 * 4000, np.int16), 4000)
    with pytest.raises(RecordingError, match="too-long"):
        read_pcm16_wav(path)


def test_prepared_clip_that_declares_half_of_its_samples_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "0.wav"
    write_pcm16_wav(path, to_pcm16(LEFT), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:40] + struct.pack("<I", len(LEFT)) + content[44:])
    with pytest.raises(RecordingError, match="truncated-audio"):
        read_pcm16_wav(path)


def test_resampling_does_not_clip() -> None:
    square = np.sign(LEFT).astype(np.float32)
    resampled = to_rate(square, 16000, 22050)
    assert np.abs(resampled).max() == pytest.approx(32767 / 32768, abs=1e-6)
    assert np.count_nonzero(np.abs(resampled) > 0.999) < 0.01 * len(resampled)


def test_truncated_wav_is_rejected() -> None:
    content = encode(voice(1.0, 16000), 16000)
    read_recording(content)
    assert reason_of(content[:-100]) is Reason.TRUNCATED_AUDIO
    assert reason_of(content[: len(content) // 2]) is Reason.TRUNCATED_AUDIO
    assert reason_of(content[:44]) is Reason.TRUNCATED_AUDIO


def test_wav_from_a_pipe_without_a_length_is_read_completely() -> None:
    content = bytearray(encode(voice(0.5, 16000), 16000))
    offset = content.index(b"data") + 4
    content[offset : offset + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert len(read_recording(bytes(content))[0]) == 8000


def test_truncation_is_detected_behind_another_chunk() -> None:
    content = encode(voice(0.5, 16000), 16000)
    offset = content.index(b"data")
    note = b"note" + struct.pack("<I", 3) + b"abc\0"  # an odd size is padded
    padded = content[:offset] + note + content[offset:]
    assert len(read_recording(padded)[0]) == 8000
    assert reason_of(padded[:-1000]) is Reason.TRUNCATED_AUDIO


def test_truncated_mp3_is_rejected() -> None:
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
def test_each_defect_has_its_reason(content: bytes, reason: Reason) -> None:
    assert reason_of(content) is reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_samples_are_rejected(value: float) -> None:
    samples = voice(0.5, 16000)
    samples[100] = value
    assert reason_of(encode(samples, 16000, subtype="FLOAT")) is Reason.NON_FINITE_AUDIO


def test_long_recording_is_rejected_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sf.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    assert reason_of(encode(voice(61.0, 8000), 8000, "MP3")) is Reason.TOO_LONG


def test_duration_limits_are_inclusive_and_configurable() -> None:
    content = encode(voice(2.0, 16000), 16000)
    assert len(read_recording(content, min_duration_s=2.0, max_duration_s=2.0)[0]) == 32000
    for limits, reason in (((2.1, 60.0), Reason.TOO_SHORT), ((0.1, 1.9), Reason.TOO_LONG)):
        with pytest.raises(RecordingError) as caught:
            read_recording(content, *limits)
        assert caught.value.rejection.reason is reason
        with pytest.raises(RecordingError) as checked:
            require_duration(2.0, *limits)
        assert checked.value.rejection == caught.value.rejection
    assert len(read_recording(encode(voice(61.0, 8000), 8000), max_duration_s=61.0)[0]) == 61 * 8000


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 48000])
def test_silence_at_both_ends_is_trimmed_to_a_margin_and_pauses_are_kept(rate_hz: int) -> None:
    """Tones from 0.5 to 1.1 s and from 1.5 to 2.1 s, which are whole frames of 20 ms."""
    noise = np.random.default_rng(0).standard_normal(3 * rate_hz) * 1e-4
    samples = noise.astype(np.float32)
    tone = np.sin(2 * np.pi * 200 * np.arange(round(0.6 * rate_hz)) / rate_hz).astype(np.float32) / 2
    for begin_s in (0.5, 1.5):
        begin = round(begin_s * rate_hz)
        samples[begin : begin + len(tone)] += tone
    trimmed = trim_silence(samples, rate_hz)
    begin, end = round(0.45 * rate_hz), round(2.15 * rate_hz)
    first = np.flatnonzero(samples == trimmed[0])[0]
    np.testing.assert_array_equal(trimmed, samples[first : first + len(trimmed)])
    assert abs(first - begin) <= 0.021 * rate_hz
    assert abs(first + len(trimmed) - end) <= 0.021 * rate_hz
    assert first <= begin + 1
    assert first + len(trimmed) >= end - 2


@pytest.mark.parametrize(("below_db", "kept_s"), [(39, 1.05), (41, 0.55)])
def test_silence_threshold_is_40_db_below_the_loudest_frame(below_db: float, kept_s: float) -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(8000) / 16000)  # whole periods in every frame
    soft = tone * 10 ** (-below_db / 20)
    samples = np.concatenate([tone, soft, np.zeros(8000)]).astype(np.float32)
    assert len(trim_silence(samples, 16000)) == round(kept_s * 16000)


@pytest.mark.slow
def test_trimming_agrees_with_librosa() -> None:
    import librosa

    samples = np.concatenate([np.zeros(7000), voice(1.0, 16000), np.zeros(5000)]).astype(np.float32)
    trimmed = trim_silence(samples, 16000)
    _, (begin, end) = librosa.effects.trim(samples, top_db=40, frame_length=320, hop_length=320)
    first = 7000 - int(np.flatnonzero(trimmed)[0]) + int(np.flatnonzero(voice(1.0, 16000))[0])
    assert abs(first - (begin - 800)) <= 320  # librosa's frames are centred
    assert abs(first + len(trimmed) - (end + 800)) <= 320


@pytest.mark.parametrize("samples", [np.zeros(5000), np.full(5000, 0.1), voice(0.3, 16000)[:1], np.zeros(319)])
def test_clip_without_silence_or_without_sound_is_unchanged(samples: np.ndarray) -> None:
    clip = samples.astype(np.float32)
    np.testing.assert_array_equal(trim_silence(clip, 16000), clip)


def test_loudness_of_a_sine_and_of_silence() -> None:
    sine = np.sin(2 * np.pi * 100 * np.arange(16000) / 16000).astype(np.float32)
    assert loudness_dbfs(sine) == pytest.approx(-3.0103, abs=1e-3)
    assert loudness_dbfs(sine / 10) == pytest.approx(-23.0103, abs=1e-3)
    assert loudness_dbfs(np.zeros(100, np.float32)) == -np.inf
    require_loudness(sine / 10, -23.1)
    for soft in (sine / 10, np.zeros(100, np.float32)):
        with pytest.raises(RecordingError) as caught:
            require_loudness(soft, -23)
        assert caught.value.rejection.reason is Reason.TOO_QUIET
    assert caught.value.rejection.detail == "-inf dBFS, at least -23 dBFS"


def test_loudness_is_normalized_without_clipping() -> None:
    loud = voice(0.5, 16000)
    for factor in (0.01, 1.0, 1.9):
        scaled = to_loudness(loud * np.float32(factor), -30.0)
        assert scaled.dtype == np.float32
        assert np.sqrt(np.mean(scaled.astype(float) ** 2)) == pytest.approx(10 ** (-30 / 20), rel=1e-5)
    click = np.zeros(16000, np.float32)
    click[100], click[200] = 0.5, -0.25
    pcm = to_pcm16(to_loudness(click, -10.0))
    assert (pcm[100], pcm[200]) == (32767, -16384)
    over = to_pcm16(to_loudness(loud * np.float32(3), 0.0)).astype(int)
    assert np.abs(over).max() == 32767
    assert np.count_nonzero(np.abs(over) == 32767) < 5
    np.testing.assert_array_equal(to_loudness(np.zeros(10, np.float32), -20.0), np.zeros(10))


def test_missing_file_has_its_reason(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.wav") is Reason.MISSING_FILE
    assert reason_of(tmp_path) is Reason.UNREADABLE_AUDIO


def test_error_can_be_pickled() -> None:
    with pytest.raises(RecordingError) as caught:
        read_recording(b"junk" * 100)
    unpickled = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert unpickled.rejection == caught.value.rejection
    assert str(unpickled) == str(caught.value) == "unreadable-audio: Format not recognised."


def test_resampling_keeps_the_band_below_nyquist_and_removes_the_rest() -> None:
    time_s = np.arange(48000) / 48000
    kept, removed = np.sin(2 * np.pi * 1000 * time_s), np.sin(2 * np.pi * 11000 * time_s)
    resampled = to_rate((0.4 * kept + 0.4 * removed).astype(np.float32), 48000, 16000)
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert len(resampled) == 16000
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=1e-3)


def test_resampling_to_the_same_rate_returns_the_input() -> None:
    samples = voice(0.2, 16000)
    assert to_rate(samples, 16000, 16000) is samples


def test_16_bit_conversion_is_lossless_and_clips() -> None:
    every = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(to_pcm16(every.astype(np.float32) / 32768), every)
    loud = np.array([1.0, 1.5, -1.5, 0.99999], dtype=np.float32)
    assert to_pcm16(loud).tolist() == [32767, 32767, -32768, 32767]


def test_wav_files_round_trip_and_are_readable_by_soundfile(tmp_path: Path) -> None:
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
        case "partial header":
            path.write_bytes(content[:30])
        case "inconsistent sizes":
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
        ("partial header", Reason.UNREADABLE_AUDIO),
        ("inconsistent sizes", Reason.UNREADABLE_AUDIO),
        ("truncated", Reason.TRUNCATED_AUDIO),
        ("stereo", Reason.UNSUPPORTED_AUDIO),
        ("8 bits", Reason.UNSUPPORTED_AUDIO),
        ("float", Reason.UNREADABLE_AUDIO),
        ("FLAC", Reason.UNREADABLE_AUDIO),
    ],
)
def test_damaged_prepared_clip_raises_a_picklable_error_with_its_path(
    tmp_path: Path, damage: str, reason: Reason
) -> None:
    path = tmp_path / "audio_000000.wav"
    _damaged(path, damage)
    with pytest.raises(RecordingError) as caught:
        read_pcm16_wav(path)
    unpickled = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert unpickled.rejection.reason is reason
    assert str(path) in str(unpickled)
