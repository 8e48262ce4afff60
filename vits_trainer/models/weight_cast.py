"""Casts the weights of a network for autocast in a few operations, instead of one per weight and use."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)
"""Whose weights autocast casts."""


class _Place(NamedTuple):
    """Where a layer reads one of its weights."""

    layer: nn.Module
    name: str

    @property
    def parametrization(self) -> nn.Module | None:
        """Computes the weight, as weight norm does; None if the weight is a parameter."""
        if not parametrize.is_parametrized(self.layer, self.name):
            return None
        return cast("nn.ModuleDict", self.layer.parametrizations)[self.name]


class _Cast(torch.autograd.Function):
    """Casts tensors with one kernel per several dozens of them, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        narrow = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(narrow, list(tensors))
        return tuple(narrow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Returns the gradients in the dtypes of the weights."""
        given = {index: gradient for index, gradient in enumerate(gradients) if gradient is not None}
        wide = {index: torch.empty_like(gradient, dtype=ctx.dtypes[index]) for index, gradient in given.items()}
        torch._foreach_copy_(list(wide.values()), list(given.values()))
        return (None, *(wide.get(index) for index in range(len(gradients))))


@contextmanager
def cast_weights(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, weights of layers are computed once, and cast to autocast's dtype if it is enabled.

    Autocast casts a weight at each use unless it is a trainable parameter: that of weight norm is not, and that of a
    frozen network neither. The gradients of each of ``networks`` arrive together, when its backward pass has ended.
    Activations must not be recomputed outside (gradient checkpointing).

    Args:
        networks: whose layers are called under autocast.
    """
    restored = []
    try:
        for network in networks:
            restored += _install(network)
        yield
    finally:
        for place, original in restored:
            if place.parametrization is None:
                place.layer._parameters[place.name] = original
            else:
                del place.parametrization.forward


def _install(network: nn.Module) -> list[tuple[_Place, nn.Parameter | None]]:
    """Computes and casts the weights of a network; returns what :func:`cast_weights` restores."""
    layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
    places = [
        _Place(layer, name) for layer in layers for name in ("weight", "bias") if getattr(layer, name) is not None
    ]
    weights = _cast([getattr(place.layer, place.name) for place in places])
    restored: list[tuple[_Place, nn.Parameter | None]] = []
    for place, weight in zip(places, weights, strict=True):
        parametrization = place.parametrization
        if parametrization is None:
            restored.append((place, place.layer._parameters[place.name]))
            # As torch.func.functional_call does; modules expect parameters here only when they are moved or saved.
            place.layer._parameters[place.name] = cast("nn.Parameter", weight)
        else:
            restored.append((place, None))
            parametrization.forward = lambda weight=weight: weight
    return restored


def _cast(weights: list[Tensor]) -> list[Tensor]:
    """Casts weights as autocast would; frozen ones apart, so that no gradient is computed for them."""
    device_type = weights[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return weights
    dtype = torch.get_autocast_dtype(device_type)
    by_index: dict[int, Tensor] = {}
    for is_trained in (True, False):
        group = [index for index, weight in enumerate(weights) if weight.requires_grad == is_trained]
        narrow = _Cast.apply(dtype, *(weights[index] for index in group)) if group else ()
        by_index |= dict(zip(group, narrow, strict=True))
    return [by_index[index] for index in range(len(weights))]
