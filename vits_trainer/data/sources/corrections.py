"""Corrections recorded with feedback_app: pairs of NAME.wav and NAME.txt."""

from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import AUDIO_ENDINGS, Reason, Rejection
from vits_trainer.data.sources.base import Source, SourceClip, SourceKind, make_clip
from vits_trainer.data.sources.files import is_utf8, paired_files
from vits_trainer.utils.strings import printable

SPEAKER_ENDING = ".speaker"
"""Of the file with the name of a correction's speaker, for voices of several speakers."""


def read_speaker(path: Path) -> str | None:
    """Returns the first line of NAME.speaker next to ``path``; None if the file is missing or is no text."""
    try:
        content = path.with_suffix(SPEAKER_ENDING).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return content.partition("\n")[0].strip() or None


def _has_corrections(folder: Path, _: PrepareConfig) -> bool:
    return bool(_pairs(folder))


def _open_corrections(folder: Path, _: PrepareConfig) -> Source:
    """Opens a folder of ``NAME.txt`` with ``NAME.wav`` (or another audio file). One without the other is rejected."""
    pairs = _pairs(folder)
    clips = (_clip(printable(name), files) for name, files in pairs.items())
    return Source(SOURCE.name, folder, len(pairs), clips, access="listed")


def _pairs(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of each name; none if the folder has no text."""
    pairs = paired_files(folder) if folder.is_dir() else {}
    return pairs if any(_texts(files) for files in pairs.values()) else {}


def _texts(files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix.casefold() == ".txt"]


def _clip(name: str, files: list[Path]) -> SourceClip:
    texts = _texts(files)
    audio = sorted(set(files) - set(texts), key=lambda file: AUDIO_ENDINGS.index(file.suffix.casefold()))
    # The same name with another ending may be the same recording: the first of AUDIO_ENDINGS is used.
    alike = [file for file in audio if file.suffix.casefold() == audio[0].suffix.casefold()]
    rejection = None
    if any(not is_utf8(file.name) for file in files):
        rejection = Rejection(Reason.UNUSABLE_NAME, f"{printable(files[0].name)} is not UTF-8; rename the file")
    elif len(texts) > 1 or len(alike) > 1:
        names = " or ".join(ascii(file.name) for file in (texts if len(texts) > 1 else alike))
        rejection = Rejection(Reason.AMBIGUOUS_NAME, f"{name} may be {names}: rename one")
    elif not audio:
        rejection = Rejection(Reason.MISSING_FILE, f"{name} has a text and no recording")
    elif not texts:
        rejection = Rejection(Reason.EMPTY_TEXT, f"{name} has a recording and no text")
    if rejection is not None:
        return make_clip(name, "", rejection, speaker=None)
    try:
        text = texts[0].read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        rejection = Rejection(
            Reason.MALFORMED_ROW, f"{texts[0].name}: not UTF-8 ({error.reason} at byte {error.start})"
        )
        return make_clip(name, "", rejection, speaker=None)
    return make_clip(name, text, audio[0], read_speaker(texts[0]))


SOURCE = SourceKind("corrections", "corrections (NAME.wav with NAME.txt)", _has_corrections, _open_corrections)
