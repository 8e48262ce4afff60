"""AdamW, EMA and the learning rate, against values computed by hand."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vits_trainer.config.train import TrainConfig
from vits_trainer.training.optim import Ema, NetworkOptimizer, build_optimizer, learning_rate_at


def test_optimizer_has_the_settings_of_vits():
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], TrainConfig())
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-5, (0.8, 0.99), 1e-9, 0.01)


def test_first_step_equals_adamw():
    parameter = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = build_optimizer([parameter], TrainConfig(learning_rate=0.1, weight_decay=0.5))
    parameter.grad = torch.tensor([0.01, -50.0])
    optimizer.step()
    # the first step is the sign of the gradient, after the decay: w (1 - lr * decay) - lr * sign
    assert parameter.tolist() == pytest.approx([2 * 0.95 - 0.1, -3 * 0.95 + 0.1], rel=1e-5)


def test_frozen_parameters_are_not_optimized():
    frozen, trained = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([frozen, trained], TrainConfig())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(trained)]


def test_learning_rate_decays_once_per_epoch():
    config = TrainConfig(learning_rate=2e-4, learning_rate_decay=0.5)
    assert [learning_rate_at(config, epoch, 10 * epoch, 99) for epoch in range(4)] == [2e-4, 1e-4, 5e-5, 2.5e-5]


def test_default_decay_is_that_of_vits():
    assert math.isclose(TrainConfig().learning_rate_decay, 0.999 ** (1 / 8), rel_tol=1e-6)
    assert learning_rate_at(TrainConfig(), 8, 0, 1) == pytest.approx(2e-5 * 0.999, rel=1e-5)


def rates(total: int, **settings: object) -> list[float]:
    config = TrainConfig(learning_rate=1.0, **settings)
    return [learning_rate_at(config, update // 4, update, total) for update in range(total)]


def test_cosine_schedule_decays_after_a_linear_warmup():
    # 2 updates of warm-up, then (1 + cos(pi k / 4)) / 2 for k = 0 ... 3; 0 at k = 4, after the last update
    expected = [0.5, 1.0, 1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]
    assert rates(6, schedule="cosine", warmup_updates=2) == pytest.approx(expected)


def test_cosine_schedule_equals_torch():
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    theirs = []
    for _ in range(7):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates(7, schedule="cosine") == pytest.approx(theirs)


def test_constant_schedule_and_exponential_schedule_with_warmup():
    assert rates(6, schedule="constant") == [1.0] * 6
    warmed_up = rates(6, learning_rate_decay=0.5, warmup_updates=3)
    assert warmed_up == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("schedule", ["cosine", "constant", "exponential"])
def test_warmup_longer_than_the_run(schedule: str):
    assert rates(4, schedule=schedule, warmup_updates=8)[-1] == 4 / 8
    assert rates(1, schedule=schedule) == [1.0]


def test_ema_equals_the_formula_and_excludes_masked_updates():
    network = nn.Linear(2, 1, bias=False)
    ema = Ema(network, decay=0.3)
    by_hand, updates = network.weight.tolist()[0], 0
    for step, reached in enumerate([True, True, False, True]):
        with torch.no_grad():
            network.weight += torch.tensor([[0.5, -1.0]]) * (step + 1)
        ema.update(torch.tensor(reached))
        if reached:
            updates += 1
            decay = min(0.3, (1 + updates) / (10 + updates))  # 2/11, 3/12, then 4/13 > 0.3
            pairs = zip(by_hand, network.weight.tolist()[0], strict=True)
            by_hand = [decay * old + (1 - decay) * new for old, new in pairs]
    assert ema.weights["weight"].tolist()[0] == pytest.approx(by_hand, rel=1e-6)
    assert ema.state_dict()["averaged_updates"].item() == 3


def test_swapped_in_restores_the_networks_weights():
    network = nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    ema = Ema(network, decay=0.9)
    assert ema.weights.keys() == {"weight"}  # frozen parameters are not averaged
    with torch.no_grad():
        network.weight += 1
    ema.update(torch.tensor(True))
    own = network.weight.detach().clone()
    with ema.swapped_in():
        assert torch.equal(network.weight, ema.weights["weight"])
        assert not torch.equal(network.weight, own)
    assert torch.equal(network.weight, own)


def test_masked_update_does_not_change_the_ema():
    ours, weight = network_optimizer(3.0)
    ours.ema = Ema(ours.network, decay=0.9)
    ours.backward(weight.sum() * float("nan"))
    ours.step(0.25)
    assert (weight.item(), ours.ema.weights["weight"].item()) == (3.0, 3.0)
    assert ours.ema.state_dict()["averaged_updates"].item() == 0
    ours.backward(weight.sum())
    ours.step(0.25)
    assert ours.ema.weights["weight"].item() == pytest.approx(3.0 - 0.25 * (1 - 2 / 11))


def network_optimizer(value: float, max_grad_norm: float = 0.0) -> tuple[NetworkOptimizer, nn.Parameter]:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    optimizer = build_optimizer(network.parameters(), TrainConfig(weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return NetworkOptimizer("network", network, optimizer, Accelerator(cpu=True), scaler, max_grad_norm), network.weight


def test_step_uses_the_given_rate_and_zeroes_the_gradient():
    ours, weight = network_optimizer(3.0)
    ours.backward(weight.sum() * 5)
    ours.step(0.25)
    assert weight.item() == pytest.approx(3 - 0.25)  # AdamW's first step equals the rate
    assert weight.grad is None


def test_step_returns_the_norm_of_the_accumulated_gradient():
    ours, weight = network_optimizer(3.0)
    ours.backward(weight.sum() * 5)
    ours.backward(weight.sum() * 2)
    assert ours.step(0.25).item() == pytest.approx(7)


def test_norm_is_measured_before_clipping():
    ours, weight = network_optimizer(3.0, max_grad_norm=0.5)
    ours.backward(weight.sum() * 5)
    assert ours.step(0.25).item() == pytest.approx(5)
    moments = ours.optimizer.state[weight]["exp_avg"]
    assert moments.item() == pytest.approx(0.2 * 0.5, rel=1e-4)  # (1 - beta1) times the clipped gradient


def test_gradient_is_not_clipped_without_a_limit():
    ours, weight = network_optimizer(3.0)
    ours.backward(weight.sum() * 5)
    ours.step(0.25)
    assert ours.optimizer.state[weight]["exp_avg"].item() == pytest.approx(0.2 * 5, rel=1e-5)


def test_gradient_is_unscaled_before_its_norm_is_measured():
    ours, weight = network_optimizer(3.0)
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours.backward(weight.sum() * 5)
    assert weight.grad.item() == 5 * 1024
    assert ours.step(0.25).item() == pytest.approx(5)


def test_trap_11_overflow_skips_the_step_and_halves_only_this_networks_scale():
    ours, weight = network_optimizer(3.0)
    other, other_weight = network_optimizer(3.0)
    for each in (ours, other):
        each.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours.backward(weight.sum() * float("inf"))
    other.backward(other_weight.sum())
    ours.step(0.25)
    other.step(0.25)
    assert (weight.item(), other_weight.item()) == (3.0, pytest.approx(2.75))
    assert (ours.scaler.get_scale(), other.scaler.get_scale()) == (512, 1024)
