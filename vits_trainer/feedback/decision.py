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
_DECISIVE = "mel_from_text"
"""The metric that must improve on the corrections, as it depends on their text; the page shows it. The mel loss of a
reconstruction cannot improve if the voice knows the speaker's sound already."""

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
        middle, margin = _interval([math.log(new / old) for old, new in _pairs(before, after)])
        return cls(
            _mean_of_all(before),
            _mean_of_all(after),
            math.expm1(middle - margin),
            math.expm1(min(middle + margin, 700)),
        )

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


@dataclass(frozen=True)
class ErrorRateChange:
    """A character error rate before and after training, of texts that were not trained on; lower is better."""

    before: float
    after: float
    low: float
    """Bounds of the difference, each exceeded with a probability of 5 %."""
    high: float
    texts: Count

    @classmethod
    def from_pairs(cls, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> "ErrorRateChange":
        """Returns the change, with Student's interval of the paired differences.

        Args:
            before: error rate of each text under several seeds, (texts, seeds).
            after: of the same texts and seeds.
        """
        middle, margin = _interval([new - old for old, new in _pairs(before, after)])
        low, high = max(-1.0, middle - margin), min(1.0, middle + margin)
        return cls(_mean_of_all(before), _mean_of_all(after), low, high, len(before))

    @property
    def is_regression(self) -> bool:
        """Whether the rate rose by more than chance explains: by more than half of the interval."""
        return self.low > 0

    def __str__(self) -> str:
        """For messages."""
        difference, low, high = (100 * value for value in (self.after - self.before, self.low, self.high))
        points = f"{difference:+.1f} points, {low:+.1f} to {high:+.1f}"
        return f"{self.before:.1%} -> {self.after:.1%} ({points}; {self.texts} texts)"


def _pairs(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Returns the means over the seeds, before and after, of each clip; each seed, if the clips are too few to vary."""
    if len(before) < _ENOUGH_CLIPS:
        return list(zip(itertools.chain(*before), itertools.chain(*after), strict=True))
    return [(_mean(old), _mean(new)) for old, new in zip(before, after, strict=True)]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and how much it varies to either side with a probability of 5 % each."""
    mean = _mean(values)
    if len(values) < 2:
        return mean, math.inf
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, student_quantile(_QUANTILE, len(values) - 1) * deviation / math.sqrt(len(values))


class _Verdict(TypedDict):
    """Content of verdict.json."""

    accepted: bool
    words: str
    corrections: NotRequired[MetricChange | None]
    held_out: NotRequired[MetricChange | None]
    understood: NotRequired[ErrorRateChange | None]
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
    understood: ErrorRateChange | None = None
    """By a speech recognizer; None if there is none."""
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
        understood: ErrorRateChange | None = None,
    ) -> "Decision":
        """Decides.

        Args:
            corrections: metrics on the corrections.
            held_out: metrics on clips that were not trained on, if there are any.
            max_regression: relative increase of a metric that is tolerated, but on the corrections of mel_from_text.
            learnt: names of the corrections.
            version: of the new voice.
            understood: character error rate, if a recognizer listened.
        """
        reasons = reasons_to_reject(corrections, held_out or {}, max_regression, understood)
        return cls(
            accepted=not reasons,
            message=_message(reasons, corrections, held_out or {}, understood),
            corrections=corrections[_DECISIVE],
            held_out=None if held_out is None else held_out[_DECISIVE],
            understood=understood,
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
            understood=content.get("understood"),
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
            "understood": None if self.understood is None else asdict(self.understood),
            "figures": {
                name: {metric: asdict(change) for metric, change in changes.items()}
                for name, changes in self.metrics.items()
            },
            "learnt": list(self.learnt),
            "version": self.version,
        }


def reasons_to_reject(
    corrections: Changes, held_out: Changes, max_regression: float, understood: ErrorRateChange | None = None
) -> list[str]:
    """Returns why a voice is rejected; empty if it is accepted."""
    reasons = []
    if understood and understood.is_regression:
        reasons.append(f"it is understood less well, beyond chance: character error rate {understood}")
    decisive = corrections[_DECISIVE]
    if not decisive.is_improvement:
        reasons.append(f"{_DECISIVE} on the corrections did not improve beyond chance: {decisive}")
    return reasons + [
        f"{name} on the {clips} regressed by more than --max_regression {max_regression:g}: {change}"
        for clips, changes in (("corrections", corrections), ("held-out clips", held_out))
        for name, change in changes.items()
        if (clips, name) != ("corrections", _DECISIVE) and not change.relative <= max_regression
    ]


def _message(
    reasons: Sequence[str], corrections: Changes, held_out: Changes, understood: ErrorRateChange | None
) -> str:
    parts = [f"character error rate {understood}"] if understood else []
    parts += [
        f"{clips}: " + ", ".join(f"{name} {change}" for name, change in changes.items())
        for clips, changes in (("corrections", corrections), ("held-out clips", held_out))
        if changes
    ]
    metrics = "; ".join(parts)
    return f"REJECTED: {'; and '.join(reasons)}. {metrics}." if reasons else f"accepted. {metrics}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of_all(values: Sequence[Sequence[float]]) -> float:
    return _mean(list(itertools.chain(*values)))


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
