"""Losses, counts and times of the loop between two logging points."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vits_trainer.data import Batch, Rejection
from vits_trainer.metrics import RunningMeans, means
from vits_trainer.runtime import Runtime


class Meter:
    """Nothing that is added leaves the device before :meth:`read`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.means = RunningMeans()
        self.seconds_per_update = 0.0
        self._uncounted = [0, 0]
        """Clips trained and rejected here that :meth:`count` has not seen."""
        self._restart()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches through, measuring how long they kept the loop waiting."""
        self._restart()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, values: dict[str, Tensor], batch: Batch) -> None:
        """Takes in one micro-batch."""
        clips, rejected = len(batch.clip_ids), len(batch.rejections)
        self.means.add(values, weight=clips)
        self._rejections += batch.rejections
        self._clips += clips
        self._audio_s += batch.audio_s
        self._updates += batch.place.closes_update
        self._uncounted = [self._uncounted[0] + clips, self._uncounted[1] + rejected]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside (validating, saving) is left out of the throughput."""
        began = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - began

    def count(self) -> tuple[int, int]:
        """Clips trained and clips rejected on all ranks since the last call. Runs on every rank."""
        local = torch.tensor(self._uncounted, dtype=torch.float64, device=self.runtime.device)
        trained, rejected = self.runtime.sum(local).tolist()
        self._uncounted = [0, 0]
        return int(trained), int(rejected)

    def read(self) -> tuple[dict[str, float], list[Rejection]]:
        """Scalars over all ranks since the last call, and the clips rejected. Runs on every rank.

        A CPU-GPU sync point.
        """
        device = self.runtime.device
        names = self.means.names()
        scalars = means(names, self.runtime.sum(self.means.state(names, device)))
        elapsed_s = time.perf_counter() - self._started - self._paused_s
        local = [self._clips, len(self._rejections), self._audio_s, self._waited_s / elapsed_s]
        totals = self.runtime.sum(torch.tensor(local, dtype=torch.float64, device=device)).tolist()
        clips, rejected, audio_s, waited = totals
        rejections = [clip for found in self.runtime.gather(self._rejections) for clip in found] if rejected else []
        self.seconds_per_update = elapsed_s / max(self._updates, 1)
        scalars |= {
            "throughput/utterances_per_s": clips / elapsed_s,
            "throughput/audio_s_per_s": audio_s / elapsed_s,
            "time/data_wait_fraction": waited / self.runtime.world_size,
            "memory/max_allocated_gib": _peak_memory_gib(device),
        }
        self._restart()
        return scalars, rejections

    def _restart(self) -> None:
        self.means.reset()
        self._rejections: list[Rejection] = []
        self._clips, self._updates = 0, 0
        self._audio_s, self._waited_s, self._paused_s = 0.0, 0.0, 0.0
        self._started = time.perf_counter()


def _peak_memory_gib(device: torch.device) -> float:
    """The most memory that tensors took on the GPU, or this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
