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
    """Means over updates of named values, weighted, since the last reset; each rank contributes a share of both."""

    def __init__(self, world_size: int = 1) -> None:
        self.world_size = world_size
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def add(self, shares: Mapping[str, Tensor], weight: float, counts: Tensor) -> None:
        """Adds this rank's shares of one update's values; detaches them and reads nothing back.

        Args:
            shares: add up over the ranks to the values.
            weight: of the update, the same on every rank.
            counts: () bool on the device, the same on every rank: where it is false, the update is left out.
        """
        own_weight = counts.double() * (weight / self.world_size)
        for name, share in shares.items():
            # Not a product with zero: the share may be no number.
            self._add(name, torch.where(counts, share.detach().double() * weight, 0.0), own_weight)

    def names(self) -> list[str]:
        """What was added since the last reset, sorted."""
        return sorted(self._sums)

    def sums(self) -> Tensor:
        """(2, names,): values and weights, to be added up over ranks."""
        if not self._sums:
            return torch.zeros(2, 0)
        return torch.stack([torch.stack([kept[name] for name in self.names()]) for kept in (self._sums, self._weights)])

    def means(self, totals: Tensor) -> dict[str, float]:
        """From the sums of all ranks, (2, names) on the CPU, to one mean a name; none where nothing counted."""
        return {
            name: total / weight for name, total, weight in zip(self.names(), *totals.tolist(), strict=True) if weight
        }

    def reset(self) -> None:
        """Forgets everything."""
        self._sums.clear()
        self._weights.clear()

    def save(self) -> SavedMeans:
        """This rank's sums so far, exactly. A CPU-GPU sync point."""
        sums, weights = self.sums().tolist()
        names = self.names()
        return {"sums": dict(zip(names, sums, strict=True)), "weights": dict(zip(names, weights, strict=True))}

    def restore(self, saved: Sequence[SavedMeans], device: torch.device) -> None:
        """Takes up what :meth:`save` gave, of one rank, or of several to be added up."""
        self.reset()
        for one in saved:
            for name, value in one["sums"].items():
                both = torch.tensor([value, one["weights"][name]], dtype=torch.float64, device=device)
                self._add(name, both[0], both[1])

    def _add(self, name: str, value: Tensor, weight: Tensor) -> None:
        known = name in self._sums
        self._sums[name] = self._sums[name] + value if known else value
        self._weights[name] = self._weights[name] + weight if known else weight
