"""Corrections recorded with feedback_app: pairs of NAME.wav and NAME.txt."""

from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import AUDIO_ENDINGS
from vits_trainer.data.sources.base import Source, SourceKind, audio_file_finder, make_clip
from vits_trainer.utils.errors import DataError


def _has_corrections(folder: Path, _: PrepareConfig) -> bool:
    return bool(_names(folder))


def _open_corrections(folder: Path, _: PrepareConfig) -> Source:
    """Opens a folder of ``NAME.txt`` with ``NAME.wav`` (or another audio file). One without the other is rejected."""
    names = _names(folder)
    find = audio_file_finder(folder, (".",))
    clips = (make_clip(name, _read_text(folder / f"{name}.txt"), find(name), speaker=None) for name in names)
    return Source(SOURCE.name, folder, len(names), clips)


def _names(folder: Path) -> list[str]:
    """Returns the names of all texts and audio files in ``folder``; none if it has no text."""
    if not folder.is_dir() or not any(folder.glob("*.txt")):
        return []
    endings = (".txt", *AUDIO_ENDINGS)
    return sorted({path.stem for path in folder.iterdir() if path.is_file() and path.suffix.lower() in endings})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from error


SOURCE = SourceKind("corrections", "corrections (NAME.wav with NAME.txt)", _has_corrections, _open_corrections)
