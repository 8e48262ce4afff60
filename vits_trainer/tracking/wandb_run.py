"""Weights & Biases: runs, tables, modes and directories."""

import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import wandb
from msgspec import Meta

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.options import HIGHER_IS_BETTER, SCORES
from vits_trainer.config.serialization import to_dict
from vits_trainer.config.train import VALIDATION_LOSSES, TrainConfig
from vits_trainer.config.voices import EvaluateConfig
from vits_trainer.evaluation.speech_metrics import ClipScore
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.records import Count, read_json
from vits_trainer.utils.redaction import redacted

logger = logging.getLogger(__name__)


_NOT_LOGGED = frozenset((
    "data_dir", "dataset", "checkpoint_dir", "output_dir", "keep_versions", "runs_dir", "run_name", "data_workers",
    "max_rejected_fraction", "max_nonfinite_updates", "rank_timeout_s", "validation_samples", "log_every_updates",
    "save_every_updates", "save_before_s", "keep_checkpoints", "resume_from_checkpoint", "report_to",
    "wandb_checkpoints", "wandb_project", "wandb_entity", "wandb_tags", "push_to_hub", "hub_private",
))  # fmt: skip
"""Settings of places, accounts and logging."""
_LOGGED_FACTS = {
    "plan": ("training_clips", "validation_clips", "world_size", "clips_per_update", "total_updates"),
    "data": ("hours", "mean_seconds", "speakers", "sampling_rate"),
    "versions": ("vits-trainer", "torch", "transformers", "accelerate", "code"),
}


class _Saved(TypedDict, total=False):
    id: Annotated[str, Meta(pattern=r"^\w{1,64}$")]
    attempts: Count
    url: str


def start_run(run_dir: Path, config: TrainConfig, facts: Mapping[str, Any], resumed_at: int | None) -> Any:
    """Starts the W&B run of a training run.

    Online, a resumed run continues the same W&B run. Offline, each start is a separate W&B run in one group: with the
    same id, the second would overwrite the first when synced.
    """
    mode = _wandb_mode()
    path = run_dir / "wandb.json"
    saved = read_json(path, _Saved, DataError, "Delete it.") if path.is_file() and resumed_at is not None else _Saved()
    first_id, attempt = saved.get("id") or secrets.token_hex(4), saved.get("attempts", 0) + 1
    atomic_write(path, json.dumps({"id": first_id, "attempts": attempt}) + "\n")
    run = wandb.init(
        project=config.wandb_project,
        entity=config.wandb_entity,
        id=first_id if mode == "online" or attempt == 1 else f"{first_id}-{attempt}",
        resume="allow" if mode == "online" else None,
        name=run_dir.name,
        group=run_dir.name,
        job_type="train",
        tags=redacted(list(config.wandb_tags)) or None,
        config=redacted({**run_settings(config, facts), "attempt": attempt, "resumed_at": resumed_at}),
        allow_val_change=True,
        dir=run_dir,
        mode=mode,
        settings=_quiet(),
    )
    # The x-axis is the update, not W&B's step, which drops values that a resumed run logs again.
    run.define_metric("update")
    run.define_metric("*", step_metric="update")
    for loss in VALIDATION_LOSSES:
        run.define_metric(f"validation/{loss}", step_metric="update", summary="min,last")
    for metric in (name for metrics in SCORES.values() for name in metrics):
        best = "max" if metric in HIGHER_IS_BETTER else "min"
        run.define_metric(f"validation/{metric}", step_metric="update", summary=f"{best},last")
    for name in ("epoch", "validation/constant_frame_mel"):  # a line without information
        run.define_metric(name, step_metric="update", hidden=True)
    run.save(str(run_dir / "train.log"), base_path=str(run_dir), policy="end", glob=False)
    if mode == "online":
        atomic_write(path, json.dumps({"id": first_id, "attempts": attempt, "url": run.url or ""}) + "\n")
    if mode == "offline":
        reason = "WANDB_MODE is set" if "WANDB_MODE" in os.environ else "no API key is set"
        logger.info("Weights & Biases: offline (%s). Sync with: wandb sync %s", reason, Path(run.dir).parent)
    return run


def _quiet() -> wandb.Settings:
    """Settings without output of wandb's own, such as a warning for each linked file."""
    quiet = wandb.Settings(silent=True, console="off", show_warnings=False)
    wandb.setup(quiet)
    wandb.termsetup(quiet, None)  # setup omits it if something else, such as login, has set up wandb before
    return quiet


def run_settings(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what distinguishes runs: settings of the voice and of the training, plan, data and versions.

    Not paths, accounts, logging, and what is off; of an architecture only what differs from the default. The run's
    folder has all of it.
    """
    off = {name for name, value in to_dict(TrainConfig()).items() if not value}
    settings = {
        name: value for name, value in to_dict(config).items() if name not in _NOT_LOGGED and (value or name not in off)
    }
    if config.architecture is not None:
        default = to_dict(Architecture())
        own = settings["architecture"].items()
        settings["architecture"] = {name: value for name, value in own if value != default[name]}
    for part, names in _LOGGED_FACTS.items():
        known = facts.get(part) or {}
        settings[part] = {name: known[name] for name in names if name in known}
    source = (facts.get("data") or {}).get("source") or {}
    name = str(source.get("dataset", ""))
    settings["data"]["dataset"] = name if source.get("kind") == "hub" else Path(name).name
    return settings | {name: facts[name] for name in ("machine",) if name in facts}


def clips_table(update: int, clips: Sequence[ClipScore]) -> Any:
    """Returns a W&B table with one row per clip, in the given order."""
    names = sorted({name for clip in clips for name in clip.metrics})
    table = wandb.Table(columns=["update", "clip", "text", "heard", *names])
    for clip in clips:
        table.add_data(update, clip.clip, clip.text, clip.transcript or "", *(clip.metrics.get(name) for name in names))
    return table


def report_evaluation(folder: Path, config: EvaluateConfig, record: Mapping[str, Any]) -> None:
    """Logs the results of ``evaluate`` as a separate W&B run in ``folder``: means in the summary, a table per voice."""
    with staging_in(folder):
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            job_type="evaluate",
            config=redacted(to_dict(config)),
            dir=folder,
            mode=_wandb_mode(),
            settings=_quiet(),
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


def staging_in(folder: Path) -> AbstractContextManager[None]:
    """Makes W&B stage tables and artifacts in the run's folder, not in the home directory (its default)."""
    path = str((folder / "wandb").resolve())
    return environment_defaults(WANDB_DATA_DIR=path, WANDB_CACHE_DIR=path, WANDB_ARTIFACT_DIR=path)


@contextmanager
def environment_defaults(**variables: str) -> Iterator[None]:
    """Sets environment variables that are not set yet, and removes them at exit."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
