"""``feedback_app``: users' corrections of a voice, in the browser."""

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

from vits_trainer.config import require
from vits_trainer.config_tools import FeedbackAppConfig
from vits_trainer.corrections import Corrections, Limits
from vits_trainer.errors import ConfigError
from vits_trainer.learning import PASSWORD_VARIABLE, Learner, train_feedback_command, verdict_file
from vits_trainer.served import ServedVoice

_SHORTEST_PASSWORD = 8


def run(config: FeedbackAppConfig) -> int:
    """Serves the page until SIGINT or SIGTERM; what learns then is stopped, and saves.

    Raises:
        ConfigError: no password for a host that others reach, no gradio, no voice, or no free port.
        DataError: the folder of corrections cannot be used, or another feedback_app uses it.
    """
    password = _password(config)
    require(
        config.is_loopback or password is not None,
        f"--host {config.host} can be reached by others: give --password_file or set {PASSWORD_VARIABLE}.",
    )
    require(
        importlib.util.find_spec("gradio") is not None,
        "feedback_app needs gradio: pip install 'vits-trainer[app]'",
    )
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
    learner = Learner(train_feedback_command(config), verdict_file(config.output_dir))
    with tempfile.TemporaryDirectory(prefix="vits_trainer_") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        from vits_trainer.feedback_page import FeedbackPage, serve  # noqa: PLC0415 - gradio reads these first

        try:
            return serve(FeedbackPage(config, voice, corrections, learner).build(), config, password)
        finally:
            learner.close()
            corrections.close()


def _password(config: FeedbackAppConfig) -> str | None:
    words = os.environ.get(PASSWORD_VARIABLE)
    if config.password_file is not None:
        try:
            words = Path(config.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--password_file {config.password_file} cannot be read ({error}).") from error
    if words is not None:
        require(
            len(words) >= _SHORTEST_PASSWORD,
            f"The password is too short: give {_SHORTEST_PASSWORD} characters or more.",
        )
    return words
