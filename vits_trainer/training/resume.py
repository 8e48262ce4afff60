"""Going on from a checkpoint: which one, and what may have changed since it was written."""

import json
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
from vits_trainer.training.checkpoint import BEST, RunFingerprint, list_newest_first, read_record, update_of, verify
from vits_trainer.utils.errors import CheckpointError
from vits_trainer.utils.files import move_aside
from vits_trainer.utils.versions import versions

logger = logging.getLogger("vits_trainer")

_FIXED = (
    "seed", "objective", "model_name", "architecture", "discriminator", "layerdrop", "best_metric",
    "speaker_temperature", "freeze", "extend_speakers", "extend_vocabulary", "language", "phonemes",
)  # fmt: skip
"""Settings that a resumed run must share with the one before."""


def select_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint to start from. A launcher's restart goes on by itself, with what this very launch has saved."""
    directory, asked = Path(config.checkpoint_dir), config.resume_from_checkpoint
    if asked is None and is_restarted():
        existing = list_newest_first(directory)
        if not existing or read_record(existing[0])["fingerprint"]["launch"] == launch_id():
            asked = "auto"
    return resolve_checkpoint(directory, asked)


def resolve_checkpoint(directory: Path, asked: str | None) -> Path | None:
    """The checkpoint to start from, verified; None for a new run.

    A damaged one is named and the previous good one taken, where no certain one is asked for.

    Args:
        directory: of the run's checkpoints.
        asked: None for a new run; ``latest``; ``auto``: the latest if there is one; ``best``; or a path.

    Raises:
        CheckpointError: there is none, none is whole, the one asked for is damaged, or a new run would start over
            existing checkpoints.
    """
    existing = list_newest_first(directory)
    if asked is None:
        if existing:
            raise CheckpointError(
                f"{directory} already holds {existing[0].name}. Go on from it with --resume_from_checkpoint latest, or "
                "start anew with another --checkpoint_dir (or delete this one)."
            )
        return None
    if asked in ("latest", "auto"):
        if not existing and asked == "latest":
            raise CheckpointError(
                f"{directory} holds no checkpoint to resume from. Leave out --resume_from_checkpoint to start anew."
            )
        return _newest_whole(existing)
    place = _best(directory) if asked == "best" else Path(asked)
    try:
        verify(place)
    except CheckpointError as error:
        raise CheckpointError(f"{error} --resume_from_checkpoint latest takes the newest that is whole.") from error
    if existing and place.parent.resolve() != directory.resolve():
        raise CheckpointError(
            f"{place} lies elsewhere than --checkpoint_dir {directory}, which holds checkpoints of its own. Give "
            f"--checkpoint_dir {place.parent}, or an empty one."
        )
    return place


def run_fingerprint(
    name: str, config: TrainConfig, data: TrainingData, sampler: UpdateSampler, runtime: Runtime
) -> RunFingerprint:
    """Returns what a resume compares: clip order and networks must match, other changes are logged."""
    settings = _settings(config)
    fixed = {setting: settings.pop(setting) for setting in sorted(settings) if setting.split(".")[0] in _FIXED}
    fixed |= {
        "run_name": name,
        "freeze": ",".join(config.frozen_parts) or None,
        **data.fingerprint(),
        **sampler.fingerprint(),
        "seconds in an update": config.batch_seconds * sampler.world_size * sampler.accumulation or None,
    }
    free = {**settings, "processes": sampler.world_size, "machine": runtime.describe()}
    return RunFingerprint(
        fixed, free | {f"version of {name}": value for name, value in versions().items()}, launch_id()
    )


def diff_fingerprint(checkpoint_dir: Path, now: RunFingerprint) -> list[str]:
    """What has changed since ``checkpoint_dir`` was written, as ``name was -> now``.

    Raises:
        CheckpointError: something that must not.
    """
    then = read_record(checkpoint_dir)["fingerprint"]
    illegal = _differences(then["must_match"], now.must_match)
    if illegal:
        raise CheckpointError(
            f"{checkpoint_dir} cannot be resumed, as it is of another run: {'; '.join(illegal)}. Resume with the old "
            f"settings; or start a new run from its voice (vits-trainer export {checkpoint_dir}) with another "
            "--checkpoint_dir."
        )
    return _differences(then["may_change"], {**now.may_change, "cpu_threads": torch.get_num_threads()})


def keep_threads(record: Mapping[str, Any], runtime: Runtime) -> None:
    """Computes with as many CPU threads as the run did before, where nothing else sets their number.

    Sums of floating-point numbers depend on it: with another number a resume is not exact to the last bit.
    """
    threads = record["fingerprint"]["may_change"].get("cpu_threads")
    if threads is not None and runtime.chooses_threads and threads <= torch.get_num_threads():
        runtime.use_threads(threads)


def restored_plan(record: Mapping[str, Any], config: TrainConfig) -> dict[str, int]:
    """What a resumed run keeps of its plan, although speed is measured anew: all for which the same is asked again."""
    then, now = record["fingerprint"]["may_change"], _settings(config)
    same = {name for name, value in now.items() if then.get(name) == value}
    kept = {"total_updates"} if same >= {"epochs", "max_updates", "target_hours"} else set()
    kept |= {"discriminator_warmup_updates"} if "discriminator_warmup_updates" in same else set()
    return {name: record["plan"][name] for name in kept}


def set_aside_newer(directory: Path, resume_from: Path | None) -> None:
    """Puts aside the checkpoints newer than the one to go on from: damaged ones, or of a branch that is left."""
    update = -1 if resume_from is None else read_record(resume_from)["state"]["update"]
    for place in list_newest_first(directory):
        if update_of(place) > update:
            logger.warning("%s is newer than the start: moved to %s.", place, move_aside(place, "set-aside").name)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration as flat names and plain values, without what differs from start to start."""
    flat = flatten(to_dict(config))
    return {name: value for name, value in flat.items() if name not in ("run_name", "resume_from_checkpoint")}


def _newest_whole(existing: list[Path]) -> Path | None:
    """The first of ``existing`` that is whole; None where there are none at all."""
    damage = []
    for place in existing:
        try:
            verify(place)
        except CheckpointError as error:
            damage.append(str(error))
        else:
            for message in damage:
                logger.warning("%s TAKING THE PREVIOUS ONE: %s", message, place)
            return place
    if damage:
        raise CheckpointError(f"No checkpoint is whole. {' '.join(damage)}")
    return None


def _best(directory: Path) -> Path:
    path = directory / BEST
    try:
        return directory / str(json.loads(path.read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} names no checkpoint ({error}). Name one by its path.") from error


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(then.keys() | now.keys())
    return [f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name)]
