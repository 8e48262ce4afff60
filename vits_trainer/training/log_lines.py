"""Lines of the log, readable on a terminal of 80 columns, and the progress bar below them."""

from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

from tqdm import tqdm

from vits_trainer.evaluation.speakers import SpeakerMel, worst

ProgressBar: TypeAlias = "tqdm[NoReturn]"

_LOSSES = (("mel", "generator/mel", 3), ("G", "generator/total", 1), ("D", "discriminator/total", 2))
"""Of a log line: label, metric, decimals."""
_SPEED = (("clips/s", "throughput/utterances_per_s"), ("GiB", "memory/max_allocated_gib"))
_NOT_SHOWN = frozenset(
    ("adversarial", "feature_matching", "total", "constant_frame_mel", "speaker_mel_worst", "speaker_mel_median")
)
"""Validation metrics that metrics.jsonl has, but the log does not."""


def losses_and_speed(metrics: Mapping[str, float]) -> str:
    """Returns the losses and the throughput for a log line."""
    losses = "  ".join(f"{label} {metrics[name]:.{digits}f}" for label, name, digits in _LOSSES if name in metrics)
    return losses + " | " + "  ".join(f"{metrics[name]:.{int(metrics[name] < 10)}f} {label}" for label, name in _SPEED)


def validation_line(scalars: Mapping[str, float], speakers: Sequence[SpeakerMel] = ()) -> str:
    """Returns the validation metrics that decide, mel first, and the worst of several speakers."""
    named = {name.partition("/")[2]: value for name, value in scalars.items()}
    first = ("mel", "mel_from_text")
    shown = [*first, *(name for name in named if name not in _NOT_SHOWN and name not in first and "/" not in name)]
    line = "  ".join(f"{name} {named[name]:.4f}" for name in shown if name in named)
    return f"{line}; the worst speaker: {worst(speakers)}" if speakers else line


def format_duration(seconds: float) -> str:
    """Returns a readable duration: ``40 s``, ``12 min``, ``3.4 h`` or ``34 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours = seconds / 3600
    return f"{seconds / 60:.0f} min" if hours < 5 / 3 else f"{hours:.{int(hours < 10)}f} h"


def progress_bar(total_updates: int, done_updates: int, is_main: bool) -> ProgressBar:
    """Returns a bar of updates that fits the terminal; off a terminal and on other ranks it shows nothing."""
    return tqdm(
        total=total_updates,
        initial=done_updates,
        unit="update",
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} updates [{elapsed}{postfix}]",
        disable=None if is_main else True,  # None: only on a terminal
        dynamic_ncols=True,
    )
