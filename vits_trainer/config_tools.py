"""What the commands are told that show, prove and measure: as in ``config``."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vits_trainer.config import Precision, require
from vits_trainer.errors import ConfigError

PASSWORD_VARIABLE = "VITS_TRAINER_PASSWORD"  # noqa: S105 - the variable's name  # nosec B105
SHORTEST_PASSWORD = 8
"""Characters."""


@dataclass(frozen=True)
class DemoConfig:
    """See it work in minutes, without data of your own: espeak-ng speaks a corpus, and a tiny voice learns it."""

    output_dir: str = "demo"
    """Where everything goes; an earlier demo there is replaced."""
    updates: int = 200
    """Updates to train for."""
    text: str = "The old boat crossed the quiet river."
    """What the trained voice says at the end."""

    def __post_init__(self) -> None:
        require(self.updates >= 1, f"--updates {self.updates}: give 1 or more.")


@dataclass(frozen=True)
class CheckConfig:
    """Prove on this machine that training works."""

    golden: str | None = None
    """Folder of golden values (CASE.json with CASE.safetensors): compare losses and gradient norms with them."""
    replay: str | None = None
    """An update that came to no finite number, as a run keeps it (nonfinite/update-<update>/rank<rank>.safetensors):
    run it again, and each clip of it alone."""

    def __post_init__(self) -> None:
        require(
            self.golden is None or self.replay is None,
            f"--golden {self.golden} and --replay {self.replay} are two checks: give one of them.",
        )


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure this machine: an update of training, the alignment search, or the way of the data."""

    suite: Literal["update", "alignment", "data"] = "update"
    """update: a fixed, seeded workload of VITS's size. alignment: the search beside the PyPI package. data: decoding,
    batches, the loader, prepare_data."""
    compare: Literal["none", "reference"] = "none"
    """reference: the textbook's update in the same process on the same batches, in turn with ours, and the ratio."""
    batch_size: int = 8
    """Clips in an update."""
    clip_s: float = 6.0
    """Length of each clip, in seconds."""
    tokens: int = 180
    """Tokens of each clip's text."""
    updates: int = 5
    """How many are measured, after one to warm up; medians are given."""
    precision: Precision = "auto"
    """fp32, bf16, fp16, or auto: bf16 on GPUs that have it, else fp32."""
    size: Literal["mms", "tiny"] = "mms"
    """mms: MMS-TTS's and VITS's own size (36 M and 47 M parameters). tiny: to try it out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    compile: bool = False
    """As in training: decoder and discriminators compiled."""
    gradient_checkpointing: bool = False
    """As in training: the generator's activations computed again in the backward pass."""
    seed: int = 1234
    """Seed of weights and workload."""
    json: str | None = None
    """A file for the figures, beside the table."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens", "updates"):
            require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)}: give 1 or more.")
        require(0.1 <= self.clip_s <= 60, f"--clip_s {self.clip_s}: give 0.1 to 60 seconds.")
        frames = int(self.clip_s * 16000 / 256)
        require(
            self.tokens <= frames,
            f"--tokens {self.tokens}: a clip of {self.clip_s:g} s has {frames} frames, and each token needs one.",
        )


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
