"""Versioned voice directories: atomic replacement of a voice, earlier versions, and rollback.

final_model/                 the voice; learnt.json contains its version number and the corrections it was trained on
final_model_versions/1/ ...  earlier versions
final_model_versions/rolled-back-2/
.final_model.lock            exists while a process writes there

Other files in a voice's directory, of users or other programs, stay there when the voice is replaced.
"""

import ctypes
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from vits_trainer.config.selection import ClipSelection
from vits_trainer.utils import files
from vits_trainer.utils.errors import ConfigError, DataError, ModelError
from vits_trainer.utils.files import Kind, atomic_write, followed, fsync_dir, is_ours, move
from vits_trainer.utils.records import Count, read_json

logger = logging.getLogger(__name__)

HISTORY_FILE = "learnt.json"
SELECTION_FILE = "trained_on.json"
"""Which clips the voice was trained on."""
CARD_FILE = "README.md"
_SIGNATURE = "Made with vits_trainer."
"""Text in the model card of a voice written by train_vits."""
_AT_CWD = -100
_EXCHANGE = 2
_LOCK_TIMEOUT_S = 5.0
"""Long enough for a short export to finish, and for the data workers of a killed run to exit."""
_LOCKED: set[Path] = set()
"""Directories locked by this process."""


class _ModelType(TypedDict):
    model_type: str


def _has_our_files(folder: Path) -> bool:
    """Whether a directory is a voice of an earlier version of this program, which wrote no marker."""
    if not is_voice(folder):
        return False
    if any((folder / name).is_file() for name in ("discriminator.safetensors", HISTORY_FILE)):
        return True
    try:
        return _SIGNATURE in (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


VOICE = Kind(
    "voice",
    re.compile(
        r"(config|generation_config|preprocessor_config|tokenizer_config|tokenizer|vocab|special_tokens_map|added_tokens"
        r"|learnt|trained_on|model\.safetensors\.index|pytorch_model\.bin\.index)\.json"
        r"|model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin|discriminator\.safetensors"
        r"|README\.md|sample_\d+\.wav"
    ),
    _has_our_files,
)
_DATA = re.compile(r"wavs|shards|metadata\.csv|dataset\.json|shards\.json|marks\.jsonl|runs|checkpoints|checkpoint-\d+")
"""Names that no voice contains: a directory with one of them belongs to data, runs or another trainer."""


def is_voice(folder: Path) -> bool:
    """Whether a directory contains a VITS voice that ``transformers`` would load, from any program."""
    try:
        config = read_json(folder / "config.json", _ModelType, ModelError, "")
    except ModelError:
        return False
    return config["model_type"] == "vits" and any(
        re.match(r"(pytorch_)?model\b", path.name) for path in folder.iterdir()
    )


# Checks of the output directory


def check_voice_destination(output: Path, flag: str, protected: Mapping[str, str | Path | None]) -> None:
    """Checks that a voice written to ``output`` would not displace anything else. Call it before training.

    Valid are a path that does not exist, an empty directory, and the directory of another voice from any program, which
    is kept as a version.

    Args:
        output: path from the command line.
        flag: name of its flag.
        protected: paths that must not be moved, by name; None values are ignored.

    Raises:
        ConfigError: ``output`` is not usable; states the reason and the remedy.
    """
    try:
        reason = _invalid_destination_reason(followed(output), protected)
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
    if reason:
        raise ConfigError(
            f"--{flag} {output} {reason}. Nothing was changed. Pass a directory that does not exist yet, or "
            "that of a voice."
        )


def _invalid_destination_reason(directory: Path, protected: Mapping[str, str | Path | None]) -> str:
    always: dict[str, str | Path | None] = {"the working directory": Path.cwd()}
    always["your home directory"] = os.path.expanduser("~")  # noqa: PTH111 - does not raise without a home directory
    reason = protected_path_inside(directory, {**protected, **always})
    if reason:
        return reason
    parent = next(filter(_is_cleared, directory.parents), None)
    if parent is not None:
        return f"is in {parent}, from which this program deletes files"
    if directory.is_symlink():
        return "is a circular symbolic link"
    if not os.path.lexists(directory):
        return ""
    if not directory.is_dir():
        return "is a file"
    if directory.is_mount():
        return "is a mount point, which cannot be renamed (a directory inside it can)"
    if not os.access(directory, os.W_OK | os.X_OK):
        return "cannot be written (Permission denied)"
    return _other_than_a_voice(directory)


def protected_path_inside(directory: Path, protected: Mapping[str, str | Path | None]) -> str:
    """Describes the first protected path that is ``directory`` or inside it; empty if there is none."""
    for name, path in protected.items():
        if path is not None and _is_or_contains(directory, followed(Path(path))):
            return f"is or contains {name} {path}"
    return ""


def _other_than_a_voice(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    data = list(filter(_DATA.fullmatch, names))
    if data:
        return f"contains {', '.join(data[:3])}"
    if is_ours(directory, VOICE) or is_voice(directory):
        return ""
    return f"contains {', '.join(names[:3])} and is not a voice"


def _is_or_contains(directory: Path, path: Path) -> bool:
    for parent in (path, *path.parents):
        # samefile: on case-insensitive file systems or with bind mounts, two paths may be one directory.
        if parent == directory or (parent.exists() and directory.exists() and parent.samefile(directory)):
            return True
    return False


def _is_cleared(folder: Path) -> bool:
    """Whether this program deletes files in a directory: checkpoint, prepared clips, work of train_feedback."""
    if all((folder / name).is_file() for name in ("state.json", "manifest.json")):
        return True
    if files.marked_kind(folder) in ("checkpoint", "work", "temporary"):
        return True
    prepared = ("metadata.csv", "dataset.json", "shards.json", ".preparing.jsonl")
    return folder.name in ("wavs", "shards") and any((folder.parent / name).is_file() for name in prepared)


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Locks the voice directory ``output`` and repairs leftovers of a killed process. Reentrant within a process.

    Raises:
        ConfigError: the parent directory is not writable.
        DataError: another process still holds the lock after a few seconds.
    """
    directory = followed(output)
    if directory in _LOCKED:
        yield
        return
    lock_file = directory.with_name(f".{directory.name}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = files.claim(lock_file, _LOCK_TIMEOUT_S, directory)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error}). Pass another path.") from error
    if lock is None:
        raise DataError(
            f"{output} is in use by another process (train_vits, train_feedback, export or convert). Wait for it, stop "
            "it, or pass another directory."
        )
    with lock:
        _LOCKED.add(directory)
        try:
            _repair(directory)
            yield
        finally:
            _LOCKED.discard(directory)
            files.discard(lock_file)


# Version number and corrections of a voice


@dataclass(frozen=True)
class VoiceHistory:
    """Version and training history, stored with the voice so that a rollback also reverts the history."""

    version: Count = 0
    corrections: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files of each correction, by name."""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    """Decisions about this voice and its predecessors."""


def read_history(voice: Path) -> VoiceHistory:
    """Reads the history of a voice; empty for a voice without corrections.

    Raises:
        ModelError: learnt.json is damaged.
    """
    path = voice / HISTORY_FILE
    if not path.is_file():
        return VoiceHistory()
    return read_json(path, VoiceHistory, ModelError, "Delete it to train on all corrections again.")


def write_history(voice: Path, history: VoiceHistory) -> None:
    """Writes the history to a voice's directory."""
    record = {
        "version": history.version,
        "corrections": dict(history.corrections),
        "verdicts": [dict(verdict) for verdict in history.verdicts],
    }
    atomic_write(voice / HISTORY_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_selection(voice: Path) -> ClipSelection | None:
    """Reads which clips a voice was trained on; None if it does not say.

    Raises:
        ModelError: trained_on.json is damaged.
    """
    path = voice / SELECTION_FILE
    if not path.is_file():
        return None
    return read_json(path, ClipSelection, ModelError, "Delete it to select the clips by flags.")


def write_selection(voice: Path, selection: ClipSelection) -> None:
    """Writes which clips a voice was trained on to its directory."""
    atomic_write(voice / SELECTION_FILE, json.dumps(asdict(selection), indent=1, ensure_ascii=False) + "\n")


# Replacing a voice


def next_version(served: Path) -> int:
    """Returns a version number not used by any voice of this directory."""
    return max(_used_versions(followed(served)), default=0) + 1


@contextmanager
def replace_voice(output: Path, keep: int) -> Iterator[Path]:
    """Yields an empty directory for a new voice, then moves it to ``output``; the previous voice becomes a version.

    ``output`` contains a complete voice at all times. If writing fails, nothing changes. The caller must hold the lock.

    Args:
        output: directory of the voice.
        keep: number of versions to keep (0 = all). Voices of other programs are never deleted.

    Raises:
        ConfigError: ``output`` contains something other than a voice.
    """
    directory = followed(output)
    with files.temporary_sibling_dir(directory) as folder:
        yield folder
        install(folder, directory, keep)


def install(new: Path, directory: Path, keep: int) -> None:
    """Moves voice ``new`` to ``directory`` as :func:`replace_voice` does, and numbers it unless it has a number."""
    check_voice_destination(directory, "output_dir", {})
    files.mark(new, VOICE)
    used = _used_versions(directory)
    if used and not (new / HISTORY_FILE).is_file():
        write_history(new, VoiceHistory(max(used) + 1))
    if not (directory.is_dir() and any(directory.iterdir())):
        files.put(new, directory)
    else:
        _versions_dir(directory).mkdir(exist_ok=True)
        files.put(new, _incoming(directory))
        atomic_swap(_incoming(directory), directory)
        _repair(directory)
    numbers = [
        number for number in _version_numbers(directory) if is_ours(_versions_dir(directory) / str(number), VOICE)
    ]
    for number in numbers[:-keep] if keep else []:
        files.remove(_versions_dir(directory) / str(number), VOICE)


def copy_voice(voice: Path, folder: Path) -> None:
    """Copies a voice to an empty directory, without its history and without other files."""
    for path in sorted(voice.iterdir()):
        if VOICE.files.fullmatch(path.name) and path.name != HISTORY_FILE:
            shutil.copyfile(path, folder / path.name)


def move_voice(voice: Path, target: Path) -> None:
    """Moves a voice to ``target``, which must not exist; other files stay."""
    directory = followed(voice)
    move(directory, target)
    if files.others_files(target, VOICE):
        directory.mkdir()
        files.mark(directory, VOICE)  # so that the next voice may replace it
        _return_others(target, directory)


def roll_back(output: Path) -> tuple[int, int]:
    """Restores the newest version; the current voice is kept as ``rolled-back-<number>``.

    Returns:
        The version numbers of the previous and the restored voice.

    Raises:
        ConfigError: there is no earlier version.
    """
    directory = followed(output)
    numbers = _version_numbers(directory)
    if not numbers or not directory.exists():
        raise ConfigError(f"--rollback: {_versions_dir(directory)} contains no earlier version of {output}.")
    previous, restored = read_history(directory).version, max(numbers)
    atomic_swap(_versions_dir(directory) / str(restored), directory)
    _repair(directory)
    return previous, restored


def versions_dir(output: Path) -> Path:
    """Returns the directory of earlier versions of a voice."""
    return _versions_dir(followed(output))


def atomic_swap(first: Path, second: Path) -> None:
    """Swaps two directories, atomically if the file system supports it (Linux: renameat2)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None or renameat2(_AT_CWD, os.fsencode(first), _AT_CWD, os.fsencode(second), _EXCHANGE) != 0:
        between = first.with_name(f".{first.name}.between")
        move(second, between)
        move(first, second)
        move(between, first)
    fsync_dir(first.parent)
    fsync_dir(second.parent)


def _repair(directory: Path) -> None:
    """Renames directories left by a swap or a killed process to their final names."""
    folder, incoming = _versions_dir(directory), _incoming(directory)
    if not folder.is_dir():
        return
    for between in folder.glob(".*.between"):
        # Killed between the renames on a file system without atomic swap: the directory may be missing.
        move(between, folder / between.name[1 : -len(".between")] if directory.exists() else directory)
    if incoming.exists():
        _finish_swap(incoming, directory)
    for number in _version_numbers(directory):
        stored = read_history(folder / str(number)).version
        if stored != number:
            _keep_as_version(folder / str(number), directory, f"rolled-back-{stored}")
    fsync_dir(folder)


def _finish_swap(incoming: Path, directory: Path) -> None:
    if not directory.exists():
        move(incoming, directory)
        return
    number = read_history(incoming).version
    if is_voice(incoming) and number < read_history(directory).version:  # it was the current voice
        _keep_as_version(incoming, directory, str(number))
    else:
        _return_others(incoming, directory)
        files.remove(incoming, VOICE)


def _keep_as_version(voice: Path, directory: Path, name: str) -> None:
    """Renames a replaced voice to its version name, after moving other files back."""
    _return_others(voice, directory)
    target = voice.with_name(name)
    if target.exists():
        files.move_aside(target, "earlier")
    move(voice, target)


def _return_others(source: Path, directory: Path) -> None:
    for path in files.others_files(source, VOICE):
        try:
            move(path, directory / path.name)
        except OSError as error:
            logger.warning("%s could not be moved to %s (%s); left in place.", path, directory, error.strerror or error)


def _versions_dir(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}_versions")


def _version_numbers(directory: Path) -> list[int]:
    folder = _versions_dir(directory)
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in entries if path.name.isdecimal() and is_voice(path))


def _used_versions(directory: Path) -> list[int]:
    """Returns the version numbers of the current, earlier and rolled-back voices of a directory."""
    here = [directory] if directory.is_dir() and any(directory.iterdir()) else []
    rolled_back = [path for path in _versions_dir(directory).glob("*rolled-back-*") if path.is_dir()]
    return [*_version_numbers(directory), *(read_history(path).version for path in (*here, *rolled_back))]


def _incoming(directory: Path) -> Path:
    return _versions_dir(directory) / ".new"
