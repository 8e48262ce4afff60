"""Running means of named values, kept on the device and read back once at each logging point."""

from collections.abc import Mapping, Sequence

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

    def names(self) -> list[str]:
        """What was added since the last reset, sorted."""
        return sorted(self._sums)

    def state(self, names: Sequence[str], device: torch.device) -> Tensor:
        """(2, names) sums and weights, to be added up over ranks; zeros for what was not added here."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        sums = torch.stack([self._sums.get(name, zero) for name in names])
        weights = torch.tensor([self._weights.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
        return torch.stack([sums, weights])

    def reset(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._weights.clear()


def means(names: Sequence[str], state: Tensor) -> dict[str, float]:
    """Reads (2, names) sums and weights back into one mean a name. A CPU-GPU sync point."""
    sums, weights = state.tolist()
    return {name: total / weight for name, total, weight in zip(names, sums, weights, strict=True) if weight > 0}
