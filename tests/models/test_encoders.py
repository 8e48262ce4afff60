"""Encoders and flow give the same values and gradients as transformers."""

import pytest
import torch
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel

from vits_trainer.models.encoders import _diagonals, _on_diagonals, encode_text, flow, reversed_flow, wavenet
from vits_trainer.models.spectrogram import frame_mask

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


def require_same(network: nn.Module, actual: Tensor, expected: Tensor) -> None:
    assert torch.allclose(actual, expected, rtol=1e-10, atol=1e-12)
    pairs = zip(gradients(network, actual), gradients(network, expected), strict=True)
    for actual_gradient, expected_gradient in pairs:
        assert torch.allclose(actual_gradient, expected_gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_text_encoder_equals_transformers(size: int) -> None:
    """Covers texts shorter and longer than the window of relative positions."""
    encoder = model_of().text_encoder
    tokens = torch.randint(0, 20, (2, size), generator=torch.Generator().manual_seed(1))
    mask = frame_mask(torch.tensor([size, max(1, size - 2)]), size).double()
    expected_output = encoder(tokens, padding_mask=mask.transpose(1, 2), attention_mask=mask[:, 0].long())
    expected = (expected_output.last_hidden_state, expected_output.prior_means, expected_output.prior_log_variances)
    for which in range(3):
        actual = encode_text(encoder, tokens, mask)
        require_same(encoder, actual[which], expected[which].transpose(1, 2)) if which < 2 else None
        assert torch.allclose(actual[which], expected[which].transpose(1, 2), rtol=1e-10, atol=1e-12)
        expected_output = encoder(tokens, padding_mask=mask.transpose(1, 2), attention_mask=mask[:, 0].long())
        expected = (expected_output.last_hidden_state, expected_output.prior_means, expected_output.prior_log_variances)


@pytest.mark.parametrize("speakers", [1, 3])
def test_wavenet_and_flow_equal_transformers(speakers: int) -> None:
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


def test_diagonals_of_a_small_example() -> None:
    values = torch.arange(1.0, 13).view(1, 4, 3)  # rows of (left, here, right)
    placed = _on_diagonals(values, window=1)[0]
    assert placed.tolist() == [[2, 3, 0, 0], [4, 5, 6, 0], [0, 7, 8, 9], [0, 0, 10, 11]]
    assert _diagonals(placed[None], window=1)[0].tolist() == [[0, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 0]]
