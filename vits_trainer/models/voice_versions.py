"""The place of a voice, and those that stood there before: one takes another's place at once, and can go back.

final_model/                 the voice; learnt.json in it has its number and the corrections that it has learnt
final_model_versions/1/ ...  those before
final_model_versions/rolled-back-2/
.final_model.lock            while a process is at work there

What somebody else has put beside a voice stays in its place, whichever voice comes or goes.
"""

import ctypes
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vits_trainer.utils import files
from vits_trainer.utils.errors import ConfigError, DataError, ModelError
from vits_trainer.utils.files import Kind, atomic_write, followed, fsync_dir, is_ours, move

logger = logging.getLogger("vits_trainer")

LEARNT = "learnt.json"
CARD = "README.md"
_SIGNATURE = "Made with vits_trainer."
"""In the card of a voice that train_vits made."""
_AT_CWD = -100
_EXCHANGE = 2
_PATIENCE_S = 5.0
"""Enough for a short export to end, and for the data workers of a run that was killed."""
_HELD: set[Path] = set()
"""Places that this process has claimed."""


def _has_our_files(folder: Path) -> bool:
    """Whether a folder is a voice that an earlier version made, which wrote no marker."""
    if not is_voice(folder):
        return False
    if any((folder / name).is_file() for name in ("discriminator.safetensors", LEARNT)):
        return True
    try:
        return _SIGNATURE in (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


VOICE = Kind(
    "voice",
    re.compile(
        r"(config|generation_config|preprocessor_config|tokenizer_config|tokenizer|vocab|special_tokens_map|added_tokens"
        r"|learnt|model\.safetensors\.index|pytorch_model\.bin\.index)\.json"
        r"|model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin|discriminator\.safetensors"
        r"|README\.md|sample_\d+\.wav"
    ),
    _has_our_files,
)
_DATA = re.compile(r"wavs|shards|metadata\.csv|dataset\.json|shards\.json|marks\.jsonl|runs|checkpoints|checkpoint-\d+")
"""What no voice has: a folder that holds one of these is that of data, of runs or of another trainer."""


def is_voice(folder: Path) -> bool:
    """Whether ``transformers`` would load a VITS voice from a folder, whoever made it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    is_vits = isinstance(config, dict) and config.get("model_type") == "vits"
    return is_vits and any(re.match(r"(pytorch_)?model\b", path.name) for path in folder.iterdir())


# Where a voice may go


def require_place(output: Path, flag: str, kept: Mapping[str, str | Path | None]) -> None:
    """Refuses a place where a voice would take something else's. Call it before anything is trained.

    A voice may go where nothing is, into an empty folder, or to another voice, whoever made that: it is kept.

    Args:
        output: what the user gave.
        flag: under which name.
        kept: paths that must stay where they are, by their flags; those that are None do not matter.

    Raises:
        ConfigError: says what is in the way, and the remedy.
    """
    try:
        reason = _reason_to_refuse(followed(output), kept)
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
    if reason:
        raise ConfigError(
            f"--{flag} {output} {reason}. Nothing was changed: name a folder that does not exist yet, or that holds a "
            "voice."
        )


def _reason_to_refuse(place: Path, kept: Mapping[str, str | Path | None]) -> str:
    always: dict[str, str | Path | None] = {"the working folder": Path.cwd()}
    always["your home folder"] = os.path.expanduser("~")  # noqa: PTH111 - raises nothing where there is none
    reason = kept_path_inside(place, {**kept, **always})
    if reason:
        return reason
    around = next(filter(_is_cleared, place.parents), None)
    if around is not None:
        return f"lies in {around}, from which this program deletes files"
    if place.is_symlink():
        return "is a link that leads in a circle"
    if not os.path.lexists(place):
        return ""
    if not place.is_dir():
        return "is a file"
    if place.is_mount():
        return "is a mount point, which cannot be renamed (a folder in it can)"
    if not os.access(place, os.W_OK | os.X_OK):
        return "cannot be written (Permission denied)"
    return _other_than_a_voice(place)


def kept_path_inside(place: Path, kept: Mapping[str, str | Path | None]) -> str:
    """Which of the paths a followed ``place`` is, or has in it, in words; nothing where it is none."""
    for what, path in kept.items():
        if path is not None and _is_or_holds(place, followed(Path(path))):
            return f"is or holds {what} {path}"
    return ""


def _other_than_a_voice(place: Path) -> str:
    names = sorted(path.name for path in place.iterdir())
    data = list(filter(_DATA.fullmatch, names))
    if data:
        return f"holds {', '.join(data[:3])}"
    if is_ours(place, VOICE) or is_voice(place):
        return ""
    return f"holds {', '.join(names[:3])}, and is no voice"


def _is_or_holds(place: Path, path: Path) -> bool:
    for around in (path, *path.parents):
        # samefile: where capitals do not matter, or a folder is mounted twice, two paths are one folder.
        if around == place or (around.exists() and place.exists() and around.samefile(place)):
            return True
    return False


def _is_cleared(folder: Path) -> bool:
    """Whether this program deletes in a folder: a checkpoint, a prepared set's clips, train_feedback's work."""
    if all((folder / name).is_file() for name in ("state.json", "manifest.json")):
        return True
    if files.marked_kind(folder) in ("checkpoint", "work", "temporary"):
        return True
    prepared = ("metadata.csv", "dataset.json", "shards.json", ".preparing.jsonl")
    return folder.name in ("wavs", "shards") and any((folder.parent / name).is_file() for name in prepared)


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Inside, no other process puts a voice into this place; what one that was killed left behind is put in order.

    A process that has a place may claim it again.

    Raises:
        ConfigError: the folder around it cannot be written.
        DataError: another process has it, even after some seconds.
    """
    place = followed(output)
    if place in _HELD:
        yield
        return
    lock_file = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = files.claim(lock_file, _PATIENCE_S, place)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error.strerror or error}): give another place.") from error
    if held is None:
        raise DataError(
            f"Another process is at work on {output} (train_vits, train_feedback, export or convert). Wait for it, "
            "stop it, or give another folder."
        )
    with held:
        _HELD.add(place)
        try:
            _put_in_order(place)
            yield
        finally:
            _HELD.discard(place)
            files.discard(lock_file)


# What a voice has learnt


@dataclass(frozen=True)
class VoiceHistory:
    """What a voice carries with it: so that a voice that goes back also forgets what it has learnt since."""

    version: int = 0
    corrections: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each correction's files, by its name."""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    """On this voice and those before it."""


def read_learnt(voice: Path) -> VoiceHistory:
    """Of a voice in a folder; nothing for one that learnt no correction.

    Raises:
        ModelError: learnt.json is damaged.
    """
    path = voice / LEARNT
    if not path.is_file():
        return VoiceHistory()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return VoiceHistory(int(record["version"]), dict(record["corrections"]), tuple(record["verdicts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Delete it to learn every correction again.") from error


def write_learnt(voice: Path, learnt: VoiceHistory) -> None:
    """Into a voice's folder."""
    record = {
        "version": learnt.version,
        "corrections": dict(learnt.corrections),
        "verdicts": [dict(verdict) for verdict in learnt.verdicts],
    }
    atomic_write(voice / LEARNT, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


# One voice in another's place


def next_version(served: Path) -> int:
    """A number that no voice of this place has had."""
    return max(_seen(followed(served)), default=0) + 1


@contextmanager
def replacing(output: Path, keep: int) -> Iterator[Path]:
    """An empty folder to write a voice to, which then takes its place; the voice that was there becomes a version.

    At every moment a whole voice is in the place. Where writing fails, nothing has changed. Call it with the place
    claimed.

    Args:
        output: the place.
        keep: so many versions (0 = all). Voices that this program did not make are never removed.

    Raises:
        ConfigError: what is in the place by now is no voice.
    """
    place = followed(output)
    with files.temporary_sibling_dir(place) as folder:
        yield folder
        install(folder, place, keep)


def install(new: Path, place: Path, keep: int) -> None:
    """Moves voice ``new`` into a place as :func:`replacing` does; it gets a number unless it has one."""
    require_place(place, "output_dir", {})
    files.mark(new, VOICE)
    seen = _seen(place)
    if seen and not (new / LEARNT).is_file():
        write_learnt(new, VoiceHistory(max(seen) + 1))
    if not (place.is_dir() and any(place.iterdir())):
        files.put(new, place)
    else:
        _versions(place).mkdir(exist_ok=True)
        files.put(new, _waiting(place))
        atomic_swap(_waiting(place), place)
        _put_in_order(place)
    numbers = [number for number in _numbers(place) if is_ours(_versions(place) / str(number), VOICE)]
    for number in numbers[:-keep] if keep else []:
        files.remove(_versions(place) / str(number), VOICE)


def copy(voice: Path, folder: Path) -> None:
    """Copies a voice into an empty folder, without what is somebody else's or of its place."""
    for path in sorted(voice.iterdir()):
        if VOICE.files.fullmatch(path.name) and path.name != LEARNT:
            shutil.copyfile(path, folder / path.name)


def set_apart(voice: Path, target: Path) -> None:
    """Moves a voice to ``target``, where nothing is; what is somebody else's stays."""
    place = followed(voice)
    move(place, target)
    if files.others_files(target, VOICE):
        place.mkdir()
        files.mark(place, VOICE)  # so that the next voice may take it
        _return_others(target, place)


def roll_back(output: Path) -> tuple[int, int]:
    """Puts the newest version back into the place; the voice that was there is kept as ``rolled-back-<number>``.

    Returns:
        The numbers of the voice that was there and of the one that is.

    Raises:
        ConfigError: there is no version.
    """
    place = followed(output)
    numbers = _numbers(place)
    if not numbers or not place.exists():
        raise ConfigError(f"--rollback: {_versions(place)} holds no earlier voice of {output}.")
    gone, back = read_learnt(place).version, max(numbers)
    atomic_swap(_versions(place) / str(back), place)
    _put_in_order(place)
    return gone, back


def versions_of(output: Path) -> Path:
    """Where the voices are kept that stood in a place before."""
    return _versions(followed(output))


def atomic_swap(one: Path, other: Path) -> None:
    """Lets two folders change places, at once where the file system can (Linux: renameat2)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None or renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) != 0:
        between = one.with_name(f".{one.name}.between")
        move(other, between)
        move(one, other)
        move(between, one)
    fsync_dir(one.parent)
    fsync_dir(other.parent)


def _put_in_order(place: Path) -> None:
    """Gives what an exchange, or a process that was killed, left behind its name."""
    folder, waiting = _versions(place), _waiting(place)
    if not folder.is_dir():
        return
    for between in folder.glob(".*.between"):
        # A file system without exchange, and killed between the renames: perhaps the place is empty.
        move(between, folder / between.name[1 : -len(".between")] if place.exists() else place)
    if waiting.exists():
        _settle(waiting, place)
    for number in _numbers(place):
        held = read_learnt(folder / str(number)).version
        if held != number:
            _keep(folder / str(number), place, f"rolled-back-{held}")
    fsync_dir(folder)


def _settle(waiting: Path, place: Path) -> None:
    if not place.exists():
        move(waiting, place)
        return
    number = read_learnt(waiting).version
    if is_voice(waiting) and number < read_learnt(place).version:  # it was in the place up to now
        _keep(waiting, place, str(number))
    else:
        _return_others(waiting, place)
        files.remove(waiting, VOICE)


def _keep(voice: Path, place: Path, name: str) -> None:
    """Gives a voice that left the place its name among the versions; what is somebody else's goes back first."""
    _return_others(voice, place)
    target = voice.with_name(name)
    if target.exists():
        files.move_aside(target, "earlier")
    move(voice, target)


def _return_others(source: Path, place: Path) -> None:
    for path in files.others_files(source, VOICE):
        try:
            move(path, place / path.name)
        except OSError as error:
            logger.warning("%s stays there: it could not be moved to %s (%s).", path, place, error.strerror or error)


def _versions(place: Path) -> Path:
    return place.with_name(f"{place.name}_versions")


def _numbers(place: Path) -> list[int]:
    folder = _versions(place)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and is_voice(path))


def _seen(place: Path) -> list[int]:
    """The numbers of all voices that are or were in a place."""
    here = [place] if place.is_dir() and any(place.iterdir()) else []
    back = [path for path in _versions(place).glob("*rolled-back-*") if path.is_dir()]
    return [*_numbers(place), *(read_learnt(path).version for path in (*here, *back))]


def _waiting(place: Path) -> Path:
    return _versions(place) / ".new"
