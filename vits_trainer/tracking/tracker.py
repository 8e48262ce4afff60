"""What a run leaves behind for people: metrics.jsonl, rejected.jsonl, train.log and Weights & Biases.

The only writer of metrics. Ranks other than the main one hold a tracker that does nothing.

    runs/<run_name>/
        .vits_trainer.json, .lock  that it is a run's folder; and while the run is at work
        config.yaml      the configuration of the last start
        facts.json       versions, plan, machine, the data set's figures
        outcome.json     running, done, stopped or failed, and at which update
        metrics.jsonl    one line of scalars an update that has some: update, epoch and the names of docs/metrics.md
        rejected.jsonl   one line an incident: a clip that could not be used, an update that came to no finite number
        nonfinite/       such updates, to be run again by check --replay
        train.log        what was said
        speakers.csv     update, speaker, clips, mel: of each validation, where there are several speakers
        worst_clips.json what was said worst at the last validation with scores
        samples/         speech, mel spectrograms and alignments of the same sentences at each validation
        wandb/           the Weights & Biases run; tensorboard/, trackio/: where these are asked for
        wandb.json       its id, and how often the run was started
"""

import csv
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

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
from vits_trainer.tracking.wandb_run import _staging_in, _unless_set, _wandb_mode, clips_table
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import atomic_write, fsync_dir, move_aside
from vits_trainer.utils.redaction import redacted

logger = logging.getLogger("vits_trainer")

_TOLD = 10
"""Incidents that are printed whole."""
_LOGS = ("metrics.jsonl", "rejected.jsonl", "speakers.csv")
"""What grows in a run's folder, a line at a time."""
_SPEAKER_COLUMNS = ("update", "speaker", "clips", "mel")
_ERROR_COLUMNS = ("update", "epoch", "clip", "kind", "message", "stage", "traceback")


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    status: str
    """``done``, ``stopped ...`` or ``failed ...``."""
    update: int
    exit_code: int = 0


class Tracker:
    """Writes one run's record while it is entered; leaving by an exception marks the run as failed."""

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        facts: Mapping[str, Any],
        is_main: bool,
        resumed_at: int | None = None,
    ) -> None:
        """Args:
        run_dir: ``runs/<run_name>``, made if need be.
        config: of the run.
        facts: what goes to the W&B config beside it: versions, plan, the data set's figures.
        is_main: whether this rank writes.
        resumed_at: the update from which a resumed run goes on; None for a new run.
        """
        self.run_dir = run_dir
        self.config = config
        self.facts = facts
        self.is_main = is_main
        self.resumed_at = resumed_at
        self.outcome = RunOutcome("done", 0)
        """What is said of the run in the end, unless it fails."""
        self._metrics: Any = None
        self._run: Any = None
        self._others: list[Any] = []
        """Accelerate's trackers."""
        self._until_the_end = ExitStack()
        """Variables of the environment that hold for this run."""
        self._sent_update = -1
        """What an online run holds already: the same values would come again."""
        self._log_handler: Any = None
        self._update = resumed_at or 0
        """The last one that is on record."""
        self._told = 0
        self._untold: list[tuple[Any, ...]] = []
        """Incidents that W&B's table does not have yet."""
        self._table: Any = None

    def __enter__(self) -> "Tracker":
        if not self.is_main:
            return self
        self.run_dir.mkdir(parents=True, exist_ok=True)
        # First, as their packages may be missing: then nothing of an earlier run has been touched.
        self._others = [self._accelerate_tracker(name) for name in self.config.trackers if name != "wandb"]
        self._log_handler = logging.FileHandler(self.run_dir / "train.log", encoding="utf-8")
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("vits_trainer").addHandler(self._log_handler)
        save_config(self.config, self.run_dir / "config.yaml")
        for name in _LOGS:
            self._truncate_to_resume_point(self.run_dir / name)
        (self.run_dir / "rejected.jsonl").touch()
        self._metrics = (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        atomic_write(self.run_dir / "facts.json", json.dumps(redacted(dict(self.facts)), indent=1, default=str) + "\n")
        if "wandb" in self.config.trackers:
            self._start_wandb()
        self._write_outcome(RunOutcome("running", 0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_main:
            return
        if error is not None:
            logger.error("The run failed.", exc_info=error if not isinstance(error, SystemExit) else None)
            self.outcome = RunOutcome(f"failed: {type(error).__name__}: {error}", self._update, exit_code=1)
            self.alert("The run failed", self.outcome.status)
        self._write_outcome(self.outcome)
        self.update_summary({"outcome": redacted(self.outcome.status)})
        if self._run is not None:
            if self._untold:
                self._run.log(self._errors_table())
            if self.outcome.status.startswith("stopped"):
                self._run.mark_preempting()
            self._run.finish(exit_code=self.outcome.exit_code)
        for other in self._others:
            other.finish()
        self._until_the_end.close()
        self._metrics.close()
        logging.getLogger("vits_trainer").removeHandler(self._log_handler)
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
        """Records all there is to say of one update.

        Args:
            update: just done.
            epoch: of its clips.
            values: named scalars.
            samples: what the voice makes of the validation sentences: speech, mel spectrograms, alignments.
            spec: of the voice, where there are samples.
            scores: of held-out sentences that were spoken, the worst first.
            speakers: how well each is met, where the held-out clips are of several.
        """
        if self._metrics is None:
            return
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            words = ", ".join(f"{name} is {values[name]}" for name in broken)
            self.incidents(update, epoch, [Incident("no clip", "metrics", "non-finite-metric", words)])
        self._update = update
        line = {"update": update, "epoch": epoch} | {n: value for n, value in values.items() if n not in broken}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        media = self._media(update, samples, spec) if spec else {}
        if scores:
            atomic_write(
                self.run_dir / "worst_clips.json", json.dumps([clip.to_dict() for clip in scores], indent=1) + "\n"
            )
        rows = [(update, found.speaker, found.clips, found.mel) for found in speakers]
        if rows:
            self._write_speakers(rows)
        if self._run is not None and update > self._sent_update:
            errors = self._errors_table() if self._untold else {}
            worst = {"worst clips": clips_table(update, scores)} if scores else {}
            table = {"speakers": wandb.Table(columns=list(_SPEAKER_COLUMNS), data=rows)} if rows else {}
            self._run.log({**line, **media, **errors, **worst, **table})
        for other in self._others:
            other.log({name: value for name, value in line.items() if name != "update"}, step=update)

    def _write_speakers(self, rows: Sequence[tuple[int, str, int, float]]) -> None:
        with (self.run_dir / "speakers.csv").open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(_SPEAKER_COLUMNS)
            writer.writerows(rows)

    def _errors_table(self) -> dict[str, Any]:
        if self._table is None:
            self._table = wandb.Table(columns=list(_ERROR_COLUMNS), log_mode="INCREMENTAL")
        for row in self._untold:
            self._table.add_data(*row)
        self._untold.clear()
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
            media[f"samples/{number}/speech"] = wandb.Audio(str(names["speech.wav"]), caption=sample.text)
            media[f"samples/{number}/mel"] = wandb.Image(str(names["mel.png"]), caption=sample.text)
            media[f"samples/{number}/alignment"] = wandb.Image(str(names["alignment.png"]), caption=sample.text)
        if samples:
            texts = [sample.text for sample in samples]
            (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
            durations = np.concatenate([np.bincount(s.token_of_frame, minlength=len(s.tokens)) for s in samples])
            media["samples/durations_frames"] = wandb.Histogram(durations.tolist())
        return media

    def incidents(self, update: int, epoch: int, incidents: Sequence[Incident]) -> None:
        """Records what went wrong: the first ten are printed whole, the first is a W&B alert, all are kept."""
        if not self.is_main:
            return
        with (self.run_dir / "rejected.jsonl").open("a", encoding="utf-8") as file:
            for found in incidents:
                record = {"update": update, "epoch": epoch, "clip": found.clip, "kind": found.kind}
                record |= {"message": found.message, "stage": found.stage, "traceback": found.traceback}
                file.write(json.dumps(record) + "\n")
                if self._run is not None:
                    self._untold.append(tuple(redacted(list(record.values()))))
                self._tell(update, found)

    def _tell(self, update: int, found: Incident) -> None:
        self._told += 1
        if self._told == 1:
            self.alert("The first incident", f"update {update}: {found}")
        if self._told <= _TOLD:
            logger.warning(
                "update %d  %s  %s%s", update, found.stage, found, f"\n{found.traceback}" if found.traceback else ""
            )
        if self._told == _TOLD:
            logger.warning("More of them are not shown: see %s", self.run_dir / "rejected.jsonl")

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN"] = "WARN") -> None:
        """Tells people by Weights & Biases' alerts."""
        if self._run is not None:
            self._run.alert(title=title, text=redacted(text)[:2000], level=level)

    def log_checkpoint_artifact(self, place: Path, is_best: bool) -> None:
        """Sends a checkpoint to Weights & Biases as an artifact, where that is asked for."""
        if self._run is None or not self.config.wandb_checkpoints:
            return
        artifact = wandb.Artifact(f"checkpoint-{self._run.id}", "checkpoint", metadata={"name": place.name})
        artifact.add_dir(str(place))  # a copy, in the run's folder: the checkpoint may be pruned before it is sent
        self._run.log_artifact(artifact, aliases=["latest", place.name, *(["best"] if is_best else [])])

    def flush(self) -> None:
        """Returns once what was recorded would survive a loss of power: before a checkpoint says that it is there."""
        for path in map(self.run_dir.joinpath, _LOGS if self.is_main else ()):
            if path.exists():
                fsync_dir(path)

    def update_summary(self, values: Mapping[str, Any]) -> None:
        """Sets values of the W&B run's summary."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def _write_outcome(self, outcome: RunOutcome) -> None:
        record = {"outcome": outcome.status, "update": outcome.update}
        atomic_write(self.run_dir / "outcome.json", json.dumps(record) + "\n")

    def _truncate_to_resume_point(self, path: Path) -> None:
        """Drops the lines behind the checkpoint that a run is resumed from; puts those of an older run aside."""
        if self.resumed_at is None:
            if path.is_file() and path.stat().st_size:
                move_aside(path, "earlier")
            return
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        # A line that has no end was being written when the run was killed.
        kept = [line for line in lines if line.endswith(b"\n") and _update_of(line) <= self.resumed_at]
        if lines:
            atomic_write(path, b"".join(kept))

    def _start_wandb(self) -> None:
        """Online, a resumed run goes on as the same run. Offline that cannot be: each start is a run of its own, in
        one group, or the second would overwrite the first when they are synced."""
        mode = _wandb_mode()
        path = self.run_dir / "wandb.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and self.resumed_at is not None else {}
        first_id, attempt = known.get("id") or secrets.token_hex(4), known.get("attempts", 0) + 1
        atomic_write(path, json.dumps({"id": first_id, "attempts": attempt}) + "\n")
        self._until_the_end.enter_context(_staging_in(self.run_dir))
        self._run = wandb.init(
            project=self.config.wandb_project,
            entity=self.config.wandb_entity,
            id=first_id if mode == "online" or attempt == 1 else f"{first_id}-{attempt}",
            resume="allow" if mode == "online" else None,
            name=self.run_dir.name,
            group=self.run_dir.name,
            tags=redacted(list(self.config.wandb_tags)) or None,
            config=redacted({**to_dict(self.config), **self.facts, "attempt": attempt, "resumed_at": self.resumed_at}),
            allow_val_change=True,
            dir=self.run_dir,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # The update is the axis, not W&B's own step: that one drops what a resumed run logs again.
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")
        if mode == "online" and self._run.resumed:
            self._sent_update = int(self._run.summary.get("update", -1))
        if mode == "offline":
            reason = "WANDB_MODE says so" if "WANDB_MODE" in os.environ else "there is no API key"
            folder = Path(self._run.dir).parent
            logger.info("Weights & Biases: offline, as %s. Sync with: wandb sync %s", reason, folder)

    def _accelerate_tracker(self, name: str) -> Any:
        """One of Accelerate's trackers, started, with its files in the run's folder.

        Raises:
            ConfigError: its package is not there.
        """
        project, folder = self.config.wandb_project, self.run_dir / name
        if name == "trackio":
            self._until_the_end.enter_context(_unless_set(TRACKIO_DIR=str(folder.resolve())))
        try:
            if name == "trackio":
                tracker = LOGGER_TYPE_TO_CLASS[name](project, name=self.run_dir.name, resume="allow")
            else:
                tracker = LOGGER_TYPE_TO_CLASS[name]("", str(folder))
            tracker.start()
        except ImportError as error:
            raise ConfigError(f"--report_to {name}: its package is not there ({error}): pip install {name}.") from error
        settings = {
            key: value if isinstance(value, (int, float)) else str(value)
            for key, value in flatten(to_dict(self.config)).items()
        }
        tracker.store_init_configuration(redacted(settings))
        return tracker


def _update_of(line: bytes) -> int:
    """Of a line of one of the logs; 0 for a header."""
    if line.startswith(b"{"):
        return int(json.loads(line)["update"])
    first = line.partition(b",")[0]
    return int(first) if first.isdigit() else 0
