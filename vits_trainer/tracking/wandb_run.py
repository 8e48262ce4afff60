"""Weights & Biases: tables, modes and directories."""

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
    """Returns a W&B table with one row per clip, in the given order."""
    names = sorted({name for clip in clips for name in clip.metrics})
    table = wandb.Table(columns=["update", "clip", "text", "heard", *names])
    for clip in clips:
        table.add_data(update, clip.clip, clip.text, clip.transcript or "", *(clip.metrics.get(name) for name in names))
    return table


def report_evaluation(folder: Path, config: EvaluateConfig, record: Mapping[str, Any]) -> None:
    """Logs the results of ``evaluate`` as a separate W&B run in ``folder``: means in the summary, a table per voice."""
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
            clips = [ClipScore(clip["clip"], clip["text"], clip["heard"], clip["figures"]) for clip in voice["clips"]]
            run.log({f"worst clips/{name}": clips_table(0, clips)})
            run.summary.update({f"{name}/{figure}": values["mean"] for figure, values in voice["figures"].items()})
        run.finish()
    logger.info("Weights & Biases run: %s", Path(run.dir).parent)


def _wandb_mode() -> Literal["online", "offline", "disabled"]:
    """Returns WANDB_MODE; if unset, online if there is an API key, else offline."""
    # No prompt, which would block on a cluster, and no network request.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    return cast("Literal['online', 'offline', 'disabled']", mode)


def _staging_in(folder: Path) -> AbstractContextManager[None]:
    """Makes W&B stage tables and artifacts in the run's folder, not in the home directory (its default)."""
    path = str((folder / "wandb").resolve())
    return _environment_defaults(WANDB_DATA_DIR=path, WANDB_CACHE_DIR=path, WANDB_ARTIFACT_DIR=path)


@contextmanager
def _environment_defaults(**variables: str) -> Iterator[None]:
    """Sets environment variables that are not set yet, and removes them at exit."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
