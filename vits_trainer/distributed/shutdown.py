"""What asks a run to stop: signals, a STOP file, a job's time limit, a launcher that died. Asked once an update."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class ShutdownRequest:
    """While it is entered, signals are noted, not obeyed, the second like the first: a save is never cut short."""

    def __init__(self, stop_file: Path, save_before_s: float = 0) -> None:
        """Args:
        stop_file: whoever puts a file there asks to stop.
        save_before_s: seconds after the start of this process by which it must have saved (0 = no limit).
        """
        self.stop_file = stop_file
        self.save_before_s = save_before_s
        self.signal: signal.Signals | None = None
        """The first one that came."""
        self._launcher = os.getppid() if is_launched() else None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "ShutdownRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reason_to_stop(self, needs_s: float) -> str:
        """Why to stop now, or nothing.

        Args:
            needs_s: how long the next update and saving will take.
        """
        if self.signal is not None:
            return self.signal.name
        if self.stop_file.exists():
            return str(self.stop_file)
        if self._launcher is not None and os.getppid() != self._launcher:
            return "its launcher is gone"  # and whoever starts a new one must not find us still at work
        if self.save_before_s and _seconds_since_start() + needs_s >= self.save_before_s:
            return f"--save_before_s {self.save_before_s:g}"
        return ""

    def exit_code(self) -> int:
        """128 + the signal's number; 0 after another reason, and behind a launcher, which would start it again."""
        return 0 if self.signal is None or is_launched() else 128 + self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what Python calls it with
        if self.signal is None:
            self.signal = signal.Signals(number)
            os.write(2, f"\n{self.signal.name}: saving and stopping after this update\n".encode())


def is_launched() -> bool:
    """Whether ``accelerate launch``, ``torchrun`` or their like started this process."""
    return any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "RANK"))


def launch_id() -> str:
    """The same for a process and for those that its launcher starts in its place when it has failed."""
    parent = psutil.Process().parent()
    started = "" if parent is None else f"{parent.pid}@{parent.create_time():.2f}"
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', 'none')} {started}"


def is_restarted() -> bool:
    """Whether the launcher has started this process in the place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _seconds_since_start() -> float:
    return time.time() - float(psutil.Process().create_time())
