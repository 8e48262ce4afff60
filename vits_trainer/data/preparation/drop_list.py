"""Lists of clips to leave out of a preparation, as check_data and its page write them."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vits_trainer.data.preparation.journal import RejectedClip, wav_name
from vits_trainer.utils import records
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.strings import csv_cell, short_digest

_REMEDY = "Give the suspicious.csv of check_data, the list that its page saves, or a text file with a name per line."


@dataclass(frozen=True)
class DropList:
    """Clips to leave out."""

    path: str = ""
    sources: frozenset[str] = frozenset()
    """Names of clips in the source, as :func:`csv_cell` writes them."""
    numbers: frozenset[str] = frozenset()
    """Names of clips of shards, which contain their index in the source; of lists without names of the source."""

    def __bool__(self) -> bool:
        return bool(self.sources or self.numbers)

    @property
    def digest(self) -> str | None:
        """A digest of the list, whatever its order; None if it is empty."""
        return short_digest((sorted(self.sources), sorted(self.numbers))) if self else None

    def drops(self, clip_id: str, index: int) -> bool:
        """Returns whether the clip with this name and this index in the source is on the list."""
        return csv_cell(clip_id) in self.sources or (bool(self.numbers) and wav_name(index) in self.numbers)

    def require_found(self, rejected: Iterable[RejectedClip], source_clips: int) -> str | None:
        """Returns a warning if some entries name no clip; None if all do.

        Args:
            rejected: all clips that were rejected, also for other reasons.
            source_clips: number of clips of the source.

        Raises:
            DataError: no entry names a clip.
        """
        left_out = {csv_cell(clip.clip_id) for clip in rejected}
        missing = sorted(self.sources - left_out)
        missing += sorted(name for name in self.numbers if not 0 <= _number(name) < source_clips)
        total = len(self.sources) + len(self.numbers)
        if not missing:
            return None
        sentence = (
            f"{len(missing)} of {total} entries of --drop {self.path} name no clip that was read, such as {missing[0]}"
        )
        if len(missing) == total:
            raise DataError(f"{sentence}: the list is that of another data set. {_REMEDY}")
        return f"{sentence}."


NOTHING = DropList()


def _number(name: str) -> int:
    digits = name.removeprefix("audio_").removesuffix(".wav")
    return int(digits) if digits.isdecimal() else -1


def read_drop_list(path: str | None, sharded: bool) -> DropList:
    """Reads a list: CSV with the columns clip and source, or lines with names of clips in the source.

    Args:
        path: of the file; None is an empty list.
        sharded: whether shards are prepared, whose clips are known by their number.

    Raises:
        ConfigError: it cannot be read, is empty, or names clips of wavs/ without their names in the source.
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
        return DropList(path, frozenset(csv_cell(line) for line in map(str.strip, text.splitlines()) if line))
    clip, source = rows[0].index("clip"), rows[0].index("source")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise ConfigError(f"{flag} line {number}: has {len(row)} columns, not {len(rows[0])}. {_REMEDY}")
    unnamed = frozenset(row[clip] for row in rows[1:] if not row[source])
    if unnamed and not sharded:
        raise ConfigError(
            f"{flag}: has no name in the source for {min(unnamed)}, as its folder was prepared by an earlier version. "
            "Prepare the folder again, and repeat check_data."
        )
    return DropList(path, frozenset(row[source] for row in rows[1:] if row[source]), unnamed)
