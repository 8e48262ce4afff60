"""What is known of a checkpoint without loading its networks: files, state, and whether both are intact."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from vits_trainer.training.early_stopping import Selection
from vits_trainer.training.meter import DeviceMeansState
from vits_trainer.utils.errors import CheckpointError, NothingTrainedError
from vits_trainer.utils.files import MARKER, Kind, sha256
from vits_trainer.utils.records import Count, RelativePath, Sha256, parse_json, read_bytes, read_json
from vits_trainer.utils.strings import FILE_NAME, counted, is_file_name

MANIFEST = "manifest.json"
BEST = "best.json"
_NAME = re.compile(r"checkpoint-(\d+)")
CHECKPOINT = Kind(
    "checkpoint",
    re.compile(
        r"voice/[^/]*|(generator|discriminator|average|optimizer_\w+)\.safetensors|config\.yaml"
        r"|(state|manifest)\.json(\.part)?"
    ),
    lambda folder: (folder / "voice/config.json").is_file(),
)
"""Identifies folders of ours, complete or under a temporary name."""
FORMAT = 6
USE_EARLIER = "Resume from an earlier checkpoint: --resume_from_checkpoint with its path."
_REQUIRED = ("config.yaml", "generator.safetensors", "state.json", "voice/config.json")


@dataclass
class TrainState:
    """Progress of a run, over all ranks."""

    update: Count = 0
    """Updates done."""
    epoch: Count = 0
    """Epoch of the last update, from 0."""
    clips_trained: Count = 0
    """Clips of updates that changed the weights."""
    clips_masked: Count = 0
    """Clips of updates that were masked because of NaN or Inf."""
    clips_rejected: Count = 0
    """Clips that could not be used."""
    updates_nonfinite: Count = 0
    nonfinite_in_a_row: Count = 0
    accounts: dict[str, Any] = field(default_factory=dict)
    """Accounting of the epoch's clips; set when the state is saved."""
    selection: Selection = field(default_factory=Selection)

    def require_trained(self) -> None:
        """Raises :class:`NothingTrainedError` if no update of the run reached the weights."""
        if not self.clips_trained:
            raise NothingTrainedError(
                f"Nothing was trained in {counted(self.update, 'update')}: "
                f"{counted(self.clips_masked, 'clip')} in masked updates and {self.clips_rejected} rejected; the run's "
                "rejected.jsonl lists them. No voice was written, and an earlier one is unchanged. Correct the data "
                "(run prepare_data again), or lower --learning_rate, and start again with another --checkpoint_dir."
            )


@dataclass(frozen=True)
class RunFingerprint:
    """Settings of a run that a resumed run is compared with."""

    must_match: Mapping[str, Any]
    """Must be equal: the order of clips and the meaning of the weights depend on them."""
    may_change: Mapping[str, Any]
    """May change; changes are logged."""
    launch: str
    """Id of the launch: processes that its launcher restarts resume automatically."""

    def run_name(self) -> str:
        """Returns the run's name.

        Raises:
            CheckpointError: there is none, or it is not the name of a folder.
        """
        name = self.must_match.get("run_name")
        if not isinstance(name, str) or not is_file_name(name):
            raise CheckpointError(f"state.json: run_name {str(name)[:80]!r}: {FILE_NAME}. Pass another --run_name.")
        return name


@dataclass(frozen=True)
class CheckpointRecord:
    """Content of state.json."""

    state: TrainState
    plan: dict[str, bool | int | float]
    fingerprint: RunFingerprint
    scales: dict[str, dict[str, int | float]]
    """State of the gradient scaler, by network."""
    losses: list[DeviceMeansState]
    """Losses of each rank since the last log point."""


class _Format(TypedDict):
    format: int


class _WrittenFile(TypedDict):
    bytes: Count
    sha256: Sha256


class _WrittenFiles(TypedDict):
    files: dict[RelativePath, _WrittenFile]


class _Best(TypedDict):
    checkpoint: Annotated[str, Meta(pattern=r"^checkpoint-\d{1,15}$")]


def list_newest_first(directory: Path) -> list[Path]:
    """Returns the checkpoints in ``directory``, the newest first."""
    checkpoints = [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=update_of, reverse=True)


def verify_checkpoint(checkpoint_dir: Path) -> None:
    """Raises :class:`CheckpointError` unless the manifest lists all files of the checkpoint, and all match it."""
    path = checkpoint_dir / MANIFEST
    if not path.is_file():
        if not (checkpoint_dir / "state.json").is_file():
            raise CheckpointError(
                f"{checkpoint_dir} is not a checkpoint (no state.json). Give the path of a checkpoint-<update> folder."
            )
        raise _damaged(checkpoint_dir, f"{MANIFEST} is missing")
    written = read_json(path, _WrittenFiles, CheckpointError, f"{checkpoint_dir} is damaged. {USE_EARLIER}")["files"]
    for name, of_file in written.items():
        file = checkpoint_dir / name
        if not file.is_file():
            raise _damaged(checkpoint_dir, f"{file.name} is missing")
        if file.stat().st_size != of_file["bytes"]:
            raise _damaged(checkpoint_dir, f"{name} has {file.stat().st_size} bytes, not {of_file['bytes']}")
        if sha256(file) != of_file["sha256"]:
            raise _damaged(checkpoint_dir, f"the content of {name} is not what was written (SHA-256)")
    unlisted = sorted({*_REQUIRED, *_own_files(checkpoint_dir)} - written.keys())
    if unlisted:
        raise _damaged(checkpoint_dir, f"{MANIFEST} does not list {', '.join(unlisted[:3])}")


def _own_files(checkpoint_dir: Path) -> list[str]:
    """Returns the relative paths of the files that this program writes to checkpoints, except the manifest."""
    paths = [path.relative_to(checkpoint_dir).as_posix() for path in checkpoint_dir.rglob("*") if path.is_file()]
    return [name for name in paths if CHECKPOINT.files.fullmatch(name) and not name.startswith(MANIFEST)]


def read_record(checkpoint_dir: Path) -> CheckpointRecord:
    """Returns state.json of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or has another format version or update.
    """
    path = checkpoint_dir / "state.json"
    content = read_bytes(path, CheckpointError, USE_EARLIER)
    written = parse_json(content, path, _Format, CheckpointError, USE_EARLIER)["format"]
    if written != FORMAT:
        raise CheckpointError(
            f"{checkpoint_dir} was written by another version of vits_trainer (format {written}, now {FORMAT}). "
            "Resume with that version, or start a new run."
        )
    record = parse_json(content, path, CheckpointRecord, CheckpointError, USE_EARLIER)
    if _NAME.fullmatch(checkpoint_dir.name) and record.state.update != update_of(checkpoint_dir):
        raise CheckpointError(f"{path}: field state.update: {record.state.update} is not that of the folder's name.")
    return record


def best_checkpoint(directory: Path) -> Path:
    """Returns the checkpoint that best.json of ``directory`` names.

    Raises:
        CheckpointError: it does not name one.
    """
    return directory / read_json(directory / BEST, _Best, CheckpointError, "Give its path instead.")["checkpoint"]


def _damaged(checkpoint_dir: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint_dir} is damaged: {what}.")


def update_of(checkpoint_dir: Path) -> int:
    """Returns the update in a checkpoint's name."""
    return int(checkpoint_dir.name.partition("-")[2])


def manifest(directory: Path) -> str:
    """Returns the content of the manifest for the files in ``directory``."""
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MARKER  # hidden files may be lost when a checkpoint is copied
    }
    return json.dumps({"files": files}, indent=1)
