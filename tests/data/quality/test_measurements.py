"""Measurements of clips whose faults are known."""

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from tests.support.audio import encode, voice
from vits_trainer.config.check_data import Thresholds
from vits_trainer.data.audio import read_recording, to_pcm16
from vits_trainer.data.quality.measurements import FINGERPRINT_SIZE, clipped_fraction, longest_run, measure

RATE_HZ = 16000


def speech(seconds: float = 3.0, seed: int = 0, rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    """Syllables of noise in changing bands, with pauses between them: broad and uneven, as speech is."""
    rng = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * rate_hz:
        syllable = rng.standard_normal(round(rng.uniform(0.08, 0.25) * rate_hz)).astype(np.float32)
        spectrum = np.fft.rfft(syllable) * np.exp(-rng.uniform(0, 4) * np.linspace(0, 1, len(syllable) // 2 + 1))
        parts.append(np.fft.irfft(spectrum, len(syllable)) * np.hanning(len(syllable)) * rng.uniform(0.3, 1))
        parts.append(3e-4 * rng.standard_normal(round(rng.uniform(0.03, 0.1) * rate_hz)))
    samples = np.concatenate(parts)[: round(seconds * rate_hz)]
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


def sound(samples: NDArray[np.float32], rate_hz: int = RATE_HZ) -> dict[str, float]:
    return measure(to_pcm16(samples), rate_hz)[0]._asdict()


@pytest.mark.parametrize("rate_hz", [16000, 22050, 48000])
def test_silence_is_measured_at_both_ends(rate_hz: int) -> None:
    quiet = 1e-4 * np.random.default_rng(1).standard_normal(2 * rate_hz).astype(np.float32)
    tone = voice(1.0, rate_hz)
    measured = sound(np.concatenate([quiet[: rate_hz // 2], tone, quiet[: 3 * rate_hz // 2]]), rate_hz)
    assert measured["leading_silence_s"] == pytest.approx(0.5, abs=0.03)
    assert measured["trailing_silence_s"] == pytest.approx(1.5, abs=0.03)
    assert measured["speech_s"] == pytest.approx(1.0, abs=0.05)
    assert measured["duration_s"] == pytest.approx(3.0)
    assert measured["level_dbfs"] == pytest.approx(20 * np.log10(np.sqrt(np.mean(tone**2))), abs=0.3)


@pytest.mark.parametrize("snr_db", [5, 10, 20, 30])
def test_the_ratio_of_speech_to_noise_is_that_of_their_mixture(snr_db: float) -> None:
    clean = speech(4.0)
    noise = np.random.default_rng(3).standard_normal(len(clean))
    noise *= np.sqrt(np.mean(clean**2) / 10 ** (snr_db / 10))
    assert sound(clean)["snr_db"] > 35
    assert sound(0.5 * (clean + noise).astype(np.float32))["snr_db"] == pytest.approx(snr_db - 1.5, abs=2)


def test_clipped_samples_are_counted_and_peaks_are_not() -> None:
    samples = voice(2.0, RATE_HZ)
    assert sound(samples)["clipped_fraction"] == 0
    loud = np.clip(4 * samples, -1, 0.99)
    expected = np.mean((loud == 0.99) | (loud == -1))
    assert expected > 0.005
    assert sound(loud)["clipped_fraction"] == pytest.approx(expected, rel=0.2)  # runs of three and more
    assert sound(0.5 * loud)["clipped_fraction"] == sound(loud)["clipped_fraction"]  # scaled after it was clipped
    pcm = np.array([0, 9000, 9000, 0, 9000, 9000, 9000, 0, -5, -5, -5], np.int16)
    assert clipped_fraction(pcm) == pytest.approx(3 / 11)  # -5 is no clipping: the clip has no level there
    assert clipped_fraction(np.zeros(50, np.int16)) == 0


def test_a_constant_offset_and_digital_silence_are_measured() -> None:
    samples = 0.5 * speech()
    assert sound(samples)["dc_offset"] < 0.002
    assert sound(samples + np.float32(0.05))["dc_offset"] == pytest.approx(0.05, abs=0.002)
    gap = samples.copy()
    gap[8000:20000] = 0
    assert sound(gap)["digital_silence_s"] == pytest.approx(0.75, abs=0.02)
    assert sound(samples)["digital_silence_s"] < 0.02
    assert [longest_run(np.array(one, np.int16)) for one in ([7], [7, 7, 7], [1, 2, 2, 3], [5, 4])] == [1, 3, 2, 1]


def test_telephone_speech_is_narrow_although_its_rate_is_high() -> None:
    samples = speech()
    narrow = soxr.resample(soxr.resample(samples, RATE_HZ, 8000), 8000, RATE_HZ).astype(np.float32)
    assert sound(samples)["bandwidth_hz"] > 7500
    assert 3500 < sound(narrow)["bandwidth_hz"] <= 4250


def test_fingerprints_of_copies_are_alike_and_others_are_not() -> None:
    samples = speech(3.0)
    pad = 1e-5 * np.random.default_rng(5).standard_normal(4000).astype(np.float32)
    original = fingerprint(samples)
    assert np.linalg.norm(original) == pytest.approx(1, abs=0.01)
    decoded, _ = read_recording(encode(samples, RATE_HZ, "MP3"))
    resampled = soxr.resample(soxr.resample(samples, RATE_HZ, 11025), 11025, RATE_HZ).astype(np.float32)
    for copy in (0.2 * samples, np.concatenate([pad, samples, pad]), decoded, resampled):
        assert original @ fingerprint(copy) > Thresholds().duplicate
    others = [original @ fingerprint(speech(3.0, seed)) for seed in range(1, 20)]
    assert max(others) < 0.8


def fingerprint(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    found = measure(to_pcm16(samples), RATE_HZ)[1].astype(np.float32)
    assert found.shape == (FINGERPRINT_SIZE,)
    return found


@pytest.mark.parametrize(
    "pcm",
    [
        np.zeros(1600, np.int16),
        np.full(1600, -32768, np.int16),
        np.array([1], np.int16),
        np.array([0, 32767] * 5, np.int16),
    ],
    ids=["silence", "constant", "one sample", "ten samples"],
)
def test_odd_clips_have_finite_measurements(pcm: NDArray[np.int16]) -> None:
    measured, found = measure(pcm, RATE_HZ)
    assert np.isfinite(measured).all()
    assert np.isfinite(found).all()
