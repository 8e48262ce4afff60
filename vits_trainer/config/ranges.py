"""Ranges of numeric settings, declared with the field and checked when a configuration is created."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from vits_trainer.utils.errors import ConfigError

Value = TypeVar("Value")

MAX_SEED = 2**63 - 1
_LARGEST = 2**31 - 1
"""Upper limit of settings without a lower one: a typing error, not a setting."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Valid values; the limits themselves are valid unless excluded."""

    minimum: float
    maximum: float
    above: bool = False
    """Whether ``minimum`` itself is invalid."""
    below: bool = False
    """Whether ``maximum`` itself is invalid."""

    def problem(self, value: float) -> str:
        """Describes why ``value`` is invalid; empty if it is valid."""
        if not math.isfinite(value):
            return "must be a finite number"
        if value < self.minimum or (self.above and value == self.minimum):
            return f"must be {'above' if self.above else 'at least'} {self.minimum:g}"
        if value > self.maximum or (self.below and value == self.maximum):
            shown = self.maximum if isinstance(self.maximum, int) else f"{self.maximum:g}"
            return f"must be {'below' if self.below else 'at most'} {shown}"
        return ""


_ANY = Range(-_LARGEST, _LARGEST)


def limited(
    default: Value, minimum: float, maximum: float = _LARGEST, *, above: bool = False, below: bool = False
) -> Value:
    """Returns a dataclass field whose number, or each number of whose (nested) tuple, is in a range; None is valid."""
    field: Value = dataclasses.field(default=default, metadata={"range": Range(minimum, maximum, above, below)})
    return field


def check_ranges(config: Any, prefix: str = "") -> None:
    """Checks all numbers of a configuration; those without a declared range must be finite.

    Args:
        config: dataclass instance.
        prefix: of its flags, such as ``loss_weights.``.

    Raises:
        ConfigError: a number is out of range.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in _numbers(value):
            problem = field.metadata.get("range", _ANY).problem(number)
            if problem:
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"--{prefix}{field.name} {shown}: {problem}.")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
