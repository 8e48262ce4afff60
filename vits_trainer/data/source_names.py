"""Names that the source has for prepared clips, in the file ``sources.csv`` of a prepared folder.

It stays on this machine: names of files may tell who speaks.
"""

import csv
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_writer
from vits_trainer.utils.strings import csv_cell

SOURCES = "sources.csv"
_HEADER = ("clip", "source")


def write_source_names(folder: Path, names: Iterable[tuple[str, str]]) -> None:
    """Writes the name of each prepared clip with its name in the source."""
    with atomic_writer(folder / SOURCES) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows((clip, csv_cell(source)) for clip, source in names)


_CLIP_OF_SHARD = re.compile(r"audio_(\d+)\.wav", re.ASCII)


def read_source_names(folder: Path | None, clips: Collection[str], is_sharded: bool) -> dict[str, str]:
    """Returns the names in the source of some clips.

    Without the file, as on the Hub, clips of shards are ``#4``, the index that their own names contain. Clips of wavs/
    that an earlier version prepared have none.

    Raises:
        DataError: the file cannot be read.
    """
    path = None if folder is None else folder / SOURCES
    if path is None or not path.is_file():
        matches = [_CLIP_OF_SHARD.fullmatch(clip) for clip in clips] if is_sharded else []
        return {match[0]: f"#{int(match[1])}" for match in matches if match}
    wanted = set(clips)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row[0] in wanted}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Run prepare_data again.") from error
