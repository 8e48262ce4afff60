"""Text encoder, WaveNets and flow on transformers' modules: the same values in fewer operations.

None of them synchronizes with the host. transformers' forward reads back whether a mask has gaps, adds zeros without a
speaker, and pads relative positions to twice the text's length.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.vits.modeling_vits import (
    VitsAttention,
    VitsEncoderLayer,
    VitsPosteriorEncoder,
    VitsResidualCouplingBlock,
    VitsResidualCouplingLayer,
    VitsTextEncoder,
    VitsWaveNet,
)

from vits_trainer.models.precision import Noise, at_least_float32


def encode_text(encoder: VitsTextEncoder, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Applies the text encoder of the prior (VITS section 2.1.2; relative positions as in Shaw et al. 2018).

    Args:
        encoder: provides the parameters and the layer drop probability.
        tokens: (B, S).
        mask: (B, 1, S).

    Returns:
        Hidden states, prior means and prior log standard deviations, (B, C, S) each.
    """
    token_mask = mask.transpose(1, 2)
    hidden = encoder.embed_tokens(tokens) * math.sqrt(encoder.config.hidden_size) * token_mask
    # For all heads: minus infinity for positions after the end of a text.
    attention_bias = torch.zeros_like(mask).masked_fill(mask == 0, torch.finfo(mask.dtype).min)
    attention_bias = attention_bias.repeat_interleave(encoder.config.num_attention_heads, dim=0)  # (B heads, 1, S)
    for layer in encoder.encoder.layers:
        if encoder.training and encoder.encoder.layerdrop and np.random.uniform() < encoder.encoder.layerdrop:
            continue
        hidden = _encoder_layer(layer, hidden, mask, token_mask, attention_bias)
    hidden = (hidden * token_mask).transpose(1, 2)
    mean, log_std = (encoder.project(hidden) * mask).chunk(2, dim=1)
    return hidden, mean, log_std


def _encoder_layer(
    layer: VitsEncoderLayer, hidden: Tensor, mask: Tensor, token_mask: Tensor, attention_bias: Tensor
) -> Tensor:
    """(B, S, C) to (B, S, C)."""
    hidden = layer.layer_norm(hidden + layer.dropout(_attend(layer.attention, hidden, attention_bias)))
    feed_forward = layer.feed_forward
    left, right = feed_forward.padding[:2] if feed_forward.padding is not None else (0, 0)
    inner = F.pad((hidden * token_mask).transpose(1, 2), (left, right))
    inner = feed_forward.dropout(feed_forward.act_fn(feed_forward.conv_1(inner))) * mask
    inner = (feed_forward.conv_2(F.pad(inner, (left, right))) * mask).transpose(1, 2)
    normed: Tensor = layer.final_layer_norm(hidden + layer.dropout(inner))
    return normed


def _attend(attention: VitsAttention, hidden: Tensor, attention_bias: Tensor) -> Tensor:
    """Applies self-attention with relative positions within a window: (B, S, C) to (B, S, C)."""
    batch, size, _ = hidden.shape
    heads, width = attention.num_heads, attention.head_dim

    def by_head(values: Tensor) -> Tensor:
        return values.view(batch, size, heads, width).transpose(1, 2).reshape(batch * heads, size, width)

    query = by_head(attention.q_proj(hidden) * attention.scaling)
    scores = torch.bmm(query, by_head(attention.k_proj(hidden)).transpose(1, 2)) + attention_bias
    window = attention.window_size
    if window:
        scores = scores + _on_diagonals(torch.matmul(query, attention.emb_rel_k[0].T), window)
    weights = F.dropout(torch.softmax(scores, dim=-1), attention.dropout, attention.training)
    attended = torch.bmm(weights, by_head(attention.v_proj(hidden)))
    if window:
        attended = attended + torch.matmul(_diagonals(weights, window), attention.emb_rel_v[0])
    attended = attended.view(batch, heads, size, width).transpose(1, 2).reshape(batch, size, heads * width)
    projected: Tensor = attention.out_proj(attended)
    return projected


def _on_diagonals(values: Tensor, window: int) -> Tensor:
    """Maps (N, S, 2 window + 1) to (N, S, S): ``values[n, i, k]`` to ``[n, i, i + k - window]``, zero elsewhere."""
    count, size, width = values.shape
    # Rows are one longer than the view reads, so each row is shifted right by one position.
    flat = F.pad(values, (0, size)).reshape(count, -1)
    wide = size + width - 1
    return flat[:, : size * wide].view(count, size, wide)[:, :, window : window + size]


def _diagonals(values: Tensor, window: int) -> Tensor:
    """Inverse of :func:`_on_diagonals`: (N, S, S) to (N, S, 2 window + 1), zero beyond the edges."""
    count, size, _ = values.shape
    width = 2 * window + 1
    flat = F.pad(F.pad(values, (window, window)).reshape(count, -1), (0, size))
    return flat.view(count, size, size + width)[:, :, :width]


def wavenet(net: VitsWaveNet, hidden: Tensor, mask: Tensor, speaker: Tensor | None) -> Tensor:
    """Applies gated dilated convolutions with residual and skip connections (WaveNet, van den Oord et al. 2016).

    Args:
        net: provides the parameters.
        hidden: (B, C, T).
        mask: (B, 1, T).
        speaker: (B, E, 1), or None.
    """
    size = net.hidden_size
    conditions = [None] * net.num_layers if speaker is None else net.cond_layer(speaker).split(2 * size, dim=1)
    skip_sum = None
    for convolve, mix, condition in zip(net.in_layers, net.res_skip_layers, conditions, strict=True):
        gated = convolve(hidden) if condition is None else convolve(hidden) + condition
        signal, gate = gated.chunk(2, dim=1)
        mixed = mix(net.dropout(torch.tanh(signal) * torch.sigmoid(gate)))
        if mixed.shape[1] > size:
            residual, mixed = mixed.split(size, dim=1)
            hidden = (hidden + residual) * mask
        skip_sum = mixed if skip_sum is None else skip_sum + mixed
    masked: Tensor = skip_sum * mask  # type: ignore[operator]
    return masked


def sample_posterior(
    encoder: VitsPosteriorEncoder, spectrogram: Tensor, mask: Tensor, speaker: Tensor | None, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Returns a sample of the posterior ``z`` and its log standard deviation, (B, C, T) each (VITS section 2.1.3).

    ``encoder(...)`` would draw the noise itself.

    Args:
        encoder: provides the parameters.
        spectrogram: (B, F, T) magnitudes.
        mask: (B, 1, T).
        speaker: (B, E, 1), or None.
        noise: noise source.
    """
    hidden = wavenet(encoder.wavenet, encoder.conv_pre(spectrogram) * mask, mask, speaker)
    mean, log_std = at_least_float32(encoder.conv_proj(hidden) * mask).chunk(2, dim=1)
    return (mean + noise(mean) * torch.exp(log_std)) * mask, log_std


def flow(block: VitsResidualCouplingBlock, latents: Tensor, mask: Tensor, speaker: Tensor | None) -> Tensor:
    """Maps the posterior sample to the prior: mean-only couplings, each followed by a flip, (B, C, T)."""
    for coupling in block.flows:
        first, second = latents.chunk(2, dim=1)
        latents = torch.cat([first, _shift(coupling, first, mask, speaker) + second * mask], dim=1).flip(1)
    return latents


def reversed_flow(block: VitsResidualCouplingBlock, latents: Tensor, mask: Tensor, speaker: Tensor | None) -> Tensor:
    """Inverts :func:`flow`."""
    for coupling in reversed(block.flows):
        first, second = latents.flip(1).chunk(2, dim=1)
        latents = torch.cat([first, (second - _shift(coupling, first, mask, speaker)) * mask], dim=1)
    return latents


def _shift(coupling: VitsResidualCouplingLayer, first: Tensor, mask: Tensor, speaker: Tensor | None) -> Tensor:
    hidden = wavenet(coupling.wavenet, coupling.conv_pre(first) * mask, mask, speaker)
    shift: Tensor = coupling.conv_post(hidden) * mask
    return shift
