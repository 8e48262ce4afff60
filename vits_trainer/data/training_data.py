"""The clips of a training run: which are trained on, which validate, and how both are read.

:class:`TrainingData` is the only interface that training knows. Prepared folders and streamed shards implement it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import VitsTokenizer

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.selection import ClipSelection
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.clip_accounting import PREPARE_AGAIN, ClipAccounting
from vits_trainer.data.dataset import Clip, ClipDataset, PreparedClipDataset
from vits_trainer.data.prepared import (
    PreparedData,
    open_selected,
    train_validation_split,
)
from vits_trainer.data.sampler import BucketBatchSampler, ClipPositions, UpdateSampler
from vits_trainer.data.speaker_sampling import SpeakerTemperatureSampler
from vits_trainer.data.streaming import (
    ShardedData,
    StreamedData,
    StreamingClipDataset,
    TrainedNames,
    open_stream,
    rows_of_part,
)
from vits_trainer.data.streaming_sampler import StreamedBatchSpec, StreamingBatchSampler
from vits_trainer.data.unprepared import UnpreparedClipDataset, UnpreparedData, open_unprepared
from vits_trainer.text import vocabulary
from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.text.vocabulary import MissingCharacter
from vits_trainer.utils.errors import ConfigError, UnreadableShardError
from vits_trainer.utils.strings import counted, short_digest, shown_speaker

SAMPLED_CLIPS = 256
COMPARED_CLIPS = 64
"""Clips whose samples a resume compares: files of equal size may have been replaced."""
SAMPLED_GROUPS = 16
"""Row groups of shards, each of about a minute of speech."""
MAX_COUNTED_GROUPS = 64
"""Maximum number of row groups to read for the speakers of the first update."""
_SORTED_FACTOR = 4
"""Shards are sorted if an update has more clips of a speaker than this, and than this times its share of all clips."""
_TEXT_CHARACTERS = 60


class TrainingData(ABC):
    """Training and validation clips of one run."""

    config: TrainConfig
    validation_rows: Sequence[int]
    """Rows of the clips that validate."""
    speaker_balance: SpeakerTemperatureSampler | None = None
    """How the speakers share an epoch; None if each clip is read once per epoch."""
    selection: ClipSelection | None = None
    """How the clips were selected from a prepared folder; None if they were not."""
    knows_texts: bool
    """Whether every text is known before training; otherwise only the characters that occur in them."""

    @property
    @abstractmethod
    def location(self) -> str:
        """Folder or address, for messages."""

    @property
    @abstractmethod
    def sampling_rate(self) -> int | None:
        """In Hz; None if recordings are resampled to the voice's rate."""

    @property
    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Contents of dataset.json: counts, seconds, rate, source."""

    @property
    @abstractmethod
    def clip_count(self) -> int:
        """Training and validation clips."""

    @property
    @abstractmethod
    def speakers(self) -> list[str]:
        """Speaker names, sorted: the index of a name is its id. May read all shards."""

    @property
    @abstractmethod
    def texts(self) -> list[str]:
        """Texts of all clips, or each of their characters."""

    @abstractmethod
    def sampler(self, spec: AudioSpec, num_processes: int) -> UpdateSampler:
        """Returns the order of the training clips."""

    @abstractmethod
    def dataset(self, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None) -> ClipDataset:
        """Returns the torch dataset that reads the clips."""

    @abstractmethod
    def accounting(self, sampler: UpdateSampler) -> ClipAccounting:
        """Returns the per-epoch accounting of the clips that ``sampler`` schedules."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Returns digests that change if the training or the validation clips change."""

    @abstractmethod
    def missing_characters(self, tokenizer: VoiceTokenizer) -> list[MissingCharacter]:
        """Returns the characters of the texts that the voice's vocabulary lacks."""

    def update_speakers(self, sampler: UpdateSampler) -> str | None:  # noqa: ARG002 - the interface's
        """Returns a line on the speakers of the first update; None if an update draws from all clips, or from too many.

        Reads the clips of that update.
        """
        return None

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, str]]:
        """Yields a name and what is known of it without reading audio, per clip or shard."""

    @abstractmethod
    def sample_contents(self, dataset: ClipDataset, seed: int) -> Iterator[tuple[str, str]]:
        """Yields names and digests of clips or row groups drawn by ``seed``, in the same order on every rank."""


class PreparedTrainingData(TrainingData):
    """Clips of prepared folders, read by row."""

    knows_texts = True

    def __init__(
        self,
        config: TrainConfig,
        prepared: PreparedData,
        rows: Sequence[int],
        validation_rows: Sequence[int],
        draw_epoch: Callable[[int], ClipPositions] | None = None,
        selection: ClipSelection | None = None,
    ) -> None:
        """Args:
        config: batch sizes, seed and limits.
        prepared: all clips.
        rows: of the training clips.
        validation_rows: may overlap ``rows``.
        draw_epoch: returns the positions in ``rows`` that an epoch trains on, sorted, the same number in each epoch
            (None: each clip once).
        selection: how the clips were selected; stored with the voice.
        """
        self.config = config
        self.selection = selection
        self.prepared = prepared
        self.rows = rows
        self.validation_rows = validation_rows
        self._draw_epoch = draw_epoch

    @classmethod
    def from_config(cls, config: TrainConfig) -> "PreparedTrainingData":
        """Opens ``--data_dir`` and splits it.

        Raises:
            DataError: the folder holds no prepared data, or too few clips for the split.
            ConfigError: ``--only_speakers`` names an unknown speaker; ``--speaker_temperature`` needs several.
        """
        selection = ClipSelection.from_config(config)
        prepared = open_selected(Path(config.data_dir), selection, config.extend_speakers)
        rows, held_out = train_validation_split(
            prepared, selection.validation_fraction, selection.validation_max_clips, selection.seed
        )
        if config.validate_on_training_clips:
            held_out = rows[: config.validation_max_clips]
        return cls(config, prepared, rows, held_out, selection=selection)._balanced()

    def _balanced(self) -> "PreparedTrainingData":
        speakers, temperature = self.prepared.rows.speaker, self.config.speaker_temperature
        balance = SpeakerTemperatureSampler([speakers[row] for row in self.rows], temperature, self.config.seed)
        if temperature < 1 and balance.speaker_count == 1:
            raise ConfigError(
                f"--speaker_temperature {temperature:g}: all training clips of {self.location} are of one speaker. "
                "Leave it out; or prepare the data with --speaker_column."
            )
        self.speaker_balance = balance
        if temperature < 1:
            self._draw_epoch = balance.draw
        return self

    @property
    def location(self) -> str:
        """Folder, for messages."""
        return str(self.prepared.root)

    @property
    def sampling_rate(self) -> int:
        """In Hz."""
        return self.prepared.sampling_rate

    @property
    def summary(self) -> dict[str, Any]:
        """Contents of dataset.json."""
        return self.prepared.summary

    @property
    def clip_count(self) -> int:
        """Training and validation clips."""
        return len(self.prepared.rows)

    @property
    def speakers(self) -> list[str]:
        """Speaker names, sorted."""
        return self.prepared.speakers

    @property
    def texts(self) -> list[str]:
        """Texts of all clips."""
        return self.prepared.texts

    def sampler(self, spec: AudioSpec, num_processes: int) -> BucketBatchSampler:
        """Returns batches of clips of similar length."""
        config = self.config
        return BucketBatchSampler(
            rows=self.rows,
            frames=self.prepared.frames(self.rows, spec.hop),
            seed=config.seed,
            batch_size=config.batch_size,
            world_size=num_processes,
            accumulation=config.gradient_accumulation_steps,
            batch_frames=round(config.batch_seconds * spec.sampling_rate / spec.hop),
            draw_epoch=self._draw_epoch,
        )

    def dataset(
        self, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> PreparedClipDataset:
        """Returns the dataset that reads clips by row."""
        return PreparedClipDataset(self.prepared, tokenizer, spec, speaker_ids)

    def accounting(self, sampler: UpdateSampler) -> ClipAccounting:
        """Returns the accounting by file name."""
        names, trained = self.prepared.rows.filename, set(self.rows)
        validation = [names[row] for row in self.validation_rows if row not in trained]
        return ClipAccounting(
            [names[row] for row in self.rows],
            validation,
            self.config.max_rejected_fraction,
            expected=sampler.expected_counts,
        )

    def fingerprint(self) -> dict[str, str]:
        """Returns digests of names, sizes, texts and speakers, and of the samples of some clips."""
        count = len(self.rows)
        sample = np.random.default_rng(self.config.seed).choice(count, min(COMPARED_CLIPS, count), replace=False)
        return {
            "data": self.prepared.fingerprint(self.rows)[:16],
            "validation data": self.prepared.fingerprint(self.validation_rows)[:16],
            "samples of clips": self.prepared.samples_digest([self.rows[index] for index in sample.tolist()])[:16],
        }

    def missing_characters(self, tokenizer: VoiceTokenizer) -> list[MissingCharacter]:
        """Returns the characters that the vocabulary lacks, from a sample of the texts."""
        return vocabulary.missing_characters(tokenizer, self.texts, vocabulary.SAMPLE)

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yields each clip's name with text, size and speaker."""
        rows, sizes = self.prepared.rows, self.prepared.recordings.sizes_bytes
        for name, text, speaker, size_bytes in zip(rows.filename, rows.text, rows.speaker, sizes, strict=True):
            # Two long texts may begin alike.
            is_short = len(text) <= _TEXT_CHARACTERS
            shown = repr(text) if is_short else f"{text[:_TEXT_CHARACTERS]!r}... {short_digest(text)}"
            yield name, f"{shown} ({size_bytes} bytes{f', {shown_speaker(speaker)}' if speaker else ''})"

    def sample_contents(self, dataset: ClipDataset, seed: int) -> Iterator[tuple[str, str]]:
        """Yields digests of tokens, speaker and samples."""
        count = self.clip_count
        for row in np.random.default_rng(seed).choice(count, min(SAMPLED_CLIPS, count), replace=False).tolist():
            clip = dataset.read(row)
            name = self.prepared.rows.filename[row]
            if isinstance(clip, Clip):
                yield name, short_digest((clip.tokens.tolist(), clip.speaker_id, clip.pcm.tobytes()))
            else:
                yield name, clip.kind


class StreamedTrainingData(TrainingData):
    """Clips that are streamed: counts per row group are known, lengths and texts are not."""

    shards: StreamedData
    knows_texts = False
    _REMEDY = PREPARE_AGAIN

    def __init__(self, config: TrainConfig, shards: StreamedData) -> None:
        self.config = config
        self.shards = shards
        self.validation_rows = shards.hold_out(config.validation_fraction, config.validation_max_clips, config.seed)

    @property
    def location(self) -> str:
        """Address, for messages."""
        return self.shards.root

    @property
    def summary(self) -> dict[str, Any]:
        """Contents of dataset.json, if it is next to the shards."""
        return self.shards.summary

    @property
    def clip_count(self) -> int:
        """Training and validation clips."""
        return self.shards.clips

    @property
    def speakers(self) -> list[str]:
        """Speaker names, sorted; reads all shards if dataset.json is missing."""
        return self.shards.speakers

    @property
    def texts(self) -> list[str]:
        """Every character as a text of its own; reads all shards if dataset.json is missing."""
        return self.shards.texts

    def sampler(self, spec: AudioSpec, num_processes: int) -> StreamingBatchSampler:  # noqa: ARG002 - the interface's
        """Returns the order by row groups; lengths are not known, so no ``spec`` is needed."""
        return StreamingBatchSampler(
            groups=self.shards.groups,
            shard_of_group=self.shards.shard_of_group,
            held_out=self.validation_rows,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            world_size=num_processes,
            accumulation=self.config.gradient_accumulation_steps,
            window=self.config.streaming_window,
            row_groups=self.shards.row_groups,
        )

    def accounting(self, sampler: UpdateSampler) -> ClipAccounting:
        """Returns the accounting by shard and row."""
        training = TrainedNames(self.shards, self.validation_rows)
        validation = [self.shards.name(row) for row in self.validation_rows]
        return ClipAccounting(
            training,
            validation,
            self.config.max_rejected_fraction,
            expected=sampler.expected_counts,
            position=training.position,
            remedy=self._REMEDY,
        )

    def fingerprint(self) -> dict[str, str]:
        """Returns digests of the shards."""
        return {
            "data": self.shards.fingerprint([])[:16],
            "validation data": self.shards.fingerprint(self.validation_rows)[:16],
        }

    def missing_characters(self, tokenizer: VoiceTokenizer) -> list[MissingCharacter]:
        """Returns the characters that the vocabulary lacks, if dataset.json lists all; reads no shard."""
        if tokenizer.rewrites or not self.summary.get("characters"):
            return []
        missing = vocabulary.missing_characters(tokenizer, self.texts)
        return [replace(character, count=0, example="") for character in missing]

    def update_speakers(self, sampler: UpdateSampler) -> str | None:
        """Returns a line on the speakers of the first update; None if it is of many row groups."""
        if not isinstance(sampler, StreamingBatchSampler) or len(self.summary.get("speaker_clips", ())) == 1:
            return None
        ranks = [islice(sampler.epoch(0, rank), sampler.accumulation) for rank in range(sampler.world_size)]
        specs = [spec for rank in ranks for spec in rank if isinstance(spec, StreamedBatchSpec)]
        of_spec = [self.shards.groups_of(np.asarray(spec.indices, np.int64))[0].tolist() for spec in specs]
        needed = {group for groups in of_spec for group in groups}
        if len(needed) > MAX_COUNTED_GROUPS:
            return None
        try:
            tables = {group: self.shards.shards.read(group).select(["speaker", "samples"]) for group in sorted(needed)}
        except UnreadableShardError:
            return None  # training reports it
        speakers = Counter[str]()
        for spec, groups in zip(specs, of_spec, strict=True):
            for row in rows_of_part(self.shards, spec, {group: tables[group] for group in set(groups)}):
                group, position = self.shards.group_of(row)
                speakers[str(tables[group]["speaker"][position])] += 1
        ((commonest, clips),) = speakers.most_common(1)
        count = counted(len(speakers), "speaker")
        line = f"The first update has {count}; {clips} of its {speakers.total()} clips are of one."
        known = Counter(self.summary.get("speaker_clips", {}))
        expected_clips = speakers.total() * known[commonest] / max(1, known.total())
        if len(known) > 1 and clips > _SORTED_FACTOR * max(1, expected_clips):
            return f"{line} The shards are sorted by speaker: prepare them again, prepare_data shuffles the clips."
        return line

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yields each shard's name with size, digest and row groups."""
        for record in self.shards.shards.records:
            groups = f"{record.clips} clips in row groups {short_digest(record.groups)}"
            yield record.name, f"{record.bytes} bytes, SHA-256 {record.sha256[:12]}, {groups}, {record.longest_samples}"

    def sample_contents(self, dataset: ClipDataset, seed: int) -> Iterator[tuple[str, str]]:  # noqa: ARG002 - as above
        """Yields digests of whole row groups."""
        count = len(self.shards.groups)
        for group in np.random.default_rng(seed).choice(count, min(SAMPLED_GROUPS, count), replace=False):
            record, number = self.shards.shards.locate(group)
            columns = self.shards.shards.read(group).select(["audio", "text", "speaker"]).to_pydict()
            yield f"{record.name} row group {number}", short_digest(columns)


class ShardedTrainingData(StreamedTrainingData):
    """Clips of the shards of prepare_data."""

    shards: ShardedData

    @property
    def sampling_rate(self) -> int:
        """In Hz."""
        return self.shards.sampling_rate

    def dataset(
        self, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> StreamingClipDataset:
        """Returns the dataset that fetches row groups."""
        return StreamingClipDataset(self.shards, tokenizer, spec, speaker_ids)


class UnpreparedTrainingData(StreamedTrainingData):
    """Clips of a data set that prepare_data has not converted."""

    shards: UnpreparedData
    sampling_rate = None
    _REMEDY = "Raise --max_rejected_fraction to train on the others, or name other columns."

    def dataset(
        self, tokenizer: VitsTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
    ) -> UnpreparedClipDataset:
        """Returns the dataset that fetches rows, and decodes and checks their recordings. Reads the validation clips.

        Raises:
            DataError: most of the validation clips have texts that cannot be those of their recordings.
        """
        dataset = UnpreparedClipDataset(self.shards, tokenizer, spec, speaker_ids)
        dataset.require_plausible(self.validation_rows)
        return dataset

    def update_speakers(self, sampler: UpdateSampler) -> str | None:  # noqa: ARG002 - the interface's
        """Returns a line on the columns; row groups of others may be too large to read to count speakers."""
        return self.shards.describe_columns()


def open_training_data(config: TrainConfig, rows: object = None) -> TrainingData:
    """Opens the data set ``rows`` or ``--dataset``, which is streamed as it lies; or else ``--data_dir``: shards that
    are streamed, or a prepared folder.

    Args:
        config: of the run.
        rows: a ``datasets.Dataset``, or None.

    Raises:
        DataError: it holds no clips, or too few; or not in a format that can be read.
        ConfigError: a setting does not fit the data.
    """
    if rows is not None or config.dataset is not None:
        return UnpreparedTrainingData(config, open_unprepared(config, rows))
    config.check_unprepared_settings()
    if config.streaming:
        return ShardedTrainingData(config, open_stream(config.data_dir))
    return PreparedTrainingData.from_config(config)
