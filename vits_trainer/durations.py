"""The duration predictors' training direction, over transformers' own modules."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.vits.modeling_vits import VitsStochasticDurationPredictor

LOG_2_PI = math.log(2 * math.pi)

Noise = Callable[[Tensor], Tensor]
"""Draws noise in the shape, type and device of its argument: ``torch.randn_like``, or zeros to compare with."""


def duration_loss(
    predictor: nn.Module, hidden: Tensor, text_mask: Tensor, speaker: Tensor | None, durations: Tensor, noise: Noise
) -> Tensor:
    """Loss of each clip's durations, summed over its tokens: to be divided by the tokens of the batch.

    Args:
        predictor: transformers' stochastic or plain duration predictor.
        hidden: (B, C, S) the text encoder's output; gets no gradient, as in VITS.
        text_mask: (B, 1, S).
        speaker: (B, E, 1) speaker embedding, or None.
        durations: (B, 1, S) frames of each token.
        noise: draws the stochastic predictor's noise.

    Returns:
        (B,) float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, durations = hidden.float(), durations.float()
        speaker = None if speaker is None else speaker.float()
        if isinstance(predictor, VitsStochasticDurationPredictor):
            return _stochastic_nll(predictor, hidden, text_mask, speaker, durations, noise)
        log_durations = torch.log(durations + 1e-6) * text_mask
        predicted = predictor(hidden, text_mask, speaker)
        error: Tensor = predicted - log_durations
        return error.square().sum((1, 2))


def _stochastic_nll(
    predictor: VitsStochasticDurationPredictor,
    hidden: Tensor,
    mask: Tensor,
    speaker: Tensor | None,
    durations: Tensor,
    noise: Noise,
) -> Tensor:
    """Variational bound on the negative log-likelihood of the durations (VITS section 2.2.2), (B,).

    Not ``predictor(..., reverse=False)``: transformers (5.23) flips the channels after the element-wise affine flow
    too, so that its training direction is not the inverse of its inference (2.596 where VITS gives 1.711).
    """
    condition = predictor.conv_pre(hidden.detach())
    if speaker is not None:
        condition = condition + predictor.cond(speaker.detach())
    condition = predictor.conv_proj(predictor.conv_dds(condition, mask)) * mask

    duration_condition = predictor.post_conv_dds(predictor.post_conv_pre(durations), mask)
    duration_condition = predictor.post_conv_proj(duration_condition) * mask

    posterior_noise = noise(durations.expand(-1, 2, -1)) * mask
    latents, log_det_q = _through(predictor.post_flows, posterior_noise, mask, condition + duration_condition)
    logit_u, z1 = latents.chunk(2, dim=1)
    log_det_q = log_det_q + ((F.logsigmoid(logit_u) + F.logsigmoid(-logit_u)) * mask).sum((1, 2))
    log_q = (-0.5 * (LOG_2_PI + posterior_noise.square()) * mask).sum((1, 2)) - log_det_q

    dequantised = (durations - torch.sigmoid(logit_u)) * mask
    z0 = torch.log(dequantised.clamp(min=1e-5)) * mask
    latents, log_det = _through(predictor.flows, torch.cat([z0, z1], dim=1), mask, condition)
    log_det = log_det - z0.sum((1, 2))
    nll: Tensor = (0.5 * (LOG_2_PI + latents.square()) * mask).sum((1, 2)) - log_det
    return nll + log_q


def _through(flows: nn.ModuleList, latents: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """An element-wise affine flow, then spline flows each followed by a flip of the two channels."""
    affine, *splines = flows
    latents, log_det = affine(latents, mask, global_conditioning=condition)
    for spline in splines:
        latents, spline_log_det = spline(latents, mask, global_conditioning=condition)
        latents = torch.flip(latents, [1])
        log_det = log_det + spline_log_det
    return latents, log_det
