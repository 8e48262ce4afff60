"""Small helpers for lines of text."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any


def first_line(error: BaseException) -> str:
    """What another's error says in its first line, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_SEPARATORS = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """``text`` as it can stand in metadata.csv: no ``|``, no control characters, no white space but single spaces."""
    return " ".join(_SEPARATORS.sub(" ", text).split())


def csv_cell(value: str) -> str:
    """One line that no spreadsheet takes for a formula."""
    line = one_line(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


_NAMED = 16
"""More speakers than this would be too many curves, or names in a message."""


def some(names: Sequence[str]) -> str:
    """For a message: the names, or the first of many and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def short_digest(value: Any) -> str:
    """Returns a SHA-256 prefix of a plain value's ``repr``, the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
