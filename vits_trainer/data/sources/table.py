"""Folders with a table of files and texts, metadata.csv or metadata.tsv, in any of the usual layouts.

The separator, the header, the quoting and the meaning of the columns follow from the content: which column names
existing files, which has few distinct values (the speaker), which is a reading of another (the normalised text).
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    SourceKind,
    make_clip,
    named_columns,
    require_clips,
    row_clip,
    speakers_of,
)
from vits_trainer.data.sources.files import AudioFiles
from vits_trainer.data.sources.table_columns import Roles, describe, find_roles
from vits_trainer.data.sources.table_rows import Table, read_table
from vits_trainer.utils.errors import DataError

logger = logging.getLogger(__name__)

TABLES = ("metadata.csv", "metadata.tsv")
"""Names of tables; the first that exists is read."""
FOLDERS = ("wavs", "audio", ".", "clips")
"""Folders in which audio files are searched."""


def _table_of(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _has_table(folder: Path, _: PrepareConfig) -> bool:
    return _table_of(folder) is not None


def _open_table(folder: Path, config: PrepareConfig) -> Source:
    """Opens a folder with a table.

    Raises:
        DataError: the table cannot be read, or its columns can be understood in several ways.
    """
    path = _table_of(folder)
    if path is None:
        raise DataError(f"{folder}: contains no {' or '.join(TABLES)}.")
    _refuse_prepared(folder)
    find = AudioFiles(folder, FOLDERS)

    def is_file(name: str) -> bool:
        return isinstance(find.locate(name), Path)

    table = read_table(path, is_file, list(named_columns(config).values()))
    roles = find_roles(table, config, is_file)
    logger.info("%s", describe(table, roles))
    clip_count = len(table.rows) + len(table.malformed)
    return Source(
        SOURCE.name,
        folder,
        require_clips(clip_count, path),
        _clips(table, roles, find, config),
        access="listed",
        speakers=speakers_of(lambda: _clips(table, roles, find, config)),
    )


def _clips(table: Table, roles: Roles, find: AudioFiles, config: PrepareConfig) -> Iterator[SourceClip]:
    malformed = [(number, None) for number in table.malformed]
    columns = Columns(
        audio="audio",
        text="text",
        clip_id=None,
        up_votes=None if roles.up_votes is None else "up_votes",
        down_votes=None if roles.down_votes is None else "down_votes",
        speaker="speaker",
    )
    for number, cells in sorted([*table.rows, *malformed], key=lambda row: row[0]):
        if cells is None:
            rejection = Rejection(Reason.MALFORMED_ROW, table.malformed[number])
            yield make_clip(f"{table.path.name} line {number}", "", rejection, speaker=None)
            continue
        spoken = cells[roles.normalised].strip() if roles.normalised is not None else ""
        row = {
            "audio": cells[roles.audio] if cells[roles.audio].strip() else "",
            "text": spoken or cells[roles.text].strip(),
            "speaker": None if roles.speaker is None else cells[roles.speaker].strip(),
            "up_votes": None if roles.up_votes is None else cells[roles.up_votes].strip(),
            "down_votes": None if roles.down_votes is None else cells[roles.down_votes].strip(),
        }
        yield row_clip(row, f"{table.path.name} line {number}", columns, find, config)


def _refuse_prepared(folder: Path) -> None:
    summary = folder / "dataset.json"
    if summary.is_file() and '"vits_trainer"' in summary.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"--dataset {folder}: prepare_data wrote this folder. Train on it with train_vits --data_dir {folder}, or "
            "give the data set from which it was made."
        )


SOURCE = SourceKind(
    "table",
    "a folder with a table of files and texts (metadata.csv as of LJ Speech, with wavs/, or with a header "
    "file_name,text)",
    _has_table,
    _open_table,
)
