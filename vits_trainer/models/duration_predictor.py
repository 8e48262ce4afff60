"""The duration predictors over transformers' own modules: the training direction, and a branch-free inference."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.vits.modeling_vits import VitsConvFlow, VitsStochasticDurationPredictor

from vits_trainer.models.precision import at_least_float32

LOG_2_PI = math.log(2 * math.pi)
MIN_BIN, MIN_DERIVATIVE = 1e-3, 1e-3
"""VITS's: least share of the spline's interval for a bin, least slope at a knot."""

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
        (B,) in the type of ``hidden``, at least float32.
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


def log_durations(predictor: nn.Module, hidden: Tensor, mask: Tensor, speaker: Tensor | None, noise: Tensor) -> Tensor:
    """Logarithms of the frames of each token, as ``predictor`` itself infers them.

    Without its boolean indexing, whose shapes depend on values, so that it can be exported.

    Args:
        predictor: transformers' stochastic or plain duration predictor.
        hidden: (B, C, S) the text encoder's output.
        mask: (B, 1, S).
        speaker: (B, E, 1) speaker embedding, or None.
        noise: (B, 2, S), scaled; the plain predictor does not heed it.

    Returns:
        (B, 1, S).
    """
    if not isinstance(predictor, VitsStochasticDurationPredictor):
        plain: Tensor = predictor(hidden, mask, speaker)
        return plain
    condition = predictor.conv_pre(hidden)
    if speaker is not None:
        condition = condition + predictor.cond(speaker)
    condition = predictor.conv_proj(predictor.conv_dds(condition, mask)) * mask
    affine, _, *splines = predictor.flows  # the first spline shapes the channel that is thrown away
    latents = noise
    for flow in reversed(splines):
        first, second = latents.flip(1).chunk(2, dim=1)
        widths, heights, derivatives = _spline_of(flow, first, mask, condition)
        second = inverse_spline(second, widths, heights, derivatives, flow.tail_bound)
        latents = torch.cat([first, second], dim=1) * mask
    latents, _ = affine(latents.flip(1), mask, reverse=True)
    log_duration: Tensor = latents[:, :1]
    return log_duration


def _spline_of(flow: VitsConvFlow, first: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widths, heights and derivatives, (B, 1, S, bins) each, of the spline that the first channel shapes."""
    hidden = flow.conv_dds(flow.conv_pre(first), mask, condition)
    shape = (flow.conv_proj(hidden) * mask).transpose(1, 2)[:, None]  # (B, 1, S, 3 bins - 1)
    widths, heights, derivatives = shape.split([flow.num_bins, flow.num_bins, flow.num_bins - 1], dim=-1)
    scale = flow.filter_channels**-0.5
    return widths * scale, heights * scale, derivatives


def _through(flows: nn.ModuleList, latents: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """An element-wise affine flow, then spline flows each followed by a flip of the two channels."""
    affine, *splines = flows
    latents, log_det = affine(latents, mask, global_conditioning=condition)
    for flow in splines:
        latents, spline_log_det = _coupled(flow, latents, mask, condition)
        latents = torch.flip(latents, [1])
        log_det = log_det + spline_log_det
    return latents, log_det


def _coupled(flow: VitsConvFlow, latents: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """The first channel shapes a spline through which the second one goes. Not ``flow(...)``, which reads back to the
    host which values lie within the spline's bounds, some 150 times an update."""
    first, second = latents.chunk(2, dim=1)  # (B, 1, S) each
    widths, heights, derivatives = _spline_of(flow, first, mask, condition)
    second, log_det = rational_quadratic_spline(second, widths, heights, derivatives, flow.tail_bound)
    return torch.cat([first, second], dim=1) * mask, (log_det * mask).sum((1, 2))


def rational_quadratic_spline(
    inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, bound: float
) -> tuple[Tensor, Tensor]:
    """A monotonic spline on ``[-bound, bound]``, the identity beyond (Durkan et al. 2019, eq. 4 to 8). Branch-free.

    Args:
        inputs: any shape.
        widths: the same shape with bins behind it, before the softmax.
        heights: likewise.
        derivatives: likewise at the inner knots, one fewer, before the softplus; at both ends they are 1.
        bound: of the interval, in both directions.

    Returns:
        Outputs and the logarithm of their derivatives, shaped like ``inputs``.
    """
    inside = inputs.abs() <= bound
    x = inputs.clamp(-bound, bound)
    left, width, bottom, height, slope, next_slope = _bin_of(x, widths, heights, derivatives, bound)
    mean_slope = height / width
    theta = (x - left) / width
    both = theta * (1 - theta)
    denominator = mean_slope + (slope + next_slope - 2 * mean_slope) * both
    outputs = bottom + height * (mean_slope * theta.square() + slope * both) / denominator
    rise = next_slope * theta.square() + 2 * mean_slope * both + slope * (1 - theta).square()
    log_det = torch.log(mean_slope.square() * rise) - 2 * torch.log(denominator)
    return torch.where(inside, outputs, inputs), torch.where(inside, log_det, 0.0)


def inverse_spline(outputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, bound: float) -> Tensor:
    """What :func:`rational_quadratic_spline` makes ``outputs`` of (Durkan et al. 2019, eq. 6 to 8). Branch-free.

    Args:
        outputs: any shape.
        widths: as there, like the others.
        heights: likewise.
        derivatives: likewise.
        bound: likewise.

    Returns:
        Inputs, shaped like ``outputs``.
    """
    inside = outputs.abs() <= bound
    y = outputs.clamp(-bound, bound)
    left, width, bottom, height, slope, next_slope = _bin_of(y, widths, heights, derivatives, bound, by_height=True)
    mean_slope, rise = height / width, y - bottom
    bend = rise * (slope + next_slope - 2 * mean_slope)
    a, b, c = height * (mean_slope - slope) + bend, height * slope - bend, -mean_slope * rise
    # The root as it does not cancel; below zero the discriminant is by rounding alone.
    theta = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(inside, left + width * theta, outputs)


def _bin_of(
    points: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, bound: float, by_height: bool = False
) -> tuple[Tensor, ...]:
    """Left, width, bottom, height, slope and next slope of the bin that each point falls into, shaped like ``points``.

    Points are places on the axis of widths, or by height those on the other one.
    """
    left, width = _bins(widths, bound)
    bottom, height = _bins(heights, bound)
    slopes = F.pad(MIN_DERIVATIVE + F.softplus(derivatives), (1, 1), value=1.0)
    # The last one that does not begin beyond the point.
    index = (points[..., None] >= (bottom if by_height else left)).sum(-1, keepdim=True) - 1
    knots = (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
    return tuple(each.gather(-1, index)[..., 0] for each in knots)


def _bins(unnormalised: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Where each bin begins, and how long it is: both shaped like ``unnormalised``, together all of the interval."""
    shares = MIN_BIN + (1 - MIN_BIN * unnormalised.shape[-1]) * torch.softmax(unnormalised, dim=-1)
    inner = 2 * bound * torch.cumsum(shares, dim=-1)[..., :-1] - bound
    knots = F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    return knots[..., :-1], knots[..., 1:] - knots[..., :-1]  # diff(), which ONNX lacks
