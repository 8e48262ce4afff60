"""Configuration of demo, report, check and benchmark. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from vits_trainer.config.options import Precision
from vits_trainer.config.ranges import MAX_SEED, check_ranges, limited
from vits_trainer.utils.errors import require


@dataclass(frozen=True)
class DemoConfig:
    """Try everything in minutes without own data: fine-tune the packaged English voice to 20 packaged recordings of a
    human speaker, and compare it before and after."""

    output_dir: str = "demo"
    """Folder for all files. Replaces an earlier demo there."""
    from_scratch: bool = False
    """Train a tiny voice from scratch instead, on a corpus that espeak-ng synthesizes."""
    updates: int | None = limited(None, 1)
    """Number of updates to train (null = as many as take about three minutes on a CPU)."""
    text: str = "The old boat crossed the quiet river."
    """Text that the trained voice speaks at the end."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ReportConfig:
    """Write a run as one self-contained HTML page: vits-trainer report RUN_DIR.

    report --compare A B writes a page to compare voices by ear instead: it has the same sentences by each voice, and a
    blind test whose tally can be saved.
    """

    run_dir: str | None = field(default=None, metadata={"example": "training/runs/demo"})
    """The run's folder, runs/<run_name>."""
    output: str | None = None
    """Path of the page; an existing file is overwritten (null = report.html in the run's folder, or listening.html in
    the current folder for --compare)."""
    compare: tuple[str, ...] = field(default=(), metadata={"several": True})
    """Two or more voices (folders or Hub names) or runs, separated by spaces. Of a run, the samples of its last
    validation are used."""
    sentences: str | None = None
    """--compare: UTF-8 file with one sentence per line (null = validation sentences that the runs have in common, or
    those of data_dir)."""
    data_dir: str = "training"
    """--compare: prepared folder with the validation sentences and their recordings."""
    max_sentences: int = limited(10, 1, 200)
    """--compare: maximum number of sentences. Each adds about 0.1 MB per voice to the page."""
    seed: int = limited(1234, 0, MAX_SEED)
    """--compare: seed of the synthesis."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            bool(self.run_dir) or bool(self.compare),
            "give --run_dir, such as training/runs/demo; or two voices or runs, as --compare A B.",
        )
        require(not (self.run_dir and self.compare), f"{self.run_dir} and --compare exclude each other: give only one.")
        require(len(self.compare) != 1, f"--compare {' '.join(self.compare)}: give two or more voices or runs.")
        require(len(set(self.compare)) == len(self.compare), "--compare: contains a voice twice.")


@dataclass(frozen=True)
class CheckConfig:
    """Verify on this machine that training works correctly."""

    golden: str | None = None
    """Folder of golden values (CASE.json with CASE.safetensors) to compare losses and gradient norms with."""
    replay: str | None = None
    """Repeat an update with NaN or Inf that a run saved (nonfinite/update-<update>/rank<rank>.safetensors), also with
    each clip separately."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.golden is None or self.replay is None,
            f"--golden {self.golden} and --replay {self.replay} exclude each other: give only one.",
        )


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure the speed of training updates, of the alignment search or of data loading on this machine."""

    suite: Literal["update", "alignment", "data"] = "update"
    """update: a fixed, seeded training workload of VITS's size. alignment: the alignment search, compared with the PyPI
    package. data: decoding, batches, data loader and prepare_data."""
    compare: Literal["none", "reference"] = "none"
    """reference: alternate with a reference update on the same batches in the same process, and report the ratio."""
    batch_size: int = limited(8, 1, 2**16)
    """Clips per update."""
    clip_s: float = 6.0
    """Length of each clip, in seconds."""
    tokens: int = limited(180, 1, 2**16)
    """Tokens per clip."""
    updates: int = limited(5, 1)
    """Number of measured updates, after one warm-up update. Medians are reported."""
    precision: Precision = "auto"
    """fp32, tf32, bf16, fp16 or auto (bf16 on GPUs that have it, else fp32)."""
    size: Literal["mms", "tiny"] = "mms"
    """mms: the size of MMS-TTS and VITS (36 M and 47 M parameters). tiny: for a quick try."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one, else the CPU."""
    compile: bool = False
    """As in training: compile the networks."""
    cuda_graphs: bool = False
    """As in training: record the update as a CUDA graph. Needs a GPU."""
    gradient_checkpointing: bool = False
    """As in training: recompute the generator's activations in the backward pass."""
    seed: int = limited(1234, 0, MAX_SEED)
    """Seed of the weights and the workload."""
    json: str | None = None
    """JSON file to write the results to, in addition to the printed table."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(0.1 <= self.clip_s <= 60, f"--clip_s {self.clip_s}: must be between 0.1 and 60 seconds.")
        frames = int(self.clip_s * 16000 / 256)
        require(
            self.tokens <= frames,
            f"--tokens {self.tokens}: must be at most the {frames} frames of a clip of {self.clip_s:g} s, as each "
            "token needs a frame.",
        )
