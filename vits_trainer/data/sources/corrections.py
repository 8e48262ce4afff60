"""Corrections of feedback_app, as a source."""

from pathlib import Path

from vits_trainer.data.audio import AUDIO_ENDINGS
from vits_trainer.data.sources.base import Source, audio_file_finder, clip_of
from vits_trainer.utils.errors import DataError

# Corrections


def _open_corrections(folder: Path) -> Source:
    """``NAME.txt`` beside ``NAME.wav`` (or another audio file): what users recorded. One alone is a rejection."""
    names = _correction_names(folder)
    find = audio_file_finder(folder, (".",))
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
