"""Timeouts of tests for processes that hang. None limits the speed: a busy machine is 20 times slower."""

import subprocess
import sys
import time
from functools import cache

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


def rank_timeout_s(start_s: float) -> int:
    """Returns a ``--rank_timeout_s`` that ranks started at the same time do not exceed, however busy the machine is."""
    return max(5, round(4 * start_s))


def _time_s(*command: str) -> float:
    start_time_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start_time_s
