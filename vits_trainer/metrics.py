"""Running means of named values, kept on the device and read back once at each logging point."""

from collections.abc import Mapping

import torch
from torch import Tensor


class RunningMeans:
    """Means of named scalars, weighted (by clips, as a rule) since the last reset."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Adds one micro-batch's values; detaches them and reads nothing back."""
        for name, value in values.items():
            addend = value.detach().double() * weight
            self._sums[name] = self._sums[name] + addend if name in self._sums else addend
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def state(self) -> tuple[list[str], Tensor]:
        """Names in sorted order, and (2, names) sums and weights in float64, to be added up over ranks."""
        names = sorted(self._sums)
        if not names:
            return [], torch.zeros(2, 0, dtype=torch.float64)
        sums = torch.stack([self._sums[name] for name in names])
        return names, torch.stack([sums, sums.new_tensor([self._weights[name] for name in names])])

    def reset(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._weights.clear()


def means(names: list[str], state: Tensor) -> dict[str, float]:
    """Reads (2, names) sums and weights back into one mean a name. A CPU-GPU sync point."""
    sums, weights = state.tolist() if names else ([], [])
    return {name: total / weight for name, total, weight in zip(names, sums, weights, strict=True) if weight > 0}
