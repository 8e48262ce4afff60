"""Each loss against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vits_trainer.training import losses


def test_mel_l1_is_the_mean_over_the_bands_and_the_sum_over_valid_frames():
    generated = torch.tensor([[[1.0, 2.0, 9.0], [0.0, 0.0, 9.0]]])
    target = torch.tensor([[[0.0, 4.0, 0.0], [3.0, -2.0, 0.0]]])
    all_frames = losses.mel_l1(generated, target, torch.tensor([[[1.0, 1.0, 1.0]]]))
    assert all_frames.item() == pytest.approx((1 + 2 + 9 + 3 + 2 + 9) / 2)
    without_the_last = losses.mel_l1(generated, target, torch.tensor([[[1.0, 1.0, 0.0]]]))
    assert without_the_last.item() == pytest.approx((1 + 2 + 3 + 2) / 2)


def test_mel_l1_weights_frames_equally_not_clips():
    generated, target = torch.zeros(2, 1, 3), torch.tensor([[[1.0, 1.0, 1.0]], [[5.0, 7.0, 7.0]]])
    mask = torch.tensor([[[1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]])
    assert losses.mel_l1(generated, target, mask).item() == pytest.approx(1 + 1 + 1 + 5)


def test_kl_by_hand():
    values = {"z": [1.0, 99.0], "log_q": [0.5, 99.0], "m_p": [3.0, 99.0], "log_p": [math.log(2), 99.0]}
    z, log_q, m_p, log_p = (torch.tensor([[row, row]]) for row in values.values())
    loss = losses.kl_divergence(z, log_q, m_p, log_p, torch.tensor([[[1.0, 0.0]]]))
    one_channel = math.log(2) - 0.5 - 0.5 + 0.5 * (1 - 3) ** 2 / 4
    assert loss.item() == pytest.approx(2 * one_channel)  # the sum over two channels, one frame


def test_mean_kl_equals_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    m_q, log_q, m_p, log_p = (0.5 * torch.randn(1, 4, 1, generator=generator) for _ in range(4))
    frames = 200_000
    z = m_q + log_q.exp() * torch.randn(1, 4, frames, generator=generator)
    expanded = (x.expand(-1, -1, frames) for x in (log_q, m_p, log_p))
    ours = losses.kl_divergence(z, *expanded, torch.ones(1, 1, frames)) / frames
    exact = kl_divergence(Normal(m_q, log_q.exp()), Normal(m_p, log_p.exp())).sum()
    assert ours.item() == pytest.approx(exact.item(), rel=0.01)


def test_discriminator_targets_are_one_for_real_and_zero_for_generated():
    real = [torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0]])]
    fake = [torch.tensor([[0.0, 2.0]]), torch.tensor([[0.5]])]
    real_loss, fake_loss = losses.discriminator_lsgan(real, fake)
    assert real_loss.item() == pytest.approx((0 + 4) / 2 + 1)
    assert fake_loss.item() == pytest.approx((0 + 4) / 2 + 0.25)


def test_generator_target_is_one_for_generated():
    fake = [torch.tensor([[0.0, 2.0]]), torch.tensor([[0.5]])]
    assert losses.generator_lsgan(fake).item() == pytest.approx((1 + 1) / 2 + 0.25)


def feature_maps() -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Real and generated feature maps of two discriminators and one clip."""
    real = [[torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])], [torch.tensor([[0.0, 0.0, 6.0]])]]
    fake = [[torch.tensor([[0.0, 4.0]]), torch.tensor([[3.5]])], [torch.tensor([[0.0, 3.0, 0.0]])]]
    return real, fake


def test_feature_matching_has_the_factor_2():
    real, fake = feature_maps()
    assert losses.feature_matching(real, fake).item() == pytest.approx(2 * (1.5 + 0.5 + 3))


def test_feature_matching_has_no_gradient_for_real_features():
    real, fake = feature_maps()
    leaves = [tensor.requires_grad_() for layers in (*real, *fake) for tensor in layers]
    losses.feature_matching(real, fake).backward()
    assert [leaf.grad is None for leaf in leaves] == [True] * 3 + [False] * 3
    assert fake[0][0].grad.tolist() == [[-1.0, 1.0]]  # 2 * sign / 2 elements


def test_feature_matching_rejects_lists_of_unequal_length():
    real, fake = feature_maps()
    with pytest.raises(ValueError, match="shorter"):
        losses.feature_matching(real, fake[:1])


def test_losses_are_computed_in_at_least_float32():
    half = torch.full((1, 1, 4), 300.0, dtype=torch.float16)  # its square is infinite in float16
    zero, mask = torch.zeros_like(half), torch.ones(1, 1, 4)
    assert losses.generator_lsgan([half]).item() == pytest.approx(299**2)
    assert losses.discriminator_lsgan([half], [half])[1].item() == pytest.approx(300**2)
    assert losses.kl_divergence(half, zero, zero, zero, mask).item() == pytest.approx(4 * (300**2 / 2 - 0.5))
    assert losses.mel_l1(half, zero, mask).dtype == torch.float32
    assert losses.feature_matching([[half]], [[zero]]).dtype == torch.float32


def test_every_loss_is_a_sum_over_clips():
    """The same clip twice gives twice the loss: the losses do not divide by the number of clips."""
    real, fake = ([[torch.rand(1, 3, 5)], [torch.rand(1, 7)]] for _ in range(2))
    scores, mel, mask = [torch.rand(1, 6), torch.rand(1, 2)], torch.rand(4, 1, 8, 5), torch.ones(1, 1, 5)

    def all_of(times: int) -> list[float]:
        r, f = ([[x.repeat(times, *[1] * (x.ndim - 1)) for x in layers] for layers in side] for side in (real, fake))
        s = [x.repeat(times, 1) for x in scores]
        a, b, c, d = (x.repeat(times, 1, 1) for x in mel)
        m = mask.repeat(times, 1, 1)
        return [
            losses.feature_matching(r, f).item(),
            losses.generator_lsgan(s).item(),
            losses.discriminator_lsgan(s, s)[0].item(),
            losses.mel_l1(a, b, m).item(),
            losses.kl_divergence(a, b, c, d, m).item(),
        ]

    assert all_of(2) == pytest.approx([2 * value for value in all_of(1)], rel=1e-5)
