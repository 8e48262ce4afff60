"""Updates with NaN or Inf are masked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vits_trainer.config.train import TrainConfig
from vits_trainer.training.optim import NetworkOptimizer, build_optimizer


def network_optimizer(scaler: torch.amp.GradScaler | None = None) -> NetworkOptimizer:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(network.parameters(), TrainConfig())
    return NetworkOptimizer("x", network, optimizer, Accelerator(cpu=True), scaler, 0)


def state(one: NetworkOptimizer) -> list[torch.Tensor]:
    moments = [value for slots in one.optimizer.state.values() for value in slots.values()]
    return [value.clone() for value in (*one.network.parameters(), *moments)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step_is_masked_if_loss_or_gradient_is_nan_or_inf(bad: float, where: str) -> None:
    """Weights, moments and step count stay bit-exact, and the next finite update continues from them."""
    one, other = network_optimizer(), network_optimizer()
    for each in (one, other):
        each.backward(each.network(torch.ones(1, 3)).sum())
        each.step(0.1)
    before = state(one)
    output = one.network(torch.ones(1, 3)).sum()
    # The gradient of a constant is zero: an infinite loss must make it NaN to be detected.
    loss = output * 0 + bad if where == "loss" else torch.sqrt(output * 0) * (bad if bad != bad else 1)
    one.backward(loss)
    assert not torch.isfinite(one.step(0.1))
    assert all(map(torch.equal, before, state(one)))
    for each in (one, other):
        each.backward(each.network(torch.ones(1, 3)).sum())
        each.step(0.1)
    assert all(map(torch.equal, state(one), state(other)))


def test_gradient_of_a_finite_loss_is_unchanged_bit_for_bit() -> None:
    one, plain = network_optimizer(), network_optimizer()
    one.backward(one.network(torch.ones(1, 3)).square().sum())
    plain.network(torch.ones(1, 3)).square().sum().backward()
    for ours, theirs in zip(one.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_fp16_overflow_is_handled_by_the_scaler(tmp_path: Path) -> None:
    """With a CPU gradient scaler."""
    one = network_optimizer(torch.amp.GradScaler("cpu", init_scale=2.0**120))
    before = state(one)
    one.backward(one.network(torch.full((1, 3), 1e10)).sum())
    one.step(0.1)
    assert all(map(torch.equal, before, state(one)[: len(before)]))
    assert one.scaler.get_scale() == 2.0**119


def test_written_batches_are_read_back_unchanged(tmp_path: Path) -> None:
    from tests.support.prepared_data import PLACE, SILENCE, SPEC
    from vits_trainer.data.dataset import Clip, collate
    from vits_trainer.diagnostics.replay import _read
    from vits_trainer.training.nonfinite_guard import write_batches

    clips = [Clip("a", torch.tensor([1, 2]).numpy(), torch.ones(512).short().numpy(), 1)]
    batch, other = (collate(clips, PLACE, SPEC, SILENCE) for _ in range(2))
    write_batches(tmp_path / "rank0.safetensors", [batch, replace(other, speaker_ids=None)], 7, 0, 5)
    (first, second), record = _read(tmp_path / "rank0.safetensors")
    assert (record.update, record.seed, first.clip_ids) == (7, 5, ("a",))
    assert torch.equal(first.waveform, batch.waveform)
    assert second.speaker_ids is None
