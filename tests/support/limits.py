"""Timeouts of tests for processes that hang. None limits the speed: a busy machine is 20 times slower."""

import subprocess
import sys
import time
from functools import cache

HANG_S = 1500
"""Longer than anything a test waits for. Below the timeout of a test in setup.cfg."""


@cache
def start_s() -> float:
    """Returns the seconds that a process takes to import torch on this machine: 2 on an idle one."""
    start_time_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - start_time_s


def rank_timeout_s() -> int:
    """Returns a ``--rank_timeout_s`` that ranks started at the same time do not exceed, however busy the machine is."""
    return max(5, round(4 * start_s()))
