"""Reads the rows of a table of files and texts: finds its separator, its header and its quoting from its content."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vits_trainer.data.sources.base import nonblank_lines, require_clips
from vits_trainer.utils.errors import DataError

SEPARATORS = {"|": "|", "\t": "TAB", ";": "semicolon", ",": "comma"}
"""Separators of columns, with their names in messages, in order of preference."""
AUDIO_NAMES = (
    "file_name", "filename", "file", "audio_file", "audio_filepath", "audio_path", "audio_filename", "audio", "path",
    "wav", "wav_path", "wav_file", "wav_filename", "clip", "clip_id", "utterance_id", "utt_id", "id",
)  # fmt: skip
TEXT_NAMES = (
    "sentence", "text", "transcription", "transcript", "raw_text", "raw_transcription", "text_original"
)  # fmt: skip
NORMALISED_NAMES = (
    "normalized_text", "normalised_text", "text_normalized", "text_normalised", "normalized_transcription",
    "normalised_transcription", "normalized", "normalised",
)  # fmt: skip
SPEAKER_NAMES = ("client_id", "speaker_id", "speaker", "speaker_name", "sid", "spk", "spk_id", "speakerid")
_KNOWN = {*AUDIO_NAMES, *TEXT_NAMES, *NORMALISED_NAMES, *SPEAKER_NAMES}

_CSV = ",;"
"""Separators of tables that are CSV with quotes; with others, quotes are part of the text unless all fits them."""
_SAMPLED_LINES = 200
_MAX_MALFORMED_FRACTION = 0.1
"""If more rows than this have the wrong number of columns, the table is refused: its separator or quoting is wrong."""
_QUOTED = re.compile(r'\s*"(?:[^"]|"")*"\s*')


@dataclass(frozen=True)
class Table:
    """The rows of a table."""

    path: Path
    separator: str
    header: tuple[str, ...] | None
    """Names of the columns, lower case; None if the table has no header."""
    columns: int
    rows: list[tuple[int, list[str]]]
    """Numbers of lines, and their cells; ``columns`` each."""
    malformed: dict[int, str]
    """What is wrong with a line, by its number."""
    comments: int
    """Number of lines that begin with # and name no file."""


def column_name(cell: str) -> str:
    """Returns the name in a cell of a header as it is compared with known names."""
    return cell.strip().strip('"').strip().casefold().replace(" ", "_")


def read_table(path: Path, is_file: Callable[[str], bool], named: Sequence[str]) -> Table:
    """Reads a table.

    Args:
        path: of the table, in UTF-8.
        is_file: returns whether a cell names an audio file of the data set.
        named: names of columns that the user gave: a first line with one of them is a header.

    Raises:
        DataError: it cannot be read, is not UTF-8, has no clips, or no separator divides its lines into columns.
    """
    lines = _lines(path)
    kept = [(number, line) for number, line in lines if not (line.startswith("#") and not _names_file(line, is_file))]
    require_clips(len(kept), path)
    separator, has_header = _format(path, [line for _, line in kept[:_SAMPLED_LINES]], is_file, named)
    rows = _split(path, separator, kept, has_header)
    header = None
    if has_header:
        header = tuple(map(column_name, rows.pop(0)[1]))
    require_clips(len(rows), path)
    counts = Counter(len(cells) for _, cells in rows)
    columns = len(header) if header else counts.most_common(1)[0][0]
    whole, malformed = [], {}
    for number, cells in rows:
        while len(cells) > columns and not cells[-1].strip():
            cells.pop()  # a separator at the end of the line
        if len(cells) == columns:
            whole.append((number, cells))
        else:
            malformed[number] = f"{len(cells)} columns where the {'header' if header else 'table'} has {columns}"
    _require_rows(path, separator, whole, malformed)
    return Table(path, separator, header, columns, whole, malformed, len(lines) - len(kept))


def _require_rows(path: Path, separator: str, whole: Sequence[object], malformed: dict[int, str]) -> None:
    rows = len(whole) + len(malformed)
    if 2 * len(malformed) >= rows or (len(malformed) > max(1, _MAX_MALFORMED_FRACTION * rows)):
        number, problem = next(iter(malformed.items()))
        rule = 'needs "" around it' if separator in _CSV else "is not possible"
        raise DataError(
            f"{path} line {number}: {problem}; {len(malformed)} of {rows} lines have a wrong number. Correct them (a "
            f"text with a {SEPARATORS[separator]} in it {rule})."
        )


def _lines(path: Path) -> list[tuple[int, str]]:
    """Returns the lines that are not blank, with their numbers; a file without line feeds is split at CR."""
    lines = list(nonblank_lines(path))
    if len(lines) == 1 and "\r" in lines[0][1].strip("\r"):
        parts = enumerate(lines[0][1].split("\r"), start=1)
        return [(number, part) for number, part in parts if part.strip()]
    return lines


def _names_file(line: str, is_file: Callable[[str], bool]) -> bool:
    return any(is_file(line.split(separator)[0].strip()) for separator in SEPARATORS)


def _format(path: Path, lines: Sequence[str], is_file: Callable[[str], bool], named: Sequence[str]) -> tuple[str, bool]:
    """Returns the separator of the columns, and whether the first line is a header."""
    for separator in SEPARATORS:
        if _is_header(lines[0].split(separator), is_file, named):
            return separator, True
    scores = {separator: _score(lines, separator, is_file) for separator in SEPARATORS}
    best = max(scores, key=lambda separator: scores[separator])
    if scores[best] == (0, 0):
        raise DataError(
            f"{path} line 1: one column where a file and its text are expected, found {lines[0][:80]!r}. Separate "
            "them by |, TAB, ; or a comma, as in id|text or id|text|speaker."
        )
    return best, False


def _is_header(cells: Sequence[str], is_file: Callable[[str], bool], named: Sequence[str]) -> bool:
    names = [column_name(cell) for cell in cells]
    if len(names) < 2 or any(is_file(cell.strip().strip('"')) for cell in cells):
        return False
    if any(column_name(name) in names for name in named):
        return True
    known = [name for name in names if name in _KNOWN]
    return any(name in AUDIO_NAMES for name in known) and (len(known) > 1 or not any(" " in cell for cell in cells))


def _score(lines: Sequence[str], separator: str, is_file: Callable[[str], bool]) -> tuple[float, float]:
    """Returns whether most lines are divided, and the fraction of lines with an existing file in the best column."""
    divided = [cells for line in lines if len(cells := line.split(separator)) > 1]
    if not divided:
        return 0, 0
    columns = max(map(len, divided[:_SAMPLED_LINES]))
    found = [
        sum(is_file(cells[column].strip().strip('"')) for cells in divided if column < len(cells))
        for column in range(min(columns, 8))
    ]
    return float(2 * len(divided) > len(lines)), max(found) / len(lines)


def _split(
    path: Path, separator: str, lines: Sequence[tuple[int, str]], has_header: bool
) -> list[tuple[int, list[str]]]:
    """Returns the number of the line in which each row ends, and its cells."""
    if separator in _CSV:
        return list(_csv_rows(path, separator, lines))
    rows = [(number, line.split(separator)) for number, line in lines]
    # The original LJ Speech has no quoting, and a quotation mark is part of its text; pandas writes quotes.
    if any(cell.lstrip().startswith('"') for _, cells in rows for cell in cells):
        try:
            unquoted = list(_csv_rows(path, separator, lines))
        except DataError:
            return rows
        if _is_quoted([cells for _, cells in rows[has_header:]], [cells for _, cells in unquoted[has_header:]]):
            return unquoted
    return rows


def _is_quoted(literal: Sequence[Sequence[str]], unquoted: Sequence[Sequence[str]]) -> bool:
    """Whether a table is CSV with quotes, by both ways to read it."""
    if len({len(cells) for cells in unquoted}) != 1 or not literal:
        return False
    if len({len(cells) for cells in literal}) != 1 or len(literal) != len(unquoted):
        return True  # only with quotes do all rows have the same number of columns
    cells = [cell for row in literal for cell in row if cell.lstrip().startswith('"')]
    if not all(_QUOTED.fullmatch(cell) for cell in cells):
        return False
    doubled = any('""' in cell.strip()[1:-1] for cell in cells)
    return doubled or any(all(_QUOTED.fullmatch(cell) for cell in column) for column in zip(*literal, strict=True))


def _csv_rows(path: Path, separator: str, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    content = (f"{line}\n" for _, line in lines)
    reader = csv.reader(content, strict=True, delimiter=separator, skipinitialspace=True)
    try:
        for cells in reader:
            yield lines[reader.line_num - 1][0], cells
    except csv.Error as error:
        number = lines[reader.line_num - 1][0]
        raise DataError(f"{path} line {number}: not valid CSV ({error}). Correct the line.") from error
