"""Files and folders that are whole or absent, whenever the process or the machine may stop."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes ``path`` so that either the old content or the new is there at any moment."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns once a file's content, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """:func:`sync` for a folder and everything in it."""
    for path in sorted(directory.rglob("*")):
        sync(path)
    sync(directory)


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_directory(new: Path, place: Path) -> None:
    """Puts folder ``new`` at ``place``; one of the two is whole at any moment, whenever the process may die."""
    sync_tree(new)
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def made_beside(place: Path) -> Iterator[Path]:
    """An empty folder beside ``place`` to fill and move there; afterwards it is gone, whatever happened inside."""
    temporary = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def set_aside(path: Path, word: str) -> Path:
    """Renames ``path`` to ``<word>-<name>``, with a number behind it where that is taken; gives the new path."""
    for number in range(1, 10_000):
        aside = path.with_name(f"{word}-{path.name}" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            path.rename(aside)
            return aside
    raise FileExistsError(f"{path.parent} holds too many {word}-{path.name}")


def lock(path: Path) -> BinaryIO | None:
    """Opens ``path`` for this process alone, whatever is in it; None while another one has it.

    The lock goes with the file, and with the process: nothing is left behind when it is killed.
    """
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
