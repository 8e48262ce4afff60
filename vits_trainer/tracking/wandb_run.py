"""Weights & Biases: tables, modes and folders."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import wandb

from vits_trainer.config.serialization import to_dict
from vits_trainer.config.voices import EvaluateConfig
from vits_trainer.evaluation.speech_metrics import ClipScore
from vits_trainer.utils.redaction import redacted

logger = logging.getLogger("vits_trainer")


def clips_table(update: int, clips: Sequence[ClipScore]) -> Any:
    """For W&B: a row a clip, as they come."""
    names = sorted({name for clip in clips for name in clip.figures})
    table = wandb.Table(columns=["update", "clip", "text", "heard", *names])
    for clip in clips:
        table.add_data(update, clip.clip, clip.text, clip.transcript or "", *(clip.figures.get(name) for name in names))
    return table


def report_evaluation(folder: Path, config: EvaluateConfig, record: Mapping[str, Any]) -> None:
    """What ``evaluate`` found, as a W&B run of its own in ``folder``: means in the summary, a table a voice."""
    with _staging_in(folder):
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            job_type="evaluate",
            config=redacted(to_dict(config)),
            dir=folder,
            mode=_wandb_mode(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for name, voice in record["voices"].items():
            clips = [ClipScore(**clip) for clip in voice["clips"]]
            run.log({f"worst clips/{name}": clips_table(0, clips)})
            run.summary.update({f"{name}/{figure}": values["mean"] for figure, values in voice["figures"].items()})
        run.finish()
    logger.info("The Weights & Biases run: %s", Path(run.dir).parent)


def _wandb_mode() -> Literal["online", "offline", "disabled"]:
    """As the environment says, else online where there is an API key."""
    # Without a prompt, which would wait for ever on a cluster, and without asking the network.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    return cast("Literal['online', 'offline', 'disabled']", mode)


def _staging_in(folder: Path) -> AbstractContextManager[None]:
    """Inside, W&B keeps tables and artifacts beside the run: by itself it puts what is to be synced into the home."""
    place = str((folder / "wandb").resolve())
    return _unless_set(WANDB_DATA_DIR=place, WANDB_CACHE_DIR=place, WANDB_ARTIFACT_DIR=place)


@contextmanager
def _unless_set(**variables: str) -> Iterator[None]:
    """Inside, these variables of the environment hold, but for those that somebody has set."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
