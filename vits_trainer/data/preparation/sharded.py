"""From a source of clips to shards, all at once or in parts that are prepared wherever there is a process for them.

Each shard holds the accepted clips of one range of the source, in its order; which ranges depends on how many clips the
source has and how many shards are asked for, and not on parts or processes. A part is as many neighbouring shards::

    shards/shard_00000.parquet    in place once it is whole
    shards/part_2_of_4.jsonl      until all is done: what became of each range of a part
    shards.json                   once all parts are done: the manifest
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import RecordingError, Rejection
from vits_trainer.data.preparation.journal import Journal, RejectedClip, left_out, wav_name
from vits_trainer.data.preparation.summary import (
    PreparationStats,
    PreparationSummary,
    already_prepared_message,
    dataset_json,
    differences,
    finished_before,
    no_clips_message,
    refuse_foreign,
    rejected_csv,
)
from vits_trainer.data.preparation.workers import map_in_processes, prescreen, to_accepted, to_pcm
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
from vits_trainer.data.sources.base import Source, SourceClip
from vits_trainer.data.sources.detect import open_source
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, atomic_write, discard, sha256, try_lock

logger = logging.getLogger("vits_trainer")

_LOCK = "together.lock"
SHARDS = Kind(
    "shards",
    re.compile(r"shard_\d{5}\.parquet(\.part)?|part_\d+_of_\d+\.jsonl|together\.lock"),
    lambda folder: any(folder.glob("part_*_of_*.jsonl")),  # as long as it may be changed
)
_POLL_S = 0.05


@dataclass(frozen=True)
class ShardOutcome:
    """What became of the clips of one shard's range."""

    record: ShardRecord | None
    """None where not one of them could be used."""
    left_out: tuple[RejectedClip, ...]
    texts_changed: int
    speaker_clips: dict[str, int]
    characters: str

    @classmethod
    def parse(cls, line: Mapping[str, Any]) -> "ShardOutcome":
        """From what JSON made of it."""
        record = line["record"]
        return cls(
            record=None if record is None else ShardRecord(**{**record, "groups": tuple(record["groups"])}),
            left_out=tuple(map(left_out, line["left_out"])),
            texts_changed=line["texts_changed"],
            speaker_clips=line["speaker_clips"],
            characters=line["characters"],
        )

    def tally(self) -> PreparationStats:
        """Its figures."""
        return PreparationStats(
            rejected=Counter(entry.reason for entry in self.left_out),
            texts_changed=self.texts_changed,
            samples=self.record.samples if self.record else 0,
            speaker_clips=Counter(self.speaker_clips),
            characters=set(self.characters),
        )


class PartJournal(Journal):
    """The shards of a part so far, in their order."""

    unit = "shards"

    def __init__(self, folder: Path, number: int, parts: int, asked: Mapping[str, Any]) -> None:
        super().__init__(_journal(folder, number, parts), asked)
        self.outcomes: list[ShardOutcome] = []

    def add(self, outcome: ShardOutcome) -> None:
        """Writes down what has become of the next shard; the file lies in its place already."""
        self.outcomes.append(outcome)
        self._write(asdict(outcome))

    def _keep(self, record: Any) -> bool:
        outcome = ShardOutcome.parse(record)
        trusted = outcome.record is None or _is_whole(self.path.parent / outcome.record.name, outcome.record)
        if trusted:
            self.outcomes.append(outcome)
        return trusted


def _is_whole(file: Path, record: ShardRecord) -> bool:
    return file.is_file() and file.stat().st_size == record.bytes and sha256(file) == record.sha256


def _journal(folder: Path, number: int, parts: int) -> Path:
    return folder / f"part_{number}_of_{parts}.jsonl"


def prepare_shards(
    source: Source, config: PrepareConfig, output_dir: Path, asked: Mapping[str, Any]
) -> PreparationSummary:
    """Writes the shards of ``config.part``; and the manifest, rejected.csv and dataset.json where all parts are there.

    Raises:
        DataError: something is in the way, another process is at this part, the parts do not belong together, or not
            one clip is left.
        OSError: a file cannot be written.
        VitsTrainerError: a worker process was killed.
    """
    folder = output_dir / FOLDER
    _refuse_others(output_dir, config)
    with PartJournal(folder, config.part_number, config.parts, asked) as journal:
        # Between the first look and the lock another process may have put it all together.
        finished = finished_before(output_dir, asked)
        if finished is None:
            _write_shards(source, config, folder, journal)
            with _merge_lock(folder):
                finished = finished_before(output_dir, asked) or _merge_parts(source, config, output_dir, asked)
        if finished.missing_parts:
            return finished
        remove_journals(folder)
    return finished


def _refuse_others(output_dir: Path, config: PrepareConfig) -> None:
    folder = output_dir / FOLDER
    journals = {path.name for path in folder.glob("part_*_of_*.jsonl")}
    ours = {_journal(folder, number, config.parts).name for number in range(1, config.parts + 1)}
    if journals - ours:
        raise DataError(
            f"{folder} holds shards that are prepared in another number of parts ({min(journals - ours)}). Give --part "
            "as before to go on with them, or delete the folder."
        )
    for name in ("metadata.csv", *([] if journals else [MANIFEST])):
        if (output_dir / name).exists():
            raise DataError(already_prepared_message(output_dir, name))
    refuse_foreign(folder, SHARDS)


# A part


def _write_shards(source: Source, config: PrepareConfig, folder: Path, journal: PartJournal) -> None:
    """Converts the part's clips behind those of the shards that are there already."""
    per_part = config.shards // config.parts
    numbers = range((config.part_number - 1) * per_part, config.part_number * per_part)
    to_do = numbers[len(journal.outcomes) :]
    if not to_do:
        return
    ranges = shard_sizes(_clip_count(source, config), config.shards)
    if min(ranges) == 0:
        raise DataError(
            f"--shards {config.shards}: the source has {sum(ranges)} clips, not one for each shard. Ask for fewer."
        )
    begin, wanted = sum(ranges[: to_do[0]]), sum(ranges[number] for number in to_do)
    # The last shard takes what the source may have beyond the number that it gives.
    clips = islice(prescreen(source, begin), None if to_do[-1] == config.shards - 1 else wanted)
    names = _names(config, journal)
    total = sum(ranges[number] for number in numbers)
    with (
        tqdm(desc="prepare_data", total=total, initial=total - wanted, unit="clip", disable=None) as bar,
        closing(map_in_processes(clips, encode_clip, lambda _: (), config)) as outcomes,
    ):
        for number in to_do:
            own = islice(outcomes, None if number == config.shards - 1 else ranges[number])
            journal.add(_write_shard(folder / shard_name(number), _counted(own, bar), names, config))


def _clip_count(source: Source, config: PrepareConfig) -> int:
    if source.clip_count is not None:
        return source.clip_count
    logger.info("%s does not say how many clips it has: it is read once to count them.", config.dataset)
    return sum(1 for _ in open_source(config).clips)


def _names(config: PrepareConfig, journal: PartJournal) -> Iterator[str]:
    """Numbered over the accepted clips like those in wavs/; in each part anew, as it does not know of the others."""
    part = f"p{config.part_number}_" if config.parts > 1 else ""
    number = sum(outcome.record.clips for outcome in journal.outcomes if outcome.record)
    while True:
        yield wav_name(number, part)
        number += 1


Outcome = tuple[SourceClip, tuple[bytes, int] | Rejection]


def _counted(outcomes: Iterable[Outcome], bar: "tqdm[Any]") -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        bar.update()


def _write_shard(path: Path, clips: Iterable[Outcome], names: Iterator[str], config: PrepareConfig) -> ShardOutcome:
    tally, rejected = PreparationStats(), []
    with ShardWriter(path, config.target_sr, config.encoding) as writer:
        for clip, outcome in clips:
            if isinstance(outcome, Rejection):
                entry = RejectedClip(clip.clip_id, *outcome)
                rejected.append(entry)
                tally.add(entry)
            else:
                audio, samples = outcome
                accepted = to_accepted(clip, samples)
                writer.add_encoded(next(names), audio, accepted.text, accepted.speaker, samples)
                tally.add(accepted)
        if tally.speaker_clips:
            record = writer.close()
        else:
            record = None
            writer.discard()
            logger.warning("%s is left out: of its %d clips not one can be used.", path.name, len(rejected))
    return ShardOutcome(
        record=record,
        left_out=tuple(rejected),
        texts_changed=tally.texts_changed,
        speaker_clips=dict(tally.speaker_clips),
        characters="".join(sorted(tally.characters)),
    )


def encode_clip(audio: Path | bytes, tokens: int, config: PrepareConfig) -> tuple[bytes, int] | Rejection:
    """One clip as it stands in a shard, and its samples; or why it is left out. Runs in a worker process."""
    try:
        pcm = to_pcm(audio, tokens, config)
    except RecordingError as error:
        return error.rejection
    return encode_audio(pcm, config.target_sr, config.encoding), len(pcm)


# All parts together


@contextmanager
def _merge_lock(folder: Path) -> Iterator[None]:
    """Waits for its turn: parts that end at once must not write the same files."""
    while (turn := try_lock(folder / _LOCK)) is None:
        time.sleep(_POLL_S)
    with turn:
        yield


def _merge_parts(
    source: Source, config: PrepareConfig, output_dir: Path, asked: Mapping[str, Any]
) -> PreparationSummary:
    """Writes what stands for the whole, dataset.json last; or says which parts are missing."""
    folder = output_dir / FOLDER
    parts = {
        number: _outcomes_of(_journal(folder, number, config.parts), asked) for number in range(1, config.parts + 1)
    }
    per_part = config.shards // config.parts
    missing = [f"{number}/{config.parts}" for number, found in parts.items() if len(found) < per_part]
    outcomes = parts[config.part_number] if missing else [outcome for found in parts.values() for outcome in found]
    records = tuple(outcome.record for outcome in outcomes if outcome.record)
    tally = PreparationStats()
    for outcome in outcomes:
        tally.add_all(outcome.tally())
    summary = tally.summary(output_dir, config.target_sr, len(records), missing)
    if missing:
        return summary
    _require_there(folder, records)
    atomic_write(output_dir / "rejected.csv", rejected_csv(entry for outcome in outcomes for entry in outcome.left_out))
    if not records:
        remove_journals(folder)
        raise DataError(no_clips_message(summary))
    for stray in folder.glob("shard_*"):
        if stray.name not in {record.name for record in records}:  # of an earlier preparation that was given up
            discard(stray)
    Manifest(config.target_sr, config.encoding, records).write(output_dir)
    atomic_write(output_dir / "dataset.json", dataset_json(summary, tally, source, config, asked))
    return summary


def _outcomes_of(journal: Path, asked: Mapping[str, Any]) -> list[ShardOutcome]:
    """What a part has done so far, by its journal.

    Raises:
        DataError: it was asked for something else.
    """
    if not journal.exists():
        return []
    content = journal.read_bytes()
    try:
        # The last line may be half written: its part is at work.
        first, *others = map(json.loads, content[: content.rfind(b"\n") + 1].splitlines() or [b'{"asked": null}'])
        outcomes = [ShardOutcome.parse(line) for line in others]
        changed = first["asked"] and differences(first["asked"], asked)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{journal}: is damaged ({error}). Delete it, and prepare this part again.") from error
    if changed:
        raise DataError(
            f"{journal}: this part is of something else: {changed}. Delete it, and prepare this part again from the "
            "same source with the same settings."
        )
    return outcomes


def _require_there(folder: Path, records: Iterable[ShardRecord]) -> None:
    for record in records:
        file = folder / record.name
        if not file.is_file() or file.stat().st_size != record.bytes:
            raise DataError(
                f"{file} is missing or incomplete. Copy it from where its part was prepared, or prepare it again."
            )


def remove_journals(folder: Path) -> None:
    """Once all is done."""
    for path in (*folder.glob("part_*_of_*.jsonl"), folder / _LOCK):
        discard(path)
