"""Requests to stop a run: signals, a STOP file, a time limit, a launcher that died. Checked once per update."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_FORCING_INTERRUPTS = 3


class ShutdownRequest:
    """Context manager that records signals instead of ending the process, so that no save is interrupted.

    As long as there is nothing to save (:attr:`has_progress`), Ctrl-C ends the process at once, and without a launcher,
    which would restart it, so do other signals. The third Ctrl-C always ends it.
    """

    def __init__(self, stop_file: Path, save_before_s: float = 0) -> None:
        """Args:
        stop_file: a file at this path requests to stop.
        save_before_s: seconds after the start of this process by which it must have saved (0 = no limit).
        """
        self.stop_file = stop_file
        self.save_before_s = save_before_s
        self.signal: signal.Signals | None = None
        """The first signal received."""
        self.has_progress = False
        """Whether there are updates to save."""
        self._interrupts = 0
        self._launcher = os.getppid() if is_launched() else None
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "ShutdownRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reason_to_stop(self, needs_s: float) -> str:
        """Returns why to stop now, or an empty string.

        Args:
            needs_s: expected time of the next update and of saving, in seconds.
        """
        if self.signal is not None:
            return self.signal.name
        if self.stop_file.exists():
            return str(self.stop_file)
        if self._launcher is not None and os.getppid() != self._launcher:
            return "its launcher is gone"  # a new launch must not find this process still running
        if self.save_before_s and _seconds_since_start() + needs_s >= self.save_before_s:
            return f"--save_before_s {self.save_before_s:g}"
        return ""

    def exit_code(self) -> int:
        """Returns 128 + the signal's number; 0 after another reason, or under a launcher, which would restart it."""
        return 0 if self.signal is None or is_launched() else 128 + self.signal

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signature of a handler
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and (not self.has_progress or self._interrupts == _FORCING_INTERRUPTS):
            raise KeyboardInterrupt
        if not self.has_progress and not is_launched():
            os.write(2, f"\n{signal.Signals(number).name}: stopping, there is nothing to save yet\n".encode())
            raise SystemExit(128 + number)
        if self.signal is None:
            self.signal = signal.Signals(number)
            again = "; Ctrl-C twice more ends the run without saving" if number == signal.SIGINT else ""
            os.write(2, f"\n{self.signal.name}: saving and stopping after this update{again}\n".encode())


def is_launched() -> bool:
    """Returns whether ``accelerate launch``, ``torchrun`` or a similar launcher started this process."""
    return any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "RANK"))


def launch_id() -> str:
    """Returns an id of the launch: the same for a process and for those that its launcher restarts after a failure."""
    parent = psutil.Process().parent()
    started = "" if parent is None else f"{parent.pid}@{parent.create_time():.2f}"
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', 'none')} {started}"


def is_restarted() -> bool:
    """Returns whether the launcher started this process to replace one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _seconds_since_start() -> float:
    return time.time() - float(psutil.Process().create_time())
