"""Spectrograms, mels and segments against librosa, torch.stft and numpy."""

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.audio import voice
from vits_trainer.config.framing import AudioSpec
from vits_trainer.models.spectrogram import (
    cut_segments,
    frame_mask,
    log_mel,
    mel_filterbank,
    random_segment_starts,
    spectrogram,
)

SPEC = AudioSpec(16000)
RATES = (16000, 22050, 24000)


def noisy(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    speech = torch.from_numpy(voice(frames * SPEC.hop / SPEC.sampling_rate, SPEC.sampling_rate, 110 + 30 * seed))
    return speech + 0.05 * torch.randn(frames * SPEC.hop, generator=generator)


def lengths(*frames: int) -> torch.Tensor:
    return torch.tensor(frames)


def padded(*clips: torch.Tensor, size: int | None = None, fill: float = 0.0) -> torch.Tensor:
    size = size or max(map(len, clips))
    return torch.stack([F.pad(clip, (0, size - len(clip)), value=fill) for clip in clips])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-8), (torch.float64, 1e-15)])
@pytest.mark.parametrize("rate", RATES)
def test_filterbank_equals_librosa(rate, dtype, bound):
    expected = librosa.filters.mel(sr=rate, n_fft=1024, n_mels=80, fmin=0, fmax=rate / 2, dtype=np.float64)
    actual = mel_filterbank(AudioSpec(rate), dtype)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=bound)


def test_filterbank_respects_band_limits():
    expected = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=64, fmin=50, fmax=8000, dtype=np.float64)
    actual = mel_filterbank(AudioSpec(22050, mel_bands=64, mel_min_hz=50, mel_max_hz=8000))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("rate", RATES)
def test_log_mel_equals_librosa(rate):
    magnitude = np.abs(np.random.default_rng(0).normal(size=(513, 12))).astype(np.float32) * 3
    magnitude[:, 5] = 1e-7  # below the floor
    filters = librosa.filters.mel(sr=rate, n_fft=1024, n_mels=80, fmin=0, fmax=rate / 2)
    expected = np.log(np.maximum(filters.astype(np.float64) @ magnitude, 1e-5))
    actual = log_mel(torch.from_numpy(magnitude)[None], AudioSpec(rate))[0]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-4)
    assert (actual[:, 5] == np.float32(np.log(1e-5))).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_spectrogram_equals_the_dft_of_each_frame(dtype, bound):
    clip = noisy(9)
    reflected = np.pad(clip.double().numpy(), 384, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(reflected, 1024)[::256]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    expected = np.sqrt(np.abs(np.fft.rfft(frames * hann).T) ** 2 + 1e-6)
    actual = spectrogram(clip[None].to(dtype), lengths(9), SPEC)[0]
    assert (actual.dtype, actual.shape) == (dtype, (513, 9))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("frames", [2, 3, 7, 20])
def test_clip_does_not_depend_on_the_rest_of_the_batch(frames):
    clip, neighbour = noisy(frames), noisy(20, seed=1)
    alone = spectrogram(clip[None], lengths(frames), SPEC)
    among = spectrogram(padded(neighbour, clip), lengths(20, frames), SPEC)
    assert torch.equal(among[1, :, :frames], alone[0])
    assert (among[1, :, frames:] == 0).all()


def test_samples_after_a_clip_are_not_read():
    clip, neighbour = noisy(7), noisy(20, seed=1)
    silent = spectrogram(padded(neighbour, clip), lengths(20, 7), SPEC)
    loud = spectrogram(torch.stack([neighbour, padded(clip, size=20 * 256, fill=0.9)[0]]), lengths(20, 7), SPEC)
    assert torch.equal(loud, silent)


def test_shortest_clip_has_two_frames():
    assert SPEC.minimum_frames == 2
    with pytest.raises(RuntimeError, match="adding size"):
        F.pad(noisy(1)[None], (384, 384), mode="reflect")
    assert torch.isfinite(spectrogram(noisy(2)[None], lengths(2), SPEC)).all()


def test_target_is_cut_from_the_mel_of_the_whole_clip():
    clip, start, size = noisy(30), 8, 16
    whole = log_mel(spectrogram(clip[None], lengths(30), SPEC), SPEC)
    target = cut_segments(whole, lengths(start), size)
    assert torch.equal(target[0], whole[0, :, start : start + size])
    segment = clip[None, start * 256 : (start + size) * 256]
    alone = log_mel(spectrogram(segment, lengths(size), SPEC), SPEC)
    wrong = (alone - target)[0].abs().mean(0)
    assert wrong[2:-2].max() < 1e-4  # frames whose window is inside the segment
    assert wrong[0] > 0.01
    assert wrong[-1] > 0.01


def test_mel_gradient_equals_finite_differences():
    clip = noisy(4).double()
    weights = torch.randn(80, 4, generator=torch.Generator().manual_seed(1)).double()
    direction = torch.randn(len(clip), generator=torch.Generator().manual_seed(2)).double()
    direction /= direction.norm()

    def value(waveform: np.ndarray) -> float:
        framed = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, 384, mode="reflect"), 1024)[::256]
        stft = np.fft.rfft(framed * np.hanning(1025)[:-1])
        mel = mel_filterbank(SPEC, torch.float64).numpy() @ np.sqrt(np.abs(stft.T) ** 2 + 1e-6)
        return float((np.log(np.maximum(mel, 1e-5)) * weights.numpy()).sum())

    step = 1e-6 * direction.numpy()
    quotient = (value(clip.numpy() + step) - value(clip.numpy() - step)) / 2e-6
    waveform = clip[None].requires_grad_()
    loss = (log_mel(spectrogram(waveform, lengths(4), SPEC), SPEC)[0] * weights).sum()
    loss.backward()
    assert loss.item() == pytest.approx(value(clip.numpy()), rel=1e-10)
    assert (waveform.grad[0] @ direction).item() == pytest.approx(quotient, rel=1e-6)


def test_spectrogram_is_float32_under_autocast():
    clip = noisy(5)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel = log_mel(spectrogram(clip, lengths(5), SPEC), SPEC)
    assert mel.dtype == torch.float32
    assert torch.equal(mel, log_mel(spectrogram(clip, lengths(5), SPEC), SPEC))


def test_segments_are_cut_at_their_start_and_zero_padded():
    values = torch.arange(1.0, 13.0).reshape(2, 1, 6)
    cut = cut_segments(values, torch.tensor([1, 4]), 4)
    assert cut.tolist() == [[[2, 3, 4, 5]], [[11, 12, 0, 0]]]


def test_segment_gradient_is_nonzero_only_inside_the_segment():
    values = torch.ones(2, 1, 6, requires_grad=True)
    weights = torch.tensor([[[1.0, 2, 3, 4]], [[5, 6, 7, 8]]])
    (cut_segments(values, torch.tensor([1, 4]), 4) * weights).sum().backward()
    assert values.grad.tolist() == [[[0, 1, 2, 3, 4, 0]], [[0, 0, 0, 0, 5, 6]]]


def test_random_starts_cover_all_valid_positions():
    torch.manual_seed(0)
    drawn = torch.stack([random_segment_starts(lengths(10, 12, 8, 3), 8) for _ in range(300)])
    assert [set(column.tolist()) for column in drawn.T] == [{0, 1, 2}, {0, 1, 2, 3, 4}, {0}, {0}]
    assert drawn.dtype == torch.int64


def test_frame_mask_is_one_up_to_each_length():
    assert frame_mask(lengths(2, 0, 3), 3).tolist() == [[[1, 1, 0]], [[0, 0, 0]], [[1, 1, 1]]]


def test_only_whole_frames_are_counted():
    assert [SPEC.frames(samples) for samples in (255, 256, 767, 768)] == [0, 1, 2, 3]
