"""Floating-point dtype of loss computations, independent of the dtype of the networks."""

from collections.abc import Callable

import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]
"""Returns noise with the shape, dtype and device of its argument: ``torch.randn_like``, or zeros in comparisons."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Casts narrower dtypes such as bfloat16 to float32; returns float32 and float64 unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
