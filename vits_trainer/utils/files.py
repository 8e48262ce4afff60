"""Atomic file and directory operations. Only this module deletes, renames or replaces files.

A directory is removed or replaced only if :func:`is_ours` confirms that this program created it. Even then only files
that this program writes are deleted. Other files are kept, together with their directory.
"""

import errno
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
from typing import BinaryIO, TypedDict

from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.records import read_json

logger = logging.getLogger(__name__)

MARKER = ".vits_trainer.json"
"""Marker file in directories that this program created. Contains the kind of directory."""
_DISPOSABLE = re.compile(r"\.vits_trainer\.json|\..*\.[0-9a-f]{8}\.part", re.DOTALL)
"""Names of markers, and of unfinished files of killed processes. They can be deleted without loss."""
_POLL_S = 0.2


@dataclass(frozen=True)
class Kind:
    """A kind of directory that this program creates, and may therefore replace or remove."""

    name: str
    """Name of the kind in the marker."""
    files: re.Pattern[str]
    """Matches the paths of files that this program writes, relative to the directory."""
    is_known: Callable[[Path], bool] = lambda _: False
    """Recognizes directories of earlier versions, which have no marker, by their contents."""

    def has(self, path: str) -> bool:
        """Returns whether this program writes ``path``, relative to the directory."""
        return bool(self.files.fullmatch(path) or _DISPOSABLE.fullmatch(path.rpartition("/")[2]))


class _Marker(TypedDict):
    kind: str


_TEMPORARY = Kind("temporary", re.compile(r".*", re.DOTALL))


# Files


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes ``path`` atomically: it has either the old or the new content at any time."""
    with atomic_writer(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_writer(path: Path) -> Iterator[Path]:
    """Yields a temporary file next to ``path``, which replaces ``path`` on success and is deleted on failure.

    If several processes write the same ``path``, the last one wins. Also deletes temporary files of killed processes.
    """
    for stale in _siblings(path, "part"):
        file = try_lock(stale)
        if file is not None:
            with file:
                stale.unlink()
    part, lock = _new_part(path)
    with lock:
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
    """Replaces ``path`` with ``new`` on the same file system. Both must be files that this program writes."""
    new.replace(path)


def discard(path: Path) -> None:
    """Deletes a file of this program if it exists."""
    path.unlink(missing_ok=True)


def fsync_dir(path: Path) -> None:
    """Flushes a file's content, or a directory's entries, to disk, so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Calls :func:`fsync_dir` for a directory and everything in it."""
    for path in sorted(directory.rglob("*")):
        fsync_dir(path)
    fsync_dir(directory)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Directories


def followed(path: Path) -> Path:
    """Returns the absolute path with links and ``..`` resolved, without a trailing slash."""
    return Path(os.path.realpath(path))


def is_ours(folder: Path, kind: Kind) -> bool:
    """Returns whether this program created ``folder`` as ``kind`` and may replace or remove it, or it is empty."""
    if not folder.is_dir():
        return False
    is_empty = all(_DISPOSABLE.fullmatch(path.name) for path in folder.iterdir())
    return is_empty or marked_kind(folder) == kind.name or kind.is_known(folder)


def marked_kind(folder: Path) -> str | None:
    """Returns the kind in a directory's marker, or None if there is no readable marker."""
    try:
        return read_json(folder / MARKER, _Marker, DataError, "", max_bytes=2**12)["kind"]
    except DataError:
        return None


def mark(folder: Path, kind: Kind) -> None:
    """Writes the marker of ``kind`` to ``folder``."""
    atomic_write(folder / MARKER, _marker(kind))


def _marker(kind: Kind) -> str:
    return json.dumps({"made by": "vits-trainer", "kind": kind.name}) + "\n"


def remove(folder: Path, kind: Kind) -> None:
    """Deletes the files of this program in ``folder``, and ``folder`` itself if nothing else is in it.

    Deletes the marker last, so that an interrupted removal can be repeated.

    Raises:
        DataError: this program did not create the directory. Nothing was deleted.
    """
    if not is_ours(folder, kind):
        raise DataError(f"{folder} was not created by vits-trainer and is left unchanged. Move it to another path.")
    for root, folders, names in os.walk(folder, topdown=False):
        directory = Path(root)
        links = [name for name in folders if (directory / name).is_symlink()]
        for path in (directory / name for name in sorted([*names, *links]) if name != MARKER or directory != folder):
            if kind.has(path.relative_to(folder).as_posix()):
                path.unlink()
        if directory == folder and [path.name for path in folder.iterdir()] == [MARKER]:
            (folder / MARKER).unlink()
        with suppress(OSError):  # not empty: contains files of others
            directory.rmdir()


def open_results(folder: Path, kind: Kind) -> Path:
    """Creates a folder for results, or opens that of an earlier call: before the work, not after it.

    The folder may have other files, which stay.

    Raises:
        ConfigError: it cannot be written, or has a file of the same name as a result that this program did not write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):  # a folder that is marked already
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not is_ours(folder, kind):
            foreign = [path.name for path in sorted(folder.iterdir()) if kind.has(path.name)]
            if foreign:
                raise ConfigError(
                    f"--output_dir {folder}: contains {foreign[0]}, which this command did not write. Move it, or "
                    "choose another folder."
                )
        if marked_kind(folder) is None:
            mark(folder, kind)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output_dir {folder}: cannot be written ({reason}). Choose another path.") from error
    return folder


def others_files(folder: Path, kind: Kind) -> list[Path]:
    """Returns the entries of ``folder`` that this program does not write to directories of this kind."""
    return [path for path in sorted(folder.iterdir()) if not kind.has(path.name)]


def move(source: Path, target: Path) -> None:
    """Renames a file or directory on the same file system.

    Raises:
        FileExistsError: ``target`` exists and is not an empty directory.
    """
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists")
    source.rename(target)


def move_aside(path: Path, prefix: str) -> Path:
    """Renames ``path`` to ``<prefix>-<name>``, with a number appended if that exists. Returns the new path."""
    for number in range(1, 10_000):
        aside = path.with_name(f"{prefix}-{path.name}" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            path.rename(aside)
            return aside
    raise FileExistsError(f"{path.parent} contains too many {prefix}-{path.name}")


def put(new: Path, target: Path) -> None:
    """Flushes ``new`` to disk and moves it to ``target``.

    Raises:
        FileExistsError: ``target`` exists and is not an empty directory.
    """
    sync_tree(new)
    move(new, target)
    fsync_dir(target.parent)


@contextmanager
def temporary_sibling_dir(target: Path) -> Iterator[Path]:
    """Yields an empty directory on the file system of ``target``, to be filled and moved there; deletes it at exit.

    Its name is unique. Also deletes temporary directories of killed processes for the same ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in _siblings(target, "tmp"):
        _remove_stale(stale)
    container, lock = _new_container(target)
    with lock:
        try:
            folder = container / "new"
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(container, ignore_errors=True)


def _new_container(target: Path) -> tuple[Path, BinaryIO]:
    while True:
        container = _sibling(target, "tmp")
        container.mkdir()
        # Another process may remove it as stale before it is locked: then try another name.
        with suppress(FileNotFoundError):
            lock = try_lock(container / MARKER)
            if lock is not None:
                lock.write(_marker(_TEMPORARY).encode())
                lock.flush()
                return container, lock


def _remove_stale(container: Path) -> None:
    with suppress(FileNotFoundError):  # another process is removing it
        if not is_ours(container, _TEMPORARY):
            return
        with suppress(OSError):
            container.rmdir()  # succeeds if its process was killed before it wrote the marker
            return
        lock = try_lock(container / MARKER)
        if lock is not None:
            with lock:
                remove(container, _TEMPORARY)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def _siblings(path: Path, suffix: str) -> list[Path]:
    ours = re.compile(rf"{re.escape(f'.{path.name}.')}[0-9a-f]{{8}}\.{suffix}")
    candidates = path.parent.glob(f".{glob.escape(path.name)}.*.{suffix}")
    return [candidate for candidate in candidates if ours.fullmatch(candidate.name)]


# Locks


def try_lock(path: Path) -> BinaryIO | None:
    """Opens ``path`` with an exclusive lock. Returns None if another process holds the lock.

    The lock is released when the file is closed or the process ends.
    """
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # The previous holder may have deleted the file in the meantime: then lock the new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def claim(path: Path, timeout_s: float, directory: Path) -> BinaryIO | None:
    """Retries :func:`try_lock` for ``timeout_s``. Returns None on timeout. The warning names ``directory``."""
    deadline_s = time.monotonic() + timeout_s
    file = try_lock(path)
    if file is None and timeout_s:
        logger.warning("%s is in use by another process. Waiting for it to finish.", directory)
    while file is None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        file = try_lock(path)
    return file
