"""``evaluate``: voices judged by held-out clips, side by side."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import transformers

from vits_trainer.config.options import SCORES
from vits_trainer.config.serialization import listed
from vits_trainer.config.voices import EvaluateConfig
from vits_trainer.data.prepared import PreparedData, open_prepared, train_validation_split
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
from vits_trainer.tracking.wandb_run import report_evaluation
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write

logger = logging.getLogger("vits_trainer")

_USELESS_CER = 0.5


def run(config: EvaluateConfig) -> int:
    """Judges the recordings themselves, then each voice; prints tables and writes scores.json.

    Raises:
        DataError: a voice and the recordings have different rates.
    """
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()
    prepared = open_prepared(Path(config.data_dir))
    rows = _rows(config, prepared)
    scores = listed("scores", config.scores, SCORES)
    jury = SpeechMetrics(scores, prepared.sampling_rate, config.asr)
    output = Path(config.output_dir)
    verdicts = [evaluate_voice(RECORDED, lambda row: read_prepared_clip(prepared, row), prepared, rows, jury, False)]
    _doubt_the_recogniser(verdicts[0], config.asr)
    for number, name in enumerate(config.names, start=1):
        speaker = saving_to_folder(_speaker(name, prepared, rows, config.seed), output / f"speech_{number}", prepared)
        verdicts.append(evaluate_voice(name, speaker, prepared, rows, jury, not _is_speech(name)))
    record = {"data": config.data_dir, "asr": config.asr, **to_record(verdicts, jury.names)}
    atomic_write(output / "scores.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(to_tables(verdicts, jury.names))
    print(f"All figures: {output / 'scores.json'}   What was said: {output}/speech_<number>/")
    if config.report_to == "wandb":
        report_evaluation(output, config, record)
    return 0


def _rows(config: EvaluateConfig, prepared: PreparedData) -> list[int]:
    rows = list(range(len(prepared.rows)))
    if config.clips == "held_out":
        rows = train_validation_split(prepared, config.validation_fraction, config.validation_max_clips, config.seed)[1]
    return rows[: config.max_clips] if config.max_clips else rows


def _speaker(name: str, prepared: PreparedData, rows: Sequence[int], seed: int) -> Synthesizer:
    if _is_speech(name):
        return recordings_synthesizer(Path(name), prepared, rows)
    voice = Voice(name)
    if voice.sampling_rate != prepared.sampling_rate:
        raise DataError(
            f"{name} speaks at {voice.sampling_rate} Hz, {prepared.root} is at {prepared.sampling_rate} Hz: prepare "
            f"the recordings again with --target_sr {voice.sampling_rate}."
        )
    voice.speak(prepared.rows["text"][rows[0]])  # the first time is slow and would count
    return voice_synthesizer(voice, prepared, seed)


def _is_speech(name: str) -> bool:
    """Whether it is a folder of recordings rather than a voice."""
    return Path(name).is_dir() and not (Path(name) / "config.json").is_file()


def _doubt_the_recogniser(recorded: VoiceEvaluation, asr: str) -> None:
    cer = means(recorded.clips).get("cer")
    if cer is not None and cer > _USELESS_CER:
        logger.warning(
            "%s understands too little of the recordings themselves (CER %.2f): CER and WER of voices say nothing. "
            "Give --asr a model of their language, or leave cer out of --scores.",
            asr,
            cer,
        )
