"""Losses and times of the loop between two logging points."""

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor

from vits_trainer.data.dataset import Batch
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import ComputeTimer, RankTiming, scalars


class DeviceMeansState(TypedDict):
    """What a checkpoint keeps of :class:`DeviceMeans`."""

    sums: dict[str, float]
    weights: dict[str, float]


class DeviceMeans:
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

    def save(self) -> DeviceMeansState:
        """This rank's sums so far, exactly. A CPU-GPU sync point."""
        sums, weights = self.sums().tolist()
        names = self.names()
        return {"sums": dict(zip(names, sums, strict=True)), "weights": dict(zip(names, weights, strict=True))}

    def restore(self, saved: Sequence[DeviceMeansState], device: torch.device) -> None:
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


class TrainingMetrics:
    """Nothing that is added leaves the device before :meth:`read`."""

    def __init__(self, runtime: Runtime, compute_timer: ComputeTimer) -> None:
        """Args:
        runtime: the ranks.
        compute_timer: of this rank, running in its updates.
        """
        self.runtime = runtime
        self.compute_timer = compute_timer
        self.means = DeviceMeans(runtime.world_size)
        self.seconds_per_update = 0.0
        self.slowest_update_s = 0.0
        """Of all since the start, with what it waited for clips."""
        self.shares: list[RankTiming] = []
        """Of each rank, in what was read last."""
        self._all_updates, self._all_paused_s = 0, 0.0
        """Since the start."""
        self._asked = time.perf_counter()
        self._restart()

    def time_data_wait(self, updates: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Passes updates through, measuring how long they kept the loop waiting."""
        self._restart()
        while True:
            self._asked = time.perf_counter()
            update = next(updates, None)
            self._waited_s += time.perf_counter() - self._asked
            if update is None:
                return
            yield update

    def add(self, shares: Mapping[str, Tensor], update: Sequence[Batch], clips: float, reached: Tensor) -> None:
        """Takes in one update.

        Args:
            shares: this rank's of the update's losses.
            update: this rank's micro-batches.
            clips: in the whole update, on all ranks.
            reached: () bool on the device: whether the update reached the weights; its losses are left out if not.
        """
        self.means.add(shares, clips, reached)
        self._clips += clips
        self._own_clips += sum(len(batch.clip_ids) for batch in update)
        self._audio_s += sum(batch.audio_s for batch in update)
        self._updates += 1
        self.slowest_update_s = max(self.slowest_update_s, time.perf_counter() - self._asked)

    @contextmanager
    def excluded_from_throughput(self) -> Iterator[None]:
        """What happens inside (validating, saving) is left out of the throughput."""
        began = time.perf_counter()
        yield
        paused_s = time.perf_counter() - began
        self._paused_s += paused_s
        self._all_paused_s += paused_s

    def read(self) -> dict[str, float]:
        """Scalars over all ranks since the last call. Runs on every rank. A CPU-GPU sync point."""
        found = self.means.means(self.runtime.all_reduce_sum(self.means.sums()))
        elapsed_s = time.perf_counter() - self._started - self._paused_s
        updates = max(self._updates, 1)
        share = RankTiming(
            updates, self._own_clips, self._audio_s, elapsed_s, self._waited_s, self.compute_timer.read()
        )
        self.shares = self.runtime.all_gather_object(share)
        self._all_updates += self._updates
        self.seconds_per_update = elapsed_s / updates
        found |= {
            "throughput/utterances_per_s": self._clips / elapsed_s,
            "throughput/utterances_per_s_per_rank": self._clips / elapsed_s / self.runtime.world_size,
            "throughput/audio_s_per_s": sum(share.audio_s for share in self.shares) / elapsed_s,
            "memory/max_allocated_gib": peak_memory_gib(self.runtime.device),
        }
        found |= scalars(self.shares)
        self.means.reset()
        self._restart()
        return found

    def eta_s(self, updates: int) -> float:
        """Seconds that so many updates will take: as the last ones did, and with pauses as there were so far."""
        return updates * (self.seconds_per_update + self._all_paused_s / max(self._all_updates, 1))

    def save(self) -> DeviceMeansState:
        """This rank's losses since the last logging point: a resumed run goes on with them."""
        return self.means.save()

    def restore(self, saved: Sequence[DeviceMeansState]) -> None:
        """Takes up what :meth:`save` gave on each rank of the run before; as many ranks or not."""
        mine = saved[self.runtime.rank :][:1] if len(saved) == self.runtime.world_size else saved
        if len(saved) != self.runtime.world_size and not self.runtime.is_main_process:
            nothing = dict.fromkeys(saved[0]["sums"], 0.0)
            mine = [{"sums": nothing, "weights": nothing}]
        self.means.restore(mine, self.runtime.device)

    def _restart(self) -> None:
        self._clips, self._own_clips, self._updates = 0.0, 0, 0
        self._audio_s, self._waited_s, self._paused_s = 0.0, 0.0, 0.0
        self._started = time.perf_counter()


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that tensors took on the GPU, or this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def format_duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
