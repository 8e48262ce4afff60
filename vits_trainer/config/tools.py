"""What the commands are told that show, prove and measure: as in ``config.train``."""

from dataclasses import dataclass, field
from typing import Literal

from vits_trainer.config.options import Precision
from vits_trainer.utils.errors import require


@dataclass(frozen=True)
class DemoConfig:
    """See it work in minutes, without data of your own: espeak-ng speaks a corpus, and a tiny voice learns it."""

    output_dir: str = "demo"
    """Where everything goes; an earlier demo there is replaced."""
    updates: int = 120
    """Updates to train for."""
    text: str = "The old boat crossed the quiet river."
    """What the trained voice says at the end."""

    def __post_init__(self) -> None:
        require(self.updates >= 1, f"--updates {self.updates}: give 1 or more.")


@dataclass(frozen=True)
class ReportConfig:
    """Make one HTML page of a run, to be sent to anybody: vits-trainer report RUN_DIR."""

    run_dir: str = field(metadata={"example": "training/runs/demo"})
    """The folder runs/<run_name>."""
    output: str | None = None
    """The page to write, overwritten if it exists (null = report.html in the run's folder)."""


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
