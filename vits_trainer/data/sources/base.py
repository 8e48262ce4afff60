"""Sources with named columns (Common Voice, audio folders, the Hub), and what every kind of source shares."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import AUDIO_ENDINGS, Reason, Rejection
from vits_trainer.utils.errors import DataError


@dataclass(frozen=True)
class SourceClip:
    """A recording and its text, as the source has them."""

    clip_id: str
    """What the source calls it."""
    text: str
    audio: Path | bytes
    """A file, or the content of one; b"" where there is none."""
    speaker: str | None
    rejection: Rejection | None
    """Why it is left out, where that is known without opening the audio."""


@dataclass(frozen=True)
class Source:
    """A data set, opened: its metadata are known to be well-formed as far as that shows before reading the audio."""

    kind: str
    root: Path | None
    """The folder that holds it; None for the Hub."""
    clip_count: int | None
    """None where the source does not say it beforehand."""
    clips: Iterator[SourceClip]
    """Every clip, read when it is asked for, always in the same order. Can be gone through once."""
    revision: str | None = None
    """The Hub's commit that is read."""
    files: Sequence[Path] | None = None
    """All that is read, where it is not the whole of ``root``."""
    clips_from: Callable[[int], Iterator[SourceClip]] | None = None
    """The clips behind the first so many, without looking at those; None where a file may be named twice: a clip is
    known for a repetition only by those before it."""


FileFinder = Callable[[str], Path | Rejection]
"""From the name of a recording to its file."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None for one that it does not have."""

    audio: str
    text: str
    clip_id: str | None
    up_votes: str | None
    down_votes: str | None
    speaker: str | None

    @classmethod
    def of(
        cls, place: object, names: Sequence[str], config: PrepareConfig, audio: Sequence[str] = ("audio", "path")
    ) -> "Columns":
        """The columns that ``config`` names, else the first known name among ``names``.

        Raises:
            DataError: a named column is absent, or there is none for the audio or the text.
        """
        require_named_columns(place, names, config)

        def first(*candidates: str) -> str | None:
            return next((name for name in candidates if name in names), None)

        audio_column, text_column = config.audio_column or first(*audio), config.text_column or first(*_TEXT_COLUMNS)
        if audio_column is None or text_column is None:
            raise DataError(
                f"{place}: needs a column {' or '.join(audio)}, and a column {' or '.join(_TEXT_COLUMNS)}; it has "
                f"{', '.join(names)}. Name them with --audio_column and --text_column."
            )
        return cls(
            audio=audio_column,
            text=text_column,
            clip_id=first("path"),
            up_votes=first("up_votes"),
            down_votes=first("down_votes"),
            speaker=config.speaker_column or first("client_id", "speaker_id", "speaker"),
        )

    def present(self) -> list[str]:
        """The columns to read."""
        return sorted({name for name in vars(self).values() if name is not None})


_TEXT_COLUMNS = ("sentence", "text")


def named_columns(config: PrepareConfig) -> dict[str, str]:
    """The columns that ``config`` names, by flag."""
    flags = ("audio_column", "text_column", "speaker_column")
    return {f"--{flag}": name for flag in flags if (name := getattr(config, flag)) is not None}


def require_named_columns(place: object, names: Sequence[str], config: PrepareConfig) -> None:
    """Raises :class:`DataError` with the list of ``names`` where a column that ``config`` names is not among them."""
    for flag, name in named_columns(config).items():
        if name not in names:
            raise DataError(
                f"{place}: no column {name} ({flag}); its columns are {', '.join(names)}. Name one of them."
            )


# From a row to a clip


def row_clip(
    row: Mapping[str, Any], place: str, columns: Columns, find: FileFinder, config: PrepareConfig
) -> SourceClip:
    """A row as a clip; ``find`` gives the file that it names, where it does not hold the recording itself.

    Raises:
        DataError: its audio or votes are nothing of the kind.
    """
    content, path = _content_and_path(row[columns.audio], place)
    up_votes = _votes(row[columns.up_votes], place) if columns.up_votes else config.min_upvotes
    down_votes = _votes(row[columns.down_votes], place) if columns.down_votes else 0
    audio: Path | bytes | Rejection | None = _judge_votes(up_votes, down_votes, config) or content
    if audio is None:
        audio = find(path) if path else Rejection(Reason.MISSING_FILE, "the row has no audio")
    clip_id = (row[columns.clip_id] if columns.clip_id else None) or path or place
    speaker = row[columns.speaker] if columns.speaker else None
    return clip_of(str(clip_id), str(row[columns.text] or ""), audio, None if speaker is None else str(speaker) or None)


def _content_and_path(value: Any, place: str) -> tuple[bytes | None, str | None]:
    """Audio as `datasets` writes it ({bytes, path}), as bytes, or as a path."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    if value is None or isinstance(value, bytes):
        return value, None
    if isinstance(value, str):
        return None, value
    raise DataError(f"{place}: its audio is a {type(value).__name__}. Give a file's content, its path, or both.")


def _votes(value: Any, place: str) -> int:
    if value is None or value != value:  # pandas writes NaN where a whole number is missing
        return 0
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: {value!r} is no number of votes. Correct it.") from error


def _judge_votes(up_votes: int, down_votes: int, config: PrepareConfig) -> Rejection | None:
    if up_votes < config.min_upvotes:
        return Rejection(Reason.TOO_FEW_UPVOTES, f"{up_votes}, at least {config.min_upvotes} asked for")
    if down_votes > config.max_downvotes:
        return Rejection(Reason.TOO_MANY_DOWNVOTES, f"{down_votes}, at most {config.max_downvotes} allowed")
    return None


# What the kinds share


def audio_file_finder(root: Path, folders: Sequence[str]) -> FileFinder:
    """A function that finds an audio file by its name, with or without its ending, in ``folders`` of ``root``.

    Whoever wrote the metadata must not make us read, and hand on as speech, a file that lies outside ``root``.
    """
    inside = root.resolve()
    places = [inside / folder for folder in folders if (inside / folder).is_dir()]

    def find(name: str) -> Path | Rejection:
        try:
            for place in places:
                for ending in ("", *AUDIO_ENDINGS):
                    file = (place / (name + ending)).resolve()
                    if not file.is_relative_to(inside):
                        return Rejection(Reason.PATH_OUTSIDE, f"{name} leads out of the data set's folder")
                    if file.is_file():
                        return file
        except (OSError, ValueError, RuntimeError):  # too long a name, NUL in it, symbolic links in a circle
            return Rejection(Reason.MISSING_FILE, f"{name[:200]!r} can be no file's name")
        return Rejection(Reason.MISSING_FILE, f"{name} is not in {' or '.join(folders)}")

    return find


def clip_of(clip_id: str, text: str, audio: Path | bytes | Rejection, speaker: str | None) -> SourceClip:
    """A clip with its audio, or with the reason why there is none."""
    if isinstance(audio, Rejection):
        return SourceClip(clip_id, text, b"", speaker, audio)
    return SourceClip(clip_id, text, audio, speaker, None)


def filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their ends, and their numbers.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    return ((number, line.rstrip("\r\n")) for number, line in _lines(path) if line.strip())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line as it stands, and its number. Only a line feed ends a line: a text may hold other signs."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def require_clips(clip_count: int, place: Path) -> int:
    """``clip_count``; raises :class:`DataError` where it is 0."""
    if clip_count == 0:
        raise DataError(f"{place}: no clip in it. Give a data set with at least one.")
    return clip_count
