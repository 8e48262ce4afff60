"""Multi-scale mel loss (Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", section 3.4)."""

from functools import cache

from torch import Tensor

from vits_trainer.config.framing import AudioSpec
from vits_trainer.models.spectrogram import frame_mask, log_mel, spectrogram
from vits_trainer.training.losses import mel_l1

SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""Window in samples and mel bands of each scale; the hop length is a quarter of the window."""


def multi_scale_mel_l1(generated: Tensor, recorded: Tensor, valid_samples: Tensor, spec: AudioSpec) -> Tensor:
    """Returns the L1 distance of log-mel spectrograms in nats, a mean over scales and bands.

    The paper sums log10 of squared magnitudes over its 7 scales: its weight of 15 is a weight of 91 here. Scales whose
    window is longer than the segment are left out.

    Args:
        generated: (B, 1, N) segments.
        recorded: (B, 1, N), both zero from ``valid_samples`` on.
        valid_samples: (B,).
        spec: of the voice; its hop length is the unit of the sum.

    Returns:
        The sum over valid frames of ``spec.hop`` samples.
    """
    samples = generated.shape[-1]
    scales = [scale for scale in _scales(spec.sampling_rate) if scale.window <= samples]
    distances = []
    for scale in scales:
        frames = (valid_samples // scale.hop).clamp(min=scale.minimum_frames)
        ours, target = (log_mel(spectrogram(speech[:, 0], frames, scale), scale) for speech in (generated, recorded))
        distances.append(mel_l1(ours, target, frame_mask(frames, ours.shape[-1])) * (scale.hop / spec.hop))
    return sum(distances[1:], distances[0]) / len(scales)


@cache
def _scales(rate_hz: int) -> tuple[AudioSpec, ...]:
    return tuple(AudioSpec(rate_hz, window, window, window // 4, bands) for window, bands in SCALES)
