"""Number of CPU threads for PyTorch, and their wait policy.

By default libgomp's threads spin at each barrier for about 15 ms before they sleep, and an update has thousands of
barriers. If another program occupies the core of a thread, or a CPU quota is exhausted, the other threads spin in vain:
an update was up to 66 times slower (docs/benchmarks.md). Sleeping immediately costs up to a seventh of the speed on an
idle machine.
"""

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

NUMBER = "OMP_NUM_THREADS"
POLICY = "OMP_WAIT_POLICY"
_CGROUPS = Path("/sys/fs/cgroup")
_GAIN = 0.95
"""Use one thread if it takes less than this fraction of the time of all threads."""
_STARVED = 1.25
"""Threads are starved if all of them take more than this multiple of the time of one."""


def available_cpus() -> float:
    """Returns the CPUs that this process may use: the lower of its affinity and its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(allowed), cgroup_quota())


def cgroup_quota(groups: str | None = None, root: Path = _CGROUPS) -> float:
    """Returns the CPU quota of this process's cgroups, in CPUs; infinity without a limit.

    Args:
        groups: content of ``/proc/self/cgroup`` (None = read it).
        root: mount point of the cgroups, of version 1 or 2.
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
            directory = mount / path.lstrip("/")
            # In a container its own cgroup is the root, but ``path`` may be that of the host.
            for group in (directory, *directory.parents):
                quotas += _quota(group)
                if group == mount:
                    break
    return min(quotas)


def configure_openmp(environment: MutableMapping[str, str]) -> None:
    """Sets OpenMP's wait policy, and its number of threads if there is a CPU quota.

    Takes effect only before OpenMP is loaded. Child processes inherit both. Variables that the user has set are kept.
    """
    environment.setdefault(POLICY, "PASSIVE")
    if cgroup_quota() < float("inf"):
        environment.setdefault(NUMBER, str(max(1, int(available_cpus()))))


@dataclass(frozen=True)
class ThreadTimes:
    """Seconds for the same work with all threads and with one thread."""

    threads: int
    all_s: float
    one_s: float

    @property
    def fastest(self) -> int:
        """Number of threads to use."""
        return 1 if self.one_s < _GAIN * self.all_s else self.threads

    @property
    def is_starved(self) -> bool:
        """Whether the threads lack CPUs, because of other programs or a quota."""
        return self.all_s > _STARVED * self.one_s

    def __str__(self) -> str:
        return f"{self.all_s:.3g} s with {self.threads} threads, {self.one_s:.3g} s with one"


STARVED_REMEDY = (
    "The threads are starved of CPU time by other programs. Stop these, or set OMP_NUM_THREADS to the number of idle "
    "CPUs."
)


def time_threads(work: Callable[[], float], threads: int, use: Callable[[int], None]) -> ThreadTimes:
    """Measures ``work`` twice with one thread and twice with ``threads``, alternating; keeps the minimum of each.

    Args:
        work: runs the work and returns the seconds it took.
        threads: number of threads to compare with one.
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
    except (OSError, ValueError):  # no such cgroup, or no limit
        return []
