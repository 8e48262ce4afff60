"""Configuration of train_feedback and feedback_app. Imports no torch."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from vits_trainer.config.options import AUTO, TRACKERS, Precision
from vits_trainer.config.ranges import MAX_SEED, check_ranges, limited
from vits_trainer.config.serialization import require_run_name, split_names
from vits_trainer.utils.errors import ConfigError, require

PASSWORD_VARIABLE = "VITS_TRAINER_PASSWORD"  # noqa: S105 - the variable's name  # nosec B105
SHORTEST_PASSWORD = 8
"""Minimum length of the password, in characters."""


@dataclass(frozen=True)
class FeedbackConfig:
    """Fine-tune a voice on users' corrections (NAME.wav with NAME.txt), mixed with clips of its training data.

    The new voice replaces the old one only if it improves on the corrections, does not regress on the validation clips,
    and is understood as well as the old one.
    """

    feedback_dir: str = "training/feedback"
    """Folder of the corrections: recordings NAME.wav (or .flac, .mp3, .ogg), each with its text in NAME.txt."""
    model_dir: str = "training/final_model"
    """The voice in use. An accepted voice replaces it; previous ones are kept in <model_dir>_versions."""
    output_dir: str = "training/feedback_model"
    """Folder for the new voice before it is accepted, as --output_dir of train_vits. Training files, verdict.json and
    rejected voices go to <output_dir>_work."""
    data_dir: str | None = None
    """The prepared folder that the voice was trained on. Its training clips are replayed, and its validation clips
    measure forgetting (null = the parent of feedback_dir, if that is a prepared folder)."""
    only_speakers: str = ""
    """Speakers of data_dir that the voice was trained on, separated by commas (empty = as stored with the voice)."""
    speaker: str | None = None
    """Speaker, or the beginning of its name, of the corrections that have no NAME.speaker (null = each has one, or the
    voice has one speaker)."""
    base_model: str = "facebook/mms-tts-kmr-script_latin"
    """The voice to start from if model_dir holds none."""
    batch_size: int = limited(2, 1, 2**16)
    """Corrections per update and process."""
    learning_rate: float = limited(3e-5, 0, 1e6, above=True)
    """AdamW's learning rate. Low, so that a few clips do not change the rest of the voice."""
    epochs: int = limited(5, 1)
    """Passes over the corrections."""
    replay_fraction: float = 0.85
    """Fraction of the training examples that are replayed from data_dir, against forgetting (0 = none)."""
    max_regression: float = limited(0.01, 0, 1e6)
    """Reject the new voice if a mel loss is higher by more than this fraction."""
    asr: str = AUTO
    """Speech recognizer that must understand the new voice as well as the old one, on texts that were not trained on.
    auto: whisper-tiny.en for English voices, where the extra asr is installed. Or a recognizer as in evaluate."""
    rollback: bool = False
    """Only restore the previous version of the voice, without training. It lacks the corrections learnt since."""
    keep_versions: int = limited(5, 0)
    """Number of previous voices to keep, both of model_dir and of output_dir (0 = all)."""
    validation_fraction: float = 0.05
    """As in training; only for voices that do not store it. Determines, with seed, which clips of data_dir are
    validation clips."""
    validation_max_clips: int = limited(64, 0)
    """As in training; only for voices that do not store it."""
    precision: Precision = "auto"
    """fp32, tf32, bf16, fp16 or auto (bf16 on GPUs that have it, else fp32). --fp16 is short for --precision fp16."""
    seed: int = limited(1234, 0, MAX_SEED)
    """Random seed. As in training, also determines which clips of data_dir are validation clips."""
    run_name: str | None = None
    """Name of the run (null = train_vits-<start time>)."""
    report_to: str = "wandb"
    """Trackers to log to in addition to metrics.jsonl, separated by commas: {trackers}; or none."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is logged offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags, such as [a, b]."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require_run_name(self.run_name)
        require(
            0 <= self.replay_fraction <= 0.95,
            f"--replay_fraction {self.replay_fraction}: must be between 0 and 0.95.",
        )
        require(
            0 <= self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: must be at least 0 and below 1.",
        )
        if self.report_to != "none":
            split_names("report_to", self.report_to, TRACKERS)


@dataclass(frozen=True)
class FeedbackAppConfig:
    """Correct a voice in the browser: listen to it, record how it should sound, and fine-tune it on the recordings.

    Set a password with --password_file or the environment variable VITS_TRAINER_PASSWORD; visitors log in with it as
    the user "voice".
    """

    feedback_dir: str = "training/feedback"
    """Folder for the corrections (NAME.wav with NAME.txt) and the marks of right and wrong (marks.jsonl)."""
    model_dir: str = "training/final_model"
    """The voice that speaks. Fine-tuning replaces it once the new voice is accepted."""
    output_dir: str = "training/feedback_model"
    """Working folder of the fine-tuning, as --output_dir of train_feedback."""
    data_dir: str | None = None
    """The prepared folder that the voice was trained on, as --data_dir of train_feedback (null = none)."""
    speaker: str | None = None
    """Speaker, or the beginning of its name, that is selected first, and that of corrections added by hand (null = the
    voice's first speaker)."""
    epochs: int | None = limited(None, 1)
    """Passes over the corrections (null = the default of train_feedback)."""
    learning_rate: float | None = limited(None, 0, 1e6, above=True)
    """AdamW's learning rate (null = the default of train_feedback)."""
    host: str = "127.0.0.1"
    """Address to listen on. The default accepts only connections from this machine; any address that others can reach
    (0.0.0.0 = all interfaces) needs a password."""
    port: int = 7860
    """Port to listen on."""
    password_file: str | None = None
    """File whose first line is the password (null = VITS_TRAINER_PASSWORD, or no password)."""
    max_clip_s: float = 30.0
    """Maximum length of a recording, in seconds."""
    max_upload_mb: float = 20.0
    """Maximum size of an uploaded file, in MiB."""
    max_corrections_per_hour: int = limited(60, 1)
    """Maximum corrections per client and hour. All clients together may save four times as many."""
    max_text_characters: int = limited(400, 1, 2**20)
    """Maximum length of a text, in characters."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(1 <= self.port <= 65535, f"--port {self.port}: must be between 1 and 65535.")
        require(
            0.1 < self.max_clip_s <= 60, f"--max_clip_s {self.max_clip_s:g}: must be above 0.1 and at most 60 seconds."
        )
        require(
            0 < self.max_upload_mb <= 256, f"--max_upload_mb {self.max_upload_mb:g}: must be above 0 and at most 256."
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach ``host``."""
        return is_loopback(self.host)

    def password(self) -> str | None:
        """Returns the password that visitors need, or None if they need none.

        Raises:
            ConfigError: there is no password although others can reach ``host``, it is too short, or its file cannot be
                read.
        """
        password = os.environ.get(PASSWORD_VARIABLE)
        if self.password_file is not None:
            try:
                password = Path(self.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--password_file {self.password_file}: cannot be read ({error}).") from error
        require(
            self.is_loopback or password is not None,
            f"--host {self.host}: others can reach this address. Set a password with --password_file or "
            f"{PASSWORD_VARIABLE}.",
        )
        require(
            password is None or len(password) >= SHORTEST_PASSWORD,
            f"The password is too short: use at least {SHORTEST_PASSWORD} characters.",
        )
        return password


def is_loopback(host: str) -> bool:
    """Returns whether ``host`` is a loopback name or address, which no other machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
