"""Our way through transformers' modules gives transformers' values and gradients."""

import pytest
import torch
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel

from vits_trainer.audio import frame_mask
from vits_trainer.durations import inverse_spline, log_durations, rational_quadratic_spline
from vits_trainer.encoders import _diagonals, _on_diagonals, encode_text, flow, reversed_flow, wavenet

SIZES = {
    "vocab_size": 20, "hidden_size": 16, "flow_size": 16, "num_hidden_layers": 2, "ffn_dim": 24, "layerdrop": 0.0,
    "posterior_encoder_num_wavenet_layers": 3, "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 2,
    "upsample_initial_channel": 32,
}  # fmt: skip


def model_of(speakers: int = 1) -> VitsModel:
    torch.manual_seed(0)
    many = {"num_speakers": speakers, "speaker_embedding_size": 8} if speakers > 1 else {}
    return VitsModel(VitsConfig(**SIZES, **many)).double().eval()


def gradients(network: nn.Module, output: Tensor) -> list[Tensor]:
    network.zero_grad()
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def require_same(network: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    for our, their in zip(gradients(network, ours), gradients(network, theirs), strict=True):
        assert torch.allclose(our, their, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_text_encoder(size: int) -> None:
    """Texts shorter than the window of relative positions, and longer."""
    encoder = model_of().text_encoder
    tokens = torch.randint(0, 20, (2, size), generator=torch.Generator().manual_seed(1))
    mask = frame_mask(torch.tensor([size, max(1, size - 2)]), size).double()
    theirs = encoder(tokens, padding_mask=mask.transpose(1, 2), attention_mask=mask[:, 0].long())
    expected = (theirs.last_hidden_state, theirs.prior_means, theirs.prior_log_variances)
    for which in range(3):
        ours = encode_text(encoder, tokens, mask)
        require_same(encoder, ours[which], expected[which].transpose(1, 2)) if which < 2 else None
        assert torch.allclose(ours[which], expected[which].transpose(1, 2), rtol=1e-10, atol=1e-12)
        theirs = encoder(tokens, padding_mask=mask.transpose(1, 2), attention_mask=mask[:, 0].long())
        expected = (theirs.last_hidden_state, theirs.prior_means, theirs.prior_log_variances)


@pytest.mark.parametrize("speakers", [1, 3])
def test_wavenet_and_flow(speakers: int) -> None:
    model = model_of(speakers)
    mask = frame_mask(torch.tensor([9, 6]), 9).double()
    hidden = torch.randn(2, 16, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * mask
    detached = None if speakers == 1 else model.embed_speaker(torch.tensor([0, 2])).detach()[:, :, None]
    net = model.posterior_encoder.wavenet
    require_same(net, wavenet(net, hidden, mask, detached), net(hidden, mask, detached))
    require_same(model.flow, flow(model.flow, hidden, mask, detached), model.flow(hidden, mask, detached))
    back = model.flow(hidden, mask, detached, reverse=True)
    require_same(model.flow, reversed_flow(model.flow, hidden, mask, detached), back)
    around = reversed_flow(model.flow, flow(model.flow, hidden, mask, detached), mask, detached)
    assert torch.allclose(around, hidden, atol=1e-12)


def test_diagonals_by_hand() -> None:
    values = torch.arange(1.0, 13).view(1, 4, 3)  # rows of (left, here, right)
    placed = _on_diagonals(values, window=1)[0]
    assert placed.tolist() == [[2, 3, 0, 0], [4, 5, 6, 0], [0, 7, 8, 9], [0, 0, 10, 11]]
    assert _diagonals(placed[None], window=1)[0].tolist() == [[0, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 0]]


def test_spline_is_transformers_within_its_bounds_and_the_identity_beyond() -> None:
    from transformers.models.vits.modeling_vits import _unconstrained_rational_quadratic_spline as theirs

    draw = torch.Generator().manual_seed(3)
    inputs = (torch.randn(2, 1, 50, dtype=torch.float64, generator=draw) * 4).requires_grad_()
    shape = [torch.randn(2, 1, 50, n, dtype=torch.float64, generator=draw).requires_grad_() for n in (10, 10, 9)]
    ours, expected = rational_quadratic_spline(inputs, *shape, 5.0), theirs(inputs, *shape, tail_bound=5.0)
    beyond = inputs.abs() > 5
    assert 0 < beyond.sum() < 50
    for our, their in zip(ours, expected, strict=True):
        assert torch.allclose(our, their, rtol=1e-6, atol=1e-7)  # theirs moves the last knot by 1e-6
        found = (torch.autograd.grad(value.sum(), [inputs, *shape], retain_graph=True) for value in (our, their))
        for our_gradient, their_gradient in zip(*found, strict=True):
            assert torch.allclose(our_gradient, their_gradient, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[0][beyond], inputs[beyond])


def test_inverse_spline_is_transformers_and_leads_back() -> None:
    from transformers.models.vits.modeling_vits import _unconstrained_rational_quadratic_spline as theirs

    draw = torch.Generator().manual_seed(4)
    outputs = torch.randn(2, 1, 50, dtype=torch.float64, generator=draw) * 4
    shape = [torch.randn(2, 1, 50, n, dtype=torch.float64, generator=draw) for n in (10, 10, 9)]
    ours = inverse_spline(outputs, *shape, 5.0)
    assert torch.allclose(ours, theirs(outputs, *shape, reverse=True, tail_bound=5.0)[0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(rational_quadratic_spline(ours, *shape, 5.0)[0], outputs, atol=1e-9)
    assert torch.equal(ours[outputs.abs() > 5], outputs[outputs.abs() > 5])


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("speakers", [1, 3])
def test_log_durations_are_those_that_transformers_infers(
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
        found = log_durations(predictor, hidden, mask, speaker, 0.8 * noise)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
