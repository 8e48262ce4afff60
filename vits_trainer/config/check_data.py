"""Configuration of check_data. Imports no torch."""

from dataclasses import dataclass, field

from vits_trainer.config.options import AUTO, SCORES
from vits_trainer.config.ranges import MAX_SEED, check_ranges, limited
from vits_trainer.config.serialization import split_names
from vits_trainer.utils.errors import require

CLIP_SCORES = ("dnsmos", "cer")
"""Speech scores that need no second recording."""


@dataclass(frozen=True)
class Thresholds:
    """Limits beyond which a clip is suspicious. A deviation is a robust z-score among the clips of its speaker."""

    rate: float = limited(3.5, 0, above=True)
    """Deviation of the seconds per letter, upwards or downwards."""
    alignment: float = limited(0.0, -1e6, 1e6)
    """Lowest log-likelihood per frame of the best alignment, in nats, minus that of the best of eight other texts."""
    hurried_tokens: float = limited(3.5, 0, above=True)
    """Deviation of the share of tokens that have a single frame in it, upwards."""
    longest_token: float = limited(5.0, 0, above=True)
    """Deviation of the duration of its longest token, upwards."""
    cer: float = limited(0.5, 0, above=True)
    """Character error rate of a recognizer's transcript."""
    dnsmos: float = limited(2.5, 1, 5)
    """Lowest overall opinion of DNSMOS, from 1 to 5."""
    snr_db: float = limited(15.0, -100, 100)
    """Lowest ratio of speech to noise."""
    level: float = limited(5.0, 0, above=True)
    """Deviation of the level, upwards or downwards; at least 6 dB."""
    bandwidth: float = limited(0.7, 0, 1)
    """Lowest bandwidth, as a fraction of the median of all clips."""
    clipped: float = limited(0.0005, 0, 1)
    """Fraction of clipped samples."""
    dc_offset: float = limited(0.01, 0, 1)
    """Mean of the samples, relative to full scale."""
    digital_silence_s: float = limited(0.3, 0)
    """Longest run of equal samples."""
    edge_silence_s: float = limited(2.0, 0)
    """Silence before or after the speech."""
    duplicate: float = limited(0.92, 0, 1)
    """Similarity of the spectral fingerprints of two clips."""

    def __post_init__(self) -> None:
        check_ranges(self, "thresholds.")


@dataclass(frozen=True)
class CheckDataConfig:
    """Find suspicious clips in prepared data: vits-trainer check_data DIR.

    Writes suspicious.csv (all of them, ranked), measurements.csv (every clip) and check_data.html, a page to listen to
    the worst ones and to save a list for prepare_data --drop LIST.
    """

    data_dir: str = field(metadata={"example": "training"})
    """Prepared folder, with wavs/ or shards; with --streaming also an address, a pattern or a Hub dataset of shards."""
    output_dir: str | None = None
    """Folder for the results; replaces those of an earlier call, but no other files (null = check_data in the prepared
    folder, or in the current folder for an address)."""
    model_name: str | None = None
    """Voice (folder or Hub name) or checkpoint of the language, to align each text with its recording (null = no
    alignment)."""
    scores: str | None = None
    """Speech scores to compute, separated by commas, of dnsmos and cer (null = dnsmos where it is installed; "" =
    none). They take one to two seconds of CPU per clip each."""
    asr: str = AUTO
    """Speech recognizer for cer, as in evaluate."""
    language: str | None = None
    """Language of the texts, such as de, for cer (null = that of the voice, or English)."""
    worst: int = limited(50, 1, 1000)
    """Number of clips on the page. Each adds about 0.2 MB."""
    streaming: bool = False
    """Read shards as train_vits --streaming does, with its choice of validation clips; also remote ones."""
    validation_fraction: float = limited(0.05, 0, 1, below=True)
    """As in training. Determines, with validation_max_clips and seed, the validation clips."""
    validation_max_clips: int = limited(64, 0)
    """As in training."""
    seed: int = limited(1234, 0, MAX_SEED)
    """As in training."""
    processes: int = limited(0, 0, 1024)
    """Worker processes (0 = one per core; 1 = none but the main process)."""
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        check_ranges(self)
        for score in split_names("scores", self.scores or "", SCORES):
            require(
                score in CLIP_SCORES, f"--scores {score}: compares two recordings. Give {' or '.join(CLIP_SCORES)}."
            )
