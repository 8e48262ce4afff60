"""Clips of a data set as it lies, streamed from Parquet files or a :class:`datasets.Dataset` without a preparation.

The data workers do with each clip what prepare_data does with its default settings: they decode it, check it, resample
it to the voice's rate and normalize its text.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import VitsTokenizer

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import expanded
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.audio import Reason, Rejection, reject
from vits_trainer.data.dataset import Clip
from vits_trainer.data.dataset_rows import open_dataset_rows
from vits_trainer.data.parquet_rows import open_rows
from vits_trainer.data.preparation.journal import AcceptedClip
from vits_trainer.data.preparation.plausibility import clip_facts, examine
from vits_trainer.data.preparation.workers import count_tokens, to_accepted, to_pcm
from vits_trainer.data.remote_shards import GroupReader, RemoteFolder
from vits_trainer.data.sources.base import Columns, SourceClip, row_clip
from vits_trainer.data.sources.dataset import find_file
from vits_trainer.data.sources.files import AudioFiles, FileFinder
from vits_trainer.data.sources.hub import is_on_hub, parquet_on_hub, refuse_hub_options
from vits_trainer.data.streaming import StreamedClipDataset, StreamedData
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.strings import counted, one_line, short_digest

logger = logging.getLogger(__name__)

_OPTIONAL_ROLES = ("up_votes", "down_votes", "speaker")
_WILDCARDS = "*?["
"""Of local patterns; in those of URLs, only the asterisk is one."""


class RowReader(GroupReader, Protocol):
    """Reads groups by role (:func:`vits_trainer.data.parquet_rows.by_role`)."""

    columns: Sequence[Columns]
    """Of each file."""

    def texts_and_speakers(self) -> Iterator[pa.Table]:
        """Yields the columns text and speaker of all rows; reads no audio."""


@dataclass(frozen=True)
class UnpreparedData(StreamedData):
    """An opened data set that prepare_data has not converted."""

    shards: RowReader

    settings: PrepareConfig
    """How clips are checked and converted; ``target_sr`` is not used."""
    find: FileFinder
    """Returns the file that a row names instead of containing its recording."""

    def describe_columns(self) -> str:
        """Returns one line that says which columns of the first file are read."""
        names = {role: name for role, name in vars(self.shards.columns[0]).items() if name is not None}
        return f"Columns: {', '.join(f'{role} = {name}' for role, name in names.items() if role != 'clip_id')}."

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Returns a hash of the files, ``rows`` and the columns that are read."""
        return short_digest((super().fingerprint(rows), self.shards.columns, self.settings.max_duration_s))

    @cached_property
    def _counts_and_characters(self) -> tuple[dict[str, int], str]:
        """Clips per speaker, and all characters of the texts, of all rows; reads no audio."""
        logger.info("Reading the texts and speakers of %s ...", counted(self.clips, "clip"))
        speakers, characters = Counter[str](), set[str]()
        for table in self.shards.texts_and_speakers():
            for text, speaker in zip(table["text"].to_pylist(), table["speaker"].to_pylist(), strict=True):
                accepted = to_accepted(SourceClip("", text or "", b"", _name(speaker), None), 0, "")
                speakers[accepted.speaker] += 1
                characters.update(accepted.text)
        return dict(speakers), "".join(sorted(characters))


class UnpreparedClipDataset(StreamedClipDataset):
    """Decodes, checks and resamples clips in DataLoader workers."""

    def __init__(
        self, prepared: UnpreparedData, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> None:
        settings = replace(prepared.settings, target_sr=spec.sampling_rate)
        # Lengths are known only after decoding: the dry run tries the longest that is accepted.
        longest_samples = round(settings.max_duration_s * spec.sampling_rate)
        super().__init__(prepared, longest_samples, tokenizer, spec, speaker_ids)
        self._settings = settings
        self._find = prepared.find

    def text_and_speaker(self, table: pa.Table, position: int) -> tuple[str, str]:
        """Returns both as prepare_data writes them."""
        text, speaker = (table[column][position].as_py() for column in ("text", "speaker"))
        accepted = to_accepted(SourceClip("", text or "", b"", _name(speaker), None), 0, "")
        return accepted.text, accepted.speaker

    def samples_of(self, name: str, table: pa.Table, position: int) -> NDArray[np.int16]:
        """Converts a recording as prepare_data does.

        Raises:
            RecordingError: the clip is rejected, with a reason of prepare_data.
        """
        row = {role: table[role][position].as_py() for role in table.column_names}
        roles = Columns("audio", "text", None, *(role if role in row else None for role in _OPTIONAL_ROLES))
        clip = row_clip(row, name, roles, self._find, self._settings)
        if clip.rejection is not None:
            reject(*clip.rejection)
        if not one_line(clip.text):
            reject(Reason.EMPTY_TEXT, repr(clip.text[:40]))
        return to_pcm(clip.audio, count_tokens(clip), self._settings)

    def require_plausible(self, rows: Sequence[int]) -> None:
        """Checks that the texts of some clips may be those of their recordings; reads these clips.

        Raises:
            DataError: most of them cannot be.
        """
        facts = []
        for row in rows:
            clip = self.read(row)
            if isinstance(clip, Clip):
                accepted = AcceptedClip(self.text(row), self.speaker(row), len(clip.pcm), False, clip.clip_id, "")
                facts.append(clip_facts(clip.clip_id, accepted, self.spec.sampling_rate))
        found = examine(facts)
        for warning in found.warnings:
            logger.warning("Of the validation clips, %s", warning)
        if found.problem is not None:
            raise DataError(
                f"{self.prepared.address}: {found.problem}. Name another --text_column; if they are right, prepare the "
                "data set with prepare_data --check_texts false."
            )


def open_unprepared(config: TrainConfig, rows: object = None) -> UnpreparedData:
    """Opens ``rows``, or else the Parquet files that ``--dataset`` names; reads their metadata only.

    Args:
        config: of the run; its settings of the data set have the names and meanings of prepare_data.
        rows: a ``datasets.Dataset``.

    Raises:
        DataError: there are no such files, or they are not Parquet with an audio and a text column.
        UnreadableShardError: the storage cannot be read.
    """
    settings = PrepareConfig(
        dataset=config.dataset or "",
        split=config.split,
        config_name=config.config_name,
        revision=config.revision,
        text_column=config.text_column,
        audio_column=config.audio_column,
        speaker_column=config.speaker_column,
        max_duration_s=config.max_duration_s,
    )
    if rows is not None:
        reader = open_dataset_rows(rows, settings)
        source = {"kind": "dataset"}
        return _opened("data", reader, source, settings, find_file)
    path = expanded("dataset", settings.dataset)
    if "://" not in settings.dataset and is_on_hub(path, settings):
        root, names = parquet_on_hub(settings)
        folder = RemoteFolder(root)
        files = {name: folder.size_bytes(name) for name in names}
        source = {"kind": "hub", "dataset": settings.dataset, "revision": root.rpartition("@")[2]}
    else:
        refuse_hub_options(path, settings)
        folder, files = _find_files(settings.dataset if "://" in settings.dataset else str(path.absolute()))
        source = {"kind": "parquet", "dataset": settings.dataset}
    find = AudioFiles(Path(folder.address), (".",)) if folder.is_local else _refuse_file
    return _opened(settings.dataset, open_rows(folder, files, settings), source, settings, find)


def _opened(
    address: str, reader: RowReader, source: dict[str, str], settings: PrepareConfig, find: FileFinder
) -> UnpreparedData:
    return UnpreparedData(address, reader, {"source": source}, settings, find)


def _find_files(address: str) -> tuple[RemoteFolder, dict[str, int]]:
    """Returns the folder of the Parquet files at an address (a file, a folder or a pattern), and their sizes."""
    wildcards = [character for character in ("*" if "://" in address else _WILDCARDS) if character in address]
    is_pattern = bool(wildcards) and not Path(address).exists()
    if is_pattern:
        root = address[: min(map(address.index, wildcards))].rpartition("/")[0]
        pattern = address.removeprefix(f"{root}/")
    elif address.endswith(".parquet") and not Path(address).is_dir():
        root, _, name = address.rpartition("/")
        folder = RemoteFolder(root)
        return folder, {name: folder.size_bytes(name)}
    else:
        root, pattern = address, "*.parquet"
    folder = RemoteFolder(root)
    files = dict(folder.find(pattern))
    if not files:
        remedy = "Correct it" if is_pattern else "Prepare other data sets with prepare_data, or correct it"
        raise DataError(f"--dataset {address}: no Parquet file matches {folder.address}/{pattern}. {remedy}.")
    return folder, files


def _refuse_file(name: str) -> Rejection:
    # A table in remote storage must not open a file of this machine.
    return Rejection(Reason.MISSING_FILE, f"{name}: the row has a file name instead of audio")


def _name(speaker: object) -> str | None:
    return None if speaker is None else str(speaker) or None
