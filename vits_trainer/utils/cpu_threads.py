"""How many threads PyTorch computes with on a CPU, and how they wait for one another.

By default libgomp's threads spin at each barrier for some 15 ms before they sleep, and an update has thousands of
barriers. Where another program has the core of a thread, or a CPU quota is used up, the others spin for nothing: an
update was up to 66 times slower (docs/benchmarks.md). Threads that sleep at once cost up to a seventh on a quiet one.
"""

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

NUMBER = "OMP_NUM_THREADS"
POLICY = "OMP_WAIT_POLICY"
_CGROUPS = Path("/sys/fs/cgroup")
_GAIN = 0.95
"""One thread is chosen where it takes less than this share of the time of all threads."""
_STARVED = 1.25
"""Threads are starved where all of them take this many times as long as one."""


def available_cpus() -> float:
    """CPUs that this process may use: its affinity, or its cgroup's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(allowed), cgroup_quota())


def cgroup_quota(groups: str | None = None, root: Path = _CGROUPS) -> float:
    """CPUs that the control groups of this process allow, infinity without a limit.

    Args:
        groups: content of ``/proc/self/cgroup`` (None = read it).
        root: where control groups are mounted, of version 1 or 2.
    """
    if groups is None:
        try:
            groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        except OSError:  # not Linux
            return float("inf")
    quotas = [float("inf")]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [root / "cpu", root / controllers] if controllers else [root, root / "unified"]
        for mount in mounts:
            folder = mount / path.lstrip("/")
            # A container sees its own group as the root, whatever path the host knows it by.
            for group in (folder, *folder.parents):
                quotas += _quota(group)
                if group == mount:
                    break
    return min(quotas)


def configure_openmp(environment: MutableMapping[str, str]) -> None:
    """Sets how OpenMP's threads wait, and their number where a quota allows fewer than there are CPUs.

    Takes effect only if OpenMP is not loaded yet. Child processes inherit both. What the user has set stays.
    """
    environment.setdefault(POLICY, "PASSIVE")
    if cgroup_quota() < float("inf"):
        environment.setdefault(NUMBER, str(max(1, int(available_cpus()))))


@dataclass(frozen=True)
class ThreadTimes:
    """Seconds that the same work takes with all threads and with one."""

    threads: int
    all_s: float
    one_s: float

    @property
    def fastest(self) -> int:
        """The number of threads to compute with."""
        return 1 if self.one_s < _GAIN * self.all_s else self.threads

    @property
    def is_starved(self) -> bool:
        """Whether other programs or a quota leave the threads no CPUs to run on."""
        return self.all_s > _STARVED * self.one_s

    def __str__(self) -> str:
        return f"{self.all_s:.3g} s with {self.threads} threads, {self.one_s:.3g} s with one"


STARVED_REMEDY = (
    "The threads are starved: other programs use the CPUs. Stop them, or set OMP_NUM_THREADS to the CPUs that are free."
)


def time_threads(work: Callable[[], float], threads: int, use: Callable[[int], None]) -> ThreadTimes:
    """Times ``work`` twice with one thread and twice with ``threads``, in turn, and keeps the shorter times.

    Args:
        work: returns the seconds that it took.
        threads: the greater number.
        use: sets the number of threads.
    """
    times_s: dict[int, float] = {}
    for count in (1, threads, 1, threads):
        use(count)
        times_s[count] = min(work(), times_s.get(count, float("inf")))
    return ThreadTimes(threads, times_s[threads], times_s[1])


def _quota(group: Path) -> list[float]:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return [] if quota == "max" or int(quota) <= 0 else [int(quota) / int(period)]
    except (OSError, ValueError):  # no such group, or no limit in it
        return []
