"""What a run leaves behind for people: metrics.jsonl, rejected.jsonl, train.log and Weights & Biases.

The only writer of metrics. Ranks other than the main one hold a tracker that does nothing.

    runs/<run_name>/
        config.yaml      the configuration of the last start
        metrics.jsonl    one line of scalars a logging point: update, epoch and the names of docs/metrics.md
        rejected.jsonl   one line a clip that training could not use
        train.log        what was said
        samples/         speech, mel spectrograms and alignments of the same sentences at each validation
        wandb/           the Weights & Biases run
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import transformers
import wandb

from vits_trainer.audio import AudioSpec
from vits_trainer.config import TrainConfig, save_config, to_dict
from vits_trainer.data import Rejection
from vits_trainer.pictures import Sample, alignment_picture, mel_picture
from vits_trainer.recordings import to_pcm16, write_pcm16_wav

logger = logging.getLogger("vits_trainer")


class Tracker:
    """Writes one run's record while it is entered; leaving by an exception marks the run as failed."""

    def __init__(self, run_dir: Path, config: TrainConfig, facts: Mapping[str, Any], is_main: bool) -> None:
        """Args:
        run_dir: ``runs/<run_name>``, made if need be.
        config: of the run.
        facts: what goes to the W&B config beside it: versions, plan, the data set's figures.
        is_main: whether this rank writes.
        """
        self.run_dir = run_dir
        self.config = config
        self.facts = facts
        self.is_main = is_main
        self._metrics: TextIO | None = None
        self._run: Any = None
        self._log_handler: logging.Handler | None = None

    def __enter__(self) -> "Tracker":
        if not self.is_main:
            return self
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._log_handler = logging.FileHandler(self.run_dir / "train.log", encoding="utf-8")
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("vits_trainer").addHandler(self._log_handler)
        save_config(self.config, self.run_dir / "config.yaml")
        (self.run_dir / "rejected.jsonl").touch()
        self._metrics = (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._run = self._start_wandb()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_main:
            return
        if error is not None:
            logger.error("The run failed.", exc_info=error if not isinstance(error, SystemExit) else None)
        outcome = "done" if error is None else f"failed: {type(error).__name__}: {error}"
        self.summarise({"outcome": outcome})
        self._run.finish(exit_code=0 if error is None else 1)
        assert self._metrics is not None  # noqa: S101 - set on entry
        self._metrics.close()
        assert self._log_handler is not None  # noqa: S101
        logging.getLogger("vits_trainer").removeHandler(self._log_handler)
        self._log_handler.close()

    def forget_after(self, update: int) -> None:
        """Drops the lines of metrics.jsonl behind ``update``, which a resumed run writes anew."""
        path = self.run_dir / "metrics.jsonl"
        if self.is_main and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] <= update]
            path.write_text("".join(kept), encoding="utf-8")

    def scalars(self, update: int, epoch: int, values: Mapping[str, float]) -> None:
        """Records named scalars at ``update``."""
        if self._metrics is None:
            return
        line = {"update": update, "epoch": epoch, **values}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._run.log(line)

    def samples(self, update: int, epoch: int, samples: Sequence[Sample], spec: AudioSpec) -> None:
        """Records what the voice makes of the validation sentences: speech, mel spectrograms, alignments."""
        if not self.is_main:
            return
        folder = self.run_dir / "samples" / f"update-{update:06}"
        media: dict[str, Any] = {"update": update, "epoch": epoch}
        for number, sample in enumerate(samples):
            names = {kind: folder / f"{number}_{kind}" for kind in ("speech.wav", "mel.png", "alignment.png")}
            folder.mkdir(parents=True, exist_ok=True)
            write_pcm16_wav(names["speech.wav"], to_pcm16(sample.speech), spec.sampling_rate)
            mel_picture(sample.mels, spec.hop / spec.sampling_rate, names["mel.png"])
            alignment_picture(sample.token_of_frame, sample.tokens, names["alignment.png"])
            media[f"samples/{number}/speech"] = wandb.Audio(str(names["speech.wav"]), caption=sample.text)
            media[f"samples/{number}/mel"] = wandb.Image(str(names["mel.png"]), caption=sample.text)
            media[f"samples/{number}/alignment"] = wandb.Image(str(names["alignment.png"]), caption=sample.text)
        if samples:
            self._run.log(media)

    def rejected(self, update: int, epoch: int, rejections: list[Rejection]) -> None:
        """Records clips that training could not use."""
        if not self.is_main:
            return
        with (self.run_dir / "rejected.jsonl").open("a", encoding="utf-8") as file:
            for clip in rejections:
                record = {"update": update, "epoch": epoch, "clip": clip.clip_id}
                file.write(json.dumps(record | {"kind": clip.reason, "message": clip.detail}) + "\n")
                logger.warning("clip %s rejected: %s (%s)", clip.clip_id, clip.reason, clip.detail)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Sets values of the W&B run's summary."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def _start_wandb(self) -> Any:
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
        run = wandb.init(
            project=self.config.wandb_project,
            entity=self.config.wandb_entity,
            name=self.run_dir.name,
            group=self.run_dir.name,
            tags=list(self.config.wandb_tags) or None,
            config={**to_dict(self.config), **self.facts},
            dir=self.run_dir,
            mode=cast("Literal['online', 'offline', 'disabled']", mode),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # The update is the axis, not W&B's own step: that one drops what a resumed run logs again.
        run.define_metric("update")
        run.define_metric("*", step_metric="update")
        if mode == "offline":
            reason = "WANDB_MODE says so" if "WANDB_MODE" in os.environ else "there is no API key"
            logger.info("Weights & Biases: offline, as %s. Sync with: wandb sync %s", reason, Path(run.dir).parent)
        return run


def log_to_console(is_main: bool) -> None:
    """What the package says goes to stderr: everything on the main rank, warnings elsewhere."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    transformers.utils.logging.disable_progress_bar()


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
    names = ("vits-trainer", "torch", "torchaudio", "accelerate", "transformers", "datasets", "wandb")
    return {name: version(name) for name in names}


def _has_api_key() -> bool:
    # Without a prompt, which would wait for ever on a cluster, and without asking the network.
    return bool(wandb.login(prompt=False, verify=False))
