"""Files and folders that are whole or absent, and the only place that deletes, renames or replaces any.

A folder is removed or replaced only where :func:`is_ours` says that this program made it. Of such a folder only the
files that this program writes are deleted; what somebody else has put there stays, and the folder with it.
"""

import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vits_trainer.utils.errors import DataError

logger = logging.getLogger("vits_trainer")

MARKER = ".vits_trainer.json"
"""In folders that this program made: says which kind of folder it is."""
_WORTHLESS = re.compile(r"\.vits_trainer\.json|\..*\.[0-9a-f]{8}\.part", re.DOTALL)
"""Names of markers, and of files that a killed process was writing: nothing is lost with them."""
_POLL_S = 0.2


@dataclass(frozen=True)
class Kind:
    """A kind of folder that this program makes, and may therefore replace or remove."""

    name: str
    """As the marker has it."""
    files: re.Pattern[str]
    """Paths of the files that this program writes, relative to the folder."""
    is_known: Callable[[Path], bool] = lambda _: False
    """Whether a folder without a marker, of an earlier version, holds what only this program writes."""

    def has(self, path: str) -> bool:
        """Whether this program writes a file of that path, relative to the folder."""
        return bool(self.files.fullmatch(path) or _WORTHLESS.fullmatch(path.rpartition("/")[2]))


_TEMPORARY = Kind("temporary", re.compile(r".*", re.DOTALL))


# Files


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes ``path`` so that either the old content or the new is there at any moment."""
    with written_beside(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write, which then takes its place; nothing is left of it where writing fails.

    Several processes may write the same ``path``: the last one wins. What killed ones left behind is removed.
    """
    for stale in _siblings(path, "part"):
        file = try_lock(stale)
        if file is not None:
            with file:
                stale.unlink()
    part, held = _new_part(path)
    with held:
        try:
            yield part
            fsync_dir(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        part = _sibling(path, "part")
        file = try_lock(part)
        if file is not None:
            return part, file


def replace_file(new: Path, path: Path) -> None:
    """Lets a file take another's place on the same file system; both are files that this program writes."""
    new.replace(path)


def discard(path: Path) -> None:
    """Deletes a file that this process made, or whose name only this program gives. Nothing happens where none is."""
    path.unlink(missing_ok=True)


def fsync_dir(path: Path) -> None:
    """Returns once a file's content, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """:func:`fsync_dir` for a folder and everything in it."""
    for path in sorted(directory.rglob("*")):
        fsync_dir(path)
    fsync_dir(directory)


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Folders


def followed(path: Path) -> Path:
    """The absolute path to which ``path`` leads, without links, ``..`` or a slash at the end."""
    return Path(os.path.realpath(path))


def is_ours(folder: Path, kind: Kind) -> bool:
    """Whether this program made ``folder`` as ``kind``, so that it may replace or remove it. An empty folder may go."""
    if not folder.is_dir():
        return False
    is_empty = all(_WORTHLESS.fullmatch(path.name) for path in folder.iterdir())
    return is_empty or marked_kind(folder) == kind.name or kind.is_known(folder)


def marked_kind(folder: Path) -> str | None:
    """The kind that a folder's marker names; None where there is none that can be read."""
    try:
        with (folder / MARKER).open("rb") as file:
            record = json.loads(file.read(2**12))
    except (OSError, ValueError, RecursionError):
        return None
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) else None


def mark(folder: Path, kind: Kind) -> None:
    """Writes down that this program made ``folder``, and as what."""
    atomic_write(folder / MARKER, _marking(kind))


def _marking(kind: Kind) -> str:
    return json.dumps({"made by": "vits-trainer", "kind": kind.name}) + "\n"


def remove(folder: Path, kind: Kind) -> None:
    """Deletes what this program wrote in ``folder``, and the folder where nothing else is in it.

    The marker goes last: a folder whose removal was cut short can still be removed.

    Raises:
        DataError: this program did not make the folder. Nothing was deleted.
    """
    if not is_ours(folder, kind):
        raise DataError(f"{folder} was not made by vits-trainer: it is left as it is. Move it away.")
    for root, folders, names in os.walk(folder, topdown=False):
        place = Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        for path in (place / name for name in sorted([*names, *links]) if name != MARKER or place != folder):
            if kind.has(path.relative_to(folder).as_posix()):
                path.unlink()
        if place == folder and [path.name for path in folder.iterdir()] == [MARKER]:
            (folder / MARKER).unlink()
        with suppress(OSError):  # somebody else's file is in it
            place.rmdir()


def others_files(folder: Path, kind: Kind) -> list[Path]:
    """Entries of ``folder`` that this program does not write into folders of this kind."""
    return [path for path in sorted(folder.iterdir()) if not kind.has(path.name)]


def move(source: Path, target: Path) -> None:
    """Renames a file or folder on the same file system.

    Raises:
        FileExistsError: ``target`` exists, and is no empty folder.
    """
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists")
    source.rename(target)


def move_aside(path: Path, word: str) -> Path:
    """Renames ``path`` to ``<word>-<name>``, with a number behind it where that is taken; gives the new path."""
    for number in range(1, 10_000):
        aside = path.with_name(f"{word}-{path.name}" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            path.rename(aside)
            return aside
    raise FileExistsError(f"{path.parent} holds too many {word}-{path.name}")


def put(new: Path, place: Path) -> None:
    """Moves folder ``new``, whole, to ``place``, where nothing is.

    Raises:
        FileExistsError: something is there.
    """
    sync_tree(new)
    move(new, place)
    fsync_dir(place.parent)


@contextmanager
def temporary_sibling_dir(place: Path) -> Iterator[Path]:
    """An empty folder on the file system of ``place``, to fill and move there; afterwards it is gone.

    Its name is its own. What killed processes left behind for the same place is removed.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for stale in _siblings(place, "tmp"):
        _remove_stale(stale)
    container, held = _new_container(place)
    with held:
        try:
            folder = container / "new"
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(container, ignore_errors=True)


def _new_container(place: Path) -> tuple[Path, BinaryIO]:
    while True:
        container = _sibling(place, "tmp")
        container.mkdir()
        # Whoever removes what is stale may come in between: then another one is made.
        with suppress(FileNotFoundError):
            held = try_lock(container / MARKER)
            if held is not None:
                held.write(_marking(_TEMPORARY).encode())
                held.flush()
                return container, held


def _remove_stale(container: Path) -> None:
    with suppress(FileNotFoundError):  # another process removes it just now
        if not is_ours(container, _TEMPORARY):
            return
        with suppress(OSError):
            container.rmdir()  # its process was killed before it could mark it
            return
        held = try_lock(container / MARKER)
        if held is not None:
            with held:
                remove(container, _TEMPORARY)


def _sibling(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


def _siblings(path: Path, ending: str) -> list[Path]:
    ours = re.compile(rf"{re.escape(f'.{path.name}.')}[0-9a-f]{{8}}\.{ending}")
    return [found for found in path.parent.glob(f".{glob.escape(path.name)}.*.{ending}") if ours.fullmatch(found.name)]


# Locks


def try_lock(path: Path) -> BinaryIO | None:
    """Opens ``path`` for this process alone, whatever is in it; None while another one has it.

    The lock goes with the file, and with the process: nothing is held when it is killed.
    """
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # Who had it before may have deleted it in between.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def claim(path: Path, patience_s: float, place: Path) -> BinaryIO | None:
    """Retries :func:`try_lock` for ``patience_s``; None if the path stays locked."""
    deadline_s = time.monotonic() + patience_s
    file = try_lock(path)
    if file is None and patience_s:
        logger.warning("%s: another process is at work there. Waiting for it to leave.", place)
    while file is None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        file = try_lock(path)
    return file
