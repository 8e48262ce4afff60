"""``train_feedback`` as a separate process: start, progress, stop, and how it ended. Imports no torch and no gradio."""

import contextlib
import logging
import os
import re
import signal
import subprocess  # nosec B404
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict

from vits_trainer.config.feedback import PASSWORD_VARIABLE, FeedbackAppConfig
from vits_trainer.feedback.decision import Decision
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, discard
from vits_trainer.utils.records import Count, parse_json_line, read_json

logger = logging.getLogger(__name__)

SHOWN_LINES = 15
WORK = Kind(
    "work",
    re.compile(
        r"(corrections|learnt_before)(_source)?/.*|(mix|checkpoints|runs|refused)/.*|verdict\.json",
        re.DOTALL,
    ),
    lambda folder: {"corrections_source", "corrections"} <= {path.name for path in folder.iterdir()},
)
"""The work folder of train_feedback, new in each round."""
_MAX_LINE = 500
_TAIL_BYTES = 4096
"""Read from the end of metrics.jsonl: more than its last line takes."""


class _Plan(TypedDict):
    total_updates: Count


class _Facts(TypedDict):
    plan: _Plan


class _Update(TypedDict):
    update: Count


class Stage(StrEnum):
    """State of the training process."""

    IDLE = "idle"
    """Not started since the page was."""
    RUNNING = "running"
    STOPPING = "stopping"
    """It saves after a request to stop."""
    ACCEPTED = "accepted"
    """The new voice is served."""
    NOTHING_NEW = "nothing new"
    """The voice had learnt every correction before."""
    REFUSED = "refused"
    """The new voice was measured and rejected."""
    CANCELLED = "cancelled"
    MISTAKE = "mistake"
    """An error that the user can correct: the message says how."""
    FAILED = "failed"


AT_WORK = (Stage.RUNNING, Stage.STOPPING)


@dataclass(frozen=True)
class Progress:
    """Snapshot of the training process."""

    stage: Stage = Stage.IDLE
    lines: tuple[str, ...] = ()
    """Its last lines of output."""
    update: int = 0
    total_updates: int = 0
    """0 while it is unknown."""
    elapsed_s: float = 0.0
    message: str = ""
    """How it ended, in one sentence."""
    decision: Decision | None = None


class TrainingProcess:
    """Runs one command at a time. Thread-safe."""

    def __init__(self, command: Sequence[str], work_dir: Path) -> None:
        """Args:
        command: to run, with its arguments.
        work_dir: the command's work folder: its run, and verdict.json.
        """
        self.command = list(command)
        self.work_dir = work_dir
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=SHOWN_LINES)
        self._ended = Progress()
        self._stopping = False
        self._started_s = 0.0
        self._started_at = 0.0

    def start(self) -> None:
        """Starts the command, after removing an older decision.

        Raises:
            DataError: it is running, or cannot be started.
        """
        with self._lock:
            if self._process is not None:
                raise DataError("Training is running: wait until it ends, or stop it.")
            self._lines.clear()
            self._stopping = False
            self._started_s, self._started_at = time.monotonic(), time.time()
            # The child must not inherit the page's password.
            environment = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
            try:
                if Decision.read(self._verdict) is not None:
                    discard(self._verdict)
                self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell  # nosec B603
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,  # a progress bar's \r ends a line, too
                    encoding="utf-8",
                    errors="replace",
                    env=environment | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C ends the page, which then stops the process once
                )
            except OSError as error:
                raise DataError(f"Training could not be started: {error.strerror}.") from error
            logger.info("training starts: %s", " ".join(self.command))
            self._reader = threading.Thread(target=self._follow, args=(self._process,), name="training", daemon=True)
            self._reader.start()

    def cancel(self) -> None:
        """Sends SIGTERM, on which the command saves and stops; does nothing if it is not running."""
        with self._lock:
            if self._process is not None:
                self._stopping = True
                self._process.send_signal(signal.SIGTERM)

    def close(self, patience_s: float = 60.0) -> None:
        """Stops the command, waits until it has saved, and kills it after ``patience_s``."""
        self.cancel()
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        reader.join(patience_s)
        if reader.is_alive():
            logger.warning("training has not stopped within %.0f s: killed", patience_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too: they hold the pipe open
            reader.join(patience_s)

    def progress(self) -> Progress:
        """Returns the current state."""
        with self._lock:
            if self._process is None:
                return self._ended
            stage = Stage.STOPPING if self._stopping else Stage.RUNNING
            elapsed_s = time.monotonic() - self._started_s
            return Progress(stage, tuple(self._lines), *read_updates(self.work_dir, self._started_at), elapsed_s)

    @property
    def _verdict(self) -> Path:
        return self.work_dir / "verdict.json"

    def _follow(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for  # nosec B101
        with process.stdout:
            for output in process.stdout:
                line = " ".join(output.split())[:_MAX_LINE]
                if line:
                    logger.info("training: %s", line)
                    with self._lock:
                        self._lines.append(line)
        exit_code = process.wait()
        decision = Decision.read(self._verdict)
        with self._lock:
            stage = outcome(exit_code, decision, self._stopping)
            last = self._lines[-1] if self._lines else ""
            decided = decision is not None and stage in (Stage.ACCEPTED, Stage.REFUSED)
            message = decision.message if decision is not None and decided else _without_prefix(last)
            message = message or f"It ended with exit code {exit_code} and no message."
            elapsed_s = time.monotonic() - self._started_s
            updates = read_updates(self.work_dir, self._started_at)
            self._ended = Progress(stage, tuple(self._lines), *updates, elapsed_s, message, decision)
            self._process = None
        logger.info("training ended with exit code %d (%s): %s", exit_code, stage, message)


def read_updates(work_dir: Path, since: float) -> tuple[int, int]:
    """Reads from a run's files how far it is.

    Args:
        work_dir: of train_feedback.
        since: runs whose files are older (seconds since the epoch) are of an earlier round.

    Returns:
        Updates done and in total, as of the last logged update; zeros if there is no run yet.
    """
    for facts in (work_dir / "runs").glob("*/facts.json"):
        try:
            if facts.stat().st_mtime < since - 1:  # file systems round times
                continue
            total_updates = read_json(facts, _Facts, DataError, "")["plan"]["total_updates"]
            with facts.with_name("metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]  # the last one may be incomplete
            line = parse_json_line(lines[-1], _Update) if lines else None
        except (OSError, DataError):  # being written: next time
            continue
        update = line["update"] if line else 0
        return min(update, total_updates), total_updates
    return 0, 0


def train_feedback_command(config: FeedbackAppConfig) -> list[str]:
    """Returns the command line of ``train_feedback``, without settings that ``config`` leaves open."""
    settings: dict[str, Any] = {
        "feedback_dir": config.feedback_dir,
        "model_dir": config.model_dir,
        "output_dir": config.output_dir,
        "data_dir": config.data_dir,
        "speaker": config.speaker,
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
    }
    given = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    return [sys.executable, "-m", "vits_trainer", "train_feedback", *given]


def work_folder(output_dir: str) -> Path:
    """Returns the work folder of ``train_feedback``, next to its output folder."""
    output = Path(output_dir)
    output = output.resolve() if output.name in ("", "..") else output
    return output.parent / f"{output.name}_work"


def verdict_file(output_dir: str) -> Path:
    """Returns the file of the decision."""
    return work_folder(output_dir) / "verdict.json"


def outcome(exit_code: int, decision: Decision | None, stopping: bool) -> Stage:
    """What an exit code means: 0 without a verdict, that there was nothing to learn."""
    if exit_code in (-signal.SIGTERM, 128 + signal.SIGTERM) or (stopping and exit_code < 0):
        return Stage.CANCELLED
    if exit_code == 0:
        if decision is None:
            return Stage.NOTHING_NEW
        return Stage.ACCEPTED if decision.accepted else Stage.REFUSED
    if exit_code == 2:  # an error that the user can correct, in every command
        return Stage.MISTAKE
    return Stage.REFUSED if exit_code == 1 and decision and not decision.accepted else Stage.FAILED


def _without_prefix(line: str) -> str:
    """Returns a line of output without the program's name or a time stamp."""
    return re.sub(r"^(vits-trainer: |\d{4}-\d\d-\d\d[T ][\d:,.]+ (\w+ )?)", "", line)
