"""Timeouts of tests for processes that hang. None limits the speed: a busy machine is 20 times slower."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.support.fork_server import python

HANG_S = 1500
"""Longer than anything a test waits for. Below the timeout of a test in setup.cfg."""


@cache
def start_s() -> float:
    """Returns the seconds that a process takes to import torch on this machine: 2 on an idle one."""
    return _time_s(sys.executable, "-c", "import torch")


@cache
def fork_start_s() -> float:
    """Returns the seconds that a fork takes to start a command: 0.3 on an idle machine."""
    return _time_s(python(), "-m", "vits_trainer", "--version")


@contextmanager
def limited_memory(more_bytes: int) -> Iterator[None]:
    """Inside, allocating more than ``more_bytes`` of address space fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def rank_timeout_s(start_s: float) -> int:
    """Returns a ``--rank_timeout_s`` that ranks started at the same time do not exceed, however busy the machine is."""
    return max(5, round(4 * start_s))


def _time_s(*command: str) -> float:
    start_time_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start_time_s
