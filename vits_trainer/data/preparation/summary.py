"""What a preparation was asked for and came to: dataset.json and rejected.csv, for wavs/ and shards alike."""

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
from typing import Any

import soundfile as sf
import soxr

from vits_trainer import __version__
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.preparation.journal import AcceptedClip, RejectedClip
from vits_trainer.data.sources.base import Source
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import Kind, is_ours, others_files
from vits_trainer.utils.strings import csv_cell

logger = logging.getLogger("vits_trainer")

_NO_SETTINGS = {"dataset", "output_dir", "processes", "part", "push_to_hub"}
"""Fields of the configuration that dataset.json has elsewhere, or that change nothing in what is written."""
_ONLY_OF_SHARDS = {"shards", "encoding"}


@dataclass(frozen=True)
class PreparationSummary:
    """What a preparation came to."""

    output_dir: Path
    accepted: int
    rejected: Mapping[Reason, int]
    """Clips left out by reason, in the order of the checks; only reasons that occurred."""
    texts_changed: int
    """Accepted clips whose text :func:`one_line` changed."""
    seconds: float
    """Length of the accepted clips together."""
    speakers: int
    shards: int = 0
    """How many were written; 0 for wavs/."""
    missing_parts: tuple[str, ...] = ()
    """Parts such as 2/4 that are not done yet: the figures are those of one part alone."""

    @property
    def hours(self) -> float:
        """Length of the accepted clips together, in hours."""
        return self.seconds / 3600

    @property
    def mean_seconds(self) -> float:
        """Mean length of an accepted clip."""
        return self.seconds / self.accepted if self.accepted else 0.0


@dataclass
class PreparationStats:
    """Figures of the clips so far."""

    rejected: Counter[Reason] = field(default_factory=Counter)
    texts_changed: int = 0
    samples: int = 0
    speaker_clips: Counter[str] = field(default_factory=Counter)
    characters: set[str] = field(default_factory=set)

    def add(self, entry: AcceptedClip | RejectedClip) -> None:
        """Counts one more clip."""
        if isinstance(entry, RejectedClip):
            self.rejected[entry.reason] += 1
            return
        self.texts_changed += entry.text_changed
        self.samples += entry.samples
        self.speaker_clips[entry.speaker] += 1
        self.characters.update(entry.text)

    def add_all(self, other: "PreparationStats") -> None:
        """Counts what ``other`` has counted."""
        self.rejected += other.rejected
        self.texts_changed += other.texts_changed
        self.samples += other.samples
        self.speaker_clips += other.speaker_clips
        self.characters |= other.characters

    def summary(
        self, output_dir: Path, rate_hz: int, shards: int = 0, missing_parts: Iterable[str] = ()
    ) -> PreparationSummary:
        """The figures of a preparation that is done, or of a part of it."""
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


# What was asked for


def preparation_fingerprint(source: Source, config: PrepareConfig, output_dir: Path) -> dict[str, Any]:
    """What decides the bytes that are written: the settings, and the source as it lies there."""
    unused = _NO_SETTINGS if config.shards else _NO_SETTINGS | _ONLY_OF_SHARDS
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in unused}
    if config.shards:
        settings["parts"] = config.parts  # the clips' names tell them apart
    return {**settings, "dataset": config.dataset, "source": source.revision or _state_of(source, output_dir)}


def _state_of(source: Source, output_dir: Path) -> str:
    """Changes when a file of the source does: by names, sizes and times, as reading all of it would take long."""
    found = source.files
    if found is None and source.root is not None:
        # Not where links lead: some lead in a circle.
        root, output = source.root.resolve(), output_dir.resolve()
        found = [path for path in root.rglob("*") if output not in path.parents]
    digest = hashlib.sha256()
    for path in sorted(found or ()):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``name then -> now`` of all that was asked for otherwise; nothing where all is the same."""
    names = [*now, *(name for name in then if name not in now)]
    return "; ".join(f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name))


def finished_before(output_dir: Path, asked: Mapping[str, Any]) -> PreparationSummary | None:
    """What an earlier call of the same kind came to; None where there was none.

    Raises:
        DataError: there is a prepared set, but not of what is asked for now; says what differs.
    """
    path = output_dir / "dataset.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        then = {**record["settings"], "dataset": record["source"]["dataset"], "source": record["source"]["state"]}
        changed = differences(then, asked)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(already_prepared_message(output_dir, "dataset.json")) from error
    if changed:
        raise DataError(f"{already_prepared_message(output_dir, 'dataset.json')} It is of something else: {changed}.")
    logger.info("%s was prepared before, from the same source with the same settings: it is left as it is.", output_dir)
    return PreparationSummary(
        output_dir=output_dir,
        accepted=record["accepted"],
        rejected={Reason(reason): count for reason, count in record["rejected"].items()},
        texts_changed=record["texts_changed"],
        seconds=record["seconds"],
        speakers=record["speakers"],
        shards=record.get("shards", 0),
    )


def already_prepared_message(output_dir: Path, name: str) -> str:
    """Why nothing is prepared where ``name`` lies."""
    return f"{output_dir} already holds a prepared set ({name}). Delete it, or choose another --output_dir."


def refuse_foreign(folder: Path, kind: Kind) -> None:
    """Raises :class:`DataError` where prepare_data did not make ``folder``, or somebody else's file is in it."""
    if not folder.exists():
        return
    foreign = [*others_files(folder, kind), *([] if is_ours(folder, kind) else [folder])]
    if foreign:
        raise DataError(f"{foreign[0]} was not written by prepare_data. Move it away, or choose another --output_dir.")


# What is written


def rejected_csv(entries: Iterable[AcceptedClip | RejectedClip]) -> str:
    """Every clip left out, with its reason."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("clip", "reason", "detail"))
    for entry in entries:
        if isinstance(entry, RejectedClip):
            writer.writerow((csv_cell(entry.clip_id), entry.reason, csv_cell(entry.detail)))
    return content.getvalue()


def dataset_json(
    summary: PreparationSummary,
    tally: PreparationStats,
    source: Source,
    config: PrepareConfig,
    asked: Mapping[str, Any],
) -> str:
    """Counts, lengths, settings, versions; all speakers and characters, for training that reads clips as they come."""
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
                "speaker_clips": dict(sorted(tally.speaker_clips.items())),
                "characters": "".join(sorted(tally.characters)),
                "sampling_rate": config.target_sr,
                **({"shards": summary.shards} if summary.shards else {}),
                "source": {
                    "kind": source.kind,
                    "dataset": config.dataset,
                    "revision": source.revision,
                    "clips": source.clip_count,
                    "state": asked["source"],
                },
                "settings": {name: value for name, value in asked.items() if name not in ("dataset", "source")},
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
    """What to do where every clip was left out."""
    counts = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.items())
    return (
        f"not one clip is left to train on: {counts}. {summary.output_dir / 'rejected.csv'} says why for each; "
        "correct the data set, or loosen the limits (--min_upvotes, --max_downvotes, --min_duration_s, "
        "--max_duration_s, --min_loudness_dbfs)."
    )
