"""AdamW and the learning rate, against numbers computed by hand."""

import math

import pytest
import torch
from torch import nn

from vits_trainer.config import TrainConfig
from vits_trainer.optim import build_optimizer, learning_rate, set_learning_rate


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


def test_rate_is_set_in_every_group():
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]}])
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
