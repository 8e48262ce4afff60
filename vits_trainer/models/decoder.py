"""The decoder (HiFi-GAN, Kong et al. 2020, section 2.2) in mixed precision, on transformers' modules."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.vits.modeling_vits import HifiGanResidualBlock, VitsHifiGan

from vits_trainer.models.precision import at_least_float32
from vits_trainer.models.type2_decoder import Type2ResidualBlock

FLOAT32_STAGES = 2
"""Last upsampling stages that are computed in float32. The gradient of the mel loss is ``1/mel``, which is large where
speech is quiet: rounding to bfloat16 fills these bands with noise (docs/benchmarks.md, "Mixed precision")."""


def decode(decoder: VitsHifiGan, latents: Tensor, speaker: Tensor | None) -> Tensor:
    """Returns ``decoder(latents, speaker)``.

    Under autocast, residual streams, the last stages and the output layer stay in float32.

    Args:
        decoder: provides the parameters.
        latents: (B, C, T).
        speaker: (B, E, 1), or None.

    Returns:
        (B, 1, T * hop), at least float32.
    """
    hidden = decoder.conv_pre(latents)
    if speaker is not None:
        hidden = hidden + decoder.cond(speaker)
    hidden = at_least_float32(hidden)
    for stage in range(decoder.num_upsamples):
        is_last = stage >= decoder.num_upsamples - FLOAT32_STAGES
        with _full_precision(hidden) if is_last else nullcontext():
            hidden = _upsample(decoder, stage, hidden)
    with _full_precision(hidden):
        return torch.tanh(decoder.conv_post(F.leaky_relu(hidden)))


def autocast_modules(decoder: VitsHifiGan) -> nn.ModuleList:
    """Returns the modules that :func:`decode` does not compute in float32 under autocast."""
    stages = max(0, decoder.num_upsamples - FLOAT32_STAGES)
    first = [decoder.conv_pre, *decoder.upsampler[:stages], *decoder.resblocks[: stages * decoder.num_kernels]]
    return nn.ModuleList([*first, decoder.cond] if hasattr(decoder, "cond") else first)


def _upsample(decoder: VitsHifiGan, stage: int, hidden: Tensor) -> Tensor:
    """Applies one stage: a transposed convolution, then the mean of its residual blocks."""
    hidden = decoder.upsampler[stage](F.leaky_relu(hidden, decoder.config.leaky_relu_slope))
    hidden = at_least_float32(hidden)
    first = stage * decoder.num_kernels
    blocks = decoder.resblocks[first : first + decoder.num_kernels]
    total = _residual_block(blocks[0], hidden)
    for block in blocks[1:]:
        total = total + _residual_block(block, hidden)
    mean: Tensor = total / decoder.num_kernels
    return mean


def _residual_block(block: HifiGanResidualBlock | Type2ResidualBlock, hidden: Tensor) -> Tensor:
    if isinstance(block, Type2ResidualBlock):
        summed: Tensor = block(hidden)
        return summed
    slope = block.leaky_relu_slope
    for dilated, plain in zip(block.convs1, block.convs2, strict=True):
        hidden = plain(F.leaky_relu(dilated(F.leaky_relu(hidden, slope)), slope)) + hidden
    return hidden


def _full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    return torch.autocast(tensor.device.type, enabled=False)
