"""Where clips come from: finds out what ``--dataset`` is and opens it. LJ Speech is read here, others in ``tables``."""

import glob
from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config_data import HUB_NAME, PrepareConfig
from vits_trainer.errors import DataError
from vits_trainer.parquet import open_parquet
from vits_trainer.tables import (
    AUDIO_ENDINGS,
    Source,
    SourceClip,
    clip_of,
    filled_lines,
    finder,
    is_audio_folder,
    named_columns,
    open_audio_folder,
    open_common_voice,
    open_hub,
    some,
)

KINDS = (
    "an LJ Speech folder (metadata.csv with wavs/ or audio/), an audio folder (metadata.csv with a header "
    "file_name,text), an extracted Common Voice release (validated.tsv with clips/), Parquet (a file, a folder of "
    "files or a pattern), corrections (NAME.wav with NAME.txt), or the name of a data set on the Hugging Face Hub "
    "(owner/name)"
)


def open_source(config: PrepareConfig) -> Source:
    """Finds out what ``config.dataset`` is, and opens it. What lies on this machine goes before the Hub.

    Raises:
        DataError: nothing there that is known, or its metadata are malformed (file and line are named). For
            Parquet and the Hub, damage may show itself only while the clips are read.
    """
    place = Path(config.dataset).expanduser()
    parquet_files: list[Path] = []
    if place.is_dir():
        parquet_files = sorted(place.glob("*.parquet"))
    elif place.is_file():
        parquet_files = [place] if place.suffix == ".parquet" else []
    else:
        # Path.glob takes no absolute pattern.
        parquet_files = sorted(Path(found) for found in glob.glob(str(place), recursive=True))  # noqa: PTH207
        if not parquet_files and HUB_NAME.fullmatch(config.dataset) and place.suffix != ".parquet":
            return open_hub(config)
    for flag in ("config_name", "revision"):
        if getattr(config, flag) is not None:
            raise DataError(f"--{flag} belongs to data sets on the Hub, and {place} is not one. Leave it out.")
    if (place / "validated.tsv").is_file():
        return open_common_voice(place, config)
    if (place / "metadata.csv").is_file():
        return open_audio_folder(place, config) if is_audio_folder(place, config) else _open_lj_speech(place, config)
    if _correction_names(place):
        return _open_corrections(place)
    if parquet_files:
        return open_parquet(parquet_files, config)
    raise DataError(f"--dataset {config.dataset}: {_what_is_wrong_with(place)} Give {KINDS}.")


def _what_is_wrong_with(place: Path) -> str:
    if place.is_dir():
        return "the folder holds neither metadata.csv nor validated.tsv nor *.parquet."
    if place.exists():
        return "the file is no .parquet file."
    return "no such file or folder, and no file matches it as a pattern."


# LJ Speech


def _open_lj_speech(folder: Path, config: PrepareConfig) -> Source:
    """``metadata.csv`` holds ``id|text`` or ``id|text|normalised text``, the same number of columns in every line."""
    metadata = folder / "metadata.csv"
    _refuse_prepared(folder)
    for flag in named_columns(config):
        raise DataError(f"{metadata}: id|text has no column names. Leave out {flag}, or write a header with commas.")
    columns = clip_count = 0
    for number, line in filled_lines(metadata):
        fields = line.split("|")
        columns = columns or len(fields)
        if columns not in (2, 3):
            raise DataError(
                f"{metadata} line {number}: {columns} column(s) between '|', where id|text or "
                "id|text|normalised text is expected. Write it so, without a header line; or as real CSV under the "
                "header file_name,text."
            )
        if len(fields) != columns or not fields[0].strip():
            raise DataError(
                f"{metadata} line {number}: expected {columns} columns like the first line, beginning with the "
                f"clip's id, but found {line[:80]!r}. Correct the line ('|' may not stand in a text)."
            )
        clip_count += 1
    return Source("lj-speech", folder, some(clip_count, metadata), _lj_speech_clips(folder))


def _lj_speech_clips(folder: Path) -> Iterator[SourceClip]:
    find = finder(folder, ("wavs", "audio", "."))
    for _, line in filled_lines(folder / "metadata.csv"):
        clip_id, text, *normalised = line.split("|")
        spoken = normalised[0] if normalised and normalised[0].strip() else text
        yield clip_of(clip_id, spoken, find(clip_id.strip()), speaker=None)


def _refuse_prepared(folder: Path) -> None:
    # Its third column is the speaker: it would be taken for the text.
    summary = folder / "dataset.json"
    if summary.is_file() and '"vits_trainer"' in summary.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"--dataset {folder}: prepare_data wrote this folder. Give it to train_vits --data_dir {folder}, or give "
            "the data set that it was made from."
        )


# Corrections


def _open_corrections(folder: Path) -> Source:
    """``NAME.txt`` beside ``NAME.wav`` (or another audio file): what users recorded. One alone is a rejection."""
    names = _correction_names(folder)
    find = finder(folder, (".",))
    clips = (clip_of(name, _text_of(folder / f"{name}.txt"), find(name), speaker=None) for name in names)
    return Source("corrections", folder, len(names), clips)


def _correction_names(folder: Path) -> list[str]:
    """Names in the folder that have a text; where there is one, those with audio alone as well."""
    if not folder.is_dir() or not any(folder.glob("*.txt")):
        return []
    endings = (".txt", *AUDIO_ENDINGS)
    return sorted({path.stem for path in folder.iterdir() if path.is_file() and path.suffix.lower() in endings})


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error
