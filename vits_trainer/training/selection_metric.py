"""The validation metric that selects the best checkpoint, and the speech recognizer that it needs."""

import logging
from dataclasses import replace

from vits_trainer.config.options import AUTO
from vits_trainer.config.train import TrainConfig
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.evaluation.recognizers import choose_judge, choose_recognizer
from vits_trainer.evaluation.speech_metrics import SpeechMetrics
from vits_trainer.training.checkpoint_record import CheckpointRecord

logger = logging.getLogger(__name__)


def choose_best_metric(
    config: TrainConfig,
    validation_clips: int,
    language: str | None,
    record: CheckpointRecord | None,
    runtime: Runtime,
) -> TrainConfig:
    """Replaces ``best_metric: auto``: by ``cer`` if all ranks have a recognizer, else by ``mel``. Runs on every rank.

    Args:
        config: of the run.
        validation_clips: their number; without any, nothing is selected.
        language: of the voice.
        record: of the checkpoint that the run resumes from, whose metric it keeps.
        runtime: the ranks, which must choose the same.
    """
    if config.best_metric != AUTO:
        return config
    if record is not None:
        return replace(config, best_metric=str(record.fingerprint.must_match.get("best_metric", "mel")))
    if not validation_clips or not config.validation_score_clips:
        return replace(config, best_metric="mel")
    judges = runtime.all_gather_object(choose_judge(config.asr, language))
    reason = next((judge.reason for judge in judges if judge.recognizer is None), "")
    if reason:
        logger.info("The mel loss selects the best checkpoint, not the character error rate: %s.", reason)
        return replace(config, best_metric="mel")
    logger.info("The character error rate (validation/cer, by %s) selects the best checkpoint.", judges[0].recognizer)
    return replace(config, best_metric="cer")


def validation_metrics(
    config: TrainConfig, rate_hz: int, language: str | None, runtime: Runtime
) -> SpeechMetrics | None:
    """Loads the speech metrics of the validation, with the main rank's recognizer. Runs on every rank.

    Returns:
        None if none is requested.

    Raises:
        ConfigError: a rank lacks a package or a model, or the recognizer does not know the language.
    """
    if not config.scores:
        return None
    asr = config.asr
    if "cer" in config.scores:
        asr = runtime.on_main_then_broadcast(lambda: choose_recognizer(asr, language)) or asr
    return SpeechMetrics(config.scores, rate_hz, asr, language)
