"""Training metrics between two log points: means of losses on the device, throughput and ETA."""

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor

from vits_trainer.data.dataset import Batch
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import ComputeTimer, RankTiming, rank_metrics

FIRST_UPDATES = 20
"""Whose time corrects the plan; the first one, which allocates memory, is not counted."""


class DeviceMeansState(TypedDict):
    """Contents of :class:`DeviceMeans` in a checkpoint."""

    sums: dict[str, float]
    weights: dict[str, float]


class DeviceMeans:
    """Weighted means of named values over updates since the last reset.

    Each rank adds its shares of values and weights.
    """

    def __init__(self, world_size: int = 1) -> None:
        self.world_size = world_size
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    def add(self, shares: Mapping[str, Tensor], weight: float, counts: Tensor) -> None:
        """Adds this rank's shares of one update's values, detached. Does not wait for the device.

        Args:
            shares: of the values; their sums over the ranks are the values.
            weight: of the update, the same on every rank.
            counts: () bool on the device, the same on every rank; if false, the update is excluded.
        """
        own_weight = counts.double() * (weight / self.world_size)
        for name, share in shares.items():
            # Not multiplied by zero, because the share may be NaN or Inf.
            self._add(name, torch.where(counts, share.detach().double() * weight, 0.0), own_weight)

    def names(self) -> list[str]:
        """Returns the names added since the last reset, sorted."""
        return sorted(self._sums)

    def sums(self) -> Tensor:
        """Returns (2, names): weighted values and weights, to be summed over the ranks."""
        if not self._sums:
            return torch.zeros(2, 0)
        return torch.stack([torch.stack([sums[name] for name in self.names()]) for sums in (self._sums, self._weights)])

    def means(self, totals: Tensor) -> dict[str, float]:
        """Returns the mean of each name, except those without weight.

        Args:
            totals: (2, names), :meth:`sums` of all ranks, on the CPU.
        """
        return {
            name: total / weight for name, total, weight in zip(self.names(), *totals.tolist(), strict=True) if weight
        }

    def reset(self) -> None:
        """Discards all values."""
        self._sums.clear()
        self._weights.clear()

    def save(self) -> DeviceMeansState:
        """Returns this rank's exact sums. A CPU-GPU sync point."""
        sums, weights = self.sums().tolist()
        names = self.names()
        return {"sums": dict(zip(names, sums, strict=True)), "weights": dict(zip(names, weights, strict=True))}

    def restore(self, saved: Sequence[DeviceMeansState], device: torch.device) -> None:
        """Restores the results of :meth:`save` of one rank, or the sum of those of several."""
        self.reset()
        for state in saved:
            for name, value in state["sums"].items():
                both = torch.tensor([value, state["weights"][name]], dtype=torch.float64, device=device)
                self._add(name, both[0], both[1])

    def _add(self, name: str, value: Tensor, weight: Tensor) -> None:
        known = name in self._sums
        self._sums[name] = self._sums[name] + value if known else value
        self._weights[name] = self._weights[name] + weight if known else weight


class TrainingMetrics:
    """Losses, throughput and times between two log points. Losses stay on the device until :meth:`read`."""

    def __init__(self, runtime: Runtime, compute_timer: ComputeTimer) -> None:
        """Args:
        runtime: the ranks.
        compute_timer: of this rank's updates.
        """
        self.runtime = runtime
        self.compute_timer = compute_timer
        self.means = DeviceMeans(runtime.num_processes)
        self.seconds_per_update = 0.0
        self.slowest_update_s = 0.0
        """Of all updates since the start, including the wait for clips."""
        self.rank_timings: list[RankTiming] = []
        """Of each rank, as of the last :meth:`read`."""
        self._all_updates, self._all_paused_s = 0, 0.0
        """Since the start."""
        self._first_done_s: float | None = None
        """When the first update had ended, later by the pauses since."""
        self._done = 0
        self._requested_s = time.perf_counter()
        """When the current update was requested from the dataloader."""
        self._restart()

    def time_data_wait(self, updates: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yields the updates, and measures how long the loop waits for them."""
        self._restart()
        while True:
            self._requested_s = time.perf_counter()
            update = next(updates, None)
            self._waited_s += time.perf_counter() - self._requested_s
            if update is None:
                return
            yield update

    def add(self, shares: Mapping[str, Tensor], update: Sequence[Batch], clips: float, reached: Tensor) -> None:
        """Adds one update.

        Args:
            shares: this rank's shares of the update's losses.
            update: this rank's micro-batches.
            clips: in the update, on all ranks.
            reached: () bool on the device: whether the update changed the weights; if not, its losses are excluded.
        """
        self.means.add(shares, clips, reached)
        self._clips += clips
        self._own_clips += sum(len(batch.clip_ids) for batch in update)
        self._audio_s += sum(batch.audio_s for batch in update)
        self._updates += 1
        self._done += 1
        self._first_done_s = self._first_done_s or time.perf_counter()
        self.slowest_update_s = max(self.slowest_update_s, time.perf_counter() - self._requested_s)

    @contextmanager
    def excluded_from_throughput(self) -> Iterator[None]:
        """Excludes the time spent inside (validation, saving) from the throughput."""
        start_s = time.perf_counter()
        yield
        paused_s = time.perf_counter() - start_s
        self._paused_s += paused_s
        self._all_paused_s += paused_s
        if self._first_done_s is not None:
            self._first_done_s += paused_s

    def read(self) -> dict[str, float]:
        """Returns the metrics of all ranks since the last call. Runs on every rank. A CPU-GPU sync point."""
        metrics = self.means.means(self.runtime.all_reduce_sum(self.means.sums()))
        elapsed_s = time.perf_counter() - self._started - self._paused_s
        updates = max(self._updates, 1)
        timing = RankTiming(
            updates, self._own_clips, self._audio_s, elapsed_s, self._waited_s, self.compute_timer.read()
        )
        self.rank_timings = self.runtime.all_gather_object(timing)
        self._all_updates += self._updates
        self.seconds_per_update = elapsed_s / updates
        metrics |= {
            "throughput/utterances_per_s": self._clips / elapsed_s,
            "throughput/audio_s_per_s": sum(timing.audio_s for timing in self.rank_timings) / elapsed_s,
            "memory/max_allocated_gib": peak_memory_gib(self.runtime.device),
        }
        if self.runtime.num_processes > 1:
            each = metrics["throughput/utterances_per_s"] / self.runtime.num_processes
            metrics["throughput/utterances_per_s_per_rank"] = each
        metrics |= rank_metrics(self.rank_timings)
        self.means.reset()
        self._restart()
        return metrics

    def eta_s(self, updates: int) -> float:
        """Returns the expected time of ``updates`` updates, in seconds.

        From the last updates' speed, plus the average time of validation and saving per update so far.
        """
        return updates * (self.seconds_per_update + self._all_paused_s / max(self._all_updates, 1))

    @property
    def speed_of_first_updates_s(self) -> float | None:
        """Seconds per update of the first :data:`FIRST_UPDATES`, right after the last of them; else None."""
        if self._done != FIRST_UPDATES or self._first_done_s is None:
            return None
        return (time.perf_counter() - self._first_done_s) / (FIRST_UPDATES - 1)

    def save(self) -> DeviceMeansState:
        """Returns this rank's losses since the last log point, which a resumed run continues."""
        return self.means.save()

    def restore(self, saved: Sequence[DeviceMeansState]) -> None:
        """Restores the results of :meth:`save` of all ranks of the previous run, whatever their number."""
        own = saved[self.runtime.process_index :][:1] if len(saved) == self.runtime.num_processes else saved
        if len(saved) != self.runtime.num_processes and not self.runtime.is_main_process:
            zeros = dict.fromkeys(saved[0]["sums"], 0.0)
            own = [{"sums": zeros, "weights": zeros}]
        self.means.restore(own, self.runtime.device)

    def _restart(self) -> None:
        self._clips, self._own_clips, self._updates = 0.0, 0, 0
        self._audio_s, self._waited_s, self._paused_s = 0.0, 0.0, 0.0
        self._started = time.perf_counter()


def peak_memory_gib(device: torch.device) -> float:
    """Returns the peak memory of tensors on the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
