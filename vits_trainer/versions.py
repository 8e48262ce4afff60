"""The voice that is served, and those that were served before it: one takes another's place at once, and can go back.

final_model/                 served; learnt.json in it has its number and the corrections that it has learnt
final_model_versions/1/ ...  those before
final_model_versions/rolled-back-2/
"""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vits_trainer.errors import ConfigError, DataError, ModelError
from vits_trainer.files import lock, sync, sync_tree, write_whole

LEARNT = "learnt.json"
_AT_CWD = -100
_EXCHANGE = 2


@dataclass(frozen=True)
class Learnt:
    """What a voice carries with it: so that a voice that goes back also forgets what it has learnt since."""

    version: int = 0
    corrections: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each correction's files, by its name."""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    """On this voice and those before it."""


def read_learnt(voice: Path) -> Learnt:
    """Of a voice in a folder; nothing for one that learnt no correction.

    Raises:
        ModelError: learnt.json is damaged.
    """
    path = voice / LEARNT
    if not path.is_file():
        return Learnt()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Learnt(int(record["version"]), dict(record["corrections"]), tuple(record["verdicts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Delete it to learn every correction again.") from error


def write_learnt(voice: Path, learnt: Learnt) -> None:
    """Into a voice's folder."""
    record = {
        "version": learnt.version,
        "corrections": dict(learnt.corrections),
        "verdicts": [dict(verdict) for verdict in learnt.verdicts],
    }
    write_whole(voice / LEARNT, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def claimed(served: Path) -> Iterator[None]:
    """Inside, no other process puts a voice into this place; what one that was killed left behind is put in order.

    Raises:
        DataError: another process has it.
    """
    folder = _versions(served)
    folder.mkdir(parents=True, exist_ok=True)
    file = lock(folder / ".lock")
    if file is None:
        raise DataError(f"Another train_feedback is at work on {served}. Wait for it, or stop it.")
    with file:
        _put_in_order(served)
        yield


def next_version(served: Path) -> int:
    """A number that no voice of this place has had."""
    numbers = [read_learnt(served).version, *_numbers(served)]
    numbers += [read_learnt(path).version for path in _versions(served).glob("rolled-back-*")]
    return max(numbers) + 1


def install(new: Path, served: Path, keep: int) -> None:
    """Puts a copy of voice ``new`` into the place of the one that is served, which becomes a version.

    At every moment a whole voice is in the place. Call it with the place claimed.

    Args:
        new: its learnt.json has a number from :func:`next_version`.
        served: the place.
        keep: so many versions (0 = all).
    """
    part, whole = _waiting(served, "part"), _waiting(served, "new")
    shutil.copytree(new, part)
    sync_tree(part)
    part.rename(whole)
    if served.exists():
        exchange(whole, served)
        _put_in_order(served)
    else:
        served.parent.mkdir(parents=True, exist_ok=True)
        whole.rename(served)
        sync(served.parent)
    for number in sorted(_numbers(served))[:-keep] if keep else []:
        shutil.rmtree(_versions(served) / str(number))


def roll_back(served: Path) -> tuple[int, int]:
    """Puts the newest version back into the place; the voice that was there is kept as ``rolled-back-<number>``.

    Returns:
        The numbers of the voice that was there and of the one that is.

    Raises:
        ConfigError: there is no version.
    """
    numbers = _numbers(served)
    if not numbers or not served.exists():
        raise ConfigError(f"--rollback: {_versions(served)} holds no earlier voice of {served}.")
    gone, back = read_learnt(served).version, max(numbers)
    exchange(_versions(served) / str(back), served)
    _put_in_order(served)
    return gone, back


def exchange(one: Path, other: Path) -> None:
    """Lets two folders change places, at once where the file system can (Linux: renameat2)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None or renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) != 0:
        between = one.with_name(f".{one.name}.between")
        other.rename(between)
        one.rename(other)
        between.rename(one)
    sync(one.parent)
    sync(other.parent)


def _put_in_order(served: Path) -> None:
    """Gives what an exchange, or a process that was killed, left behind its name."""
    folder, now = _versions(served), read_learnt(served).version
    shutil.rmtree(_waiting(served, "part"), ignore_errors=True)
    for between in [*folder.glob(".*.between"), *served.parent.glob(f".{served.name}.*.between")]:
        # A file system without exchange, and killed between the renames: the old voice is here, its place is empty.
        between.rename(served if not served.exists() else _waiting(served, "new"))
    waiting = _waiting(served, "new")
    if waiting.exists():
        number = read_learnt(waiting).version
        if served.exists() and number < now:  # it was served up to now
            waiting.rename(folder / str(number))
        else:
            shutil.rmtree(waiting)
    for number in _numbers(served):
        held = read_learnt(folder / str(number)).version
        if held != number:
            (folder / str(number)).rename(folder / f"rolled-back-{held}")
    sync(folder)


def _versions(served: Path) -> Path:
    return served.with_name(f"{served.name}_versions")


def _numbers(served: Path) -> list[int]:
    return [int(path.name) for path in _versions(served).iterdir() if path.name.isdecimal()]


def _waiting(served: Path, word: str) -> Path:
    return _versions(served) / f".{word}"
