"""``train_feedback`` as a process of its own: its progress, its end, and the verdict it leaves. No torch, no gradio."""

import contextlib
import json
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
from typing import Any

from vits_trainer.config.feedback import PASSWORD_VARIABLE, FeedbackAppConfig
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, discard

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
"""train_feedback's own folder, made anew each time."""
_UPDATE = re.compile(r"\bupdate (\d+)/(\d+)\b")
_LONGEST_LINE = 500
_MAX_VERDICT_BYTES = 2**20


class Stage(StrEnum):
    """Where learning stands."""

    IDLE = "idle"
    """Not started since the program was."""
    RUNNING = "running"
    STOPPING = "stopping"
    """It was asked to stop, and saves."""
    ACCEPTED = "accepted"
    """The new voice is served."""
    NOTHING_NEW = "nothing new"
    """The voice had learnt every correction before."""
    REFUSED = "refused"
    """The new voice was measured and not taken."""
    CANCELLED = "cancelled"
    MISTAKE = "mistake"
    """The command says what to mend."""
    FAILED = "failed"


AT_WORK = (Stage.RUNNING, Stage.STOPPING)


@dataclass(frozen=True)
class FigureChange:
    """A measure of the voice, less is better, before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class DecisionRecord:
    """What ``train_feedback`` found of the new voice."""

    accepted: bool
    words: str
    """One sentence with the figures."""
    corrections: FigureChange | None = None
    held_out: FigureChange | None = None
    """On clips that are in no correction; None where none were given."""
    learnt: tuple[str, ...] = ()
    """Names of the corrections."""
    version: int | None = None
    """Of the voice that is served now."""


@dataclass(frozen=True)
class Progress:
    """Learning as it stands at one moment."""

    stage: Stage = Stage.IDLE
    lines: tuple[str, ...] = ()
    """The last ones that it wrote."""
    update: int = 0
    total_updates: int = 0
    """0 while it is not known."""
    elapsed_s: float = 0.0
    words: str = ""
    """How it ended, in one sentence."""
    verdict: DecisionRecord | None = None


class TrainingProcess:
    """Runs one command at a time. Several threads may use it."""

    def __init__(self, command: Sequence[str], verdict_file: Path) -> None:
        """Args:
        command: what to run, as a list of words.
        verdict_file: where the command leaves its verdict.
        """
        self.command = list(command)
        self.verdict_file = verdict_file
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=SHOWN_LINES)
        self._ended = Progress()
        self._stopping = False
        self._update, self._total_updates = 0, 0
        self._started_s = 0.0

    def start(self) -> None:
        """Begins; an older verdict is removed first.

        Raises:
            DataError: it is at work already, or the command cannot be started.
        """
        with self._lock:
            if self._process is not None:
                raise DataError("Learning is under way already: wait for its verdict, or stop it.")
            self._lines.clear()
            self._stopping, self._update, self._total_updates = False, 0, 0
            self._started_s = time.monotonic()
            # The page's password is none of the child's business.
            environment = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
            try:
                if read_verdict(self.verdict_file) is not None:
                    discard(self.verdict_file)
                self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell  # nosec B603
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,  # also takes the \r of a progress bar for a line's end
                    encoding="utf-8",
                    errors="replace",
                    env=environment | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C ends the page, which then stops it once
                )
            except OSError as error:
                raise DataError(f"Learning could not be started: {error.strerror}.") from error
            logger.info("learning starts: %s", " ".join(self.command))
            self._reader = threading.Thread(target=self._follow, args=(self._process,), name="learning", daemon=True)
            self._reader.start()

    def cancel(self) -> None:
        """Asks it to save and stop (SIGTERM); does nothing where none is at work."""
        with self._lock:
            if self._process is not None:
                self._stopping = True
                self._process.send_signal(signal.SIGTERM)

    def close(self, patience_s: float = 60.0) -> None:
        """Stops what is at work, waits for its save, and kills it when that takes longer than ``patience_s``."""
        self.cancel()
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        reader.join(patience_s)
        if reader.is_alive():
            logger.warning("learning has not stopped within %.0f s: killed", patience_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too: they hold the pipe open
            reader.join(patience_s)

    def progress(self) -> Progress:
        """As it stands now."""
        with self._lock:
            if self._process is None:
                return self._ended
            stage = Stage.STOPPING if self._stopping else Stage.RUNNING
            elapsed_s = time.monotonic() - self._started_s
            return Progress(stage, tuple(self._lines), self._update, self._total_updates, elapsed_s)

    def _follow(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for  # nosec B101
        with process.stdout:
            for line in process.stdout:
                self._take(" ".join(line.split())[:_LONGEST_LINE])
        exit_code = process.wait()
        verdict = read_verdict(self.verdict_file)
        with self._lock:
            stage = outcome(exit_code, verdict, self._stopping)
            last = self._lines[-1] if self._lines else ""
            words = verdict.words if verdict and stage in (Stage.ACCEPTED, Stage.REFUSED) else _plain(last)
            words = words or f"It ended with exit code {exit_code} and without a word."
            elapsed_s = time.monotonic() - self._started_s
            self._ended = Progress(
                stage, tuple(self._lines), self._update, self._total_updates, elapsed_s, words, verdict
            )
            self._process = None
        logger.info("learning ended with exit code %d (%s): %s", exit_code, stage, words)

    def _take(self, line: str) -> None:
        if not line:
            return
        logger.info("learning: %s", line)
        found = _UPDATE.search(line)
        with self._lock:
            self._lines.append(line)
            if found and int(found[2]) > 0:
                self._update, self._total_updates = min(int(found[1]), int(found[2])), int(found[2])


def train_feedback_command(config: FeedbackAppConfig) -> list[str]:
    """The words to start ``train_feedback`` with; what ``config`` leaves open is not among them."""
    settings: dict[str, Any] = {
        "feedback_dir": config.feedback_dir,
        "model_dir": config.model_dir,
        "output_dir": config.output_dir,
        "data_dir": config.data_dir,
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
    }
    given = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    return [sys.executable, "-m", "vits_trainer", "train_feedback", *given]


def work_folder(output_dir: str) -> Path:
    """Where ``train_feedback`` leaves what is not the voice: beside its output folder."""
    output = Path(output_dir)
    output = output.resolve() if output.name in ("", "..") else output
    return output.parent / f"{output.name}_work"


def verdict_file(output_dir: str) -> Path:
    """Where ``train_feedback`` leaves its verdict."""
    return work_folder(output_dir) / "verdict.json"


def outcome(exit_code: int, verdict: DecisionRecord | None, stopping: bool) -> Stage:
    """What an exit code means: 0 without a verdict, that there was nothing to learn."""
    if exit_code in (-signal.SIGTERM, 128 + signal.SIGTERM) or (stopping and exit_code < 0):
        return Stage.CANCELLED
    if exit_code == 0:
        if verdict is None:
            return Stage.NOTHING_NEW
        return Stage.ACCEPTED if verdict.accepted else Stage.REFUSED
    if exit_code == 2:  # a user's mistake, in every command
        return Stage.MISTAKE
    return Stage.REFUSED if exit_code == 1 and verdict and not verdict.accepted else Stage.FAILED


def read_verdict(path: Path) -> DecisionRecord | None:
    """The verdict in ``path``; None where there is none, or one that cannot be read, which the log then says."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_VERDICT_BYTES))
        return DecisionRecord(
            accepted=content["accepted"] is True,
            words=" ".join(str(content["words"]).split()),
            corrections=_change(content.get("corrections")),
            held_out=_change(content.get("held_out")),
            learnt=tuple(map(str, content.get("learnt") or ())),
            version=None if content.get("version") is None else int(content["version"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s is no verdict (%s: %s)", path, type(error).__name__, error)
        return None


def _change(content: Any) -> FigureChange | None:
    return None if content is None else FigureChange(float(content["before"]), float(content["after"]))


def _plain(line: str) -> str:
    """A line of the command's output without the program's name or a time stamp before it."""
    return re.sub(r"^(vits-trainer: |\d{4}-\d\d-\d\d[T ][\d:,.]+ (\w+ )?)", "", line)
