"""Time limits of tests: they end what hangs. None bounds a speed, as a busy machine takes 20 times as long."""

import subprocess
import sys
import time
from functools import cache

HANG_S = 1500
"""Nothing that a test waits for takes so long. Below the limit of a whole test in setup.cfg."""


@cache
def start_s() -> float:
    """Seconds that a process takes to import torch, here and now: 2 on a quiet machine."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - began_s


def rank_timeout_s() -> int:
    """``--rank_timeout_s`` that ranks which start at once do not exceed, however busy the machine is."""
    return max(5, round(4 * start_s()))
