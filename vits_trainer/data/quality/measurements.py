"""Measures the sound of a clip: silence, level, clipping, offset, bandwidth, noise, and a spectral fingerprint.

Imports no torch, as worker processes import this.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vits_trainer.data.audio import SILENCE_BELOW_LOUDEST_DB, SILENCE_FRAME_S

_WINDOW_S = 0.032
_STEP_S = 0.004
_BANDS_HZ = 125.0
"""Width of the bands in which bandwidth and noise are measured."""
_BANDWIDTH_BELOW_LOUDEST_DB = 60.0
"""The bandwidth ends above the last band that reaches this, relative to the loudest band."""
_LOUD_QUANTILE = 0.98
"""Fricatives are short: a band is as loud as in the loudest 2 % of the frames."""
_NOISE_QUANTILE = 0.1
"""A band holds only noise in this fraction of the frames."""
_SMOOTHED_FRAMES = 4
_NOISE_BIAS = 0.62
"""Value of that quantile for noise of power 1 in a band of four bins, smoothed over four overlapping frames."""
_FULL_SCALE = 32768
_CLIPPED_RUN = 3
"""A peak of a sound is sharp: this many equal samples in a row at the largest value are clipped."""
_CLIPPED_ABOVE = 0.25
"""Of full scale: quiet clips have few values, and equal ones by chance."""
_MIN_LEVEL = 1e-12
FINGERPRINT_SEGMENTS, FINGERPRINT_BANDS = 16, 8
FINGERPRINT_SIZE = FINGERPRINT_SEGMENTS * FINGERPRINT_BANDS
_FINGERPRINT_HZ = (100.0, 3400.0)
"""Range that also telephone speech and lossy encodings keep."""
_FINGERPRINT_FLOOR = 1e-2
"""Of the loudest cell: noise below it does not count."""


class SoundMeasurements(NamedTuple):
    """What is measured of the sound of one clip."""

    duration_s: float
    speech_s: float
    """From the first to the last frame that is not silent."""
    leading_silence_s: float
    trailing_silence_s: float
    digital_silence_s: float
    """Longest run of equal samples."""
    level_dbfs: float
    """Root mean square of the frames that are not silent."""
    clipped_fraction: float
    """Samples in runs of three or more at the largest or the smallest value."""
    dc_offset: float
    """Mean of the samples, relative to full scale, without sign."""
    bandwidth_hz: float
    """End of the highest band within 60 dB of the loudest one."""
    snr_db: float
    """Ratio of speech to the noise between its sounds."""


def measure(pcm: NDArray[np.int16], rate_hz: int) -> tuple[SoundMeasurements, NDArray[np.float16]]:
    """Measures a clip, ``pcm`` (T,), T at least 1.

    Returns:
        The measurements; and the fingerprint, (FINGERPRINT_SIZE,), of unit length, or zeros if there is no speech.
    """
    samples = pcm.astype(np.float32) / np.float32(_FULL_SCALE)
    offset = float(samples.mean())
    samples -= np.float32(offset)
    first, last, level = _speech(samples, rate_hz)
    power, hop = _spectrogram(samples, rate_hz)
    bands = _in_bands(power, rate_hz)
    measurements = SoundMeasurements(
        duration_s=len(pcm) / rate_hz,
        speech_s=(last - first) / rate_hz,
        leading_silence_s=first / rate_hz,
        trailing_silence_s=(len(pcm) - last) / rate_hz,
        digital_silence_s=longest_run(pcm) / rate_hz,
        level_dbfs=level,
        clipped_fraction=clipped_fraction(pcm),
        dc_offset=abs(offset),
        bandwidth_hz=_bandwidth_hz(bands, rate_hz),
        snr_db=_snr_db(bands),
    )
    # Frame i is centred on sample (i + 1) * hop.
    edges = np.linspace(first, last, FINGERPRINT_SEGMENTS + 1) / hop - 0.5
    return measurements, _fingerprint(power, edges, rate_hz)


def longest_run(pcm: NDArray[np.int16]) -> int:
    """Returns the length of the longest run of equal samples in ``pcm``, (T,)."""
    changes = np.flatnonzero(np.diff(pcm, prepend=pcm[:1] ^ 1, append=pcm[-1:] ^ 1))
    return int(np.diff(changes).max(initial=0))


def clipped_fraction(pcm: NDArray[np.int16]) -> float:
    """Returns the fraction of samples of ``pcm``, (T,), in runs of three or more at its largest or smallest value."""
    clipped = 0
    for extreme in (int(pcm.max()), int(pcm.min())):
        if abs(extreme) > _CLIPPED_ABOVE * _FULL_SCALE:
            at_extreme = np.concatenate([[0], (pcm == extreme).astype(np.int8), [0]])
            edges = np.flatnonzero(np.diff(at_extreme))
            runs = edges[1::2] - edges[::2]
            clipped += int(runs[runs >= _CLIPPED_RUN].sum())
    return clipped / len(pcm)


def _speech(samples: NDArray[np.float32], rate_hz: int) -> tuple[int, int, float]:
    """Returns the first sample of speech, the one after the last, and the level in dB of full scale.

    Frames overlap, so that the edges hardly depend on where in the clip the speech begins.
    """
    step = max(1, round(_STEP_S * rate_hz))
    steps = max(1, round(SILENCE_FRAME_S / _STEP_S))
    starts = np.arange(0, len(samples), step)
    energy = np.add.reduceat(samples.astype(np.float64) ** 2, starts)
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    firsts = np.arange(max(1, len(energy) - steps + 1))
    ends = np.minimum(firsts + steps, len(energy))
    power = (sums[ends] - sums[firsts]) / (step * steps)
    audible = np.flatnonzero(power >= max(power.max() * 10 ** (-SILENCE_BELOW_LOUDEST_DB / 10), _MIN_LEVEL))
    if not len(audible):
        return 0, 0, 10 * float(np.log10(_MIN_LEVEL))
    first = int(firsts[audible[0]]) * step
    last = min(len(samples), int(ends[audible[-1]]) * step)
    return first, last, 10 * float(np.log10(power[audible].mean()))


def _spectrogram(samples: NDArray[np.float32], rate_hz: int) -> tuple[NDArray[np.float32], int]:
    """Returns the power of Hann-windowed frames that overlap by half, (T, F), and their distance in samples."""
    window = round(_WINDOW_S * rate_hz) // 2 * 2
    hop = window // 2
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = sliding_window_view(padded, window)[::hop] * np.hanning(window).astype(np.float32)
    spectrum = np.fft.rfft(frames, axis=1)
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32), hop


def _in_bands(power: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Sums the bins of bands of equal width, without the lowest one: (T, F) to (T, bands)."""
    bins = max(1, round(_BANDS_HZ * 2 * (power.shape[1] - 1) / rate_hz))
    count = power.shape[1] // bins
    summed: NDArray[np.float32] = power[:, : count * bins].reshape(len(power), count, bins).sum(axis=2)
    return summed[:, 1:]


def _bandwidth_hz(bands: NDArray[np.float32], rate_hz: int) -> float:
    loud = np.quantile(bands, _LOUD_QUANTILE, axis=0)
    if loud.max() <= 0:
        return 0.0
    reached = np.flatnonzero(loud >= loud.max() * 10 ** (-_BANDWIDTH_BELOW_LOUDEST_DB / 10))
    return float(min((reached[-1] + 2) * _BANDS_HZ, rate_hz / 2))


def _snr_db(bands: NDArray[np.float32]) -> float:
    """Estimates the noise of each band from its quietest frames, as minimum statistics do (Martin 2001)."""
    frames = min(_SMOOTHED_FRAMES, len(bands))
    sums = np.cumsum(np.concatenate([np.zeros_like(bands[:1]), bands]), axis=0, dtype=np.float64)
    smoothed = (sums[frames:] - sums[:-frames]) / frames
    noise = float(np.quantile(smoothed, _NOISE_QUANTILE, axis=0).sum()) / _NOISE_BIAS
    speech = float(smoothed.mean(axis=0).sum()) - noise
    return 10 * float(np.log10(max(speech, _MIN_LEVEL) / max(noise, _MIN_LEVEL)))


def _fingerprint(power: NDArray[np.float32], segment_edges: NDArray[np.float64], rate_hz: int) -> NDArray[np.float16]:
    """Returns the shape of the log spectrogram: the same for a copy that is louder, encoded or trimmed.

    Each band has its mean over the segments subtracted, and all values their common length.

    Args:
        power: of the frames, (T, F).
        segment_edges: edges of segments of equal duration, in frames, (segments + 1,).
        rate_hz: sampling rate.
    """
    hz_per_bin = rate_hz / 2 / (power.shape[1] - 1)
    bins = np.round(np.geomspace(*_FINGERPRINT_HZ, FINGERPRINT_BANDS + 1) / hz_per_bin).astype(np.int64)
    frames = np.arange(len(power) + 1)
    cells = np.empty((len(segment_edges) - 1, FINGERPRINT_BANDS))
    for band in range(FINGERPRINT_BANDS):
        of_band = power[:, bins[band] : max(bins[band] + 1, bins[band + 1])].sum(axis=1, dtype=np.float64)
        energy_before = np.concatenate([[0.0], np.cumsum(of_band)])
        cells[:, band] = np.diff(np.interp(segment_edges, frames, energy_before))
    shape = np.log(np.maximum(cells, cells.max() * _FINGERPRINT_FLOOR + _MIN_LEVEL))
    shape -= shape.mean(axis=0)
    length = float(np.linalg.norm(shape))
    return (shape.ravel() / length if length > 0 else np.zeros(FINGERPRINT_SIZE)).astype(np.float16)
