"""Source of a :class:`datasets.Dataset` in memory or on disk, for the Python interface."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.sources.base import Columns, Source, SourceClip, row_clip
from vits_trainer.utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

NAME = "dataset"
"""Of the source, in messages and ids of clips."""


def open_dataset(rows: "Dataset", config: PrepareConfig) -> Source:
    """Reads a dataset with an audio column (``datasets.Audio``) and a text column.

    Raises:
        DataError: it has no such columns, or its audio is already decoded to arrays.
    """
    columns = Columns.choose(NAME, rows.column_names, config)
    selected = undecoded(rows, columns)

    def clips_from(start: int) -> Iterator[SourceClip]:
        for number in range(start, len(selected)):
            yield row_clip(selected[number], f"{NAME} row {number + 1}", columns, find_file, config)

    def speakers() -> Iterator[str | None]:
        values = rows.select_columns([columns.speaker])[columns.speaker] if columns.speaker else ()
        return (None if value is None else str(value) for value in values)

    return Source(
        "dataset",
        None,
        len(selected),
        clips_from(0),
        revision=selected._fingerprint,
        clips_from=clips_from,
        access="random",
        speakers=speakers if columns.speaker else None,
    )


def undecoded(rows: "Dataset", columns: Columns) -> "Dataset":
    """Returns these columns, with audio as files or their contents.

    Raises:
        DataError: the audio is already decoded to arrays.
    """
    from datasets import Audio  # noqa: PLC0415 - takes seconds

    feature = rows.features[columns.audio]
    if isinstance(feature, Audio):
        rows = rows.cast_column(columns.audio, Audio(decode=False))  # decoding here would need torchcodec
    elif isinstance(feature, dict) and "array" in feature:
        raise DataError(
            f"{NAME}: column {columns.audio} holds arrays. Keep it as datasets.Audio: files or their bytes."
        )
    return rows.select_columns(columns.present())


def find_file(name: str) -> Path | Rejection:
    """Returns the file that a row names, or the reason to reject the clip."""
    path = Path(name)
    try:
        return path if path.is_file() else Rejection(Reason.MISSING_FILE, f"{name} does not exist")
    except OSError:  # name too long
        return Rejection(Reason.MISSING_FILE, f"{name[:200]!r} is not a valid file name")
