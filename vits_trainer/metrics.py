"""Running means of named values, kept on the device and read back once at each logging point."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor


class SavedMeans(TypedDict):
    """What a checkpoint keeps of :class:`RunningMeans`."""

    sums: dict[str, float]
    weights: dict[str, float]


class RunningMeans:
    """Means over updates of named values to which each rank contributes a share, weighted since the last reset."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, shares: Mapping[str, Tensor], weight: float) -> None:
        """Adds this rank's shares of one update's values; detaches them and reads nothing back.

        Args:
            shares: add up over the ranks to the values.
            weight: of the update, the same on every rank.
        """
        for name, share in shares.items():
            addend = share.detach().double() * weight
            self._sums[name] = self._sums[name] + addend if name in self._sums else addend
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def names(self) -> list[str]:
        """What was added since the last reset, sorted."""
        return sorted(self._sums)

    def sums(self) -> Tensor:
        """(names,) to be added up over ranks."""
        return torch.stack([self._sums[name] for name in self.names()]) if self._sums else torch.zeros(0)

    def means(self, totals: Tensor) -> dict[str, float]:
        """From the sums of all ranks, (names,) on the CPU, to one mean a name."""
        return {
            name: total / self._weights[name]
            for name, total in zip(self.names(), totals.tolist(), strict=True)
            if self._weights[name] > 0
        }

    def reset(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._weights.clear()

    def save(self) -> SavedMeans:
        """This rank's sums so far, exactly. A CPU-GPU sync point."""
        return {"sums": dict(zip(self.names(), self.sums().tolist(), strict=True)), "weights": dict(self._weights)}

    def restore(self, saved: Sequence[SavedMeans], device: torch.device) -> None:
        """Takes up what :meth:`save` gave, of one rank, or of several to be added up."""
        self.reset()
        for one in saved:
            for name, value in one["sums"].items():
                addend = torch.tensor(value, dtype=torch.float64, device=device)
                self._sums[name] = self._sums[name] + addend if name in self._sums else addend
            self._weights = dict(one["weights"])
