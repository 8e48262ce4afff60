"""Resuming from a checkpoint: which one, and which settings may have changed since it was written."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vits_trainer.config.serialization import flatten, to_dict
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.sampler import UpdateSampler
from vits_trainer.data.training_data import TrainingData
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.shutdown import is_restarted, launch_id
from vits_trainer.training.checkpoint_record import (
    CheckpointRecord,
    RunFingerprint,
    best_checkpoint,
    list_newest_first,
    read_record,
    update_of,
    verify_checkpoint,
)
from vits_trainer.utils.errors import CheckpointError
from vits_trainer.utils.files import move_aside
from vits_trainer.utils.versions import versions

logger = logging.getLogger(__name__)

_FIXED = (
    "seed", "objective", "model_name", "architecture", "discriminator", "layerdrop", "best_metric",
    "speaker_temperature", "freeze", "extend_speakers", "extend_vocabulary", "decoder", "language", "phonemes",
)  # fmt: skip
"""Settings that must not change when a run is resumed."""


def select_checkpoint(config: TrainConfig) -> Path | None:
    """Returns the checkpoint to start from; None for a new run.

    A process that its launcher restarted resumes automatically from what this launch has saved.
    """
    directory, requested = Path(config.checkpoint_dir), config.resume_from_checkpoint
    if requested is None and is_restarted():
        existing = list_newest_first(directory)
        if not existing or read_record(existing[0]).fingerprint.launch == launch_id():
            requested = "auto"
    return resolve_checkpoint(directory, requested)


def resolve_checkpoint(directory: Path, requested: str | None) -> Path | None:
    """Returns the checkpoint to start from, verified; None for a new run.

    With ``latest`` and ``auto``, damaged checkpoints are logged and skipped.

    Args:
        directory: of the run's checkpoints.
        requested: None for a new run; ``latest``; ``auto``: the latest if there is one; ``best``; or a path.

    Raises:
        CheckpointError: there is none, none is intact, the requested one is damaged, or a new run would overwrite
            existing checkpoints.
    """
    existing = list_newest_first(directory)
    if requested is None:
        if existing:
            raise CheckpointError(
                f"{directory} already contains {existing[0].name}. Resume from it with --resume_from_checkpoint "
                "latest, or start a new run with another --checkpoint_dir (or delete this one)."
            )
        return None
    if requested in ("latest", "auto"):
        if not existing and requested == "latest":
            raise CheckpointError(
                f"{directory} contains no checkpoint. Omit --resume_from_checkpoint to start a new run."
            )
        return _newest_intact(existing)
    path = best_checkpoint(directory) if requested == "best" else Path(requested)
    try:
        verify_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} --resume_from_checkpoint latest selects the newest intact one.") from error
    if existing and path.parent.resolve() != directory.resolve():
        raise CheckpointError(
            f"{path} is not in --checkpoint_dir {directory}, which contains other checkpoints. Give --checkpoint_dir "
            f"{path.parent}, or an empty directory."
        )
    return path


def run_fingerprint(
    name: str, config: TrainConfig, data: TrainingData, sampler: UpdateSampler, runtime: Runtime
) -> RunFingerprint:
    """Returns what a resume compares: clip order and networks must match, other changes are logged."""
    settings = _settings(config)
    must_match = {setting: settings.pop(setting) for setting in sorted(settings) if setting.split(".")[0] in _FIXED}
    must_match |= {
        "run_name": name,
        "freeze": ",".join(config.frozen_parts) or None,
        **data.fingerprint(),
        **sampler.fingerprint(),
        "seconds in an update": config.batch_seconds * sampler.world_size * sampler.accumulation or None,
    }
    may_change = {**settings, "processes": sampler.world_size, "machine": runtime.describe()}
    may_change |= {f"version of {name}": value for name, value in versions().items()}
    return RunFingerprint(must_match, may_change, launch_id())


def diff_fingerprint(checkpoint_dir: Path, now: RunFingerprint) -> list[str]:
    """Returns what has changed since ``checkpoint_dir`` was written, as ``name was -> now``.

    Raises:
        CheckpointError: a setting that must match has changed.
    """
    then = read_record(checkpoint_dir).fingerprint
    # A setting that the version of the checkpoint lacked had the effect of its default.
    defaults = {name: value for name, value in _settings(TrainConfig()).items() if name in now.must_match}
    illegal = _differences({**defaults, **then.must_match}, now.must_match)
    if illegal:
        raise CheckpointError(
            f"{checkpoint_dir} cannot be resumed, because it belongs to another run: {'; '.join(illegal)}. Resume with "
            f"the old settings; or start a new run from its voice (vits-trainer export {checkpoint_dir}) with another "
            "--checkpoint_dir."
        )
    return _differences(then.may_change, {**now.may_change, "cpu_threads": torch.get_num_threads()})


def keep_threads(record: CheckpointRecord, runtime: Runtime) -> None:
    """Sets the number of CPU threads to that of the previous run, unless something else sets it.

    Floating-point sums depend on the number: with another one, a resume is not bit-exact.
    """
    threads = record.fingerprint.may_change.get("cpu_threads")
    if isinstance(threads, int) and runtime.chooses_threads and 1 <= threads <= torch.get_num_threads():
        runtime.use_threads(threads)


def restored_plan(record: CheckpointRecord, config: TrainConfig) -> dict[str, int]:
    """Returns the values of the plan that a resumed run keeps: those whose settings are unchanged.

    They are not recomputed from the speed, which is measured again.
    """
    then, now = record.fingerprint.may_change, _settings(config)
    unchanged = {name for name, value in now.items() if then.get(name) == value}
    restored = {"total_updates"} if unchanged >= {"epochs", "max_updates", "target_hours"} else set()
    restored |= {"discriminator_warmup_updates"} if "discriminator_warmup_updates" in unchanged else set()
    return {name: int(record.plan[name]) for name in restored if name in record.plan}


def set_aside_newer(directory: Path, resume_from: Path | None) -> None:
    """Moves away checkpoints newer than the one to resume from: damaged ones, or those of an abandoned branch."""
    update = -1 if resume_from is None else read_record(resume_from).state.update
    for path in list_newest_first(directory):
        if update_of(path) > update:
            moved = move_aside(path, "set-aside")
            logger.warning("%s is newer than the checkpoint to resume from: moved to %s.", path, moved.name)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration as flat names and plain values, without what differs between launches of a run."""
    flat = flatten(to_dict(config))
    return {name: value for name, value in flat.items() if name not in ("run_name", "resume_from_checkpoint")}


def _newest_intact(existing: list[Path]) -> Path | None:
    """Returns the first intact checkpoint of ``existing``; None if ``existing`` is empty."""
    damage = []
    for path in existing:
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            damage.append(str(error))
        else:
            for message in damage:
                logger.warning("%s RESUMING FROM THE PREVIOUS ONE: %s", message, path)
            return path
    if damage:
        raise CheckpointError(f"No checkpoint is intact. {' '.join(damage)}")
    return None


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(then.keys() | now.keys())
    return [f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name)]
