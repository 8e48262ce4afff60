"""Reads groups of rows of a :class:`datasets.Dataset`, in memory or on disk, as if it were one file."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.parquet_rows import GROUP_ROWS, by_role, choose_columns, rows_per_group
from vits_trainer.data.shards import ShardRecord
from vits_trainer.data.sources.base import Columns
from vits_trainer.data.sources.dataset import NAME, undecoded
from vits_trainer.utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class DatasetRows:
    """Groups of rows of a dataset; its audio is not decoded."""

    def __init__(self, rows: "Dataset", columns: Columns) -> None:
        """Args:
        rows: with at least one row, and the columns of ``columns``.
        columns: by role.
        """
        self.columns: Sequence[Columns] = [columns]
        self._rows = rows.with_format("arrow")
        self._texts = self._rows.select_columns([name for name in (columns.text, columns.speaker) if name is not None])
        self._size = rows_per_group(len(rows), rows.data.nbytes * len(rows) // max(1, rows.data.num_rows))
        groups = tuple(len(range(len(rows))[start : start + self._size]) for start in range(0, len(rows), self._size))
        self.records: Sequence[ShardRecord] = [ShardRecord(NAME, 0, self._digest(), groups, 0, 0)]

    def _digest(self) -> str:
        """SHA-256 of the texts and speakers. The fingerprint of ``datasets`` may differ for the same rows."""
        digest = hashlib.sha256()
        for table in self.texts_and_speakers():
            digest.update(repr(table.to_pydict()).encode())
        return digest.hexdigest()

    @property
    def row_groups(self) -> NDArray[np.int64]:
        """Every group can be read by itself."""
        return np.arange(len(self.records[0].groups))

    def locate(self, group: int) -> tuple[ShardRecord, int]:
        """Returns the only record, and the index of the group."""
        return self.records[0], group

    def read(self, group: int) -> pa.Table:
        """Reads a group, by role."""
        return by_role(self._rows[group * self._size : (group + 1) * self._size], self.columns[0])

    def read_after(self, group: int, previous: Any) -> tuple[pa.Table, Any]:  # noqa: ARG002 - of all readers
        """Reads a group."""
        return self.read(group), None

    def texts_and_speakers(self) -> Iterator[pa.Table]:
        """Yields the columns text and speaker of all rows; reads no audio."""
        for start in range(0, len(self._texts), GROUP_ROWS):
            table = self._texts[start : start + GROUP_ROWS]
            speaker = self.columns[0].speaker
            speakers = table[speaker] if speaker else pa.nulls(table.num_rows, pa.string())
            yield pa.table({"text": table[self.columns[0].text], "speaker": speakers})


def open_dataset_rows(rows: object, config: PrepareConfig) -> DatasetRows:
    """Opens a dataset with an audio column (``datasets.Audio``) and a text column.

    Raises:
        DataError: it is another object of ``datasets``, has no rows or no such columns, or its audio is decoded.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict  # noqa: PLC0415 - takes seconds

    if isinstance(rows, (DatasetDict, IterableDatasetDict)):
        raise DataError(f'data: has several splits ({", ".join(map(str, rows))}). Give one, such as data["train"].')
    if isinstance(rows, IterableDataset):
        raise DataError(
            "data: rows of an IterableDataset can only be read in its own order. Give the name of the data set as "
            "TrainConfig(dataset=..., streaming=True), or a datasets.Dataset."
        )
    if not isinstance(rows, Dataset):
        raise DataError(f"data: is a {type(rows).__name__}, not a datasets.Dataset.")
    if not len(rows):
        raise DataError("data: has no rows.")
    columns = choose_columns(NAME, rows.features.arrow_schema, config)
    return DatasetRows(undecoded(rows, columns), columns)
