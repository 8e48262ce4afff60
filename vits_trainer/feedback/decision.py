"""The decision on a voice that learnt corrections: accept it, or reject it. Imports no torch: the page reads it."""

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, NotRequired, TypedDict

from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.records import Count, read_json

logger = logging.getLogger(__name__)

_MAX_BYTES = 2**20
_SHOWN = "mel_from_text"
"""The metric that the page shows."""


_ENOUGH_CLIPS = 5
_QUANTILE = 0.95
"""A voice that has learnt nothing is accepted at most once in twenty times."""


@dataclass(frozen=True)
class MetricChange:
    """A metric before and after training; lower is better."""

    before: float
    after: float
    low: float | None = None
    """Bounds of the relative change, each exceeded with a probability of 5 %; None if they were not measured."""
    high: float | None = None

    @classmethod
    def from_pairs(cls, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> "MetricChange":
        """Returns the change, with Student's interval of the paired relative changes.

        Args:
            before: metric of each clip under several seeds, (clips, seeds).
            after: of the same clips and seeds.
        """
        clips = [math.log(_mean(new) / _mean(old)) for old, new in zip(before, after, strict=True)]
        if len(clips) < _ENOUGH_CLIPS:  # too few to vary: seeds of a clip count, too
            pairs = zip(itertools.chain(*before), itertools.chain(*after), strict=True)
            clips = [math.log(new / old) for old, new in pairs]
        middle, margin = _mean(clips), math.inf
        if len(clips) > 1:
            deviation = math.sqrt(sum((value - middle) ** 2 for value in clips) / (len(clips) - 1))
            margin = student_quantile(_QUANTILE, len(clips) - 1) * deviation / math.sqrt(len(clips))
        old, new = (_mean(list(itertools.chain(*values))) for values in (before, after))
        return cls(old, new, math.expm1(middle - margin), math.expm1(min(middle + margin, 700)))

    @property
    def relative(self) -> float:
        """-0.2 is a decrease by 20 %."""
        return self.after / self.before - 1 if self.before else math.inf

    def __str__(self) -> str:
        """For messages."""
        interval = "" if self.low is None or self.high is None else f", {self.low:+.1%} to {self.high:+.1%}"
        return f"{self.before:.4f} -> {self.after:.4f} ({self.relative:+.1%}{interval})"

    @property
    def is_improvement(self) -> bool:
        """Whether the metric fell by more than chance explains."""
        return self.after < self.before and (self.high is None or self.high < 0)


class _Verdict(TypedDict):
    """Content of verdict.json."""

    accepted: bool
    words: str
    corrections: NotRequired[MetricChange | None]
    held_out: NotRequired[MetricChange | None]
    learnt: NotRequired[tuple[str, ...] | None]
    version: NotRequired[Count | None]


Changes = Mapping[str, MetricChange]
"""By metric."""


@dataclass(frozen=True)
class Decision:
    """Whether the new voice replaces the served one, and why."""

    accepted: bool
    message: str
    """One sentence with the metrics."""
    corrections: MetricChange | None = None
    """On the corrections."""
    held_out: MetricChange | None = None
    """On clips that were not trained on; None if there are none."""
    learnt: tuple[str, ...] = ()
    """Names of the corrections that were trained on."""
    version: int | None = None
    """Of the new voice."""
    metrics: Mapping[str, Changes] = field(default_factory=dict, compare=False)
    """All metrics, by ``corrections`` and ``held_out``."""

    @classmethod
    def from_metrics(
        cls,
        corrections: Changes,
        held_out: Changes | None,
        max_regression: float,
        learnt: Sequence[str] = (),
        version: int | None = None,
    ) -> "Decision":
        """Decides.

        Args:
            corrections: metrics on the corrections.
            held_out: metrics on clips that were not trained on, if there are any.
            max_regression: relative increase of a metric on those that is tolerated.
            learnt: names of the corrections.
            version: of the new voice.
        """
        reasons = reasons_to_reject(corrections, held_out or {}, max_regression)
        return cls(
            accepted=not reasons,
            message=_message(reasons, corrections, held_out or {}),
            corrections=corrections[_SHOWN],
            held_out=None if held_out is None else held_out[_SHOWN],
            learnt=tuple(learnt),
            version=version,
            metrics={"corrections": corrections, "held_out": held_out or {}},
        )

    @classmethod
    def read(cls, path: Path) -> "Decision | None":
        """Reads verdict.json; None if it is missing, or damaged, which is logged."""
        if not path.is_file():
            return None
        try:
            content = read_json(path, _Verdict, DataError, "", max_bytes=_MAX_BYTES)
        except DataError as error:
            logger.warning("%s", error)
            return None
        return cls(
            accepted=content["accepted"],
            message=" ".join(content["words"].split()),
            corrections=content.get("corrections"),
            held_out=content.get("held_out"),
            learnt=content.get("learnt") or (),
            version=content.get("version"),
        )

    def write(self, path: Path) -> None:
        """Writes verdict.json."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Contents of verdict.json."""
        return {
            "accepted": self.accepted,
            "words": self.message,
            "corrections": None if self.corrections is None else asdict(self.corrections),
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "figures": {
                name: {metric: asdict(change) for metric, change in changes.items()}
                for name, changes in self.metrics.items()
            },
            "learnt": list(self.learnt),
            "version": self.version,
        }


def reasons_to_reject(corrections: Changes, held_out: Changes, max_regression: float) -> list[str]:
    """Returns why a voice is rejected; empty if it is accepted."""
    reasons = [
        f"{name} on the corrections did not improve beyond chance: {change}"
        for name, change in corrections.items()
        if not change.is_improvement
    ]
    return reasons + [
        f"{name} on the held-out clips regressed by more than --max_regression {max_regression:g}: {change}"
        for name, change in held_out.items()
        if not change.relative <= max_regression
    ]


def _message(reasons: Sequence[str], corrections: Changes, held_out: Changes) -> str:
    metrics = "; ".join(
        f"{clips}: " + ", ".join(f"{name} {change}" for name, change in changes.items())
        for clips, changes in (("corrections", corrections), ("held-out clips", held_out))
        if changes
    )
    return f"REJECTED: {'; and '.join(reasons)}. {metrics}" if reasons else f"accepted. {metrics}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def student_quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t distribution.

    Exact for 1 and 2 degrees of freedom; otherwise the expansion of Fisher and Cornish (1960), to 0.3 %.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
