"""The decision on a voice that learnt corrections: accept it, or reject it. Imports no torch: the page reads it."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.records import Count, read_json

logger = logging.getLogger("vits_trainer")

_MAX_BYTES = 2**20
_SHOWN = "mel_from_text"
"""The metric that the page shows."""


@dataclass(frozen=True)
class MetricChange:
    """A metric before and after training; lower is better."""

    before: float
    after: float

    @property
    def relative(self) -> float:
        """-0.2 is a decrease by 20 %."""
        return self.after / self.before - 1 if self.before else math.inf

    def __str__(self) -> str:
        """For messages."""
        return f"{self.before:.4f} -> {self.after:.4f} ({self.relative:+.1%})"


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
        f"{name} on the corrections did not improve: {change}"
        for name, change in corrections.items()
        if not change.after < change.before
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
