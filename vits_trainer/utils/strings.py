"""String utilities."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any


def first_line(error: BaseException) -> str:
    """Returns the first line of an error message, or the class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_SEPARATORS = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """Returns ``text`` for metadata.csv: without ``|`` and control characters, and with single spaces only."""
    return " ".join(_SEPARATORS.sub(" ", text).split())


def csv_cell(value: str) -> str:
    """Returns ``value`` as one line that spreadsheets do not interpret as a formula."""
    line = one_line(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


_MAX_NAME_BYTES = 128
"""Leaves room for prefixes and suffixes of temporary files; also the longest name of a Weights & Biases run."""
FILE_NAME = f"must be one folder name of at most {_MAX_NAME_BYTES} bytes, without / and control characters"


def is_file_name(name: str) -> bool:
    """Returns whether ``name`` is a single component of a path that every file system can store."""
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return False
    is_component = name.strip() not in ("", ".", "..") and not set(name) & {"/", "\\"}
    return is_component and name.isprintable() and size_bytes <= _MAX_NAME_BYTES


MAX_NAMES = 16
"""Maximum number of names to list in a message, or of curves per speaker."""


def join_names(names: Sequence[str]) -> str:
    """Joins names for a message; lists the first ones and the number of the others if there are many."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def short_digest(value: Any) -> str:
    """Returns a SHA-256 prefix of a plain value's ``repr``, the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
