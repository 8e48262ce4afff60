"""Tells when a run no longer gets anywhere: from a thread of its own, as the others may hang."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger("vits_trainer")


class StallWatchdog:
    """While it is entered, silence of ``limit_s`` seconds is told once, with where the process is; then anew."""

    def __init__(self, limit_s: float, on_stall: Callable[[str], None]) -> None:
        self.limit_s = limit_s
        self.on_stall = on_stall
        self._heard_s = time.monotonic()
        self._told = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(threading.get_ident(),), daemon=True)

    def __enter__(self) -> "StallWatchdog":
        self._heard_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        """Says that the run got somewhere."""
        self._heard_s = time.monotonic()
        self._told = False

    def _listen(self, main: int) -> None:
        while not self._ended.wait(min(self.limit_s / 4, 10)):
            silent_s = time.monotonic() - self._heard_s
            if silent_s < self.limit_s or self._told:
                continue
            self._told = True
            frame = sys._current_frames().get(main)
            where = "".join(traceback.format_stack(frame)) if frame is not None else "nowhere"
            logger.warning("STALLED: no update for %.0f s. It is here:\n%s", silent_s, where)
            self.on_stall(f"no update for {silent_s:.0f} s; train.log says where the process is")
