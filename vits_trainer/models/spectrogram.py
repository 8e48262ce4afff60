"""Spectrograms, mel spectrograms and segments as in VITS (``mel_processing.py`` of the original).

Shapes: B clips, N samples, T frames, F spectrogram bins, M mel bands. Frame ``t`` of a clip covers the samples
``[t * hop, (t + 1) * hop)``; a clip of ``n`` samples has ``n // hop`` frames.
"""

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from vits_trainer.config.framing import AudioSpec
from vits_trainer.models.precision import at_least_float32

LOG_MEL_FLOOR = 1e-5
MAGNITUDE_EPS = 1e-6


def spectrogram(waveform: Tensor, frame_lengths: Tensor, spec: AudioSpec) -> Tensor:
    """Returns magnitudes ``sqrt(re^2 + im^2 + 1e-6)`` of the Hann-windowed STFT of each clip.

    Each clip is reflected at its own ends, so its values do not depend on the rest of the batch.

    Args:
        waveform: (B, N) in [-1, 1]; samples after a clip's end are not read.
        frame_lengths: (B,) whole frames per clip; at least ``spec.minimum_frames``.
        spec: framing of the voice.

    Returns:
        (B, F, T), T = N // hop, in the dtype of ``waveform``, at least float32; zero after each clip's end.

    Raises:
        TypeError: the samples are integers, as in a batch before ``Batch.to``.
    """
    if not waveform.is_floating_point():
        raise TypeError(f"samples are {waveform.dtype}, expected floats in [-1, 1]: move the batch to its device first")
    reflected = _reflect_ends(at_least_float32(waveform), frame_lengths * spec.hop, spec.reflected_samples)
    window = hann_window(spec.window, reflected.dtype, reflected.device)
    with torch.autocast(waveform.device.type, enabled=False):
        stft = torch.stft(reflected, spec.n_fft, spec.hop, spec.window, window, center=False, return_complex=True)
        magnitude = torch.sqrt(stft.real.square() + stft.imag.square() + MAGNITUDE_EPS)
    mask = frame_mask(frame_lengths, magnitude.shape[-1])
    return magnitude * mask


def log_mel(magnitude: Tensor, spec: AudioSpec) -> Tensor:
    """Returns the natural logarithm of the mel spectrogram, clamped to at least 1e-5.

    Args:
        magnitude: (B, F, T) from :func:`spectrogram`.
        spec: framing of the voice.

    Returns:
        (B, M, T) in the dtype of ``magnitude``, at least float32.
    """
    magnitude = at_least_float32(magnitude)
    filters = mel_filterbank(spec, magnitude.dtype, magnitude.device)
    with torch.autocast(magnitude.device.type, enabled=False):
        mel = torch.matmul(filters, magnitude)
    return torch.log(torch.clamp(mel, min=LOG_MEL_FLOOR))


@lru_cache(maxsize=8)
def hann_window(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the periodic Hann window, computed in float64: (size,)."""
    return torch.hann_window(size, dtype=torch.float64).to(device, dtype)


@lru_cache(maxsize=8)
def mel_filterbank(spec: AudioSpec, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Returns Slaney mel filters, area-normalised, computed in float64: (M, F)."""
    filters = mel_filter_bank(
        num_frequency_bins=spec.n_fft // 2 + 1,
        num_mel_filters=spec.mel_bands,
        min_frequency=spec.mel_min_hz,
        max_frequency=spec.mel_max_hz or spec.sampling_rate / 2,
        sampling_rate=spec.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.T).to(device, dtype).contiguous()


def frame_mask(lengths: Tensor, size: int) -> Tensor:
    """Returns (B, 1, size) in float32: ones up to each length, then zeros, which are exact in any dtype."""
    positions = torch.arange(size, device=lengths.device)
    return (positions < lengths[:, None]).float()[:, None]


def random_segment_starts(frame_lengths: Tensor, segment_frames: int) -> Tensor:
    """Draws a segment start per clip, uniform over valid positions; 0 for clips shorter than a segment. (B,) int64."""
    choices = (frame_lengths - segment_frames + 1).clamp(min=1)
    return (torch.rand(choices.shape, device=choices.device) * choices).long().clamp(max=choices - 1)


def cut_segments(values: Tensor, starts: Tensor, size: int) -> Tensor:
    """Returns ``values[b, :, starts[b] : starts[b] + size]``, zero-padded beyond the end.

    Args:
        values: (B, C, T).
        starts: (B,) first position of each segment.
        size: number of positions per segment.

    Returns:
        (B, C, size), differentiable; no host synchronization.
    """
    positions = starts[:, None] + torch.arange(size, device=values.device)
    is_inside = positions < values.shape[-1]
    index = torch.where(is_inside, positions, 0)[:, None].expand(-1, values.shape[1], -1)
    return values.gather(2, index) * is_inside[:, None].to(values.dtype)


def _reflect_ends(waveform: Tensor, sample_lengths: Tensor, reflected: int) -> Tensor:
    """Maps (B, N) to (B, N + 2 * reflected): each clip reflected at its first and last sample, zero after that."""
    last = sample_lengths[:, None] - 1
    position = torch.arange(-reflected, waveform.shape[1] + reflected, device=waveform.device)
    mirrored = last - (last - position.abs()).abs()
    is_inside = position <= last + reflected
    index = torch.where(is_inside, mirrored, 0).clamp(0, max(waveform.shape[1] - 1, 0))
    return waveform.gather(1, index) * is_inside
