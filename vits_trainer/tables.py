"""Sources with named columns (Common Voice, audio folders, the Hub), and what every kind of source shares."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_trainer.config_data import PrepareConfig
from vits_trainer.errors import DataError, first_line
from vits_trainer.recordings import Reason, Rejection

AUDIO_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
HUB_TIMEOUT_S = 10
"""How long to wait for the Hub's first answer."""
DOWNLOAD_REMEDY = "download the data set and give its folder"


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
    clips_behind: Callable[[int], Iterator[SourceClip]] | None = None
    """The clips behind the first so many, without looking at those; None where a file may be named twice: a clip is
    known for a repetition only by those before it."""


Find = Callable[[str], Path | Rejection]
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


# Common Voice


def open_common_voice(folder: Path, config: PrepareConfig) -> Source:
    """``validated.tsv`` has a header, tabs, and no quoting: a ``"`` in a sentence is a ``"``."""
    metadata = folder / "validated.tsv"
    clip_count = sum(1 for _ in _release_rows(metadata, config))
    return Source("common-voice", folder, some(clip_count, metadata), _common_voice_clips(folder, config))


def _release_columns(config: PrepareConfig) -> Columns:
    audio = config.audio_column or "path"
    speaker = config.speaker_column or "client_id"
    return Columns(audio, config.text_column or "sentence", audio, "up_votes", "down_votes", speaker)


def _common_voice_clips(folder: Path, config: PrepareConfig) -> Iterator[SourceClip]:
    find, columns = finder(folder, ("clips",)), _release_columns(config)
    for number, row in _release_rows(folder / "validated.tsv", config):
        yield row_clip(row, f"line {number}", columns, find, config)


def _release_rows(metadata: Path, config: PrepareConfig) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows by column; every row has all columns, and whole numbers as votes."""
    lines = filled_lines(metadata)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    require_named_columns(f"{metadata} line 1", names, config)
    columns = _release_columns(config)
    asked = (columns.speaker, columns.audio, columns.text, columns.up_votes, columns.down_votes)
    missing = [name for name in asked if name is not None and name not in names]
    if missing:
        raise DataError(
            f"{metadata} line 1: no column {', '.join(missing)}. Give the validated.tsv of a Common Voice release, "
            "with its header line and tabs, as it was extracted."
        )
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            raise DataError(
                f"{metadata} line {number}: {len(fields)} columns where the header has {len(names)}. "
                "Extract the release again, or correct the line."
            )
        row = dict(zip(names, fields, strict=True))
        if not (row["up_votes"].isdecimal() and row["down_votes"].isdecimal() and row[columns.audio]):
            raise DataError(
                f"{metadata} line {number}: needs a path and whole numbers as votes, but found path "
                f"{row[columns.audio]!r}, up_votes {row['up_votes']!r}, down_votes {row['down_votes']!r}. "
                "Correct the line."
            )
        yield number, row


# An audio folder


def is_audio_folder(folder: Path, config: PrepareConfig) -> bool:
    """Whether ``metadata.csv`` begins with a header of names between commas.

    LJ Speech's has no header, and has a ``|`` in every line: where one stands in the first line, it is no header.
    """
    _, first_line = next(filled_lines(folder / "metadata.csv"), (1, ""))
    names = [name.strip('"') for name in first_line.split(",")]
    return "|" not in first_line and ("file_name" in names or bool(named_columns(config)))


def open_audio_folder(folder: Path, config: PrepareConfig) -> Source:
    """``metadata.csv`` has a header ``file_name,text[,speaker]``, and commas and quotes as CSV has them."""
    metadata = folder / "metadata.csv"
    rows = _csv_rows(metadata)
    _, names = next(rows, (1, []))
    columns = Columns.of(f"{metadata} line 1", names, config, audio=("file_name",))
    clip_count = sum(1 for _ in rows)
    return Source("audio-folder", folder, some(clip_count, metadata), _audio_folder_clips(folder, columns, config))


def _audio_folder_clips(folder: Path, columns: Columns, config: PrepareConfig) -> Iterator[SourceClip]:
    metadata = folder / "metadata.csv"
    find, rows = finder(folder, (".",)), _csv_rows(metadata)
    _, names = next(rows, (1, []))
    for number, fields in rows:
        yield row_clip(dict(zip(names, fields, strict=True)), f"{metadata} line {number}", columns, find, config)


def _csv_rows(metadata: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, as many fields in each, with the number of the line in which they end."""
    reader = csv.reader((line for _, line in _lines(metadata)), strict=True)
    columns = 0
    try:
        for fields in reader:
            if len(fields) <= 1 and not "".join(fields).strip():  # a blank line
                continue
            columns = columns or len(fields)
            if len(fields) != columns:
                raise DataError(
                    f"{metadata} line {reader.line_num}: {len(fields)} columns where the header has {columns}. "
                    'Correct the line (a text with a comma stands in "").'
                )
            yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{metadata} line {reader.line_num}: no CSV ({error}). Correct the line.") from error


# The Hugging Face Hub


def open_hub(config: PrepareConfig) -> Source:
    """Opens a data set on the Hub; its recordings are fetched while the clips are read.

    Raises:
        DataError: the Hub cannot be reached, has no such data set, configuration, split or revision, asks for a
            login, or the data set needs a program of its own or keeps its recordings in single files.
    """
    from datasets import load_dataset  # noqa: PLC0415  takes seconds
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    commit = _hub_commit(config)
    try:
        rows = load_dataset(
            config.dataset, config.config_name, split=config.split, revision=commit, streaming=True
        ).decode(False)  # decoding it here would need torchcodec
        names = rows.column_names or list(next(iter(rows), {}))
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    if not names:
        raise DataError(f"--dataset {config.dataset}: no clip in {config.split}. Choose another --split.")
    columns = Columns.of(f"--dataset {config.dataset}", names, config)
    splits = [(rows.info.splits or {}).get(name.strip()) for name in config.split.split("+")]
    counts = [split.num_examples for split in splits if split is not None and split.num_examples]
    clip_count = sum(counts) if len(counts) == len(splits) else None
    wanted = rows.select_columns(columns.present())

    def clips_behind(first: int) -> Iterator[SourceClip]:
        return _hub_clips(wanted.skip(first) if first else wanted, first, columns, config)

    return Source("hub", None, clip_count, clips_behind(0), revision=commit, clips_behind=clips_behind)


def _hub_commit(config: PrepareConfig) -> str | None:
    """Asks the Hub once, without the minutes of retries of ``load_dataset``, whether the data set can be read.

    Returns:
        The commit that ``config.revision`` means now: later commits are not mixed into what is read.
    """
    from huggingface_hub import HfApi, errors  # noqa: PLC0415  takes a second

    place = f"--dataset {config.dataset}"
    try:
        api = HfApi()
        commit = api.dataset_info(config.dataset, revision=config.revision, timeout=HUB_TIMEOUT_S).sha
        api.auth_check(config.dataset, repo_type="dataset")  # a gated one shows its commits to all
    except errors.GatedRepoError as error:
        raise DataError(
            f"{place}: its owner gives it only to those who accept its terms. Accept them on its page on the Hub and "
            f"log in (hf auth login), or {DOWNLOAD_REMEDY}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{place}: no such file or folder, and the Hugging Face Hub shows no data set of this name. Correct the "
            "name, or log in (hf auth login) if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{place}: it has no revision {config.revision}. Correct or leave out --revision.") from error
    # Its HTTP library is httpx or httpx2, by its version.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise DataError(
            f"{place}: no such file or folder, and the Hugging Face Hub cannot be reached ({first_line(error)}). "
            f"Correct the path, connect (and unset HF_HUB_OFFLINE), or {DOWNLOAD_REMEDY}."
        ) from error
    return commit


def _unreadable_on_hub(config: PrepareConfig, error: Exception) -> DataError:
    place = f"--dataset {config.dataset}"
    if "scripts are no longer supported" in str(error):
        return DataError(
            f"{place}: its files can be read only by a program of its own, which is not run. Please "
            f"{DOWNLOAD_REMEDY}, such as the extracted Common Voice release."
        )
    if isinstance(error, ImportError) or "torchcodec" in str(error):
        return DataError(
            f"{place}: keeps its recordings in single files, which are not read from the Hub. Please {DOWNLOAD_REMEDY}."
        )
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    return DataError(
        f"{place}: cannot be read ({reason}). Check --config_name and --split {config.split}, or {DOWNLOAD_REMEDY}."
    )


def _hub_clips(
    rows: Iterable[Mapping[str, Any]], behind: int, columns: Columns, config: PrepareConfig
) -> Iterator[SourceClip]:
    import pyarrow as pa  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    def nowhere(name: str) -> Rejection:
        # A path that somebody wrote into a table on the Hub must not open a file of this machine.
        return Rejection(Reason.MISSING_FILE, f"{name}: the row has only the name of a file")

    number = behind
    try:
        for number, row in enumerate(rows, start=behind + 1):
            yield row_clip(row, f"{config.dataset} {config.split} row {number}", columns, nowhere, config)
    except (pa.ArrowException, OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        raise _unreadable_on_hub(config, error) from error
    if number == 0:
        raise DataError(f"--dataset {config.dataset}: no clip in {config.split}. Choose another --split.")


# From a row to a clip


def row_clip(row: Mapping[str, Any], place: str, columns: Columns, find: Find, config: PrepareConfig) -> SourceClip:
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


def finder(root: Path, folders: Sequence[str]) -> Find:
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


def some(clip_count: int, place: Path) -> int:
    """``clip_count``; raises :class:`DataError` where it is 0."""
    if clip_count == 0:
        raise DataError(f"{place}: no clip in it. Give a data set with at least one.")
    return clip_count
