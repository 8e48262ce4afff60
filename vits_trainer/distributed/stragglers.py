"""Per-rank timing between log points, and detection of stragglers.

An update takes equally long on all ranks, because collectives wait for the slowest. A rank is therefore measured by
what it does alone: waiting for its own clips, and computing between two collectives.
"""

import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch

from vits_trainer.distributed.runtime import Runtime
from vits_trainer.utils.strings import counted

Cause = Literal["reading", "computing"]

LOGS_IN_A_ROW = 5
"""Consecutive logs that must agree before a rank is reported as slow or as recovered."""
MAX_RANKS_LOGGED = 16
"""Up to this many ranks each have their own scalars; with more, only minimum, median and maximum are logged."""
_MIN_RATIO = 1.3
"""A slow rank's time is above this multiple of the others' median."""
_MIN_SHARE = 0.05
"""A slow rank's time exceeds the others' median by at least this share of the elapsed time."""


@dataclass(frozen=True)
class RankInfo:
    """Where a rank runs."""

    rank: int
    local_rank: int
    """Its number among the ranks of its host."""
    host: str
    device: str

    @classmethod
    def of(cls, runtime: Runtime) -> "RankInfo":
        """Returns that of this process."""
        return cls(runtime.process_index, runtime.local_process_index, socket.gethostname(), runtime.device_name)

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host} (local rank {self.local_rank}, {self.device})"


@dataclass(frozen=True)
class RankTiming:
    """Work and times of one rank since the last log point."""

    updates: int
    """At least 1; the same on all ranks."""
    clips: int
    audio_s: float
    elapsed_s: float
    """Without validation and saving."""
    waited_s: float
    """Waiting for clips."""
    compute_s: float
    """Time in updates outside of collectives, see :class:`ComputeTimer`."""

    @property
    def waited(self) -> float:
        """Share of the elapsed time that the rank waited for clips."""
        return self.waited_s / self.elapsed_s


class ComputeTimer:
    """Measures the time that a rank spends in updates outside of collectives.

    Includes forward passes, optimizer steps, and backward passes without gradient synchronization. Backward passes
    that synchronize gradients are excluded, because they overlap computing with waiting. In the first update
    DistributedDataParallel has a collective in the forward pass (torch 2.14): that value includes waiting.

    On a GPU, CUDA events are recorded and read only at log points, so that the host does not wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start: Any = None
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measures what runs inside: an update."""
        self._start = self._now()
        yield
        self._stop()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Excludes what runs inside: a collective. Does nothing outside of :meth:`measuring`."""
        if self._start is None:
            yield
            return
        self._stop()
        yield
        self._start = self._now()

    def read(self) -> float:
        """Returns the seconds measured since the last call. A CPU-GPU sync point."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return float(sum(end - start for start, end in spans))
        if spans:
            spans[-1][1].synchronize()
        return float(sum(start.elapsed_time(end) for start, end in spans) / 1000)

    def _stop(self) -> None:
        self._spans.append((self._start, self._now()))
        self._start = None

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass(frozen=True)
class StragglerNotice:
    """Reports that a rank slows the others down, or no longer does."""

    message: str
    is_slow: bool


class StragglerDetector:
    """Reports a rank that is slow in several consecutive logs, once per cause until it has recovered."""

    def __init__(self, ranks: Sequence[RankInfo]) -> None:
        self.ranks = ranks
        self._reported: set[tuple[int, Cause]] = set()
        self._disagreeing_logs: Counter[tuple[int, Cause]] = Counter()
        """Consecutive logs that disagree with ``_reported``."""

    def update(self, timings: Sequence[RankTiming]) -> list[StragglerNotice]:
        """Returns the ranks that became slow or recovered.

        Args:
            timings: of each rank, since the last log point.
        """
        causes: dict[Cause, Callable[[Sequence[RankTiming], int], str]]
        causes = {"reading": _slow_at_reading, "computing": _slow_at_computing}
        notices = []
        for info in self.ranks if len(self.ranks) > 1 else []:
            for cause, explain in causes.items():
                reason = explain(timings, info.rank)
                if self._has_changed(info.rank, cause, bool(reason)):
                    status = f"is slow at {cause}: {reason}" if reason else f"is no longer slow at {cause}"
                    notices.append(StragglerNotice(f"{info} {status}", bool(reason)))
        return notices

    def _has_changed(self, rank: int, cause: Cause, is_slow: bool) -> bool:
        key = (rank, cause)
        self._disagreeing_logs[key] = self._disagreeing_logs[key] + 1 if is_slow != (key in self._reported) else 0
        if self._disagreeing_logs[key] < LOGS_IN_A_ROW:
            return False
        self._disagreeing_logs[key] = 0
        self._reported ^= {key}
        return True


def _slow_at_reading(timings: Sequence[RankTiming], rank: int) -> str:
    """Returns how ``rank`` is slow at reading, or an empty string.

    The other ranks spend that time waiting in collectives, so it does not count as waiting for clips on them.
    """
    own, others = timings[rank].waited, _median_of_others([timing.waited for timing in timings], rank)
    if own <= _MIN_RATIO * others or own - others < _MIN_SHARE:
        return ""
    return (
        f"it waits {own:.0%} of the time for clips, the others {others:.0%}. Check its disk, other load on its CPU, "
        "and --data_workers"
    )


def _slow_at_computing(timings: Sequence[RankTiming], rank: int) -> str:
    """Returns how ``rank`` is slow at computing, or an empty string; more or longer clips do not make a rank slow.

    Clips are assigned to ranks from short to long, so the last ranks have slightly more work in each update.
    """
    own, others = timings[rank].compute_s, _median_of_others([timing.compute_s for timing in timings], rank)
    # A rank may have had no clips: then the first comparison alone decides that it is not slow.
    per_audio = [timing.compute_s / max(timing.audio_s, 1e-9) for timing in timings]
    others_per_audio = _median_of_others(per_audio, rank)
    is_above = own > _MIN_RATIO * others and per_audio[rank] > _MIN_RATIO * others_per_audio
    if not is_above or own - others < _MIN_SHARE * timings[rank].elapsed_s:
        return ""
    own_ms, others_ms = (1000 * seconds / timings[rank].updates for seconds in (own, others))
    return (
        f"{own / others:.1f} times the others' median ({own_ms:.0f} ms per update outside of collectives, the others "
        f"{others_ms:.0f}). Check its device and CPU for other jobs and thermal throttling"
    )


def _median_of_others(values: Sequence[float], rank: int) -> float:
    """Excludes the rank itself: with two ranks, it would shift the median half way to its own value."""
    return statistics.median([*values[:rank], *values[rank + 1 :]])


def rank_metrics(timings: Sequence[RankTiming]) -> dict[str, float]:
    """Returns the per-rank metrics by name; those over all ranks are in :class:`TrainingMetrics`.

    Args:
        timings: of each rank, since the last log point.
    """
    rates = [timing.clips / timing.elapsed_s for timing in timings]
    waits = [timing.waited for timing in timings]
    compute = [timing.compute_s / timing.updates for timing in timings]
    metrics = {"time/data_wait_fraction": statistics.mean(waits)}
    metrics |= {"time/data_wait_fraction_max": max(waits)} if len(waits) > 1 else {}
    metrics |= {f"ranks/{label}/utterances_per_s": value for label, value in _by_label(rates).items()}
    metrics |= {f"ranks/{label}/data_wait_fraction": value for label, value in _by_label(waits).items()}
    return metrics | {f"ranks/{label}/compute_s_per_update": value for label, value in _by_label(compute).items()}


def _by_label(values: Sequence[float]) -> dict[str, float]:
    """Returns the values to log by label, given one value per rank; empty for a single rank."""
    if len(values) > MAX_RANKS_LOGGED:
        return {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {str(rank): value for rank, value in enumerate(values)} if len(values) > 1 else {}


def describe_topology(ranks: Sequence[RankInfo]) -> str:
    """Returns one line for the log: number of ranks, their hosts and devices.

    Args:
        ranks: all, in their order.
    """
    hosts: dict[str, list[RankInfo]] = {}
    for info in ranks:
        hosts.setdefault(info.host, []).append(info)
    descriptions = []
    for host, on_host in hosts.items():
        devices = ", ".join(dict.fromkeys(info.device for info in on_host))
        descriptions.append(f"{host} {format_runs([info.rank for info in on_host])} ({devices})")
    return f"{counted(len(ranks), 'process', 'processes')} on {counted(len(hosts), 'host')}: {', '.join(descriptions)}"


def format_runs(numbers: Sequence[int]) -> str:
    """Returns ``0-2+5`` for 0, 1, 2 and 5."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
