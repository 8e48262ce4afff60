"""``feedback_app``: users' corrections of a voice, in the browser."""

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.feedback.corrections import Corrections, Limits
from vits_trainer.feedback.served_voice import ServedVoice
from vits_trainer.feedback.training_process import TrainingProcess, train_feedback_command, work_folder
from vits_trainer.utils.errors import require


def run(config: FeedbackAppConfig) -> int:
    """Serves the page until SIGINT or SIGTERM; what learns then is stopped, and saves.

    Raises:
        ConfigError: no password for a host that others reach, no gradio, no voice, or no free port.
        DataError: the folder of corrections cannot be used, or another feedback_app uses it.
    """
    password = config.password()
    found = importlib.util.find_spec("gradio") is not None
    require(found, "feedback_app needs gradio: pip install 'vits-trainer[app]'")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vits_trainer").setLevel(logging.INFO)
    limits = Limits(
        max_clip_s=config.max_clip_s,
        max_upload_bytes=round(config.max_upload_mb * 2**20),
        max_corrections_per_hour=config.max_corrections_per_hour,
        max_text_characters=config.max_text_characters,
    )
    voice = ServedVoice(config.model_dir)
    feedback = Path(config.feedback_dir)
    corrections = Corrections(feedback, voice.rate_hz, limits)
    learner = TrainingProcess(train_feedback_command(config), work_folder(config.output_dir))
    with tempfile.TemporaryDirectory(prefix="vits_trainer_") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        from vits_trainer.feedback.app import FeedbackPage, serve  # noqa: PLC0415 - gradio reads these first

        try:
            return serve(FeedbackPage(config, voice, corrections, learner).build(), config, password)
        finally:
            learner.close()
            corrections.close()
