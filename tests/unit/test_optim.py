"""AdamW and the learning rate, against numbers computed by hand."""

import math

import pytest
import torch
from torch import nn

from vits_trainer.config import TrainConfig
from vits_trainer.optim import Learner, build_optimizer, learning_rate


def test_optimizer_is_vitss():
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], TrainConfig())
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-5, (0.8, 0.99), 1e-9, 0.01)


def test_first_step_is_adamws():
    parameter = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = build_optimizer([parameter], TrainConfig(learning_rate=0.1, weight_decay=0.5))
    parameter.grad = torch.tensor([0.01, -50.0])
    optimizer.step()
    # the first step is the sign of the gradient, after the decay: w (1 - lr * decay) - lr * sign
    assert parameter.tolist() == pytest.approx([2 * 0.95 - 0.1, -3 * 0.95 + 0.1], rel=1e-5)


def test_frozen_parameters_are_left_to_themselves():
    frozen, trained = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([frozen, trained], TrainConfig())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(trained)]


def test_learning_rate_decays_once_an_epoch():
    config = TrainConfig(learning_rate=2e-4, learning_rate_decay=0.5)
    assert [learning_rate(config, epoch) for epoch in range(4)] == [2e-4, 1e-4, 5e-5, 2.5e-5]


def test_default_decay_is_vitss():
    assert math.isclose(TrainConfig().learning_rate_decay, 0.999 ** (1 / 8), rel_tol=1e-6)
    assert learning_rate(TrainConfig(), 8) == pytest.approx(2e-5 * 0.999, rel=1e-5)


def learner(value: float, max_grad_norm: float = 0.0) -> tuple[Learner, nn.Parameter]:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    optimizer = build_optimizer(network.parameters(), TrainConfig(weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Learner("network", network, optimizer, scaler, max_grad_norm), network.weight


def test_update_takes_the_given_rate_and_forgets_the_gradient():
    ours, weight = learner(3.0)
    ours.backward(weight.sum() * 5)
    ours.update(0.25)
    assert weight.item() == pytest.approx(3 - 0.25)  # AdamW's first step is the rate itself
    assert weight.grad is None


def test_update_returns_the_norm_of_all_that_was_accumulated():
    ours, weight = learner(3.0)
    ours.backward(weight.sum() * 5)
    ours.backward(weight.sum() * 2)
    assert ours.update(0.25).item() == pytest.approx(7)


def test_norm_is_measured_before_it_is_clipped():
    ours, weight = learner(3.0, max_grad_norm=0.5)
    ours.backward(weight.sum() * 5)
    assert ours.update(0.25).item() == pytest.approx(5)
    moments = ours.optimizer.state[weight]["exp_avg"]
    assert moments.item() == pytest.approx(0.2 * 0.5, rel=1e-4)  # (1 - beta1) times the clipped gradient


def test_without_a_bound_the_gradient_is_left_as_it_is():
    ours, weight = learner(3.0)
    ours.backward(weight.sum() * 5)
    ours.update(0.25)
    assert ours.optimizer.state[weight]["exp_avg"].item() == pytest.approx(0.2 * 5, rel=1e-5)


def test_scaled_gradient_is_unscaled_before_it_is_measured():
    ours, weight = learner(3.0)
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours.backward(weight.sum() * 5)
    assert weight.grad.item() == 5 * 1024
    assert ours.update(0.25).item() == pytest.approx(5)


def test_trap_11_overflow_skips_the_step_and_halves_this_networks_scale_alone():
    ours, weight = learner(3.0)
    other, other_weight = learner(3.0)
    for each in (ours, other):
        each.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours.backward(weight.sum() * float("inf"))
    other.backward(other_weight.sum())
    ours.update(0.25)
    other.update(0.25)
    assert (weight.item(), other_weight.item()) == (3.0, pytest.approx(2.75))
    assert (ours.scaler.get_scale(), other.scaler.get_scale()) == (512, 1024)
