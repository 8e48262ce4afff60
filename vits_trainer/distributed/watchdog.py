"""Watchdog thread that warns, with a stack trace, when no update has finished for a while."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger(__name__)


class StallWatchdog:
    """Context manager: logs a stall of ``limit_s`` seconds once, with the main thread's stack, until :meth:`reset`."""

    def __init__(self, limit_s: float, on_stall: Callable[[str], None]) -> None:
        self.limit_s = limit_s
        self.on_stall = on_stall
        self._last_reset_s = time.monotonic()
        self._reported = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True)

    def __enter__(self) -> "StallWatchdog":
        self._last_reset_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        """Restarts the timeout: an update has finished."""
        self._last_reset_s = time.monotonic()
        self._reported = False

    def _watch(self, main: int) -> None:
        while not self._ended.wait(min(self.limit_s / 4, 10)):
            stalled_s = time.monotonic() - self._last_reset_s
            if stalled_s < self.limit_s or self._reported:
                continue
            self._reported = True
            frame = sys._current_frames().get(main)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else "unknown"
            logger.warning("STALLED: no update for %.0f s. Stack of the main thread:\n%s", stalled_s, stack)
            self.on_stall(f"no update for {stalled_s:.0f} s; the stack trace is in train.log")
