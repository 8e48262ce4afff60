"""Prepares shards from a source of clips, at once or in parts that may run on several machines.

Each shard contains the accepted clips of one range of the shuffled source: sources are often sorted by speaker, and
streaming reads neighbouring clips together. The order and the ranges depend only on the number of clips in the source
and the number of shards, not on parts or processes. Each part is an equal number of adjacent shards::

    shards/shard_00000.parquet    moved here when complete
    shards/part_2_of_4.jsonl      until all parts are complete: the outcome of each shard of a part
    shards.json                   the manifest, once all parts are complete
"""

import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import RecordingError, Rejection
from vits_trainer.data.preparation.drop_list import DropList
from vits_trainer.data.preparation.journal import Journal, RejectedClip, wav_name
from vits_trainer.data.preparation.plausibility import ClipFacts, clip_facts, repeated
from vits_trainer.data.preparation.summary import (
    EXAMPLES,
    PreparationStats,
    PreparationSummary,
    already_prepared_message,
    changed_settings,
    dataset_json,
    example_line,
    no_clips_message,
    read_finished,
    refuse_foreign,
    rejected_csv,
    require_plausible,
)
from vits_trainer.data.preparation.workers import (
    ScreenedClip,
    Screening,
    content_digest,
    map_in_processes,
    prescreen,
    to_accepted,
    to_pcm,
)
from vits_trainer.data.shards import (
    FOLDER,
    MANIFEST,
    Manifest,
    ShardRecord,
    ShardWriter,
    encode_audio,
    shard_name,
    shard_sizes,
)
from vits_trainer.data.source_names import write_source_names
from vits_trainer.data.sources.base import Source, SourceClip
from vits_trainer.data.sources.detect import open_source
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, atomic_write, discard, sha256, try_lock
from vits_trainer.utils.records import parse_json

logger = logging.getLogger(__name__)

_LOCK = "together.lock"
SHARDS = Kind(
    "shards",
    re.compile(r"shard_\d{5}\.parquet(\.part)?|part_\d+_of_\d+\.jsonl|together\.lock"),
    lambda folder: any(folder.glob("part_*_of_*.jsonl")),  # may be changed while a journal exists
)
_POLL_S = 0.05
_BLOCKS, _MAX_BLOCK_CLIPS = 1000, 16
"""If clips contain their audio, blocks of neighbours are shuffled, and few clips singly: reading a row of Parquet reads
its row group up to it."""
_ORDER_SEED = 0


class _FirstLine(TypedDict):
    asked: dict[str, Any] | None
    """Fingerprint of the part; None while it is being started."""


@dataclass(frozen=True)
class ShardOutcome:
    """Result of preparing one shard."""

    record: ShardRecord | None
    """None if all clips of its range were rejected."""
    left_out: tuple[tuple[int, RejectedClip], ...]
    """Index in the source and reason of each rejected clip."""
    texts_changed: int
    speaker_clips: dict[str, int]
    characters: str
    facts: tuple[ClipFacts, ...]
    """Facts of each row."""
    examples: tuple[str, ...]
    """Lines that show the first rows."""
    sources: tuple[str, ...] = ()
    """Name of each row in the source."""

    def stats(self) -> PreparationStats:
        """Returns the counts of this shard."""
        return PreparationStats(
            rejected=Counter(entry.reason for _, entry in self.left_out),
            texts_changed=self.texts_changed,
            samples=self.record.samples if self.record else 0,
            speaker_clips=Counter(self.speaker_clips),
            characters=set(self.characters),
            first_rejected={entry.reason: f"{entry.clip_id}: {entry.detail}" for _, entry in reversed(self.left_out)},
            facts=list(self.facts),
            examples=list(self.examples),
        )


class PartJournal(Journal):
    """The outcome of each shard of a part so far, in order."""

    unit = "shards"
    line_type = ShardOutcome

    def __init__(self, folder: Path, number: int, parts: int, fingerprint: Mapping[str, Any]) -> None:
        super().__init__(_journal_path(folder, number, parts), fingerprint)
        self.outcomes: list[ShardOutcome] = []

    def add(self, outcome: ShardOutcome) -> None:
        """Records the outcome of the next shard. Its file must already be complete."""
        self.outcomes.append(outcome)
        self._write(asdict(outcome))

    def _restore(self, outcome: Any) -> bool:
        valid = outcome.record is None or _is_intact(self.path.parent / outcome.record.name, outcome.record)
        if valid:
            self.outcomes.append(outcome)
        return valid


def _is_intact(file: Path, record: ShardRecord) -> bool:
    return file.is_file() and file.stat().st_size == record.bytes and sha256(file) == record.sha256


def _journal_path(folder: Path, number: int, parts: int) -> Path:
    return folder / f"part_{number}_of_{parts}.jsonl"


def prepare_shards(
    source: Source, config: PrepareConfig, output_dir: Path, fingerprint: Mapping[str, Any], screening: Screening
) -> PreparationSummary:
    """Writes the shards of ``config.part``; after the last part also the manifest, rejected.csv and dataset.json.

    Raises:
        DataError: the output folder has other files, another process is preparing this part, the parts differ in
            their settings or source, or all clips are rejected.
        OSError: a file cannot be written.
        VitsTrainerError: a worker process was killed.
    """
    folder = output_dir / FOLDER
    _refuse_other_preparations(output_dir, config)
    with PartJournal(folder, config.part_number, config.parts, fingerprint) as journal:
        # Another process may have merged the parts since the first check.
        finished = read_finished(output_dir, fingerprint)
        if finished is None:
            _write_shards(source, config, folder, journal, screening)
            with _merge_lock(folder):
                finished = read_finished(output_dir, fingerprint) or _merge_parts(
                    source, config, output_dir, fingerprint, screening.drop
                )
        if finished.missing_parts:
            return finished
        remove_journals(folder)
    return finished


def _refuse_other_preparations(output_dir: Path, config: PrepareConfig) -> None:
    folder = output_dir / FOLDER
    journals = {path.name for path in folder.glob("part_*_of_*.jsonl")}
    ours = {_journal_path(folder, number, config.parts).name for number in range(1, config.parts + 1)}
    if journals - ours:
        raise DataError(
            f"{folder} contains shards that are prepared in another number of parts ({min(journals - ours)}). "
            "Give --part as before to resume, or delete the folder."
        )
    for name in ("metadata.csv", *([] if journals else [MANIFEST])):
        if (output_dir / name).exists():
            raise DataError(already_prepared_message(output_dir, name))
    refuse_foreign(folder, SHARDS)


# One part


def _write_shards(
    source: Source, config: PrepareConfig, folder: Path, journal: PartJournal, screening: Screening
) -> None:
    """Writes the shards of the part that are not in ``journal`` yet."""
    per_part = config.shards // config.parts
    numbers = range((config.part_number - 1) * per_part, config.part_number * per_part)
    to_do = numbers[len(journal.outcomes) :]
    if not to_do:
        return
    ranges = shard_sizes(_clip_count(source, config), config.shards)
    if min(ranges) == 0:
        raise DataError(
            f"--shards {config.shards}: the source has {sum(ranges)} clips, fewer than one per shard. "
            "Give a lower --shards."
        )
    start, clip_count = sum(ranges[: to_do[0]]), sum(ranges[number] for number in to_do)
    clips, indices = _in_order(source, sum(ranges), range(start, start + clip_count), screening)
    if source.access == "sequential" and to_do[-1] < config.shards - 1:
        clips = islice(clips, clip_count)  # the last shard also takes clips beyond the number that the source reports
    total = sum(ranges[number] for number in numbers)
    with (
        tqdm(desc="prepare_data", total=total, initial=total - clip_count, unit="clip", disable=None) as bar,
        closing(map_in_processes(clips, encode_clip, lambda _: (), config)) as outcomes,
    ):
        numbered = zip(indices, _advance(bar, outcomes), strict=False)
        for number in to_do:
            shard_clips = islice(numbered, None if number == config.shards - 1 else ranges[number])
            journal.add(_write_shard(folder / shard_name(number), shard_clips, config))


def _in_order(
    source: Source, clip_count: int, positions: range, screening: Screening
) -> tuple[Iterator[ScreenedClip], Iterator[int]]:
    """Returns the clips at these positions of the shuffled source, and their indices in the source.

    A source that can only be read sequentially keeps its order, and has no end here.
    """
    if source.access == "sequential":
        return prescreen(source, positions.start, screening), count(positions.start)
    block_clips = 1 if source.access == "listed" else min(_MAX_BLOCK_CLIPS, 1 + clip_count // _BLOCKS)
    indices = shuffled_indices(clip_count, block_clips)[positions.start : positions.stop].tolist()
    if source.access == "listed":
        listed = list(prescreen(source, screening=screening))
        return (listed[index] for index in indices), iter(indices)
    return _at(source, indices, screening), iter(indices)


def shuffled_indices(clip_count: int, block_clips: int) -> NDArray[np.int64]:
    """Returns the indices of a source's clips in the order of the shards: blocks of neighbours, shuffled."""
    blocks = np.random.default_rng(_ORDER_SEED).permutation(-(-clip_count // block_clips))
    indices = (blocks[:, None] * block_clips + np.arange(block_clips)).ravel()
    shuffled: NDArray[np.int64] = indices[indices < clip_count]
    return shuffled


def _at(source: Source, indices: Sequence[int], screening: Screening) -> Iterator[ScreenedClip]:
    """Yields the clips of a source with random access, neighbours together."""
    starts = [row for row, index in enumerate(indices) if row == 0 or index != indices[row - 1] + 1]
    for first, end in pairwise([*starts, len(indices)]):
        yield from islice(prescreen(source, indices[first], screening), end - first)


def _clip_count(source: Source, config: PrepareConfig) -> int:
    if source.clip_count is not None:
        return source.clip_count
    logger.info("%s does not report its number of clips: reading it once to count them.", config.dataset)
    clips = open_source(config).clips if source.clips_from is None else source.clips_from(0)
    return sum(1 for _ in clips)


Outcome = tuple[SourceClip, tuple[bytes, int] | Rejection]


def _advance(bar: "tqdm[Any]", outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        bar.update()


def _write_shard(path: Path, clips: Iterable[tuple[int, Outcome]], config: PrepareConfig) -> ShardOutcome:
    stats, rejected, sources = PreparationStats(), list[tuple[int, RejectedClip]](), list[str]()
    with ShardWriter(path, config.target_sr, config.encoding) as writer:
        for index, (clip, outcome) in clips:
            if isinstance(outcome, Rejection):
                entry = RejectedClip(clip.clip_id, *outcome)
                rejected.append((index, entry))
                stats.add(entry)
            else:
                audio, samples = outcome
                accepted = to_accepted(clip, samples, content_digest(audio))
                name = wav_name(index)
                writer.add_encoded(name, audio, accepted.text, accepted.speaker, samples)
                stats.add(accepted)
                sources.append(accepted.source)
                stats.facts.append(clip_facts(name, accepted, config.target_sr))
                if len(stats.examples) < EXAMPLES:
                    stats.examples.append(example_line(f"{name} in {path.name}", accepted, config.target_sr))
        if stats.speaker_clips:
            record = writer.close()
        else:
            record = None
            writer.discard()
            logger.warning("%s is skipped: all of its %d clips are rejected.", path.name, len(rejected))
    return ShardOutcome(
        record=record,
        left_out=tuple(rejected),
        texts_changed=stats.texts_changed,
        speaker_clips=dict(stats.speaker_clips),
        characters="".join(sorted(stats.characters)),
        facts=tuple(stats.facts),
        examples=tuple(stats.examples),
        sources=tuple(sources),
    )


def encode_clip(audio: Path | bytes, tokens: int, config: PrepareConfig) -> tuple[bytes, int] | Rejection:
    """Encodes a clip for a shard, in a worker process.

    Returns:
        The encoded audio and its number of samples, or the reason to reject the clip.
    """
    try:
        pcm = to_pcm(audio, tokens, config)
    except RecordingError as error:
        return error.rejection
    return encode_audio(pcm, config.target_sr, config.encoding), len(pcm)


# Merging the parts


@contextmanager
def _merge_lock(folder: Path) -> Iterator[None]:
    """Waits for the lock: parts that finish at the same time must not write the same files."""
    while (lock := try_lock(folder / _LOCK)) is None:
        time.sleep(_POLL_S)
    with lock:
        yield


def _merge_parts(
    source: Source, config: PrepareConfig, output_dir: Path, fingerprint: Mapping[str, Any], drop: DropList
) -> PreparationSummary:
    """Writes the files of the whole set, dataset.json last; if parts are missing, only returns which."""
    folder = output_dir / FOLDER
    parts = {
        number: _read_outcomes(_journal_path(folder, number, config.parts), fingerprint)
        for number in range(1, config.parts + 1)
    }
    per_part = config.shards // config.parts
    missing = [f"{number}/{config.parts}" for number, done in parts.items() if len(done) < per_part]
    outcomes = parts[config.part_number] if missing else [outcome for done in parts.values() for outcome in done]
    records = tuple(outcome.record for outcome in outcomes if outcome.record)
    stats = PreparationStats()
    for outcome in outcomes:
        stats.add_all(outcome.stats())
    stats.repeated_rows = _repeated_rows(outcomes, stats.facts)
    left_out = sorted(entry for outcome in outcomes for entry in outcome.left_out)
    if not missing:
        stats.drop_warnings = drop.warnings([entry for _, entry in left_out], source.clip_count or sys.maxsize)
    summary = stats.summary(output_dir, config.target_sr, len(records), missing)
    if missing:
        return summary
    _require_shards(folder, records)
    atomic_write(output_dir / "rejected.csv", rejected_csv(entry for _, entry in left_out))
    if not records:
        remove_journals(folder)
        raise DataError(no_clips_message(summary, stats))
    require_plausible(stats, config)
    for stray in folder.glob("shard_*"):
        if stray.name not in {record.name for record in records}:  # of an earlier, abandoned preparation
            discard(stray)
    write_source_names(
        output_dir,
        (
            (fact.name, name)
            for outcome in outcomes
            for fact, name in zip(outcome.facts, outcome.sources, strict=False)  # none in journals of earlier versions
        ),
    )
    Manifest(config.target_sr, config.encoding, records).write(output_dir)
    atomic_write(output_dir / "dataset.json", dataset_json(summary, stats, source, config, fingerprint))
    return summary


def _repeated_rows(outcomes: Iterable[ShardOutcome], facts: Sequence[ClipFacts]) -> dict[str, str]:
    """Returns the bits of the rows that share their text or samples with another, in hexadecimal, by shard."""
    bits, begin, rows = repeated(facts), 0, dict[str, str]()
    for outcome in outcomes:
        of_shard = bits[begin : begin + len(outcome.facts)]
        begin += len(outcome.facts)
        if outcome.record and of_shard.any():
            rows[outcome.record.name] = np.packbits(of_shard).tobytes().hex()
    return rows


def _read_outcomes(journal: Path, fingerprint: Mapping[str, Any]) -> list[ShardOutcome]:
    """Returns the outcomes in the journal of a part.

    Raises:
        DataError: the journal is damaged, or the part was prepared with another fingerprint.
    """
    if not journal.exists():
        return []
    content = journal.read_bytes()
    # The last line may be incomplete: the part may be running.
    first, *others = content[: content.rfind(b"\n") + 1].splitlines() or [b'{"asked": null}']
    remedy = "Delete it, and prepare this part again."
    outcomes = [parse_json(line, journal, ShardOutcome, DataError, remedy) for line in others]
    asked = parse_json(first, journal, _FirstLine, DataError, remedy)["asked"]
    changed = asked and changed_settings(asked, fingerprint)
    if changed:
        raise DataError(
            f"{journal}: settings or source of this part differ: {changed}. Delete it, and prepare this part again "
            "from the same source with the same settings."
        )
    return outcomes


def _require_shards(folder: Path, records: Iterable[ShardRecord]) -> None:
    for record in records:
        file = folder / record.name
        if not file.is_file() or file.stat().st_size != record.bytes:
            raise DataError(
                f"{file} is missing or incomplete. Copy it from where its part was prepared, or prepare it again."
            )


def remove_journals(folder: Path) -> None:
    """Deletes the journals and the lock of a complete preparation."""
    for path in (*folder.glob("part_*_of_*.jsonl"), folder / _LOCK):
        discard(path)
