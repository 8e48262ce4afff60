"""Unweighted loss terms of the VITS objective (Kim et al. 2021, section 2).

Each is a sum over clips, frames or tokens. The denominators are counted over a whole update (``objective``), so that
processes and micro-batches of unequal sizes give the gradient of the combined batch. All terms are computed in at least
float32, whatever the networks' precision. Shapes: B clips, C channels, T frames.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vits_trainer.models.precision import at_least_float32


def mel_l1(generated: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Returns the L1 distance, a mean over bands and a sum over valid frames (VITS eq. 4, without its weight 45).

    Args:
        generated: (B, M, T) log-mel.
        target: (B, M, T) log-mel.
        mask: (B, 1, T), zero where a clip is shorter than its segment.
    """
    difference = (at_least_float32(generated) - at_least_float32(target)).abs() * mask
    return difference.sum() / generated.shape[1]


def kl_divergence(
    latents: Tensor, posterior_log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor, mask: Tensor
) -> Tensor:
    """Returns the KL divergence of posterior and prior at the sample ``z_p`` (VITS eq. 3; the original's ``kl_loss``).

    Args:
        latents: (B, C, T) the posterior's sample after the flow, ``z_p``.
        posterior_log_std: (B, C, T).
        prior_mean: (B, C, T) expanded over the frames.
        prior_log_std: (B, C, T) expanded over the frames.
        mask: (B, 1, T).

    Returns:
        The sum over channels and valid frames.
    """
    z, log_q, m_p, log_p = map(at_least_float32, (latents, posterior_log_std, prior_mean, prior_log_std))
    divergence = log_p - log_q - 0.5 + 0.5 * (z - m_p).square() * torch.exp(-2 * log_p)
    return (divergence * mask).sum()


def discriminator_lsgan(real: Sequence[Tensor], fake: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the discriminators' least-squares losses on real and on generated segments.

    Each is a sum over discriminators and clips.

    Args:
        real: (B, positions) scores of each discriminator.
        fake: the same for generated segments.
    """
    real_scores, weights = _joined(real)
    fake_scores, _ = _joined(fake)
    return ((1 - real_scores).square() * weights).sum(), (fake_scores.square() * weights).sum()


def generator_lsgan(fake: Sequence[Tensor]) -> Tensor:
    """Returns the generator's least-squares loss, a sum over discriminators and clips."""
    scores, weights = _joined(fake)
    return ((1 - scores).square() * weights).sum()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Returns twice the L1 distance of the discriminators' feature maps (HiFi-GAN eq. 4; the factor 2 is VITS's).

    It is a mean over each feature map, and a sum over layers, discriminators and clips.
    """
    pairs = [
        (recorded.detach(), generated)
        for real_layers, fake_layers in zip(real, fake, strict=True)
        for recorded, generated in zip(real_layers, fake_layers, strict=True)
    ]
    distances = torch.stack(
        [torch.linalg.vector_norm(at_least_float32(recorded) - generated, ord=1) for recorded, generated in pairs]
    )
    sizes = tuple(generated[0].numel() for _, generated in pairs)
    return 2 * (distances * _reciprocals(sizes, (1,) * len(sizes), distances.dtype, distances.device)).sum()


def _joined(scores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the scores of all discriminators, (B, P), and weights (P,) that make a sum a mean for each of them.

    On a GPU, six short operations per discriminator take longer to launch than to execute.
    """
    flat = [score.flatten(1) for score in scores]
    sizes = tuple(score.shape[1] for score in flat)
    joined = at_least_float32(torch.cat(flat, dim=1))
    return joined, _reciprocals(sizes, sizes, joined.dtype, joined.device)


@lru_cache(maxsize=32)
def _reciprocals(sizes: tuple[int, ...], repeats: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns ``1 / size``, repeated; cached, as copying it to a GPU would be a CPU-GPU sync point."""
    weights = torch.tensor(sizes, dtype=torch.float64).reciprocal()
    return weights.repeat_interleave(torch.tensor(repeats)).to(device, dtype)
