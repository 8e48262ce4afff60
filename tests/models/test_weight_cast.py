"""Weights that are cast together: the same values and gradients as autocast's, with fewer casts."""

from contextlib import nullcontext, suppress

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.weight_cast import cast_weights


class _Casts(TorchDispatchMode):
    """Counts casts to bfloat16."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.count += "_to_copy" in str(func) and result.dtype == torch.bfloat16
        return result


def outcome(network: nn.Module, cast: bool) -> tuple[list[torch.Tensor], int]:
    """Returns output and gradients under autocast, of two passes, and the number of casts."""
    network.zero_grad()
    waveform = torch.sin(torch.arange(4096.0)).view(1, 1, -1).requires_grad_()
    weights = cast_weights([network]) if cast else nullcontext()
    with torch.autocast("cpu", dtype=torch.bfloat16), _Casts() as casts, weights:
        output = sum(score.float().square().sum() for _ in range(2) for score in network(waveform).scores)
    output.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [output.detach(), waveform.grad, *gradients], casts.count


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_values_and_gradients_equal_those_of_autocast(trained: bool) -> None:
    torch.manual_seed(0)
    network = Discriminator(DiscriminatorShape(periods=(2, 3), channels_divisor=16)).requires_grad_(trained)
    (expected, casts), (found, fewer) = outcome(network, cast=False), outcome(network, cast=True)
    assert len(found) == len(expected) == 2 + trained * len(list(network.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        # Gradients of two uses are added in bfloat16.
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-2 * float(theirs.abs().max()))
    assert torch.equal(found[0], expected[0])
    assert fewer < casts / 2


def test_weights_are_restored_after_an_error() -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 2, 3)), nn.Linear(4, 4))
    before = dict(network.named_parameters())
    dtypes = []
    with suppress(ZeroDivisionError), torch.autocast("cpu", dtype=torch.bfloat16), cast_weights([network]):
        dtypes = [network[0].weight.dtype, network[1].weight.dtype]
        raise ZeroDivisionError
    assert dtypes == [torch.bfloat16] * 2
    assert all(p is before[name] for name, p in network.named_parameters())
    assert network[0].weight.dtype == torch.float32
    assert "forward" not in vars(network[0].parametrizations.weight)


def test_frozen_weights_among_trained_ones_get_no_gradient() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16), cast_weights([network]):
        assert not network[1].weight.requires_grad
        network(torch.ones(2, 3)).sum().backward()
    assert network[0].weight.grad.dtype == torch.float32
    assert network[1].weight.grad is None


def test_without_autocast_weight_norm_is_computed_once() -> None:
    network = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 2, 3))
    with cast_weights([network]):
        assert network.weight is network.weight
        assert network.weight.dtype == torch.float32
