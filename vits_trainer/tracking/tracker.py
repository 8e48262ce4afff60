"""Records a run: metrics.jsonl, rejected.jsonl, train.log, samples, and Weights & Biases.

All metrics are written here. On ranks other than the main one the tracker does nothing.

    runs/<run_name>/
        .vits_trainer.json, .lock  marks the folder as a run's; held while the run is active
        config.yaml      configuration of the last start
        facts.json       versions, plan, machine, statistics of the data set
        outcome.json     running, done, stopped or failed, and the update
        metrics.jsonl    one line of scalars per logged update: update, epoch and the names of docs/metrics.md
        rejected.jsonl   one line per incident: a clip that cannot be used, or an update with NaN or Inf
        nonfinite/       inputs of such updates, for check --replay
        train.log        the log
        speakers.csv     update, speaker, clips, mel: one line per speaker and validation, for several speakers
        worst_clips.json the worst clips of the last validation with scores
        samples/         speech, mel spectrograms and alignments of the same sentences at each validation
        wandb/           the Weights & Biases run; also tensorboard/, trackio/, if enabled
        wandb.json       id of the W&B run, and the number of starts
"""

import csv
import json
import logging
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypedDict

import numpy as np
import wandb
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.serialization import flatten, save_config, to_dict
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.data.clip_accounting import Incident
from vits_trainer.evaluation.speakers import SpeakerMel
from vits_trainer.evaluation.speech_metrics import ClipScore
from vits_trainer.tracking.plots import Sample, alignment_picture, mel_picture
from vits_trainer.tracking.wandb_run import clips_table, environment_defaults, staging_in, start_run
from vits_trainer.utils.errors import AccountingError, ConfigError, VitsTrainerError, is_disk_full
from vits_trainer.utils.files import atomic_write, fsync_dir, move_aside
from vits_trainer.utils.records import Count, parse_json_line
from vits_trainer.utils.redaction import redacted

logger = logging.getLogger(__name__)

_MAX_LOGGED_INCIDENTS = 10
"""Number of incidents to log in full."""
_LOGS = ("metrics.jsonl", "rejected.jsonl", "speakers.csv")
"""Files to which lines are appended during a run."""
_SPEAKER_COLUMNS = ("update", "speaker", "clips", "mel")
_ERROR_COLUMNS = ("update", "epoch", "clip", "kind", "message", "stage", "traceback")


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    status: str
    """``done``, ``stopped ...`` or ``failed ...``."""
    update: int
    exit_code: int = 0


class _LogFile(logging.FileHandler):
    """A log file that a full disk only shortens: the metrics, which end the run then, are written to the same disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not is_disk_full(sys.exc_info()[1]):
            super().handleError(record)


class _RedactingFormatter(logging.Formatter):
    """Removes secrets, also from tracebacks: W&B gets the file."""

    def format(self, record: logging.LogRecord) -> str:
        return str(redacted(super().format(record)))


class Tracker:
    """Context manager that records one run; an exception marks the run as failed."""

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        facts: Mapping[str, Any],
        is_main: bool,
        resumed_at: int | None = None,
    ) -> None:
        """Args:
        run_dir: ``runs/<run_name>``, created if missing.
        config: configuration of the run.
        facts: added to the W&B config: versions, plan, statistics of the data set.
        is_main: whether this rank writes.
        resumed_at: update from which the run is resumed; None for a new run.
        """
        self.run_dir = run_dir
        self.config = config
        self.facts = facts
        self.is_main = is_main
        self.resumed_at = resumed_at
        self.outcome = RunOutcome("done", 0)
        """Outcome to record at exit, unless the run fails."""
        self._metrics: Any = None
        self._run: Any = None
        self._accelerate_trackers: list[Any] = []
        """Accelerate's trackers, other than W&B."""
        self._exit_stack = ExitStack()
        """Restores environment variables at exit."""
        self._sent_update = -1
        """Last update that a resumed online run already has: earlier ones are not sent again."""
        self._log_handler: Any = None
        self._update = resumed_at or 0
        """Last update recorded."""
        self._incidents_logged = 0
        self._pending_rows: list[tuple[Any, ...]] = []
        """Rows of incidents not yet added to the W&B table."""
        self._table: Any = None
        self._speaker_table: Any = None
        self._has_recordings = False
        """Whether the recordings of the samples, which never change, were logged."""

    def __enter__(self) -> "Tracker":
        if not self.is_main:
            return self
        self.run_dir.mkdir(parents=True, exist_ok=True)
        # First: if a package is missing, the files of an earlier run must be unchanged.
        self._accelerate_trackers = [self._accelerate_tracker(name) for name in self.config.trackers if name != "wandb"]
        self._log_handler = _LogFile(self.run_dir / "train.log", encoding="utf-8")
        self._log_handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("vits_trainer").addHandler(self._log_handler)
        save_config(self.config, self.run_dir / "config.yaml")
        for name in _LOGS:
            self._truncate_to_resume_point(self.run_dir / name)
        (self.run_dir / "rejected.jsonl").touch()
        self._metrics = (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        atomic_write(self.run_dir / "facts.json", json.dumps(redacted(dict(self.facts)), indent=1, default=str) + "\n")
        if "wandb" in self.config.trackers:
            self._exit_stack.enter_context(staging_in(self.run_dir))
            self._run = start_run(self.run_dir, self.config, self.facts, self.resumed_at)
            if self._run.resumed:
                self._sent_update = int(self._run.summary.get("update", -1))
        self._write_outcome(RunOutcome("running", 0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_main:
            return
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.outcome = RunOutcome(
                f"stopped without saving after update {self._update}", self._update, _exit_code(error)
            )
            logger.warning("%s", self.outcome.status)
        elif error is not None:
            is_bug = isinstance(error, AccountingError)
            is_expected = (isinstance(error, VitsTrainerError) and not is_bug) or is_disk_full(error)
            logger.error("The run failed: %s", redacted(str(error)), exc_info=None if is_expected else error)
            self.outcome = RunOutcome(f"failed: {type(error).__name__}: {error}", self._update, exit_code=1)
            self.alert("The run failed", self.outcome.status)
        self._write_outcome(self.outcome)
        self.update_summary({"outcome": redacted(self.outcome.status)})
        if self._run is not None:
            if self._pending_rows:
                self._run.log(self._errors_table())
            if self.outcome.status.startswith("stopped"):
                self._run.mark_preempting()
            self._run.finish(exit_code=self.outcome.exit_code)
        for tracker in self._accelerate_trackers:
            tracker.finish()
        self._exit_stack.close()
        logging.getLogger("vits_trainer").removeHandler(self._log_handler)
        with self._tolerating_full_disk("metrics.jsonl"):
            self._metrics.close()
        with self._tolerating_full_disk("train.log"):
            self._log_handler.close()

    def log(
        self,
        update: int,
        epoch: int,
        values: Mapping[str, float],
        samples: Sequence[Sample] = (),
        spec: AudioSpec | None = None,
        scores: Sequence[ClipScore] = (),
        speakers: Sequence[SpeakerMel] = (),
    ) -> None:
        """Records the values of one update.

        Args:
            update: number of updates done.
            epoch: epoch of its clips.
            values: scalars by name.
            samples: speech, mel spectrograms and alignments of the validation sentences.
            spec: audio parameters of the voice, if there are samples.
            scores: speech metrics of validation clips, the worst first.
            speakers: validation mel L1 by speaker, if there are several.
        """
        if self._metrics is None:
            return
        nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
        if nonfinite:
            message = ", ".join(f"{name} is {values[name]}" for name in nonfinite)
            self.incidents(update, epoch, [Incident("no clip", "metrics", "non-finite-metric", message)])
        self._update = update
        line = {"update": update, "epoch": epoch} | {n: value for n, value in values.items() if n not in nonfinite}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        media = self._media(update, samples, spec) if spec else {}
        if scores:
            atomic_write(
                self.run_dir / "worst_clips.json", json.dumps([clip.to_dict() for clip in scores], indent=1) + "\n"
            )
        rows = [(update, speaker.speaker, speaker.clips, speaker.mel) for speaker in speakers]
        if rows:
            self._write_speakers(rows)
        if self._run is not None and update > self._sent_update:
            errors = self._errors_table() if self._pending_rows else {}
            worst = {"worst clips": clips_table(update, scores)} if scores else {}
            self._run.log({**line, **media, **errors, **worst, **self._speakers_table(rows)})
        for tracker in self._accelerate_trackers:
            tracker.log({name: value for name, value in line.items() if name != "update"}, step=update)

    def _write_speakers(self, rows: Sequence[tuple[int, str, int, float]]) -> None:
        with (self.run_dir / "speakers.csv").open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(_SPEAKER_COLUMNS)
            writer.writerows(rows)

    def _speakers_table(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        if not rows:
            return {}
        if self._speaker_table is None:
            self._speaker_table = wandb.Table(columns=list(_SPEAKER_COLUMNS), log_mode="INCREMENTAL")
        for row in rows:
            self._speaker_table.add_data(*row)
        return {"speakers": self._speaker_table}

    def _errors_table(self) -> dict[str, Any]:
        if self._table is None:
            self._table = wandb.Table(columns=list(_ERROR_COLUMNS), log_mode="INCREMENTAL")
        for row in self._pending_rows:
            self._table.add_data(*row)
        self._pending_rows.clear()
        return {"errors": self._table}

    def _media(self, update: int, samples: Sequence[Sample], spec: AudioSpec) -> dict[str, Any]:
        folder = self.run_dir / "samples" / f"update-{update:06}"
        media: dict[str, Any] = {}
        for number, sample in enumerate(samples):
            kinds = ("speech.wav", "recorded.wav", "mel.png", "alignment.png")
            names = {kind: folder / f"{number}_{kind}" for kind in kinds}
            folder.mkdir(parents=True, exist_ok=True)
            write_pcm16_wav(names["recorded.wav"], to_pcm16(sample.recorded), spec.sampling_rate)
            write_pcm16_wav(names["speech.wav"], to_pcm16(sample.speech), spec.sampling_rate)
            mel_picture(sample.mels, spec.hop / spec.sampling_rate, names["mel.png"])
            alignment_picture(sample.token_of_frame, sample.tokens, names["alignment.png"])
            if self._run is None:
                continue
            if not self._has_recordings:
                media[f"samples/{number}/recorded"] = wandb.Audio(str(names["recorded.wav"]), caption=sample.text)
            media[f"samples/{number}/speech"] = wandb.Audio(str(names["speech.wav"]), caption=sample.text)
            media[f"samples/{number}/mel"] = wandb.Image(str(names["mel.png"]), caption=sample.text)
            media[f"samples/{number}/alignment"] = wandb.Image(str(names["alignment.png"]), caption=sample.text)
        if samples:
            self._has_recordings = True
            texts = [sample.text for sample in samples]
            (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
            durations = np.concatenate([np.bincount(s.token_of_frame, minlength=len(s.tokens)) for s in samples])
            media["samples/durations_frames"] = wandb.Histogram(durations.tolist())
        return media

    def incidents(self, update: int, epoch: int, incidents: Sequence[Incident]) -> None:
        """Records incidents: all in rejected.jsonl, the first ten also in the log, the first as a W&B alert."""
        if not self.is_main:
            return
        with (self.run_dir / "rejected.jsonl").open("a", encoding="utf-8") as file:
            for incident in incidents:
                record = {"update": update, "epoch": epoch, "clip": incident.clip, "kind": incident.kind}
                record |= {"message": incident.message, "stage": incident.stage, "traceback": incident.traceback}
                file.write(json.dumps(record) + "\n")
                if self._run is not None:
                    self._pending_rows.append(tuple(redacted(list(record.values()))))
                self._report_incident(update, incident)

    def _report_incident(self, update: int, incident: Incident) -> None:
        self._incidents_logged += 1
        if self._incidents_logged == 1:
            self.alert("The first incident", f"update {update}: {incident}")
        if self._incidents_logged <= _MAX_LOGGED_INCIDENTS:
            logger.warning(
                "update %d  %s  %s%s",
                update,
                incident.stage,
                incident,
                f"\n{incident.traceback}" if incident.traceback else "",
            )
        if self._incidents_logged == _MAX_LOGGED_INCIDENTS:
            logger.warning("Further incidents are not logged here: see %s", self.run_dir / "rejected.jsonl")

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN"] = "WARN") -> None:
        """Sends a Weights & Biases alert."""
        if self._run is not None:
            self._run.alert(title=title, text=redacted(text)[:2000], level=level)

    def log_checkpoint_artifact(self, path: Path, is_best: bool) -> None:
        """Logs a checkpoint as a Weights & Biases artifact, if --wandb_checkpoints is set."""
        if self._run is None or not self.config.wandb_checkpoints:
            return
        artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "checkpoint", metadata={"name": path.name})
        artifact.add_dir(str(path))  # copies it to the run's folder: the checkpoint may be pruned before the upload
        self._run.log_artifact(artifact, aliases=["latest", path.name, *(["best"] if is_best else [])])

    def flush(self) -> None:
        """Flushes the logs to disk (fsync). Called before a checkpoint is completed."""
        for path in map(self.run_dir.joinpath, _LOGS if self.is_main else ()):
            if path.exists():
                fsync_dir(path)

    def update_summary(self, values: Mapping[str, Any]) -> None:
        """Updates the summary of the W&B run."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def _write_outcome(self, outcome: RunOutcome) -> None:
        record = {"outcome": outcome.status, "update": outcome.update}
        with self._tolerating_full_disk("outcome.json"):
            atomic_write(self.run_dir / "outcome.json", json.dumps(record) + "\n")

    @contextmanager
    def _tolerating_full_disk(self, file: str) -> Iterator[None]:
        """Inside, a full disk is only logged while a run ends because of it."""
        try:
            yield
        except OSError as error:
            if not is_disk_full(error) or not self.outcome.status.startswith("failed"):
                raise
            logger.warning("%s could not be written: the disk is full", self.run_dir / file)

    def _truncate_to_resume_point(self, path: Path) -> None:
        """Drops lines after the resumed checkpoint; for a new run, moves the file of an earlier run aside."""
        if self.resumed_at is None:
            if path.is_file() and path.stat().st_size:
                move_aside(path, "earlier")
            return
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        # A line without a newline was being written when the run was killed.
        kept = [line for line in lines if line.endswith(b"\n") and _update_of(line) <= self.resumed_at]
        if lines:
            atomic_write(path, b"".join(kept))

    def _accelerate_tracker(self, name: str) -> Any:
        """Starts one of Accelerate's trackers, with its files in the run's folder.

        Raises:
            ConfigError: its package is not installed.
        """
        folder = self.run_dir / name
        if name == "trackio":
            self._exit_stack.enter_context(environment_defaults(TRACKIO_DIR=str(folder.resolve())))
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        # As Accelerator.init_trackers calls them; not by it, as trackers start only after the run's folder is claimed.
        places = [str(folder)] if tracker_class.requires_logging_directory else []
        project, settings = tracker_arguments(name, self.config.wandb_project, self.run_dir.name)
        try:
            tracker = tracker_class(project, *places, **settings)
            tracker.start()
        except ImportError as error:
            raise ConfigError(
                f"--report_to {name}: package not installed ({error}). Run: pip install {name}"
            ) from error
        values = {
            key: value if isinstance(value, (int, float)) else str(value)
            for key, value in flatten(to_dict(self.config)).items()
        }
        tracker.store_init_configuration(redacted(values))
        return tracker


def tracker_arguments(name: str, project: str, run_name: str) -> tuple[str, dict[str, Any]]:
    """Returns the project and the keyword arguments of one of Accelerate's trackers."""
    settings: dict[str, dict[str, Any]] = {
        "mlflow": {"run_name": run_name},
        "swanlab": {"experiment_name": run_name},
        "trackio": {"name": run_name, "resume": "allow"},
    }
    # TensorBoard would make a folder of the project's name inside the run's.
    return "" if name == "tensorboard" else project, settings.get(name, {})


def _exit_code(stop: KeyboardInterrupt | SystemExit) -> int:
    code = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
    return code if isinstance(code, int) else 1


class _Line(TypedDict):
    update: Count


def _update_of(line: bytes) -> int:
    """Returns the update of a line in one of the ``_LOGS``; 0 for a header, and for a damaged line, which is kept."""
    if line.startswith(b"{"):
        record = parse_json_line(line, _Line)
        return record["update"] if record else 0
    first = line.partition(b",")[0]
    return int(first) if first.isdigit() else 0
