"""String utilities."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any


def first_line(error: BaseException) -> str:
    """Returns the first line of an error message, or the class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Returns ``text`` with the bytes of file names that are not UTF-8 escaped as in ``\\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


GROUP_SPACES = "\u00a0\u2007\u2009\u202f"
"""No-break and thin spaces: between digits they separate groups of one number, such as 12 500."""
_GROUP_OR_SPACE = re.compile(rf"(?<=\d)([{GROUP_SPACES}])(?=\d)|\s")
_SEPARATORS = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """Returns ``text`` for metadata.csv: without ``|`` and control characters, and with single, ordinary spaces.

    Only spaces between digits remain as they are, because they distinguish 12 500 from 12 and 500.
    """
    return single_spaces(_SEPARATORS.sub(" ", text))


def single_spaces(text: str) -> str:
    """Returns ``text`` without leading, trailing and repeated :func:`ordinary_spaces`."""
    return " ".join(filter(None, ordinary_spaces(text).split(" ")))


def ordinary_spaces(text: str) -> str:
    """Replaces each white space character with a space, except for :data:`GROUP_SPACES` between digits."""
    return _GROUP_OR_SPACE.sub(lambda match: match[1] or " ", text)


_LINE_FEED = ord("\n")


class _WordCharacters(dict[int, str]):
    """Maps the characters of words and line feeds to themselves, others to spaces; for str.translate, which is fast."""

    def __missing__(self, code: int) -> str:
        # Marks belong to letters in many scripts.
        is_word = chr(code).isalnum() or unicodedata.category(chr(code))[0] == "M"
        self[code] = chr(code) if is_word or code == _LINE_FEED else " "
        return self[code]


_WORD_CHARACTERS = _WordCharacters()


def comparable_text(text: str) -> str:
    """Returns the words of ``text`` in lower case; texts that differ only in punctuation, case or form are equal."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    words = folded.translate(_WORD_CHARACTERS)
    return " ".join(words.split()) or folded


def comparable_texts(texts: Sequence[str]) -> list[str]:
    """Returns :func:`comparable_text` of each; all at once, which takes a third less time for millions."""
    joined = "\n".join(texts)
    folded = joined.lower() if joined.isascii() else unicodedata.normalize("NFKC", joined).casefold()
    lines = folded.translate(_WORD_CHARACTERS).split("\n")
    if len(lines) != len(texts):  # one contains a line feed
        return [comparable_text(text) for text in texts]
    return [" ".join(words.split()) or text for words, text in zip(lines, folded.split("\n"), strict=True)]


def csv_cell(value: str) -> str:
    """Returns ``value`` as one line that spreadsheets do not interpret as a formula."""
    line = one_line(printable(value))
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


def counted(count: float, noun: str, nouns: str = "") -> str:
    """Returns ``1 clip``, or ``2 clips``; ``nouns`` is the plural if it is not ``noun`` with an s."""
    written = f"{count:.0f}" if count == round(count) else f"{count:g}"
    return f"{written} {noun if count == 1 else nouns or f'{noun}s'}"


_OPAQUE = re.compile(r"[0-9a-fA-F]{32,}")
_SHOWN_DIGITS = 8


def is_opaque(name: str) -> bool:
    """Returns whether a name is a hash, as Common Voice's names of speakers with 128 digits."""
    return _OPAQUE.fullmatch(name) is not None


def shown_speaker(name: str) -> str:
    """Returns the name of a speaker for people: the first digits of a hash."""
    return f"{name[:_SHOWN_DIGITS]}…" if is_opaque(name) else name


def join_speakers(speakers: Sequence[str]) -> str:
    """Joins the names of speakers for a message, as :func:`join_names` does."""
    return join_names([shown_speaker(name) for name in speakers])


def short_digest(value: Any) -> str:
    """Returns a SHA-256 prefix of a plain value's ``repr``, the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def digest_number(value: str) -> int:
    """Returns 56 bits of a SHA-256, the same in every process."""
    return int.from_bytes(hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()[:7])
