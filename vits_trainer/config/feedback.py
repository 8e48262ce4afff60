"""Configuration of train_feedback and feedback_app."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from vits_trainer.config.options import TRACKERS, Precision
from vits_trainer.config.serialization import listed
from vits_trainer.utils.errors import ConfigError, require

PASSWORD_VARIABLE = "VITS_TRAINER_PASSWORD"  # noqa: S105 - the variable's name  # nosec B105
SHORTEST_PASSWORD = 8
"""Characters."""


@dataclass(frozen=True)
class FeedbackConfig:
    """Learn users' corrections of a voice, NAME.wav with NAME.txt in a folder, beside clips that it knows. The new
    voice takes the old one's place only if the corrections improved and the rest did not worsen."""

    feedback_dir: str = "training/feedback"
    """The corrections: NAME.wav (or flac, mp3, ogg), how it should sound, with NAME.txt, its text."""
    model_dir: str = "training/final_model"
    """The voice that is served. A better one takes its place; those before are kept in <model_dir>_versions."""
    output_dir: str = "training/feedback_model"
    """Where the new voice goes first, as train_vits's output_dir. What training it leaves behind, with verdict.json,
    goes to the folder of this name with _work behind it; a voice that is refused, too."""
    data_dir: str | None = None
    """The prepared folder that the voice was trained on, to replay clips from and to see by its held-out clips what was
    forgotten (null = the folder around feedback_dir, where it is a prepared one)."""
    base_model: str = "facebook/mms-tts-kmr-script_latin"
    """The voice to start from where model_dir holds none."""
    batch_size: int = 2
    """Corrections in an update, for each process."""
    learning_rate: float = 1e-5
    """AdamW's learning rate: low, as few clips must not change the rest of the voice."""
    epochs: int = 5
    """Passes over the corrections."""
    replay_fraction: float = 0.85
    """This part of what is learnt from are clips that the voice knows, so that it does not forget them (0 = none)."""
    max_regression: float = 0.02
    """The new voice is refused if the mel loss of the held-out clips rises by more than this part."""
    rollback: bool = False
    """Put the version before back into its place, and do nothing else. It forgets what was learnt since."""
    keep_versions: int = 5
    """How many of the voices that stood in model_dir, and in output_dir, before are kept (0 = all)."""
    validation_fraction: float = 0.05
    """As in training: which clips of data_dir are held out depends on it."""
    validation_max_clips: int = 64
    """As in training."""
    precision: Precision = "auto"
    """fp32, bf16, fp16, or auto: bf16 on GPUs that have it, else fp32. The old --fp16 means fp16."""
    seed: int = 1234
    """Seed of everything random; which clips of data_dir are held out depends on it, as in training."""
    run_name: str | None = None
    """Name of the run (null = train_vits- and the start time)."""
    report_to: str = "wandb"
    """Where metrics go beside metrics.jsonl, separated by commas: wandb, tensorboard, trackio; or none."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is kept offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags, as [a, b]."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)}: give 1 or more.")
        require(self.learning_rate > 0, f"--learning_rate {self.learning_rate}: give a number above 0, such as 1e-5.")
        require(
            0 <= self.replay_fraction <= 0.95,
            f"--replay_fraction {self.replay_fraction}: give a number from 0 to 0.95.",
        )
        for name in ("max_regression", "keep_versions", "validation_max_clips", "seed"):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")
        require(
            0 <= self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: give a number from 0 to below 1.",
        )
        if self.report_to != "none":
            listed("report_to", self.report_to, TRACKERS)


@dataclass(frozen=True)
class FeedbackAppConfig:
    """Correct a voice in the browser: hear it, record how it should be, and let it learn.

    A password, which the user "voice" gives, comes from --password_file or the environment variable
    VITS_TRAINER_PASSWORD.
    """

    feedback_dir: str = "training/feedback"
    """Where the corrections go, as NAME.wav with NAME.txt; marks go to marks.jsonl in it."""
    model_dir: str = "training/final_model"
    """The voice that speaks; learning replaces it once the new one has proved itself."""
    output_dir: str = "training/feedback_model"
    """Where learning works, as train_feedback's --output_dir."""
    data_dir: str | None = None
    """The prepared folder that the voice was trained on, for train_feedback (null = without)."""
    epochs: int | None = None
    """Passes over the corrections (null = train_feedback's own)."""
    learning_rate: float | None = None
    """AdamW's learning rate (null = train_feedback's own)."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone, unless you name another (0.0.0.0 = all), which needs a password."""
    port: int = 7860
    """Port to listen at."""
    password_file: str | None = None
    """A file whose first line is the password (null = VITS_TRAINER_PASSWORD, or none)."""
    max_clip_s: float = 30.0
    """Longest recording, in seconds."""
    max_upload_mb: float = 20.0
    """Largest file, in MiB."""
    max_corrections_per_hour: int = 60
    """Corrections that one client may save in an hour; all together may save four times as many."""
    max_text_characters: int = 400
    """Longest text."""

    def __post_init__(self) -> None:
        for name in ("epochs", "max_corrections_per_hour", "max_text_characters"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name} {value}: give 1 or more.")
        require(
            self.learning_rate is None or self.learning_rate > 0,
            f"--learning_rate {self.learning_rate}: give a number above 0, such as 1e-5.",
        )
        require(1 <= self.port <= 65535, f"--port {self.port}: give 1 to 65535.")
        require(
            0.1 < self.max_clip_s <= 60, f"--max_clip_s {self.max_clip_s:g}: give more than 0.1, at most 60 seconds."
        )
        require(
            0 < self.max_upload_mb <= 256, f"--max_upload_mb {self.max_upload_mb:g}: give more than 0, at most 256."
        )

    @property
    def is_loopback(self) -> bool:
        """Whether ``host`` can be reached from this machine alone."""
        return is_loopback(self.host)

    def password(self) -> str | None:
        """What visitors must give; None where they need none.

        Raises:
            ConfigError: there is none although others can reach ``host``, it is short, or its file cannot be read.
        """
        words = os.environ.get(PASSWORD_VARIABLE)
        if self.password_file is not None:
            try:
                words = Path(self.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--password_file {self.password_file} cannot be read ({error}).") from error
        require(
            self.is_loopback or words is not None,
            f"--host {self.host} can be reached by others: give --password_file or set {PASSWORD_VARIABLE}.",
        )
        require(
            words is None or len(words) >= SHORTEST_PASSWORD,
            f"The password is too short: give {SHORTEST_PASSWORD} characters or more.",
        )
        return words


def is_loopback(host: str) -> bool:
    """Whether a name or an address is that of this machine, which no other one can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
