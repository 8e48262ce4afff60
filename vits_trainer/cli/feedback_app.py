"""``feedback_app``: web page on which users correct a voice."""

import importlib.util
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.feedback.corrections import Corrections, Limits
from vits_trainer.feedback.served_voice import ServedVoice
from vits_trainer.feedback.speakers import flag_speaker
from vits_trainer.feedback.suggestions import held_out_texts
from vits_trainer.feedback.training_process import TrainingProcess, train_feedback_command, work_folder
from vits_trainer.utils.errors import require
from vits_trainer.utils.installation import install_command
from vits_trainer.utils.logging import log_to_console


def run(config: FeedbackAppConfig) -> int:
    """Serves the page until SIGINT or SIGTERM, then stops a running training, which saves a checkpoint.

    Raises:
        ConfigError: the host is reachable by others without a password, gradio is missing, there is no voice, its
            speakers have no names, or the port is in use.
        DataError: the folder of corrections cannot be used, or another feedback_app uses it.
    """
    password = config.password()
    installed = importlib.util.find_spec("gradio") is not None
    require(installed, f"feedback_app needs gradio: {install_command('app')}")
    log_to_console()
    limits = Limits(
        max_clip_s=config.max_clip_s,
        max_upload_bytes=round(config.max_upload_mb * 2**20),
        max_corrections_per_hour=config.max_corrections_per_hour,
        max_text_characters=config.max_text_characters,
    )
    voice = ServedVoice(config.model_dir)
    if config.speaker is not None:
        config = replace(config, speaker=flag_speaker(config.model_dir, voice.speakers, config.speaker))
    suggestions = held_out_texts(config)
    feedback = Path(config.feedback_dir)
    corrections = Corrections(feedback, voice.rate_hz, limits)
    training = TrainingProcess(train_feedback_command(config), work_folder(config.output_dir))
    with tempfile.TemporaryDirectory(prefix="vits_trainer_") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        from vits_trainer.feedback.app import FeedbackPage, serve  # noqa: PLC0415 - gradio reads the variables on import

        try:
            return serve(FeedbackPage(config, voice, corrections, training, suggestions).build(), config, password)
        finally:
            training.close()
            corrections.close()
