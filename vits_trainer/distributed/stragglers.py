"""Who the ranks are, what each of them did between two logging points, and which of them holds the others up.

An update takes equally long on all ranks, as each of them waits for the slowest wherever they exchange something. So a
rank is judged by what it does alone: waiting for its own clips, and computing between two exchanges.
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

Cause = Literal["reading", "computing"]

LOGS_IN_A_ROW = 5
"""That must agree before a rank is named, or is taken to have recovered."""
MOST_NAMED = 16
"""Ranks that have scalars of their own; of more of them the least, the median and the most."""
_CLEARLY_ABOVE = 1.3
"""Times the others' median."""
_WORTH_TELLING = 0.05
"""Of an update's time: what a rank must take beyond the others' median."""


@dataclass(frozen=True)
class RankInfo:
    """Where a rank runs."""

    rank: int
    local_rank: int
    """Among the ranks of its host."""
    host: str
    device: str

    @classmethod
    def of(cls, runtime: Runtime) -> "RankInfo":
        """This process's."""
        return cls(runtime.rank, runtime.local_rank, socket.gethostname(), runtime.device_name)

    def __str__(self) -> str:
        """For people who are to find it."""
        return f"rank {self.rank} on host {self.host} (local rank {self.local_rank}, {self.device})"


@dataclass(frozen=True)
class RankTiming:
    """What one rank did since the last logging point."""

    updates: int
    """At least 1; the same on all ranks."""
    clips: int
    audio_s: float
    elapsed_s: float
    """Validating and saving left out."""
    waited_s: float
    """For clips."""
    compute_s: float
    """Spent on updates where nothing waits for another rank, see :class:`ComputeTimer`."""

    @property
    def waited(self) -> float:
        """Share of the time that it waited for clips."""
        return self.waited_s / self.elapsed_s


class ComputeTimer:
    """Measures a rank's work on updates from where it leaves one exchange with the others up to the next.

    That is the forward passes, the optimisers, and all of the micro-batches whose gradients do not meet. The backward
    passes that meet are left out: their work and their waiting are interwoven. In the first update
    DistributedDataParallel has an exchange in the forward pass (torch 2.14): its figure holds waiting, too.

    On a GPU events are recorded in its queue, and read only at a logging point: the host waits for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began: Any = None
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measures what is done inside: an update."""
        self._began = self._now()
        yield
        self._stop()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Leaves out what is done inside: an exchange between ranks. Where nothing is measured, nothing happens."""
        if self._began is None:
            yield
            return
        self._stop()
        yield
        self._began = self._now()

    def read(self) -> float:
        """Seconds since the last call. A CPU-GPU sync point."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return float(sum(end - begin for begin, end in spans))
        if spans:
            spans[-1][1].synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in spans) / 1000)

    def _stop(self) -> None:
        self._spans.append((self._began, self._now()))
        self._began = None

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass(frozen=True)
class StragglerNotice:
    """That a rank holds the others up, or does so no longer."""

    words: str
    is_slow: bool


class StragglerDetector:
    """Names a rank that is slow in several logs in a row, once for each cause until it has recovered."""

    def __init__(self, seats: Sequence[RankInfo]) -> None:
        self.seats = seats
        self._named: set[tuple[int, Cause]] = set()
        self._changed: Counter[tuple[int, Cause]] = Counter()
        """Logs in a row that say otherwise than ``_named`` does."""

    def update(self, shares: Sequence[RankTiming]) -> list[StragglerNotice]:
        """What is new.

        Args:
            shares: of each rank, since the last logging point.
        """
        causes: dict[Cause, Callable[[Sequence[RankTiming], int], str]]
        causes = {"reading": _slow_at_reading, "computing": _slow_at_computing}
        found = []
        for seat in self.seats if len(self.seats) > 1 else []:
            for cause, judge in causes.items():
                words = judge(shares, seat.rank)
                if self._changes(seat.rank, cause, bool(words)):
                    told = f"is slow at {cause}: {words}" if words else f"is no longer slow at {cause}"
                    found.append(StragglerNotice(f"{seat} {told}", bool(words)))
        return found

    def _changes(self, rank: int, cause: Cause, is_slow: bool) -> bool:
        key = (rank, cause)
        self._changed[key] = self._changed[key] + 1 if is_slow != (key in self._named) else 0
        if self._changed[key] < LOGS_IN_A_ROW:
            return False
        self._changed[key] = 0
        self._named ^= {key}
        return True


def _slow_at_reading(shares: Sequence[RankTiming], rank: int) -> str:
    """Why this rank is, or nothing. The others do not wait for clips where they wait for this rank."""
    own, others = shares[rank].waited, _median_of_others([share.waited for share in shares], rank)
    if own <= _CLEARLY_ABOVE * others or own - others < _WORTH_TELLING:
        return ""
    return (
        f"it waits {own:.0%} of the time for clips, the others {others:.0%}. Look at its disk, at what else its CPU "
        "does, and at --data_workers"
    )


def _slow_at_computing(shares: Sequence[RankTiming], rank: int) -> str:
    """Why this rank is, or nothing: it takes longer, and not because its clips are longer or more.

    Clips are dealt from short to long, so the last ranks have a little more to do in each update.
    """
    own, others = shares[rank].compute_s, _median_of_others([share.compute_s for share in shares], rank)
    # A rank can have had no clip: then the first comparison alone says that it is not slow.
    per_audio = [share.compute_s / max(share.audio_s, 1e-9) for share in shares]
    others_per_audio = _median_of_others(per_audio, rank)
    above = own > _CLEARLY_ABOVE * others and per_audio[rank] > _CLEARLY_ABOVE * others_per_audio
    if not above or own - others < _WORTH_TELLING * shares[rank].elapsed_s:
        return ""
    own_ms, others_ms = (1000 * seconds / shares[rank].updates for seconds in (own, others))
    return (
        f"{own / others:.1f} times the others' median ({own_ms:.0f} ms an update between exchanges, theirs "
        f"{others_ms:.0f}). Look for other jobs on its device and its CPU, and for heat"
    )


def _median_of_others(values: Sequence[float], rank: int) -> float:
    """Without the rank's own: of two ranks, it would pull the median half way to itself."""
    return statistics.median([*values[:rank], *values[rank + 1 :]])


def scalars(shares: Sequence[RankTiming]) -> dict[str, float]:
    """Of the ranks, by the names that are logged; what they are all together is the meter's.

    Args:
        shares: of each rank, since the last logging point.
    """
    rates = [share.clips / share.elapsed_s for share in shares]
    waits = [share.waited for share in shares]
    alone = [share.compute_s / share.updates for share in shares]
    found = {"time/data_wait_fraction": statistics.mean(waits), "time/data_wait_fraction_max": max(waits)}
    found |= {f"ranks/{label}/utterances_per_s": value for label, value in _shown(rates).items()}
    found |= {f"ranks/{label}/data_wait_fraction": value for label, value in _shown(waits).items()}
    return found | {f"ranks/{label}/compute_s_per_update": value for label, value in _shown(alone).items()}


def _shown(values: Sequence[float]) -> dict[str, float]:
    """What is shown of one value a rank, by its label: nothing where there is one rank."""
    if len(values) > MOST_NAMED:
        return {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {str(rank): value for rank, value in enumerate(values)} if len(values) > 1 else {}


def describe_topology(seats: Sequence[RankInfo]) -> str:
    """One line for people: how many ranks, on which hosts and devices.

    Args:
        seats: of all ranks, in their order.
    """
    hosts: dict[str, list[RankInfo]] = {}
    for seat in seats:
        hosts.setdefault(seat.host, []).append(seat)
    places = []
    for host, here in hosts.items():
        devices = ", ".join(dict.fromkeys(seat.device for seat in here))
        places.append(f"{host} {runs([seat.rank for seat in here])} ({devices})")
    return f"{len(seats)} process(es) on {len(hosts)} host(s): {', '.join(places)}"


def runs(numbers: Sequence[int]) -> str:
    """``0-2+5`` for 0, 1, 2 and 5."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
