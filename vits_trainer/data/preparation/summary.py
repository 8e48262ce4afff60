"""Fingerprint, statistics and summary of a preparation, and the files dataset.json and rejected.csv."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import soundfile as sf
import soxr

from vits_trainer import __version__
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.preparation.drop_list import NOTHING, DropList
from vits_trainer.data.preparation.journal import AcceptedClip, RejectedClip
from vits_trainer.data.preparation.plausibility import ClipFacts, Plausibility, examine
from vits_trainer.data.sources.base import Source
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, is_ours, others_files
from vits_trainer.utils.records import Amount, Count
from vits_trainer.utils.strings import csv_cell, one_line, printable, short_digest, shown_speaker

logger = logging.getLogger(__name__)

_NOT_IN_SETTINGS = {"dataset", "output_dir", "processes", "part", "push_to_hub", "check_texts", "drop"}
"""Fields that dataset.json has elsewhere, or that do not affect the files that are written."""
EXAMPLES = 3
"""Number of accepted clips to show."""
_ORDER = "shuffled"
"""Order of the clips in shards."""
_SHARDS_ONLY = {"shards", "encoding"}


@dataclass(frozen=True)
class PreparationSummary:
    """Result of a preparation."""

    output_dir: Path
    accepted: int
    rejected: Mapping[Reason, int]
    """Number of rejected clips by reason, in the order of the checks; only reasons that occurred."""
    texts_changed: int
    """Accepted clips whose text :func:`one_line` changed."""
    seconds: float
    """Total duration of the accepted clips."""
    speakers: int
    shards: int = 0
    """Number of shards written; 0 for wavs/."""
    missing_parts: tuple[str, ...] = ()
    """Parts such as 2/4 that are not prepared yet. If there are any, the counts are those of a single part."""
    warnings: tuple[str, ...] = ()
    """What is probably wrong with the clips, one line each."""
    examples: tuple[str, ...] = ()
    """A few clips as they were understood: files, duration, speaker and text, one line each."""

    @property
    def hours(self) -> float:
        """Total duration of the accepted clips, in hours."""
        return self.seconds / 3600

    @property
    def mean_seconds(self) -> float:
        """Mean duration of the accepted clips; 0 if there are none."""
        return self.seconds / self.accepted if self.accepted else 0.0


class _FinishedSource(TypedDict):
    dataset: str
    state: str


class _FinishedSummary(TypedDict):
    """Fields of dataset.json that a repeated prepare_data compares and returns."""

    settings: dict[str, Any]
    source: _FinishedSource
    accepted: Count
    rejected: dict[Reason, Count]
    texts_changed: Count
    seconds: Amount
    speakers: Count
    shards: NotRequired[Count]
    warnings: NotRequired[tuple[str, ...]]
    examples: NotRequired[tuple[str, ...]]


@dataclass
class PreparationStats:
    """Running counts over the clips."""

    rejected: Counter[Reason] = field(default_factory=Counter)
    texts_changed: int = 0
    samples: int = 0
    speaker_clips: Counter[str] = field(default_factory=Counter)
    characters: set[str] = field(default_factory=set)
    first_rejected: dict[Reason, str] = field(default_factory=dict)
    """Name and details of the first clip that was rejected for each reason."""
    facts: list[ClipFacts] = field(default_factory=list)
    """Facts of the accepted clips, in their order."""
    examples: list[str] = field(default_factory=list)
    """Lines that show accepted clips."""
    drop_warnings: list[str] = field(default_factory=list)
    """About entries of --drop that name no clip, or several."""
    repeated_rows: dict[str, str] = field(default_factory=dict)
    """Bits of :func:`repeated`, in hexadecimal, by shard."""

    def add(self, entry: AcceptedClip | RejectedClip) -> None:
        """Counts a clip; the facts of an accepted one are added separately."""
        if isinstance(entry, RejectedClip):
            self.rejected[entry.reason] += 1
            self.first_rejected.setdefault(entry.reason, f"{one_line(printable(entry.clip_id))}: {entry.detail}")
            return
        self.texts_changed += entry.text_changed
        self.samples += entry.samples
        self.speaker_clips[entry.speaker] += 1
        self.characters.update(unicodedata.normalize("NFC", entry.text))  # as they are looked up

    def add_all(self, other: "PreparationStats") -> None:
        """Adds the counts of ``other``."""
        self.rejected += other.rejected
        self.texts_changed += other.texts_changed
        self.samples += other.samples
        self.speaker_clips += other.speaker_clips
        self.characters |= other.characters
        self.first_rejected = other.first_rejected | self.first_rejected
        self.facts += other.facts
        self.examples += other.examples

    @cached_property
    def plausibility(self) -> Plausibility:
        """Result of the checks over all accepted clips; call it when they are complete."""
        return examine(self.facts)

    def summary(
        self, output_dir: Path, rate_hz: int, shards: int = 0, missing_parts: Iterable[str] = ()
    ) -> PreparationSummary:
        """Returns the summary of a finished preparation, or of a part of one."""
        missing_files = _missing_files(self)
        warnings = [f"{missing_files}."] if missing_files and self.speaker_clips else []
        warnings += self.drop_warnings
        last = len(self.examples) - 1
        return PreparationSummary(
            output_dir=output_dir,
            accepted=self.speaker_clips.total(),
            rejected={reason: self.rejected[reason] for reason in Reason if self.rejected[reason]},
            texts_changed=self.texts_changed,
            seconds=self.samples / rate_hz,
            speakers=len(self.speaker_clips),
            shards=shards,
            missing_parts=tuple(missing_parts),
            warnings=(*warnings, *self.plausibility.warnings),
            examples=tuple(self.examples[row] for row in sorted({0, last // 2, last})) if self.examples else (),
        )


# Fingerprint


def preparation_fingerprint(
    source: Source, config: PrepareConfig, output_dir: Path, drop: DropList = NOTHING
) -> dict[str, Any]:
    """Returns all that determines the files written: the settings, and the state of the source."""
    unused = _NOT_IN_SETTINGS if config.shards else _NOT_IN_SETTINGS | _SHARDS_ONLY
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}
    if config.shards:
        settings |= {"parts": config.parts, "order": _ORDER}
    return {
        **settings,
        **({"drop": drop.digest} if drop else {}),
        "dataset": printable(config.dataset),
        "source": source.revision or _state_of(source, output_dir),
    }


_SPEAKER_NAMES = "speaker_names"


def with_speaker_names(fingerprint: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Adds a digest of the speakers' short names, if there are any: parts and resumed runs must have the same."""
    return {**fingerprint, **({_SPEAKER_NAMES: short_digest(sorted(names.items()))} if names else {})}


def _state_of(source: Source, output_dir: Path) -> str:
    """Returns a digest of the names, sizes and times of the source's files: reading their content would take long."""
    files = source.files
    if files is None and source.root is not None:
        # Does not follow symbolic links: they may form a loop.
        root, output = source.root.resolve(), output_dir.resolve()
        files = [path for path in root.rglob("*") if output not in path.parents]
    digest = hashlib.sha256()
    for path in sorted(files or ()):
        if path.is_file():
            status = path.stat()
            digest.update(os.fsencode(path.name) + f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns ``name old -> new`` of every setting that differs; an empty string if none does.

    A setting that one of them lacks has the effect of its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(PrepareConfig)} | {"parts": 1}
    names = [*new, *(name for name in old if name not in new)]
    old, new = ({name: defaults.get(name) for name in names} | {**values} for values in (old, new))
    return "; ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name))


def read_finished(output_dir: Path, fingerprint: Mapping[str, Any]) -> PreparationSummary | None:
    """Returns the summary of a finished preparation with the same fingerprint; None if ``output_dir`` has none.

    Raises:
        DataError: ``output_dir`` was prepared with another fingerprint (the message lists the differences).
    """
    path = output_dir / "dataset.json"
    if not path.exists():
        return None
    message = already_prepared_message(output_dir, "dataset.json")
    record = records.read_json(path, _FinishedSummary, DataError, message)
    earlier = {**record["settings"], "dataset": record["source"]["dataset"], "source": record["source"]["state"]}
    # Shards of versions that kept the order of the source are finished, too.
    earlier.setdefault("order", fingerprint.get("order"))
    earlier[_SPEAKER_NAMES] = fingerprint.get(_SPEAKER_NAMES)  # they follow from the source
    changed = changed_settings(earlier, fingerprint)
    if changed:
        raise DataError(
            f"{already_prepared_message(output_dir, 'dataset.json')} Its settings or source differ: {changed}."
        )
    logger.info("%s is already prepared from the same source with the same settings: nothing to do.", output_dir)
    return PreparationSummary(
        output_dir=output_dir,
        accepted=record["accepted"],
        rejected=record["rejected"],
        texts_changed=record["texts_changed"],
        seconds=record["seconds"],
        speakers=record["speakers"],
        shards=record.get("shards", 0),
        warnings=tuple(record.get("warnings", ())),
        examples=tuple(record.get("examples", ())),
    )


def already_prepared_message(output_dir: Path, name: str) -> str:
    """Returns the error message for an ``output_dir`` that contains ``name`` of an earlier preparation."""
    return f"{output_dir} already contains a prepared set ({name}). Delete it, or choose another --output_dir."


def refuse_foreign(folder: Path, kind: Kind) -> None:
    """Raises :class:`DataError` if ``folder`` or a file in it was not written by prepare_data."""
    if not folder.exists():
        return
    foreign = [*others_files(folder, kind), *([] if is_ours(folder, kind) else [folder])]
    if foreign:
        raise DataError(f"{foreign[0]} was not written by prepare_data. Move it away, or choose another --output_dir.")


# Files


def rejected_csv(entries: Iterable[AcceptedClip | RejectedClip]) -> str:
    """Returns the content of rejected.csv: every rejected clip with its reason."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("clip", "reason", "detail"))
    for entry in entries:
        if isinstance(entry, RejectedClip):
            writer.writerow((csv_cell(entry.clip_id), entry.reason, csv_cell(entry.detail)))
    return content.getvalue()


def dataset_json(
    summary: PreparationSummary,
    stats: PreparationStats,
    source: Source,
    config: PrepareConfig,
    fingerprint: Mapping[str, Any],
) -> str:
    """Returns the content of dataset.json. Streaming training reads the speakers and the characters from it."""
    return (
        json.dumps(
            {
                "accepted": summary.accepted,
                "rejected": summary.rejected,
                "texts_changed": summary.texts_changed,
                "seconds": round(summary.seconds, 3),
                "hours": round(summary.hours, 4),
                "mean_seconds": round(summary.mean_seconds, 3),
                "speakers": summary.speakers,
                "speaker_clips": dict(sorted(stats.speaker_clips.items())),
                "characters": "".join(sorted(stats.characters)),
                "sampling_rate": config.target_sr,
                **({"shards": summary.shards} if summary.shards else {}),
                "warnings": summary.warnings,
                "examples": summary.examples,
                **({"copies": stats.plausibility.copies} if stats.plausibility.copies else {}),
                **({"repeated": stats.repeated_rows} if stats.repeated_rows else {}),
                "source": {
                    "kind": source.kind,
                    "dataset": printable(config.dataset),
                    "revision": source.revision,
                    "clips": source.clip_count,
                    "state": fingerprint["source"],
                },
                "settings": {name: value for name, value in fingerprint.items() if name not in ("dataset", "source")},
                "versions": {
                    "vits_trainer": __version__,
                    "soundfile": sf.__version__,
                    "libsndfile": sf.__libsndfile_version__,
                    "soxr": soxr.__version__,
                },
            },
            ensure_ascii=False,
            indent=2,
        )
        + "\n"
    )


def example_line(file: str, clip: AcceptedClip, rate_hz: int) -> str:
    """Returns a line that shows an accepted clip as it was understood."""
    source = f"{one_line(clip.source)} -> " if clip.source else ""
    return f"{source}{file}, {clip.samples / rate_hz:.2f} s, speaker {shown_speaker(clip.speaker)}: {clip.text}"


def require_plausible(stats: PreparationStats, config: PrepareConfig) -> None:
    """Raises :class:`DataError` if the texts of most clips cannot be those of their recordings."""
    problem = stats.plausibility.problem
    if problem is not None and config.check_texts:
        raise DataError(
            f"{config.output_dir}: {problem}. Name the columns of the table (--text_column, --speaker_column) or "
            "correct the data set; if all is right, the same command with --check_texts false finishes from here."
        )


_WRONG_NAMES = (Reason.MISSING_FILE, Reason.PATH_OUTSIDE, Reason.AMBIGUOUS_NAME, Reason.UNUSABLE_NAME)


def _missing_files(stats: PreparationStats) -> str | None:
    """Returns a remark if the files of many clips are not found: their names are probably written in another way."""
    missing = sum(stats.rejected[reason] for reason in _WRONG_NAMES)
    if 2 * missing <= stats.rejected.total() + stats.speaker_clips.total():
        return None
    first = next(stats.first_rejected[reason] for reason in _WRONG_NAMES if stats.rejected[reason])
    return f"the files of {missing} clips are not found; the first: {first}"


def no_clips_message(summary: PreparationSummary, stats: PreparationStats) -> str:
    """Returns the error message if all clips are rejected."""
    counts = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.items())
    message = f"all clips were rejected: {counts}. {summary.output_dir / 'rejected.csv'} has the reason of each. "
    missing_files = _missing_files(stats)
    if missing_files:
        return f"{message}{missing_files[0].upper()}{missing_files[1:]}. Correct the names in the table, or the files."
    return (
        f"{message}The first: {next(iter(stats.first_rejected.values()))}. Correct the data set, or relax the limits "
        "(--min_upvotes, --max_downvotes, --min_duration_s, --max_duration_s, --min_loudness_dbfs)."
    )
