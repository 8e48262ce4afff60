"""Lists of clips to leave out of a preparation, as check_data and its page write them."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vits_trainer.data.preparation.journal import RejectedClip
from vits_trainer.utils import records
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.strings import csv_cell, short_digest

_REMEDY = "Give the suspicious.csv of check_data, the list that its page saves, or a text file with a name per line."
_INDEX = re.compile(r"#\d+", re.ASCII)


@dataclass(frozen=True)
class DropList:
    """Clips to leave out."""

    path: str = ""
    names: frozenset[str] = frozenset()
    """Names of clips in the source, as :func:`csv_cell` writes them."""
    indices: frozenset[int] = frozenset()
    """Indices in the source, of clips that are listed as ``#4``."""

    def __bool__(self) -> bool:
        return bool(self.names or self.indices)

    @property
    def name(self) -> str:
        """Name of the file, for what is uploaded: its path may tell of this machine."""
        return Path(self.path).name

    @property
    def digest(self) -> str | None:
        """A digest of the list, whatever its order; None if it is empty."""
        return short_digest((sorted(self.names), sorted(self.indices))) if self else None

    def drops(self, clip_id: str, index: int) -> bool:
        """Returns whether the clip with this name and this index in the source is on the list."""
        return index in self.indices or csv_cell(clip_id) in self.names

    def warnings(self, rejected: Iterable[RejectedClip], source_clips: int) -> list[str]:
        """Returns warnings of entries that name no clip, or several.

        Args:
            rejected: all clips that were rejected, also for other reasons.
            source_clips: number of clips of the source.

        Raises:
            DataError: no entry names a clip.
        """
        left_out = Counter(csv_cell(clip.clip_id) for clip in rejected)
        missing = sorted(self.names - left_out.keys())
        missing += [f"#{index}" for index in sorted(self.indices) if index >= source_clips]
        total = len(self.names) + len(self.indices)
        warnings = []
        if missing:
            sentence = f"{len(missing)} of {total} entries name no clip that was read, such as {missing[0]}"
            if len(missing) == total:
                raise DataError(f"--drop {self.path}: {sentence}: the list is that of another data set. {_REMEDY}")
            warnings.append(f"--drop {self.name}: {sentence}.")
        several = {name: left_out[name] for name in sorted(self.names) if left_out[name] > 1}
        if several:
            name, count = next(iter(several.items()))
            warnings.append(
                f"--drop {self.name}: {len(several)} of {total} entries name several clips, which are all left out, "
                f"such as {name} ({count} clips)."
            )
        return warnings


NOTHING = DropList()


def read_drop_list(path: str | None) -> DropList:
    """Reads a list: CSV with the columns clip and source, or lines with names of clips in the source.

    Args:
        path: of the file; None is an empty list.

    Raises:
        ConfigError: it cannot be read, is empty, or has clips without names in the source.
    """
    if path is None:
        return NOTHING
    flag = f"--drop {path}"
    content = records.read_bytes(Path(path), ConfigError, _REMEDY, records.MAX_UNTYPED_BYTES)
    try:
        text = content.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{flag}: is not UTF-8 CSV ({error}). {_REMEDY}") from error
    if not rows:
        raise ConfigError(f"{flag}: is empty. {_REMEDY}")
    if "source" not in rows[0] or "clip" not in rows[0]:
        return _listed(path, (line for line in map(str.strip, text.splitlines()) if line))
    clip, source = rows[0].index("clip"), rows[0].index("source")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise ConfigError(f"{flag} line {number}: has {len(row)} columns, not {len(rows[0])}. {_REMEDY}")
        if not row[source]:
            raise ConfigError(
                f"{flag} line {number}: has no name in the source for {row[clip]}, as its folder was prepared by an "
                "earlier version. Prepare the folder again, and repeat check_data."
            )
    return _listed(path, (row[source] for row in rows[1:]))


def _listed(path: str, entries: Iterable[str]) -> DropList:
    names = {csv_cell(entry) for entry in entries}
    indices = {name for name in names if _INDEX.fullmatch(name)}
    return DropList(path, frozenset(names - indices), frozenset(int(index[1:]) for index in indices))
