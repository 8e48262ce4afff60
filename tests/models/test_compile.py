"""Compilable weight norm, and gradient checkpointing."""

from dataclasses import replace

import pytest
import torch._inductor.config
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics import benchmark
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models.compile import PlainWeightNorm

SMALL = BenchmarkConfig(size="tiny", batch_size=2, clip_s=2.0, tokens=40, precision="fp32")


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (5, 1)), nn.ConvTranspose1d(4, 6, 3)])
def test_plain_weight_norm_equals_pytorch(layer: nn.Module) -> None:
    """Compares the value and both gradients for all layer types with weight norm."""
    normed = weight_norm(layer.double())
    results = []
    for _ in range(2):
        normed.zero_grad()
        normed.weight.pow(3).sum().backward()
        gradients = (parameter.grad for parameter in normed.parametrizations.parameters())
        results.append([normed.weight.detach(), *gradients])
        normed.parametrizations.weight[0] = PlainWeightNorm()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    normed.weight = torch.full_like(normed.weight, 0.5)
    torch.testing.assert_close(normed.weight, torch.full_like(normed.weight, 0.5))


def first_gradients(config: BenchmarkConfig) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Returns the losses of an update and the gradients of its generator and discriminator steps."""
    turns, _ = benchmark.our_update(config, Runtime(config.precision, 1))
    batch = benchmark.workload(config)
    torch.manual_seed(0)
    losses = turns(
        batch, turns.objective.denominators(batch), discriminator_only=False, sync_gradients=True, learning_rate=None
    )
    parameters = [parameter for optimizer in turns.optimizers for parameter in optimizer.network.parameters()]
    return {name: float(loss.detach()) for name, loss in losses.items()}, [
        p.grad for p in parameters if p.grad is not None
    ]


def test_gradient_checkpointing_gives_identical_values_with_less_memory() -> None:
    plain, recomputed = SMALL, replace(SMALL, gradient_checkpointing=True)
    losses, gradients = first_gradients(plain)
    again, gradients_again = first_gradients(recomputed)
    assert again == losses
    assert all(map(torch.equal, gradients, gradients_again))
    assert saved_bytes(recomputed) < 0.6 * saved_bytes(plain)


def saved_bytes(config: BenchmarkConfig) -> int:
    """Returns the bytes that the generator's forward pass saves for the backward pass."""
    generator, _ = benchmark.networks(config)
    generator.gradient_checkpointing = config.gradient_checkpointing
    batch = benchmark.workload(config)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    magnitude = torch.rand(2, 513, int(batch.frame_lengths[0]))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = generator(batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths)
    assert results.waveform.requires_grad
    return sum(saved.values())
