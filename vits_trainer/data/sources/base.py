"""Types and helpers shared by all sources: clips, columns of tables, lookup of audio files, reading of lines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.sources.files import FileFinder
from vits_trainer.utils.errors import DataError


@dataclass(frozen=True)
class SourceClip:
    """A recording and its text, as the source stores them."""

    clip_id: str
    """Name of the clip in the source."""
    text: str
    audio: Path | bytes
    """Path of an audio file, or the content of one; b"" if there is none."""
    speaker: str | None
    rejection: Rejection | None
    """Reason to reject the clip, if it is known without decoding the audio."""


Access = Literal["listed", "random", "sequential"]
"""``listed``: the clips contain no audio, so that all fit into memory. ``random``: ``clips_from`` starts at any clip at
little cost. ``sequential``: they can only be read in their order."""


@dataclass(frozen=True)
class Source:
    """An opened data set. Its metadata are validated as far as possible without reading the audio."""

    kind: str
    root: Path | None
    """Directory of the data set; None for the Hub and for datasets.Dataset."""
    clip_count: int | None
    """None if the source does not know it in advance."""
    clips: Iterator[SourceClip]
    """All clips, read lazily, in an order that never changes. Can be iterated once."""
    revision: str | None = None
    """Commit that is read from the Hub."""
    files: Sequence[Path] | None = None
    """The files that are read, if not the whole of ``root``."""
    clips_from: Callable[[int], Iterator[SourceClip]] | None = None
    """Returns the clips from an index on without reading those before it. None if a file may be named twice: a
    duplicate is detected only among the clips that were read."""
    access: Access = "sequential"
    """How shards read the clips in another order."""
    speakers: Callable[[], Iterator[str | None]] | None = None
    """Returns the speaker of each clip, in the order of the clips, without reading audio. None if it has none."""


@dataclass(frozen=True)
class SourceKind:
    """A format of data sets that ``--dataset`` accepts; listed in :data:`vits_trainer.data.sources.detect.SOURCES`."""

    name: str
    """``Source.kind``, as dataset.json records it."""
    description: str
    """For error messages; completes "Give ..."."""
    detect: Callable[[Path, PrepareConfig], bool]
    """Whether ``config.dataset``, given also as a path with ``~`` expanded, is of this kind."""
    open: Callable[[Path, PrepareConfig], Source]
    """Opens it. Raises :class:`DataError` if its metadata are malformed."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None for a column that the table does not have."""

    audio: str
    text: str
    clip_id: str | None
    up_votes: str | None
    down_votes: str | None
    speaker: str | None

    @classmethod
    def choose(
        cls, location: object, names: Sequence[str], config: PrepareConfig, audio: Sequence[str] = ("audio", "path")
    ) -> "Columns":
        """Chooses the columns that ``config`` names, or else the first known name among ``names``.

        Args:
            location: of the table, for error messages.
            names: of the table's columns.
            config: its ``*_column`` settings have precedence.
            audio: default names of the audio column.

        Raises:
            DataError: a column named in ``config`` does not exist, or there is no audio or text column.
        """
        require_named_columns(location, names, config)

        def first(*candidates: str) -> str | None:
            return next((name for name in candidates if name in names), None)

        audio_column, text_column = config.audio_column or first(*audio), config.text_column or first(*_TEXT_COLUMNS)
        if audio_column is None or text_column is None:
            raise DataError(
                f"{location}: needs a column {' or '.join(audio)}, and a column {' or '.join(_TEXT_COLUMNS[:2])}; it "
                f"has {', '.join(names)}. Name them with --audio_column and --text_column."
            )
        return cls(
            audio=audio_column,
            text=text_column,
            clip_id=first("path"),
            up_votes=first("up_votes"),
            down_votes=first("down_votes"),
            speaker=config.speaker_column or first("client_id", "speaker_id", "speaker", "speaker_name"),
        )

    def present(self) -> list[str]:
        """Returns the names of the columns to read."""
        return sorted({name for name in vars(self).values() if name is not None})


_TEXT_COLUMNS = ("sentence", "text", "transcription", "transcript")


def named_columns(config: PrepareConfig) -> dict[str, str]:
    """Returns the columns named in ``config``, by flag."""
    flags = ("audio_column", "text_column", "speaker_column")
    return {f"--{flag}": name for flag in flags if (name := getattr(config, flag)) is not None}


def require_named_columns(location: object, names: Sequence[str], config: PrepareConfig) -> None:
    """Raises :class:`DataError` if a column named in ``config`` is not among ``names``."""
    for flag, name in named_columns(config).items():
        if name not in names:
            raise DataError(
                f"{location}: no column {name} ({flag}); its columns are {', '.join(names)}. Name one of them."
            )


# Rows of tables


def row_clip(
    row: Mapping[str, Any], location: str, columns: Columns, find: FileFinder, config: PrepareConfig
) -> SourceClip:
    """Converts a row of a table to a clip.

    Args:
        row: values by column.
        location: of the row, for error messages, and the clip's id if the row has no other.
        columns: of the table.
        find: returns the file that the row names, if the row does not contain the recording itself.
        config: its limits on votes reject clips.

    Raises:
        DataError: the audio has the wrong type.
    """
    content, path = _content_and_path(row[columns.audio], location)
    audio: Path | bytes | Rejection | None = _check_votes(row, columns, config) or content
    if audio is None:
        audio = find(path) if path else Rejection(Reason.MISSING_FILE, f"{location} has no audio")
    clip_id = (row[columns.clip_id] if columns.clip_id else None) or path or location
    speaker = row[columns.speaker] if columns.speaker else None
    return make_clip(
        str(clip_id), str(row[columns.text] or ""), audio, None if speaker is None else str(speaker) or None
    )


def _content_and_path(value: Any, location: str) -> tuple[bytes | None, str | None]:
    """Splits audio given as `datasets` stores it ({bytes, path}), as bytes, or as a path."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    if value is None or isinstance(value, bytes):
        return value, None
    if isinstance(value, str):
        return None, value
    raise DataError(f"{location}: its audio is a {type(value).__name__}. Give a file's content, its path, or both.")


def _check_votes(row: Mapping[str, Any], columns: Columns, config: PrepareConfig) -> Rejection | None:
    """Returns why the votes reject the clip. A missing number of votes is 0."""
    votes = {}
    for column in (columns.up_votes, columns.down_votes):
        value = row[column] if column else None
        try:
            # pandas writes NaN for a missing integer.
            votes[column] = 0 if value is None or value != value or value == "" else int(value)
        except (TypeError, ValueError):
            return Rejection(Reason.MALFORMED_ROW, f"{column} {str(value)[:80]!r} is not a number of votes")
    if columns.up_votes and votes[columns.up_votes] < config.min_upvotes:
        return Rejection(Reason.TOO_FEW_UPVOTES, f"{votes[columns.up_votes]}, at least {config.min_upvotes} required")
    if columns.down_votes and votes[columns.down_votes] > config.max_downvotes:
        return Rejection(
            Reason.TOO_MANY_DOWNVOTES, f"{votes[columns.down_votes]}, at most {config.max_downvotes} allowed"
        )
    return None


def speakers_of(clips: Callable[[], Iterator[SourceClip]]) -> Callable[[], Iterator[str | None]]:
    """Returns :attr:`Source.speakers` of a source whose clips contain no audio."""
    return lambda: (clip.speaker for clip in clips())


# Clips and lines


def make_clip(clip_id: str, text: str, audio: Path | bytes | Rejection, speaker: str | None) -> SourceClip:
    """Returns a clip with its audio, or with the reason why it has none."""
    if isinstance(audio, Rejection):
        return SourceClip(clip_id, text, b"", speaker, audio)
    return SourceClip(clip_id, text, audio, speaker, None)


def nonblank_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number and the text, without line end, of every line that is not blank.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    return ((number, line.rstrip("\r\n")) for number, line in read_lines(path) if line.strip())


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of every line. Only a line feed ends a line: texts may contain U+2028 and others.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "CP1252"
        raise DataError(
            f"{path} line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8, for example with "
            f"iconv -f {encoding} -t UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def require_clips(clip_count: int, path: Path) -> int:
    """Returns ``clip_count``; raises :class:`DataError` if it is 0."""
    if clip_count == 0:
        raise DataError(f"{path}: contains no clips. Give a data set with at least one.")
    return clip_count
