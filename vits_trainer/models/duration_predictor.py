"""Training direction and branch-free inference of the duration predictors, on transformers' modules."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.vits.modeling_vits import (
    VitsConvFlow,
    VitsDilatedDepthSeparableConv,
    VitsStochasticDurationPredictor,
)

from vits_trainer.models.precision import Noise, at_least_float32

LOG_2_PI = math.log(2 * math.pi)
MIN_BIN, MIN_DERIVATIVE = 1e-3, 1e-3
"""Minimum bin size as a fraction of the spline's interval, and minimum derivative at a knot, as in VITS."""


def duration_loss(
    predictor: nn.Module, hidden: Tensor, text_mask: Tensor, speaker: Tensor | None, durations: Tensor, noise: Noise
) -> Tensor:
    """Returns the duration loss per clip, summed over its tokens; the caller divides by the batch's tokens.

    Args:
        predictor: transformers' stochastic or deterministic duration predictor.
        hidden: (B, C, S) output of the text encoder; detached, as in VITS.
        text_mask: (B, 1, S).
        speaker: (B, E, 1) speaker embedding, or None.
        durations: (B, 1, S) frames per token.
        noise: noise source of the stochastic predictor.

    Returns:
        (B,) in the dtype of ``hidden``, at least float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = at_least_float32(hidden)
        durations = durations.to(hidden.dtype)
        speaker = None if speaker is None else speaker.to(hidden.dtype)
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
    """Returns the variational bound on the negative log-likelihood of the durations (VITS section 2.2.2), (B,).

    ``predictor(..., reverse=False)`` is unusable: transformers (5.23) also flips the channels after the element-wise
    affine flow, so its training direction is not the inverse of its inference (2.596 instead of 1.711 in VITS).
    """
    condition = predictor.conv_pre(hidden.detach())
    if speaker is not None:
        condition = condition + predictor.cond(speaker.detach())
    condition = predictor.conv_proj(_separable_convolutions(predictor.conv_dds, condition, mask)) * mask

    duration_condition = _separable_convolutions(predictor.post_conv_dds, predictor.post_conv_pre(durations), mask)
    duration_condition = predictor.post_conv_proj(duration_condition) * mask

    posterior_noise = noise(durations.expand(-1, 2, -1)) * mask
    latents, log_det_q = _apply_flows(predictor.post_flows, posterior_noise, mask, condition + duration_condition)
    logit_u, z1 = latents.chunk(2, dim=1)
    log_det_q = log_det_q + ((F.logsigmoid(logit_u) + F.logsigmoid(-logit_u)) * mask).sum((1, 2))
    log_q = (-0.5 * (LOG_2_PI + posterior_noise.square()) * mask).sum((1, 2)) - log_det_q

    dequantised = (durations - torch.sigmoid(logit_u)) * mask
    z0 = torch.log(dequantised.clamp(min=1e-5)) * mask
    latents, log_det = _apply_flows(predictor.flows, torch.cat([z0, z1], dim=1), mask, condition)
    log_det = log_det - z0.sum((1, 2))
    nll: Tensor = (0.5 * (LOG_2_PI + latents.square()) * mask).sum((1, 2)) - log_det
    return nll + log_q


def log_durations(predictor: nn.Module, hidden: Tensor, mask: Tensor, speaker: Tensor | None, noise: Tensor) -> Tensor:
    """Returns the log duration in frames of each token, as ``predictor`` infers it.

    Avoids boolean indexing, whose shapes depend on values, so that it can be exported.

    Args:
        predictor: transformers' stochastic or deterministic duration predictor.
        hidden: (B, C, S) output of the text encoder.
        mask: (B, 1, S).
        speaker: (B, E, 1) speaker embedding, or None.
        noise: (B, 2, S), scaled; ignored by the deterministic predictor.

    Returns:
        (B, 1, S).
    """
    if not isinstance(predictor, VitsStochasticDurationPredictor):
        deterministic: Tensor = predictor(hidden, mask, speaker)
        return deterministic
    condition = predictor.conv_pre(hidden)
    if speaker is not None:
        condition = condition + predictor.cond(speaker)
    condition = predictor.conv_proj(_separable_convolutions(predictor.conv_dds, condition, mask)) * mask
    affine, _, *splines = predictor.flows  # the first spline only affects the discarded channel
    latents = noise
    for flow in reversed(splines):
        first, second = latents.flip(1).chunk(2, dim=1)
        bins, derivatives = _predict_spline(flow, first, mask, condition)
        second = inverse_spline(second, bins, derivatives, flow.tail_bound)
        latents = torch.cat([first, second], dim=1) * mask
    latents, _ = affine(latents.flip(1), mask, reverse=True)
    log_duration: Tensor = latents[:, :1]
    return log_duration


def _predict_spline(flow: VitsConvFlow, first: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the spline predicted from the first channel: bins, (B, 1, S, 2, bins), and derivatives."""
    hidden = _separable_convolutions(flow.conv_dds, flow.conv_pre(first) + condition, mask)
    shape = (flow.conv_proj(hidden) * mask).transpose(1, 2)[:, None]  # (B, 1, S, 3 bins - 1)
    bins, derivatives = shape.split([2 * flow.num_bins, flow.num_bins - 1], dim=-1)
    return bins.unflatten(-1, (2, flow.num_bins)) * flow.filter_channels**-0.5, derivatives


def _separable_convolutions(module: VitsDilatedDepthSeparableConv, hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns ``module(hidden, mask)``, (B, C, S), with fewer operations on the device.

    The layer norms, which need the channels last, are followed by a linear layer instead of a convolution of size 1,
    which needs them first.
    """
    layers = zip(module.convs_dilated, module.norms_1, module.convs_pointwise, module.norms_2, strict=True)
    for depthwise, first_norm, pointwise, second_norm in layers:
        update = F.gelu(first_norm(depthwise(hidden * mask).transpose(1, 2)))  # (B, S, C)
        update = F.gelu(second_norm(F.linear(update, pointwise.weight.squeeze(-1), pointwise.bias)))
        hidden = hidden + module.dropout(update).transpose(1, 2)
    return hidden * mask


def _apply_flows(flows: nn.ModuleList, latents: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Applies an element-wise affine flow, then spline flows, each followed by a flip of the two channels."""
    affine, *splines = flows
    latents, log_det = affine(latents, mask, global_conditioning=condition)
    for flow in splines:
        latents, spline_log_det = _apply_spline_flow(flow, latents, mask, condition)
        latents = torch.flip(latents, [1])
        log_det = log_det + spline_log_det
    return latents, log_det


def _apply_spline_flow(flow: VitsConvFlow, latents: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Transforms the second channel by a spline predicted from the first.

    Replaces ``flow(...)``, which reads back to the host which values are within the spline's bounds, about 150 times
    per update.
    """
    first, second = latents.chunk(2, dim=1)  # (B, 1, S) each
    bins, derivatives = _predict_spline(flow, first, mask, condition)
    second, log_det = rational_quadratic_spline(second, bins, derivatives, flow.tail_bound)
    return torch.cat([first, second], dim=1) * mask, (log_det * mask).sum((1, 2))


def rational_quadratic_spline(inputs: Tensor, bins: Tensor, derivatives: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Applies a monotonic spline on ``[-bound, bound]``, the identity outside (Durkan et al. 2019, eq. 4 to 8).

    Branch-free.

    Args:
        inputs: any shape.
        bins: shape of ``inputs`` plus (2, bins): widths and heights, before the softmax.
        derivatives: at the inner knots, one fewer than bins, before the softplus; at both ends they are 1.
        bound: limit of the interval on both sides.

    Returns:
        Outputs and their log derivatives, in the shape of ``inputs``.
    """
    is_inside = inputs.abs() <= bound
    x = inputs.clamp(-bound, bound)
    left, width, bottom, height, slope, next_slope = _find_bins(x, bins, derivatives, bound)
    mean_slope = height / width
    theta = (x - left) / width
    theta_product = theta * (1 - theta)
    denominator = mean_slope + (slope + next_slope - 2 * mean_slope) * theta_product
    outputs = bottom + height * (mean_slope * theta.square() + slope * theta_product) / denominator
    rise = next_slope * theta.square() + 2 * mean_slope * theta_product + slope * (1 - theta).square()
    log_det = torch.log(mean_slope.square() * rise) - 2 * torch.log(denominator)
    return torch.where(is_inside, outputs, inputs), torch.where(is_inside, log_det, 0.0)


def inverse_spline(outputs: Tensor, bins: Tensor, derivatives: Tensor, bound: float) -> Tensor:
    """Inverts :func:`rational_quadratic_spline` (Durkan et al. 2019, eq. 6 to 8). Branch-free.

    Args:
        outputs: any shape.
        bins: as in :func:`rational_quadratic_spline`.
        derivatives: as in :func:`rational_quadratic_spline`.
        bound: as in :func:`rational_quadratic_spline`.

    Returns:
        Inputs, in the shape of ``outputs``.
    """
    is_inside = outputs.abs() <= bound
    y = outputs.clamp(-bound, bound)
    left, width, bottom, height, slope, next_slope = _find_bins(y, bins, derivatives, bound, by_height=True)
    mean_slope, rise = height / width, y - bottom
    bend = rise * (slope + next_slope - 2 * mean_slope)
    a, b, c = height * (mean_slope - slope) + bend, height * slope - bend, -mean_slope * rise
    # This form of the root avoids cancellation; a negative discriminant is a rounding error.
    theta = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(is_inside, left + width * theta, outputs)


def _find_bins(
    points: Tensor, bins: Tensor, derivatives: Tensor, bound: float, by_height: bool = False
) -> tuple[Tensor, ...]:
    """Returns left, width, bottom, height, slope and next slope of each point's bin, in the shape of ``points``.

    Points are on the axis of widths, or with ``by_height`` on the axis of heights. Both axes are handled by the same
    operations, and both ends of a bin by one gather: on a GPU, launching them takes longer than executing them.
    """
    knots = _knots(bins, bound)
    slopes = F.pad(MIN_DERIVATIVE + F.softplus(derivatives), (1, 1), value=1.0)
    # The last bin whose start is not beyond the point.
    index = (points[..., None] >= knots[..., int(by_height), :-1]).sum(-1, keepdim=True) - 1
    both_ends = torch.cat([index, index + 1], dim=-1)
    ends = knots.gather(-1, both_ends[..., None, :].expand(*bins.shape[:-1], 2))
    (left, bottom), (width, height) = ends[..., 0].unbind(-1), (ends[..., 1] - ends[..., 0]).unbind(-1)
    return left, width, bottom, height, *slopes.gather(-1, both_ends).unbind(-1)


def _knots(bins: Tensor, bound: float) -> Tensor:
    """Returns the ends of the bins, one more than bins; they cover the whole interval."""
    fractions = MIN_BIN + (1 - MIN_BIN * bins.shape[-1]) * torch.softmax(bins, dim=-1)
    inner = 2 * bound * torch.cumsum(fractions, dim=-1)[..., :-1] - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
