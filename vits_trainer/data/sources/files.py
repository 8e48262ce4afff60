"""Lookup of the audio files that a data set names, in listings that are read once per folder."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from vits_trainer.data.audio import AUDIO_ENDINGS, Reason, Rejection
from vits_trainer.utils.strings import printable

FileFinder = Callable[[str], Path | Rejection]
"""Returns the audio file of a name, or the reason to reject the clip."""

_SHOWN_CHARACTERS = 200
_MAX_HINTS = 20
"""Number of missing files whose names are compared with those of all files."""


def is_audio(name: str) -> bool:
    """Returns whether a file name has the ending of an audio file, in any case."""
    return _ending(name) in AUDIO_ENDINGS


def is_utf8(name: str) -> bool:
    """Returns whether the name of a file is valid UTF-8."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def file_key(name: str) -> str:
    """Returns what two names have in common that denote the same file on some systems.

    macOS stores decomposed letters (NFD) and other systems mostly composed ones (NFC); recorders write ``.WAV``.
    """
    composed = unicodedata.normalize("NFC", name)
    ending = _ending(composed)
    return composed[: -len(ending)] + ending if ending in AUDIO_ENDINGS else composed


def _ending(name: str) -> str:
    return "." + name.rpartition(".")[2].casefold()


@dataclass
class _Listing:
    """The files of one folder."""

    folder: Path
    """Without symbolic links."""
    links: set[str] = field(default_factory=set)
    by_key: dict[str, list[str]] = field(default_factory=dict)
    """Names by :func:`file_key`."""

    @classmethod
    def read(cls, folder: Path) -> "_Listing":
        listing = cls(folder)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    listing.links.add(entry.name)
                if entry.is_symlink() or entry.is_file():  # in this order: a loop of links is no error
                    listing.by_key.setdefault(file_key(entry.name), []).append(entry.name)
        return listing

    def matches(self, name: str) -> list[str]:
        """Returns the file of this name, or those that match it in another form or with an ending added."""
        for ending in ("", *AUDIO_ENDINGS):
            names = self.by_key.get(file_key(name + ending), [])
            if name + ending in names and (not ending or len(names) == 1):
                return [name + ending]
            if names:
                return names
        return []

    def lookalike(self, name: str) -> str | None:
        """Returns a file that differs from ``name`` only in case or surrounding spaces."""
        wanted = {_blurred(name + ending) for ending in ("", *AUDIO_ENDINGS)}
        return next((name for names in self.by_key.values() for name in names if _blurred(name) in wanted), None)


def _blurred(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


class AudioFiles:
    """The audio files below a folder.

    Paths outside the folder are rejected: untrusted metadata must not make the trainer read, and publish as speech,
    other files of this machine.
    """

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        """Args:
        root: of the data set.
        folders: below ``root``, in the order in which they are searched.
        """
        self.root = root.resolve()
        self._wanted = folders
        self._listings: dict[Path, _Listing | None] = {}
        self._hints_left = _MAX_HINTS

    @cached_property
    def _subfolders(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())

    @cached_property
    def folders(self) -> list[str]:
        """Names of those folders that exist, as they are spelt."""
        existing = (".", *self._subfolders)
        return [name for wanted in self._wanted for name in existing if name.casefold() == wanted.casefold()]

    def __call__(self, name: str) -> Path | Rejection:
        """Returns the file of a name, with or without its ending, or the reason why there is none.

        Backslashes separate folders, as on Windows, unless a file has them in its name.
        """
        found = self.locate(name)
        if isinstance(found, Rejection) and found.reason in (Reason.MISSING_FILE, Reason.PATH_OUTSIDE):
            hint = self._hint(name)
            return Rejection(found.reason, f"{found.detail}; {hint}" if hint else found.detail)
        return found

    def locate(self, name: str) -> Path | Rejection:
        """Returns the same, without looking for what may be wrong with a name that no file has."""
        if not is_utf8(name):
            return Rejection(Reason.UNUSABLE_NAME, f"{printable(name)} is not UTF-8; rename the file")
        shown = name[:_SHOWN_CHARACTERS]
        try:
            found = next((found for spelling in _spellings(name) if (found := self._find(spelling))), None)
        except (OSError, ValueError, RuntimeError):  # name too long, NUL in it, loop of symbolic links
            return Rejection(Reason.MISSING_FILE, f"{shown!r} is not a valid file name")
        where = " or ".join(self.folders) or self.root.name
        return found or Rejection(Reason.MISSING_FILE, f"{shown} is not in {where}")

    def _find(self, name: str) -> Path | Rejection | None:
        for folder in self.folders:
            path = self.root / folder / name
            listing = self._listing(path.parent)
            if listing is None:
                continue
            if not listing.folder.is_relative_to(self.root):
                return self._outside(name)
            matches = listing.matches(path.name) if path.name else []
            if len(matches) > 1:
                return Rejection(
                    Reason.AMBIGUOUS_NAME, f"{name} may be {' or '.join(map(ascii, sorted(matches)))}: rename one"
                )
            for match in matches:
                file = listing.folder / match
                if match in listing.links:
                    file = file.resolve(strict=True)
                    if not file.is_relative_to(self.root):
                        return self._outside(name)
                if not is_utf8(match):
                    return Rejection(Reason.UNUSABLE_NAME, f"{printable(match)} is not UTF-8; rename the file")
                if file.is_file() or match not in listing.links:
                    return file
        return None

    def _outside(self, name: str) -> Rejection:
        return Rejection(Reason.PATH_OUTSIDE, f"{name} is outside the data set's folder")

    def _listing(self, folder: Path) -> _Listing | None:
        if folder not in self._listings:
            resolved = folder.resolve()
            inside = resolved.is_relative_to(self.root)
            # A folder outside is not listed, whether it exists or not.
            self._listings[folder] = (
                _Listing(resolved) if not inside else _Listing.read(resolved) if resolved.is_dir() else None
            )
        return self._listings[folder]

    def _hint(self, name: str) -> str | None:
        """Returns what is probably wrong with a name that no file has; only for the first names, as it takes long."""
        bare = name.strip().strip("\"'").replace("\\", "/")
        self._hints_left -= 1
        if self._hints_left < 0 or not bare or "\0" in name:
            return None
        if bare != name.replace("\\", "/") and self._exists(bare):
            return f"{bare} exists: remove the quotes or spaces around the name"
        parts = PurePosixPath(bare).parts
        for start in range(1, len(parts)):
            shorter = "/".join(parts[start:])
            if self._exists(shorter):
                return f"{shorter} exists: remove {bare.removesuffix(shorter)} from the names"
        for subfolder in self._subfolders:
            if self._exists(f"{subfolder}/{parts[-1]}"):
                return (
                    f"{subfolder}/{parts[-1]} exists: write {subfolder}/ before the names, or move the files to wavs/"
                )
        for listing in self._searched(PurePosixPath(bare)):
            like = listing.lookalike(parts[-1])
            if like is not None and like != parts[-1]:  # an equal name is a link that cannot be followed
                return f"there is {like!r}, which differs in case or spaces: write the name as the file has it"
        stem = PurePosixPath(bare).stem
        if is_audio(bare) and self._exists(str(PurePosixPath(bare).with_name(stem))):
            return f"{stem} exists with another ending: correct the ending, or leave it out"
        return None

    def _searched(self, name: PurePosixPath) -> Iterator[_Listing]:
        for folder in self.folders:
            listing = self._listings.get((self.root / folder / name).parent)
            if listing is not None:
                yield listing

    def _exists(self, name: str) -> bool:
        try:
            return isinstance(self._find(name), Path)
        except (OSError, ValueError, RuntimeError):
            return False


def _spellings(name: str) -> Iterator[str]:
    """Yields the ways in which a table may have written the path of a file, the literal one first."""
    written = [name, name.strip(), name.strip().replace("\\", "/")]
    forms = [] if name.isascii() else [unicodedata.normalize(form, written[-1]) for form in ("NFC", "NFD")]
    yield from dict.fromkeys([*written, *forms])  # a folder may have its name in another form, too


def paired_files(folder: Path) -> dict[str, list[Path]]:
    """Returns the texts and audio files of a folder by their common name, in the order of the names.

    Files whose names differ only in the case of the ending or in the Unicode form of a letter have a common name.
    """
    pairs: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = path.suffix.casefold()
        # macOS writes ._NAME next to NAME on other systems' disks.
        if path.is_file() and not path.name.startswith("._") and (ending == ".txt" or ending in AUDIO_ENDINGS):
            pairs.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    return dict(sorted(pairs.items()))
