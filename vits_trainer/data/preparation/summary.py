"""Fingerprint, statistics and summary of a preparation, and the files dataset.json and rejected.csv."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import soundfile as sf
import soxr

from vits_trainer import __version__
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.preparation.journal import AcceptedClip, RejectedClip
from vits_trainer.data.sources.base import Source
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, is_ours, others_files
from vits_trainer.utils.records import Amount, Count
from vits_trainer.utils.strings import csv_cell

logger = logging.getLogger("vits_trainer")

_NOT_IN_SETTINGS = {"dataset", "output_dir", "processes", "part", "push_to_hub"}
"""Fields that dataset.json has elsewhere, or that do not affect the files that are written."""
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


@dataclass
class PreparationStats:
    """Running counts over the clips."""

    rejected: Counter[Reason] = field(default_factory=Counter)
    texts_changed: int = 0
    samples: int = 0
    speaker_clips: Counter[str] = field(default_factory=Counter)
    characters: set[str] = field(default_factory=set)

    def add(self, entry: AcceptedClip | RejectedClip) -> None:
        """Counts a clip."""
        if isinstance(entry, RejectedClip):
            self.rejected[entry.reason] += 1
            return
        self.texts_changed += entry.text_changed
        self.samples += entry.samples
        self.speaker_clips[entry.speaker] += 1
        self.characters.update(entry.text)

    def add_all(self, other: "PreparationStats") -> None:
        """Adds the counts of ``other``."""
        self.rejected += other.rejected
        self.texts_changed += other.texts_changed
        self.samples += other.samples
        self.speaker_clips += other.speaker_clips
        self.characters |= other.characters

    def summary(
        self, output_dir: Path, rate_hz: int, shards: int = 0, missing_parts: Iterable[str] = ()
    ) -> PreparationSummary:
        """Returns the summary of a finished preparation, or of a part of one."""
        return PreparationSummary(
            output_dir=output_dir,
            accepted=self.speaker_clips.total(),
            rejected={reason: self.rejected[reason] for reason in Reason if self.rejected[reason]},
            texts_changed=self.texts_changed,
            seconds=self.samples / rate_hz,
            speakers=len(self.speaker_clips),
            shards=shards,
            missing_parts=tuple(missing_parts),
        )


# Fingerprint


def preparation_fingerprint(source: Source, config: PrepareConfig, output_dir: Path) -> dict[str, Any]:
    """Returns all that determines the files written: the settings, and the state of the source."""
    unused = _NOT_IN_SETTINGS if config.shards else _NOT_IN_SETTINGS | _SHARDS_ONLY
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}
    if config.shards:
        settings["parts"] = config.parts  # part of the clips' names
    return {**settings, "dataset": config.dataset, "source": source.revision or _state_of(source, output_dir)}


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
            digest.update(f"{path.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns ``name old -> new`` of every setting that differs; an empty string if none does."""
    names = [*new, *(name for name in old if name not in new)]
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
                "source": {
                    "kind": source.kind,
                    "dataset": config.dataset,
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


def no_clips_message(summary: PreparationSummary) -> str:
    """Returns the error message if all clips are rejected."""
    counts = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.items())
    return (
        f"all clips were rejected: {counts}. {summary.output_dir / 'rejected.csv'} has the reason of each. "
        "Correct the data set, or relax the limits (--min_upvotes, --max_downvotes, --min_duration_s, "
        "--max_duration_s, --min_loudness_dbfs)."
    )
