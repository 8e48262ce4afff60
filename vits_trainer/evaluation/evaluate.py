"""Evaluation of voices on recordings that they were not trained on."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_trainer.config.options import SCORES, UNRELIABLE_CER
from vits_trainer.config.serialization import split_names
from vits_trainer.config.voices import EvaluateConfig
from vits_trainer.data.prepared import PreparedData, open_prepared, select_speakers, train_validation_split
from vits_trainer.evaluation.comparison import (
    RECORDED,
    Synthesizer,
    VoiceEvaluation,
    evaluate_voice,
    read_prepared_clip,
    recordings_synthesizer,
    saving_to_folder,
    to_record,
    to_tables,
    voice_synthesizer,
)
from vits_trainer.evaluation.speech_metrics import SpeechMetrics, means
from vits_trainer.evaluation.synthesis import Voice
from vits_trainer.models.pretrained import read_config, speaker_names
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.files import Kind, atomic_write, open_results
from vits_trainer.utils.strings import join_speakers

logger = logging.getLogger(__name__)

RESULTS = Kind(
    "evaluation",
    re.compile(r"scores\.json|speech_\d+(/.*)?", re.DOTALL),
    lambda folder: (folder / "scores.json").is_file() and (folder / "speech_1").is_dir(),
)


@dataclass(frozen=True)
class EvaluationResult:
    """Speech metrics of the recordings and of voices."""

    voices: Sequence[VoiceEvaluation]
    """The recordings themselves first."""
    metrics: Sequence[str]
    """Names of the metrics."""
    record: dict[str, Any]
    """Contents of scores.json."""
    speaker_of: Mapping[str, str]
    """Speaker of each clip, by its name."""
    output_dir: Path
    """scores.json, and the speech of each voice in speech_<number>/."""

    def __str__(self) -> str:
        """Tables of all metrics with 95 % intervals."""
        return to_tables(self.voices, self.metrics, self.speaker_of)


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Measures the recordings themselves, then each voice, and writes scores.json.

    Raises:
        ConfigError: a metric's package or model is missing, or the recognizer does not know the language.
        DataError: a voice and the recordings have different rates.
        ModelError: a voice cannot be loaded.
    """
    prepared = open_prepared(Path(config.data_dir))
    prepared = select_speakers(prepared, config.only_speakers, 0, config.seed)
    rows = _rows(config, prepared)
    _require_speakers(config.names, prepared, rows)
    output = open_results(Path(config.output_dir), RESULTS)
    scores = split_names("scores", config.scores, SCORES)
    scorer = SpeechMetrics(scores, prepared.sampling_rate, config.asr, config.language or _language(config.names))
    recorded = evaluate_voice(RECORDED, lambda row: read_prepared_clip(prepared, row), prepared, rows, scorer, False)
    _check_recognizer(recorded, scorer.recognizer)
    voices = [recorded]
    for number, name in enumerate(config.names, start=1):
        synthesizer = _synthesizer(name, prepared, rows, config.seed)
        saving = saving_to_folder(synthesizer, output / f"speech_{number}", prepared)
        voices.append(evaluate_voice(name, saving, prepared, rows, scorer, not _is_speech(name)))
    record = {"data": config.data_dir, "asr": scorer.recognizer, **to_record(voices, scorer.names)}
    atomic_write(output / "scores.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    speaker_of = {prepared.rows.filename[row]: prepared.rows.speaker[row] for row in rows}
    return EvaluationResult(voices, scorer.names, record, speaker_of, output)


def _require_speakers(names: Sequence[str], prepared: PreparedData, rows: Sequence[int]) -> None:
    """Raises ConfigError if a voice of several speakers lacks one of the clips': before any of them is measured."""
    for name in names:
        if _is_speech(name):
            continue
        known = speaker_names(read_config(name))
        lacking = sorted({prepared.rows.speaker[row] for row in rows} - set(known)) if known else []
        if lacking:
            raise ConfigError(
                f"{name} has no speaker {join_speakers(lacking)}. Exclude their clips with --only_speakers; the voice "
                f"has {join_speakers(known)}."
            )


def _language(names: Sequence[str]) -> str | None:
    """Returns the language of the first voice that names one; None if no voice does."""
    languages = (load_tokenizer(name).language for name in names if not _is_speech(name))
    return next((language for language in languages if language), None)


def _rows(config: EvaluateConfig, prepared: PreparedData) -> list[int]:
    rows = list(range(len(prepared.rows)))
    if config.clips == "held_out":
        rows = train_validation_split(prepared, config.validation_fraction, config.validation_max_clips, config.seed)[1]
    return rows[: config.max_clips] if config.max_clips else rows


def _synthesizer(name: str, prepared: PreparedData, rows: Sequence[int], seed: int) -> Synthesizer:
    if _is_speech(name):
        return recordings_synthesizer(Path(name), prepared, rows)
    voice = Voice.load(name)
    if voice.sampling_rate != prepared.sampling_rate:
        raise DataError(
            f"{name} is at {voice.sampling_rate} Hz, {prepared.root} at {prepared.sampling_rate} Hz: prepare the "
            f"recordings again with --target_sr {voice.sampling_rate}."
        )
    voice.synthesize(prepared.rows.text[rows[0]])  # the first call is slow and would distort the timing
    return voice_synthesizer(voice, prepared, seed)


def _is_speech(name: str) -> bool:
    """Whether it is a folder of recordings rather than a voice."""
    return Path(name).is_dir() and not (Path(name) / "config.json").is_file()


def _check_recognizer(recorded: VoiceEvaluation, asr: str | None) -> None:
    cer = means(recorded.clips).get("cer")
    if cer is not None and cer > UNRELIABLE_CER:
        logger.warning(
            "%s recognizes too little of the recordings themselves (CER %.2f): CER and WER of voices are meaningless. "
            "Set --asr to a model of their language, or omit cer from --scores.",
            asr,
            cer,
        )
