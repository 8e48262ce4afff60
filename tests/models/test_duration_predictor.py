"""Splines, flows and losses of the duration predictors against transformers and manual computation."""

import math

import pytest
import torch
from torch import Tensor
from transformers import VitsConfig, VitsModel
from transformers.models.vits.modeling_vits import VitsDurationPredictor

from tests.support.golden import read_case, weights_by_formula
from vits_trainer.diagnostics import golden
from vits_trainer.models import duration_predictor
from vits_trainer.models.duration_predictor import inverse_spline, log_durations, rational_quadratic_spline
from vits_trainer.models.parameter_names import from_original_generator
from vits_trainer.models.pretrained import with_weight_norm
from vits_trainer.models.spectrogram import frame_mask


def test_spline_equals_transformers_inside_and_the_identity_outside() -> None:
    from transformers.models.vits.modeling_vits import _unconstrained_rational_quadratic_spline as transformers_spline

    draw = torch.Generator().manual_seed(3)
    inputs = (torch.randn(2, 1, 50, dtype=torch.float64, generator=draw) * 4).requires_grad_()
    shape = [torch.randn(2, 1, 50, n, dtype=torch.float64, generator=draw).requires_grad_() for n in (10, 10, 9)]
    actual = rational_quadratic_spline(inputs, *stacked(shape), 5.0)
    expected = transformers_spline(inputs, *shape, tail_bound=5.0)
    beyond = inputs.abs() > 5
    assert 0 < beyond.sum() < 50
    for actual_part, expected_part in zip(actual, expected, strict=True):
        # transformers shifts the last knot by 1e-6
        assert torch.allclose(actual_part, expected_part, rtol=1e-6, atol=1e-7)
        gradients = (
            torch.autograd.grad(value.sum(), [inputs, *shape], retain_graph=True)
            for value in (actual_part, expected_part)
        )
        for actual_gradient, expected_gradient in zip(*gradients, strict=True):
            assert torch.allclose(actual_gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert torch.equal(actual[0][beyond], inputs[beyond])


def stacked(shape):
    """Returns bins and derivatives for widths, heights and derivatives."""
    widths, heights, derivatives = shape
    return torch.stack([widths, heights], dim=-2), derivatives


def test_inverse_spline_equals_transformers_and_inverts() -> None:
    from transformers.models.vits.modeling_vits import _unconstrained_rational_quadratic_spline as transformers_spline

    draw = torch.Generator().manual_seed(4)
    outputs = torch.randn(2, 1, 50, dtype=torch.float64, generator=draw) * 4
    shape = [torch.randn(2, 1, 50, n, dtype=torch.float64, generator=draw) for n in (10, 10, 9)]
    actual = inverse_spline(outputs, *stacked(shape), 5.0)
    expected = transformers_spline(outputs, *shape, reverse=True, tail_bound=5.0)[0]
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(rational_quadratic_spline(actual, *stacked(shape), 5.0)[0], outputs, atol=1e-9)
    assert torch.equal(actual[outputs.abs() > 5], outputs[outputs.abs() > 5])


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("speakers", [1, 3])
def test_log_durations_equal_transformers_inference(
    monkeypatch: pytest.MonkeyPatch, stochastic: bool, speakers: int
) -> None:
    torch.manual_seed(0)
    config = VitsConfig(
        hidden_size=16, use_stochastic_duration_prediction=stochastic, num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0, duration_predictor_num_flows=3,
    )  # fmt: skip
    predictor = VitsModel(config).eval().double().duration_predictor
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, noise = torch.randn(2, 16, 20, dtype=torch.float64), torch.randn(2, 2, 20, dtype=torch.float64)
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).double()[:, None]
    speaker = torch.randn(2, 8, 1, dtype=torch.float64) if speakers > 1 else None
    monkeypatch.setattr(torch, "randn", lambda *size, **options: noise)
    with torch.no_grad():
        expected = predictor(hidden, mask, speaker, **({"reverse": True, "noise_scale": 0.8} if stochastic else {}))
        gradients = log_durations(predictor, hidden, mask, speaker, 0.8 * noise)
    assert expected.std() > 0.01
    assert torch.allclose(gradients, expected, rtol=1e-5, atol=1e-5)


def build_generator(case: golden.Case) -> VitsModel:
    model = with_weight_norm(VitsModel(golden.vits_config(case.content["config"]))).eval()
    model.load_state_dict(from_original_generator(weights_by_formula(case.content), model.state_dict()))
    return model


def test_training_flows_invert_inference(monkeypatch):
    torch.manual_seed(0)
    predictor = build_generator(read_case("multi_sdp")).duration_predictor
    hidden, speaker = torch.randn(2, 16, 7), torch.randn(2, 8, 1)
    mask = frame_mask(torch.tensor([7, 4]), 7)
    start = torch.randn(2, 2, 7) * mask
    condition = predictor.conv_pre(hidden) + predictor.cond(speaker)
    condition = predictor.conv_proj(predictor.conv_dds(condition, mask)) * mask
    latents, _ = duration_predictor._apply_flows(predictor.flows, start, mask, condition)
    monkeypatch.setattr(torch, "randn", lambda *size, **options: latents)
    log_durations = predictor(hidden, mask, speaker, reverse=True, noise_scale=1.0)
    assert (latents - start).abs().max() > 0.1
    torch.testing.assert_close(log_durations, start[:, :1], atol=1e-4, rtol=0)


def test_log_determinant_equals_that_of_the_jacobian():
    torch.manual_seed(0)
    predictor = build_generator(read_case("single_sdp")).duration_predictor.double()
    start, condition, mask = torch.randn(1, 2, 3).double(), torch.randn(1, 16, 3).double(), torch.ones(1, 1, 3).double()

    def flows(values: Tensor) -> Tensor:
        return duration_predictor._apply_flows(predictor.flows, values, mask, condition)[0]

    jacobian = torch.autograd.functional.jacobian(flows, start).reshape(6, 6)
    log_det = duration_predictor._apply_flows(predictor.flows, start, mask, condition)[1]
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-5, rtol=0)


def test_stochastic_duration_loss_has_no_gradient_for_text_and_speaker():
    predictor = build_generator(read_case("multi_sdp")).duration_predictor
    hidden = torch.randn(1, 16, 4, requires_grad=True)
    speaker = torch.randn(1, 8, 1, requires_grad=True)
    mask = torch.ones(1, 1, 4)
    duration_predictor.duration_loss(predictor, hidden, mask, speaker, mask * 3, torch.zeros_like).sum().backward()
    assert hidden.grad is None
    assert speaker.grad is None
    assert all(parameter.grad is not None for parameter in predictor.parameters())


def test_deterministic_duration_loss_is_the_squared_error_of_log_durations():
    torch.manual_seed(0)
    config = golden.vits_config({**read_case("single_sdp").content["config"], "use_sdp": False})
    predictor = VitsDurationPredictor(config).eval()
    hidden = torch.randn(2, 16, 3, requires_grad=True)
    mask = frame_mask(torch.tensor([3, 2]), 3)
    frames = torch.tensor([[[4.0, 1.0, 7.0]], [[2.0, 9.0, 0.0]]])
    loss = duration_predictor.duration_loss(predictor, hidden, mask, None, frames, torch.randn_like)
    predicted = predictor(hidden, mask).detach()
    by_hand = [
        sum((predicted[b, 0, s].item() - math.log(frames[b, 0, s].item() + 1e-6)) ** 2 for s in range(tokens))
        for b, tokens in enumerate((3, 2))
    ]
    assert loss.tolist() == pytest.approx(by_hand, rel=1e-5)
    loss.sum().backward()
    assert hidden.grad is None
