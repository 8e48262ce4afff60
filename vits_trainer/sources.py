"""Where clips come from: an LJ Speech folder, an extracted Common Voice release, or local Parquet."""

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_trainer.config import PrepareConfig
from vits_trainer.errors import DataError
from vits_trainer.recordings import Reason, Rejection

AUDIO_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
LOCAL_KINDS = (
    "an LJ Speech folder (metadata.csv with wavs/ or audio/), an extracted Common Voice release "
    "(validated.tsv with clips/), or Parquet (a file, a folder of files or a pattern)"
)


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
    root: Path
    """The folder that holds it."""
    clip_count: int
    clips: Iterator[SourceClip]
    """Every clip, read when it is asked for, always in the same order. Can be gone through once."""


def open_source(config: PrepareConfig) -> Source:
    """Finds out what ``config.dataset`` is, and opens it.

    Raises:
        DataError: nothing there that is known, or its metadata are malformed (file and line are named). For
            Parquet, a damaged file may show itself only while the clips are read.
    """
    place = Path(config.dataset).expanduser()
    if (place / "validated.tsv").is_file():
        return _open_common_voice(place, config)
    if (place / "metadata.csv").is_file():
        return _open_lj_speech(place)
    if place.is_dir():
        parquet_files = sorted(place.glob("*.parquet"))
    elif place.is_file():
        parquet_files = [place] if place.suffix == ".parquet" else []
    else:
        # Path.glob takes no absolute pattern.
        parquet_files = sorted(Path(found) for found in glob.glob(str(place), recursive=True))  # noqa: PTH207
    if parquet_files:
        return _open_parquet(parquet_files, config)
    raise DataError(f"--dataset {config.dataset}: {_what_is_wrong_with(config.dataset, place)} Give {LOCAL_KINDS}.")


def _what_is_wrong_with(dataset: str, place: Path) -> str:
    if place.is_dir():
        return "the folder holds neither metadata.csv nor validated.tsv nor *.parquet."
    if place.exists():
        return "the file is no .parquet file."
    if re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        return "no such file or folder; and a data set on the Hugging Face Hub is not read directly: download it first."
    return "no such file or folder, and no file matches it as a pattern."


# LJ Speech


def _open_lj_speech(folder: Path) -> Source:
    """``metadata.csv`` holds ``id|text`` or ``id|text|normalised text``, the same number of columns in every line."""
    metadata = folder / "metadata.csv"
    _refuse_prepared(folder)
    columns = clip_count = 0
    for number, line in _lines(metadata):
        fields = line.split("|")
        columns = columns or len(fields)
        if columns not in (2, 3):
            raise DataError(
                f"{metadata} line {number}: {columns} column(s) between '|', where id|text or "
                "id|text|normalised text is expected. Write it so, without a header line."
            )
        if len(fields) != columns or not fields[0].strip():
            raise DataError(
                f"{metadata} line {number}: expected {columns} columns like the first line, beginning with the "
                f"clip's id, but found {line[:80]!r}. Correct the line ('|' may not stand in a text)."
            )
        clip_count += 1
    return Source("lj-speech", folder, _some(clip_count, metadata), _lj_speech_clips(folder))


def _lj_speech_clips(folder: Path) -> Iterator[SourceClip]:
    find = _finder(folder, ("wavs", "audio", "."))
    for _, line in _lines(folder / "metadata.csv"):
        clip_id, text, *normalised = line.split("|")
        spoken = normalised[0] if normalised and normalised[0].strip() else text
        yield _clip(clip_id, spoken, find(clip_id.strip()), speaker=None)


def _refuse_prepared(folder: Path) -> None:
    # Its third column is the speaker: it would be taken for the text.
    summary = folder / "dataset.json"
    if summary.is_file() and '"vits_trainer"' in summary.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"--dataset {folder}: prepare_data wrote this folder. Give it to train_vits --data_dir {folder}, or give "
            "the data set that it was made from."
        )


# Common Voice

_RELEASE_COLUMNS = ("client_id", "path", "sentence", "up_votes", "down_votes")


def _open_common_voice(folder: Path, config: PrepareConfig) -> Source:
    """``validated.tsv`` has a header, tabs, and no quoting: a ``"`` in a sentence is a ``"``."""
    metadata = folder / "validated.tsv"
    clip_count = sum(1 for _ in _release_rows(metadata))
    return Source("common-voice", folder, _some(clip_count, metadata), _common_voice_clips(folder, config))


def _common_voice_clips(folder: Path, config: PrepareConfig) -> Iterator[SourceClip]:
    find = _finder(folder, ("clips",))
    for _, row in _release_rows(folder / "validated.tsv"):
        audio = _judge_votes(int(row["up_votes"]), int(row["down_votes"]), config) or find(row["path"])
        yield _clip(row["path"], row["sentence"], audio, speaker=row["client_id"] or None)


def _release_rows(metadata: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows by column; every row has all columns, and whole numbers as votes."""
    lines = _lines(metadata)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    missing = [name for name in _RELEASE_COLUMNS if name not in names]
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
        if not (row["up_votes"].isdecimal() and row["down_votes"].isdecimal() and row["path"]):
            raise DataError(
                f"{metadata} line {number}: needs a path and whole numbers as votes, but found path {row['path']!r}, "
                f"up_votes {row['up_votes']!r}, down_votes {row['down_votes']!r}. Correct the line."
            )
        yield number, row


def _judge_votes(up_votes: int, down_votes: int, config: PrepareConfig) -> Rejection | None:
    if up_votes < config.min_upvotes:
        return Rejection(Reason.TOO_FEW_UPVOTES, f"{up_votes}, at least {config.min_upvotes} asked for")
    if down_votes > config.max_downvotes:
        return Rejection(Reason.TOO_MANY_DOWNVOTES, f"{down_votes}, at most {config.max_downvotes} allowed")
    return None


# Parquet


@dataclass(frozen=True)
class _Columns:
    """Names of a Parquet file's columns; None for one that it does not have."""

    audio: str
    text: str
    path: str | None
    up_votes: str | None
    down_votes: str | None
    speaker: str | None

    @classmethod
    def of(cls, file: Path, names: Sequence[str]) -> "_Columns":
        def first(*candidates: str) -> str | None:
            return next((name for name in candidates if name in names), None)

        audio, text = first("audio", "path"), first("sentence", "text")
        if audio is None or text is None:
            raise DataError(
                f"{file}: needs a column audio or path, and a column sentence or text; it has {', '.join(names)}. "
                "Rename its columns."
            )
        return cls(
            audio,
            text,
            first("path"),
            first("up_votes"),
            first("down_votes"),
            first("client_id", "speaker_id", "speaker"),
        )

    def present(self) -> list[str]:
        return sorted({name for name in vars(self).values() if name is not None})


def _open_parquet(files: Sequence[Path], config: PrepareConfig) -> Source:
    import pyarrow as pa  # noqa: PLC0415  the worker processes import this module too, and do without it
    import pyarrow.parquet as pq  # noqa: PLC0415

    clip_count = 0
    columns = []
    for file in files:
        try:
            metadata = pq.read_metadata(file)
            names = metadata.schema.to_arrow_schema().names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: no readable Parquet file ({_first_line(error)}). Fetch it again.") from error
        clip_count += metadata.num_rows
        columns.append(_Columns.of(file, names))
    clips = (clip for file, named in zip(files, columns, strict=True) for clip in _parquet_clips(file, named, config))
    return Source("parquet", files[0].parent, _some(clip_count, files[0]), clips)


def _parquet_clips(file: Path, columns: _Columns, config: PrepareConfig) -> Iterator[SourceClip]:
    import pyarrow as pa  # noqa: PLC0415
    from datasets import load_dataset  # noqa: PLC0415  takes seconds

    find = _finder(file.parent, (".",))
    number = 0
    try:
        rows = load_dataset(
            "parquet",
            data_files=glob.escape(str(file.resolve())),  # or [ ] in a name would be taken for a pattern
            split="train",
            streaming=True,
            columns=columns.present(),
        ).decode(False)  # decoding it here would need torchcodec
        for number, row in enumerate(rows, start=1):
            yield _parquet_clip(row, f"{file} row {number}", columns, find, config)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file} after row {number}: cannot be read ({_first_line(error)}). Fetch the file again."
        ) from error


def _parquet_clip(
    row: Mapping[str, Any], place: str, columns: _Columns, find: "_Find", config: PrepareConfig
) -> SourceClip:
    content, path = _content_and_path(row[columns.audio], place)
    up_votes = _votes(row[columns.up_votes], place) if columns.up_votes else config.min_upvotes
    down_votes = _votes(row[columns.down_votes], place) if columns.down_votes else 0
    audio: Path | bytes | Rejection | None = _judge_votes(up_votes, down_votes, config) or content
    if audio is None:
        audio = find(path) if path else Rejection(Reason.MISSING_FILE, "the row has no audio")
    clip_id = (row[columns.path] if columns.path else None) or path or place
    speaker = row[columns.speaker] if columns.speaker else None
    return _clip(str(clip_id), str(row[columns.text] or ""), audio, None if speaker is None else str(speaker))


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


# What the kinds share

_Find = Callable[[str], Path | Rejection]


def _finder(root: Path, folders: Sequence[str]) -> _Find:
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


def _clip(clip_id: str, text: str, audio: Path | bytes | Rejection, speaker: str | None) -> SourceClip:
    if isinstance(audio, Rejection):
        return SourceClip(clip_id, text, b"", speaker, audio)
    return SourceClip(clip_id, text, audio, speaker, None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Only a line feed ends a line: a text may hold other signs."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if decoded.strip():
                    yield number, decoded
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _some(clip_count: int, place: Path) -> int:
    if clip_count == 0:
        raise DataError(f"{place}: no clip in it. Give a data set with at least one.")
    return clip_count


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
