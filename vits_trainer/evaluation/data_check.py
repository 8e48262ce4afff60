"""Checks prepared data: measures every clip, aligns texts and recordings, and ranks what is suspicious."""

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vits_trainer.config.check_data import CheckDataConfig, Thresholds
from vits_trainer.config.options import SCORES
from vits_trainer.config.serialization import split_names
from vits_trainer.data.audio import Rejection
from vits_trainer.data.prepared import open_prepared, train_validation_split
from vits_trainer.data.quality import signals
from vits_trainer.data.quality.measurements import SoundMeasurements
from vits_trainer.data.quality.pieces import Piece, PreparedClip, map_pieces, pieces_of_shards, pieces_of_wavs
from vits_trainer.data.quality.signals import Measured, Suspicion
from vits_trainer.data.quality.survey import Survey
from vits_trainer.data.shards import MANIFEST
from vits_trainer.data.source_names import read_source_names
from vits_trainer.data.streaming import open_stream
from vits_trainer.evaluation.alignment_scores import NO_ALIGNMENT, Aligner, AlignmentScore
from vits_trainer.evaluation.clip_scores import ScoreSettings, score_piece, speech_metrics
from vits_trainer.evaluation.optional_packages import is_installed
from vits_trainer.utils.strings import csv_cell

logger = logging.getLogger(__name__)

_SCORED = ("dnsmos", "cer")
_NEAR_TEXTS = 8
"""Texts before and after those of a piece that its recordings are compared with."""
_HURRIED_FLOOR, _LONGEST_FLOOR_S = 0.01, 0.02
"""Smallest deviations of a speaker's clips that are taken as usual."""


@dataclass(frozen=True)
class OpenedData:
    """Prepared data to check."""

    folder: Path | None
    """None for an address."""
    pieces: list[Piece]
    sampling_rate: int
    """In Hz."""
    held_out: frozenset[str] | list[int]
    """Names of the validation clips, or for streamed shards their rows."""
    is_sharded: bool

    def source_names(self, clips: Sequence[str]) -> dict[str, str]:
        """Returns the names in the source of some clips."""
        return read_source_names(self.folder, clips, self.is_sharded)


@dataclass
class CheckedData:
    """Result of a check."""

    data: OpenedData
    survey: Survey
    alignments: list[AlignmentScore]
    """One per clip; empty without a voice."""
    scores: dict[str, NDArray[np.float64]]
    """dnsmos and cer, as far as they were computed; (clips,)."""
    transcripts: list[str | None]
    thresholds: Thresholds

    @cached_property
    def suspicions(self) -> list[Suspicion]:
        """Suspicious clips, the worst first."""
        survey, thresholds = self.survey, self.thresholds
        found = [finding for measured in self.measured for finding in measured.findings()]
        found += signals.of_copies(survey, thresholds.duplicate)
        found += signals.of_split(survey, _rows(self.data.held_out, survey.names))
        found += signals.of_rejections(survey)
        found += signals.of_missing_alignments(
            [
                row
                for row, score in enumerate(self.alignments)
                if row not in survey.rejections and np.isnan(score.log_likelihood)
            ]
        )
        return signals.ranked(found)

    @cached_property
    def measured(self) -> list[Measured]:
        """Signals that have a value for each clip."""
        thresholds = self.thresholds
        measured = signals.of_sound(self.survey, thresholds)
        measured += self._alignment_signals() if self.alignments else []
        if "dnsmos" in self.scores:
            measured.append(
                Measured("dnsmos", self.scores["dnsmos"], "DNSMOS {value:.1f} of 5", below=thresholds.dnsmos)
            )
        if "cer" in self.scores:
            heard = "the recognizer's transcript differs in {value:.0%} of the characters"
            measured.append(Measured("cer", self.scores["cer"], heard, thresholds.cer))
        return measured

    def _alignment_signals(self) -> list[Measured]:
        columns = np.array(self.alignments, np.float64).T
        speakers, thresholds = self.survey.speakers, self.thresholds
        hurried = signals.deviations(columns[2], speakers, _HURRIED_FLOOR)
        longest_s = signals.deviations(columns[3], speakers, _LONGEST_FLOOR_S)
        return [
            Measured("alignment", columns[1], "another text fits the recording better, by {shown:.1f} nats per frame",
                     below=thresholds.alignment, shown=-columns[1]),
            Measured("hurried_tokens", hurried, "{shown:.0%} of the tokens have to be hurried: the text is too long, "
                     "or another one", thresholds.hurried_tokens, shown=columns[2]),
            Measured("longest_token", longest_s, "a token of {shown:.1f} s: words are missing in the text, or there is "
                     "a long pause", thresholds.longest_token, shown=columns[3]),
        ]  # fmt: skip

    def suspicious_csv(self) -> str:
        """Returns suspicious.csv, which prepare_data --drop takes: the suspicious clips, the worst first."""
        names = [self.survey.names[suspicion.row] for suspicion in self.suspicions]
        sources = self.data.source_names(names)
        rows = (
            (
                csv_cell(name), sources.get(name, ""), f"{suspicion.score:.2f}",
                "; ".join(finding.signal for finding in suspicion.findings),
                csv_cell("; ".join(finding.reason for finding in suspicion.findings)),
                csv_cell(self.survey.texts[suspicion.row]),
            )
            for name, suspicion in zip(names, self.suspicions, strict=True)
        )  # fmt: skip
        return _csv(("clip", "source", "score", "signals", "reasons", "text"), rows)

    def measurements_csv(self) -> str:
        """Returns measurements.csv: all measurements of every clip."""
        survey = self.survey
        columns: list[Sequence[float]] = [survey.sound(name).tolist() for name in SoundMeasurements._fields]
        names = list(SoundMeasurements._fields)
        if self.alignments:
            names += AlignmentScore._fields
            columns += zip(*self.alignments, strict=True)
        names += self.scores
        columns += [values.tolist() for values in self.scores.values()]
        rows = (
            (csv_cell(clip), csv_cell(speaker), *(f"{value:.6g}" for value in values))
            for clip, speaker, *values in zip(survey.names, survey.speakers, *columns, strict=True)
        )
        return _csv(("clip", "speaker", *names), rows)

    def read(self, rows: Iterable[int]) -> dict[int, PreparedClip]:
        """Reads some clips again."""
        wanted, start = set(rows), 0
        clips: dict[int, PreparedClip] = {}
        for piece in self.data.pieces:
            mine = wanted & set(range(start, start + piece.clips))
            if mine:
                read = piece.read()
                clips |= {row: read[row - start] for row in mine}
            start += piece.clips
        return clips


def open_data(config: CheckDataConfig) -> OpenedData:
    """Opens the data of a configuration.

    Raises:
        DataError: there is no prepared data, it is damaged, or too small for the validation split.
        UnreadableShardError: a storage cannot be read.
    """
    folder = Path(config.data_dir)
    if config.streaming:
        shards = open_stream(config.data_dir)
        rows = shards.hold_out(config.validation_fraction, config.validation_max_clips, config.seed)
        local = folder if folder.is_dir() else None
        return OpenedData(local, pieces_of_shards(shards), shards.sampling_rate, rows, is_sharded=True)
    prepared = open_prepared(folder)
    split = train_validation_split(prepared, config.validation_fraction, config.validation_max_clips, config.seed)
    names = frozenset(prepared.rows.filename[row] for row in split[1])
    is_sharded = (folder / MANIFEST).is_file()
    pieces = pieces_of_shards(open_stream(config.data_dir)) if is_sharded else pieces_of_wavs(prepared)
    return OpenedData(folder, pieces, prepared.sampling_rate, names, is_sharded)


def check(config: CheckDataConfig, data: OpenedData, aligner: Aligner | None = None) -> CheckedData:
    """Measures all clips in worker processes, and aligns them in this one.

    Args:
        config: of the check.
        data: result of :func:`open_data`.
        aligner: of ``config.model_name``; None leaves the alignment out.

    Raises:
        ConfigError: a score's package is missing.
        UnreadableShardError: a shard cannot be read.
        VitsTrainerError: a worker process was killed.
    """
    language = config.language or (aligner.tokenizer.language if aligner else None) or "en"
    settings = ScoreSettings(data.sampling_rate, _scores(config), config.asr, language)
    # Reports here, not in a worker process, what is missing.
    names = [name for name in speech_metrics(settings).names if name in _SCORED] if settings.scores else []
    survey, measured = Survey(), []
    results = map_pieces(data.pieces, partial(score_piece, settings=settings), config.processes)
    with _bar("measuring", data) as bar:
        for piece, result in results:
            survey.add(result.measurements)
            measured += result.scores
            bar.update(piece.clips)
    scores = {name: np.array([one.metrics.get(name, np.nan) for one in measured]) for name in names}
    transcripts = [one.transcript for one in measured]
    return CheckedData(data, survey, _alignments(data, aligner, survey.texts), scores, transcripts, config.thresholds)


def _scores(config: CheckDataConfig) -> tuple[str, ...]:
    if config.scores is not None:
        return split_names("scores", config.scores, SCORES)
    return ("dnsmos",) if is_installed("dnsmos") and is_installed("dnsmos_runtime") else ()


def _alignments(data: OpenedData, aligner: Aligner | None, texts: Sequence[str]) -> list[AlignmentScore]:
    scores: list[AlignmentScore] = []
    if aligner is None:
        return scores
    with _bar("aligning", data) as bar:
        for piece in data.pieces:
            clips = piece.read()
            readable = [(row, clip, clip.pcm) for row, clip in enumerate(clips) if not isinstance(clip.pcm, Rejection)]
            of_piece = [NO_ALIGNMENT] * len(clips)
            start, stop = len(scores), len(scores) + len(clips)
            aligned = aligner.scores(
                [clip.text for _, clip, _ in readable],
                [pcm for _, _, pcm in readable],
                [clip.speaker for _, clip, _ in readable],
                data.sampling_rate,
                # A row group may hold one clip, which has no other text to be compared with.
                [*texts[max(0, start - _NEAR_TEXTS) : start], *texts[stop : stop + _NEAR_TEXTS]],
            )
            for (row, _, _), score in zip(readable, aligned, strict=True):
                of_piece[row] = score
            scores += of_piece
            bar.update(len(clips))
    return scores


def _bar(task: str, data: OpenedData) -> "tqdm[Any]":
    return tqdm(desc=f"check_data: {task}", total=sum(piece.clips for piece in data.pieces), unit="clip", disable=None)


def _rows(held_out: frozenset[str] | list[int], names: Sequence[str]) -> list[int]:
    if isinstance(held_out, list):
        return held_out
    return [row for row, name in enumerate(names) if name in held_out]


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return content.getvalue()
