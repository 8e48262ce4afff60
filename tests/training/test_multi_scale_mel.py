"""The multi-scale mel loss against NumPy's FFT and torchaudio's filters, and its independence of the batch."""

import numpy as np
import pytest
import torch
import torchaudio

from tests.support.audio import voice
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import LossWeights
from vits_trainer.training.multi_scale_mel import SCALES, multi_scale_mel_l1
from vits_trainer.training.objective import Objective

SPEC = AudioSpec(16000)
SEGMENT_SAMPLES = 8192


def segment(pitch_hz: float, valid_samples: int = SEGMENT_SAMPLES) -> torch.Tensor:
    samples = torch.zeros(SEGMENT_SAMPLES, dtype=torch.float64)
    samples[:valid_samples] = torch.from_numpy(voice(valid_samples / 16000, 16000, pitch_hz))[:valid_samples]
    return samples


def distance(generated: list[torch.Tensor], recorded: list[torch.Tensor], valid: list[int]) -> torch.Tensor:
    return multi_scale_mel_l1(
        torch.stack(generated)[:, None], torch.stack(recorded)[:, None], torch.tensor(valid), SPEC
    )


def log_mel(samples: np.ndarray, window: int, bands: int) -> np.ndarray:
    hop = window // 4
    reflected = np.pad(samples, (window - hop) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(reflected, window)[::hop]
    spectra = np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)))
    filters = torchaudio.functional.melscale_fbanks(window // 2 + 1, 0.0, 8000.0, bands, 16000, "slaney", "slaney")
    return np.log(np.maximum(np.sqrt(np.abs(spectra) ** 2 + 1e-6) @ filters.double().numpy(), 1e-5))


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
def test_equals_other_mels() -> None:
    ours, target = segment(120), segment(180)
    scales = [
        np.abs(log_mel(ours.numpy(), *scale) - log_mel(target.numpy(), *scale)).mean() for scale in SCALES
    ]
    frames = SEGMENT_SAMPLES / SPEC.hop
    assert distance([ours], [target], [SEGMENT_SAMPLES]).item() == pytest.approx(np.mean(scales) * frames, rel=1e-5)


def test_short_clips_count_by_their_frames_whatever_the_batch() -> None:
    pairs = [(segment(120), segment(180)), (segment(130, 2560), segment(150, 2560))]
    valid = [SEGMENT_SAMPLES, 2560]
    together = distance(*map(list, zip(*pairs, strict=True)), valid)
    alone = [distance([ours], [target], [length]) for (ours, target), length in zip(pairs, valid, strict=True)]
    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-9)
    assert 0 < alone[1] < alone[0] / 2


def test_windows_longer_than_the_segment_are_left_out() -> None:
    short, other = segment(120)[:1024], segment(180)[:1024]
    assert torch.isfinite(distance([short], [other], [1024]))


def test_equal_segments_have_no_distance_and_others_a_finite_gradient() -> None:
    silence = torch.zeros(SEGMENT_SAMPLES, dtype=torch.float64, requires_grad=True)
    distance([silence], [segment(120)], [SEGMENT_SAMPLES]).backward()
    assert silence.grad is not None
    assert torch.isfinite(silence.grad).all()
    assert distance([segment(120)], [segment(120)], [SEGMENT_SAMPLES]) == 0


def test_it_is_computed_only_with_a_weight() -> None:
    for kind in ("vits", "mel"):
        assert "multi_scale_mel" not in Objective(kind, LossWeights(), SPEC, 32).generator_loss_names
        assert "multi_scale_mel" in Objective(kind, LossWeights(multi_scale_mel=9), SPEC, 32).generator_loss_names
