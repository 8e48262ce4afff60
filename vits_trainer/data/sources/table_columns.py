"""Finds out which column of a table is the file, the text, its normalised reading and the speaker."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import TypeVar

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.base import named_columns
from vits_trainer.data.sources.table_rows import (
    AUDIO_NAMES,
    NORMALISED_NAMES,
    SEPARATORS,
    SPEAKER_NAMES,
    TEXT_NAMES,
    Table,
    column_name,
)
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import shown_speaker

_Value = TypeVar("_Value")

NO_COLUMN = "none"
"""Value of ``--speaker_column`` for a table without speakers."""
_SAMPLED_ROWS = 200
_COMPARED_CHARACTERS = 200
_SIMILAR = 0.5
"""Similarity above which one text is a reading of another; sentences of one language without relation have 0.3."""
_SENTENCE_CHARACTERS, _SENTENCE_WORDS = 10, 3
_FEW_ROWS = 5
"""In a shorter table, a column without equal values may still be the speaker."""
_DECIMAL = re.compile(r"-?\d+[.,]\d+")


@dataclass(frozen=True)
class Roles:
    """Indices of a table's columns, from 0; None for a column that the table does not have."""

    audio: int
    text: int
    normalised: int | None = None
    """Has the text as it is spoken, for example with numbers as words; the text counts where it is empty."""
    speaker: int | None = None
    up_votes: int | None = None
    down_votes: int | None = None


@dataclass(frozen=True)
class _Column:
    index: int
    values: Sequence[str]
    """Values that are not empty."""

    @cached_property
    def distinct(self) -> int:
        return len(set(self.values))

    @cached_property
    def is_sentences(self) -> bool:
        """Whether typical values have several words, or are long in a script without spaces."""
        sample = _sampled(self.values)
        is_long = median(map(len, sample)) >= _SENTENCE_CHARACTERS
        words = median(len(value.split()) for value in sample)
        unspaced = sum(not value.isascii() and any(map(str.isalpha, value)) for value in sample)
        return is_long and (words >= _SENTENCE_WORDS or (2 * unspaced > len(sample) and words < 2))

    @cached_property
    def is_few_valued(self) -> bool:
        """Whether the values recur as names of speakers do."""
        rows = len(self.values)
        return 2 * self.distinct <= rows or (self.distinct < rows and not self.is_sentences)

    @cached_property
    def is_decimal(self) -> bool:
        """Whether it holds measurements, such as durations in seconds."""
        return all(map(_DECIMAL.fullmatch, self.values))

    def __str__(self) -> str:
        examples = ", ".join(repr(value[:30]) for value in list(dict.fromkeys(self.values))[:2])
        return f"column {self.index + 1} ({examples})"


def find_roles(table: Table, config: PrepareConfig, is_file: Callable[[str], bool]) -> Roles:
    """Returns the roles of the columns: as flags name them, else by the header, else by their content.

    Raises:
        DataError: a column that a flag names does not exist, there is no column of files or texts, or the content
            allows several readings.
    """
    flags = {flag: _flagged(table, flag, value) for flag, value in named_columns(config).items()}
    columns = [
        _Column(index, values)
        for index in range(table.columns)
        if (values := [cells[index].strip() for _, cells in table.rows if cells[index].strip()])
    ]
    if not columns:
        raise DataError(f"{table.path}: no column has any content. Give the file and the text of each clip.")
    if table.header is not None:
        roles = _by_header(table, table.header, flags, is_file)
    else:
        audio = flags.get("--audio_column")
        audio = _audio_column(columns, is_file) if audio is None else audio
        others = [column for column in columns if column.index != audio and not column.is_decimal]
        roles = _by_content(table, audio, others, flags)
    if config.speaker_column is not None:
        roles = replace(roles, speaker=flags["--speaker_column"])
    return roles


def describe(table: Table, roles: Roles) -> str:
    """Returns one line that says how the table is understood."""
    named = {"file": roles.audio, "text": roles.text, "speaker": roles.speaker}
    if roles.normalised is not None:
        named |= {"text": roles.normalised, "text if that is empty": roles.text}
        named["speaker"] = named.pop("speaker")
    parts = [f"{role} = {_shown(table, index)}" for role, index in named.items() if index is not None]
    if roles.speaker is not None:
        speakers = sorted({cells[roles.speaker].strip() for _, cells in table.rows} - {""})
        parts[-1] += f" ({len(speakers)}: {', '.join(shown_speaker(name)[:30] for name in speakers[:4])}"
        parts[-1] += ", ...)" if len(speakers) > 4 else ")"
    unused = [_shown(table, index) for index in range(table.columns) if index not in vars(roles).values()]
    parts += [f"not used: {', '.join(unused)}"] if unused else []
    parts += [f"comments: {table.comments}"] if table.comments else []
    header = "with a header" if table.header else "without a header"
    return f"{table.path.name} {header}, separator {SEPARATORS[table.separator]}: {'; '.join(parts)}."


def _shown(table: Table, index: int) -> str:
    return (table.header[index] if table.header else "") or f"column {index + 1}"


def _flagged(table: Table, flag: str, value: str) -> int | None:
    """Returns the index of the column that a flag names, or numbers from 1."""
    names = table.header or ()
    if column_name(value) in names:
        return names.index(column_name(value))
    if value.isdecimal() and 1 <= int(value) <= table.columns:
        return int(value) - 1
    if flag == "--speaker_column" and value == NO_COLUMN:
        return None
    if table.header is None:
        raise DataError(
            f"{table.path}: has no header. Give {flag} as the number of a column from 1 to {table.columns}, "
            "or add a header line."
        )
    raise DataError(
        f"{table.path} line 1: no column {value} ({flag}); its columns are {', '.join(names)}. Name one of them."
    )


def _by_header(
    table: Table, names: Sequence[str], flags: Mapping[str, int | None], is_file: Callable[[str], bool]
) -> Roles:
    def first(known: Sequence[str]) -> int | None:
        return next((names.index(name) for name in known if name in names), None)

    audio, text = flags.get("--audio_column"), flags.get("--text_column")
    normalised = first(NORMALISED_NAMES) if text is None else None
    text = first(TEXT_NAMES) if text is None else text
    if text is None:
        text, normalised = normalised, None
    if audio is None:
        named = [index for index, name in enumerate(names) if name in AUDIO_NAMES]
        named.sort(key=lambda index: AUDIO_NAMES.index(names[index]))
        rows = _sampled(table.rows)
        audio = max(named, key=lambda index: sum(is_file(cells[index]) for _, cells in rows), default=None)
    if audio is None or text is None:
        raise DataError(
            f"{table.path} line 1: needs a column of files, such as file_name, and a column of texts, such as "
            f"{' or '.join(TEXT_NAMES[:2])}; it has {', '.join(names)}. Name them with --audio_column and "
            "--text_column."
        )
    return Roles(audio, text, normalised, first(SPEAKER_NAMES), first(["up_votes"]), first(["down_votes"]))


def _audio_column(columns: Sequence[_Column], is_file: Callable[[str], bool]) -> int:
    """Returns the column that names the most files, each once; the first one if none does."""

    def files(column: _Column) -> float:
        sample = _sampled(column.values)
        found = [value for value in sample if is_file(value)]
        return len(set(found)) / len(sample)

    return max(columns, key=files).index


def _by_content(table: Table, audio: int, columns: Sequence[_Column], flags: Mapping[str, int | None]) -> Roles:
    text, normalised = _text_columns(table, columns, flags)
    speaker = None
    if "--speaker_column" not in flags:
        speaker = _speaker_column(table, [column for column in columns if column.index not in (text, normalised)])
    return Roles(audio, text, normalised, speaker)


def _text_columns(table: Table, columns: Sequence[_Column], flags: Mapping[str, int | None]) -> tuple[int, int | None]:
    given = flags.get("--text_column")
    if given is not None:
        return given, None
    columns = [column for column in columns if column.index != flags.get("--speaker_column")]
    texts = [column for column in columns if column.is_sentences]
    if len(texts) > 1:  # full names of speakers recur more often than texts
        texts = [column for column in texts if not column.is_few_valued] or texts
    if not texts:
        texts = [column for column in columns if not column.is_few_valued] if len(columns) > 1 else list(columns)
    if not texts:
        if not columns:
            raise DataError(f"{table.path}: no column of texts. Add one, or name it with --text_column.")
        raise _ambiguous(table, columns, "the text")
    if len(texts) > 1 and not all(_is_reading(table, *pair) for pair in combinations(texts[:3], 2)):
        raise _ambiguous(table, texts, "the text")
    return texts[0].index, texts[1].index if len(texts) > 1 else None


def _speaker_column(table: Table, columns: Sequence[_Column]) -> int | None:
    few = [column for column in columns if column.is_few_valued]
    several = [column for column in few if column.distinct > 1] or few
    if len(several) > 1 and several[0].distinct > 1:
        raise _ambiguous(table, several, "the speaker")
    if not several and columns and 1 < len(table.rows) <= _FEW_ROWS:
        raise _ambiguous(table, columns, "the speaker")
    return several[0].index if len(several) == 1 else None


def _ambiguous(table: Table, columns: Sequence[_Column], role: str) -> DataError:
    flag = "--text_column" if role == "the text" else "--speaker_column"
    otherwise = "" if role == "the text" else f", or {flag} {NO_COLUMN}"
    choices = " or ".join(map(str, columns))
    verb = "may or may not be" if len(columns) == 1 else "may be"
    return DataError(
        f"{table.path}: {choices} {verb} {role}. Give {flag} "
        f"{' or '.join(str(column.index + 1) for column in columns)}{otherwise}, or add a header line such as "
        "file_name|text|speaker."
    )


def _is_reading(table: Table, written: _Column, spoken: _Column) -> bool:
    """Whether most values of one column are readings of the other's, by the characters in the same order."""
    pairs = [
        (cells[written.index].strip().casefold(), cells[spoken.index].strip().casefold()) for _, cells in table.rows
    ]
    both = [(one, other) for one, other in pairs if one and other]
    return bool(both) and median(_similarity(*pair) for pair in _sampled(both)) >= _SIMILAR


def _similarity(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one[:_COMPARED_CHARACTERS], other[:_COMPARED_CHARACTERS], autojunk=False)
    return matcher.ratio()


def _sampled(values: Sequence[_Value]) -> Sequence[_Value]:
    """Returns values spread evenly over a sequence."""
    return values[:: max(1, len(values) // _SAMPLED_ROWS)]
