"""Line charts over the updates as SVG strings. Colours come from the page's CSS, by class."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

WIDTH_PX, HEIGHT_PX = 300, 176
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 46, 290, 20, 146
"""Edges of the plot area within the panel; tick labels are outside."""
MAX_POINTS = 400
"""Maximum number of points of a line, about one per pixel."""
LOG_FROM = 5
"""Ratio of largest to smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """One metric over the updates; ``updates`` are ascending, and both are (N,)."""

    updates: Sequence[float]
    values: Sequence[float]

    def at(self, update: float) -> float | None:
        """Returns the value at an update, the last one if there are several; None if there is none."""
        values = [value for position, value in zip(self.updates, self.values, strict=True) if position == update]
        return values[-1] if values else None

    def lowest(self) -> tuple[float, float]:
        """Returns update and value of the minimum."""
        index = min(range(len(self.values)), key=self.values.__getitem__)
        return self.updates[index], self.values[index]


@dataclass(frozen=True)
class Mark:
    """One curve of a panel, with its label and style."""

    label: str
    curve: Curve
    style: Literal["line", "dots", "rule"]
    """rule: a horizontal line at the last value."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels along an axis."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def px(self, value: float) -> float:
        """Returns the pixel of ``value``."""
        low, high, here = (math.log10(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.start_px + (here - low) / (high - low) * (self.end_px - self.start_px)


def downsample(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """Reduces to ``max_points``: first, last, and the minimum and maximum of each of equal segments between."""
    count = len(curve.values)
    if count <= max_points:
        return curve
    segments = (max_points - 2) // 2
    edges = [1 + (count - 2) * number // segments for number in range(segments + 1)]
    kept = [0]
    for start, end in pairwise(edges):
        indices = range(start, end)
        extremes = {min(indices, key=curve.values.__getitem__), max(indices, key=curve.values.__getitem__)}
        kept += sorted(extremes)
    kept.append(count - 1)
    return Curve([curve.updates[index] for index in kept], [curve.values[index] for index in kept])


def ticks(low: float, high: float, about: int) -> list[float]:
    """Returns about ``about`` multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.7)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten in [low, high]; beyond two decades only powers of ten, at most six."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    is_wide = high / low > 100
    stride = 1 + len(exponents) // 7
    wanted = [m * 10.0**e for e in exponents[:: stride if is_wide else 1] for m in ((1,) if is_wide else (1, 2, 5))]
    return [tick for tick in wanted if low * 0.999 <= tick <= high * 1.001]


def format_number(value: float) -> str:
    """Formats a number with four significant digits, or an integer with thousands separators."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def tick_label(value: float) -> str:
    """Formats a tick: ``1.5k`` for 1500, ``4.95e-4`` for 0.000495."""
    if value and not 1e-3 <= abs(value) < 1e12:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def panel(name: str, unit: str, marks: Sequence[Mark], last_update: float, may_be_log: bool = True) -> str:
    """Returns the SVG of one panel, with a viewBox of WIDTH_PX by HEIGHT_PX; scales to its container.

    Args:
        name: name of the metric, for screen readers.
        unit: unit of the vertical axis; empty if dimensionless.
        marks: at least one, each with at least one point.
        last_update: end of the horizontal axis, the same in all panels; it starts at 0.
        may_be_log: use a logarithmic vertical axis if the values span a wide range.
    """
    across = Scale(0, max(last_update, 1), LEFT_PX, RIGHT_PX)
    up = _vertical([value for mark in marks for value in mark.curve.values], may_be_log)
    caption = " ".join(part for part in (unit, "(log scale)" if up.is_log else "") if part)
    parts = [_grid(across, up), f'<text class="axis" x="{LEFT_PX}" y="11">{escape(caption)}</text>']
    for mark in marks:
        parts.append(_draw(mark, across, up))
    return (
        f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img"><title>{escape(name)}</title>'
        f"<desc>{escape(_describe(marks))}</desc>{''.join(parts)}</svg>"
    )


def _vertical(values: Sequence[float], may_be_log: bool) -> Scale:
    low, high = min(values), max(values)
    if may_be_log and low > high * 1e-12 and high / low >= LOG_FROM:
        margin = (high / low) ** 0.04
        return Scale(low / margin, high * margin, BOTTOM_PX, TOP_PX, is_log=True)
    size = max(abs(low), abs(high))
    is_level = high - low <= size * 1e-6  # otherwise all labels would be equal
    margin = (size * 0.1 or 1) if is_level else (high - low) * 0.06
    floor = 0 if 0 <= low < margin else low - margin
    return Scale(floor, high + margin, BOTTOM_PX, TOP_PX)


def _grid(across: Scale, up: Scale) -> str:
    parts = []
    for value in log_ticks(up.low, up.high) if up.is_log else ticks(up.low, up.high, 4):
        y = up.px(value)
        parts.append(f'<path class="grid" d="M{LEFT_PX} {y:.1f}H{RIGHT_PX}"/>')
        parts.append(f'<text class="tick end" x="{LEFT_PX - 5}" y="{y + 3.5:.1f}">{tick_label(value)}</text>')
    for value in ticks(across.low, across.high, 4):
        if value == int(value):
            x = across.px(value)
            parts.append(f'<path class="grid" d="M{x:.1f} {BOTTOM_PX}v4"/>')
            parts.append(f'<text class="tick middle" x="{x:.1f}" y="{BOTTOM_PX + 15}">{tick_label(value)}</text>')
    parts.append(f'<path class="frame" d="M{LEFT_PX} {BOTTOM_PX}H{RIGHT_PX}"/>')
    parts.append(f'<text class="axis end" x="{RIGHT_PX}" y="{HEIGHT_PX - 2}">update</text>')
    return "".join(parts)


def _draw(mark: Mark, across: Scale, up: Scale) -> str:
    if mark.style == "rule":
        return f'<path class="rule" d="M{LEFT_PX} {up.px(mark.curve.values[-1]):.1f}H{RIGHT_PX}"/>'
    curve = downsample(mark.curve)
    points = list(zip(curve.updates, curve.values, strict=True))
    if mark.style == "line" and len(points) > 1:
        return f'<path class="line" d="{_path(points, across.px, up.px)}"/>'
    joined = f'<path class="join" d="{_path(points, across.px, up.px)}"/>' if len(points) > 1 else ""
    kind, radius_px = ("dot", 3 if len(points) <= 40 else 1.5) if mark.style == "dots" else ("point", 2.5)
    return joined + "".join(
        f'<circle class="{kind}" cx="{across.px(x):.1f}" cy="{up.px(y):.1f}" r="{radius_px}">'
        f"<title>{escape(mark.label)}, update {format_number(x)}: {format_number(y)}</title></circle>"
        for x, y in points
    )


def _path(points: Sequence[tuple[float, float]], x_px: Callable[[float], float], y_px: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{x_px(x):.1f} {y_px(y):.1f}" for x, y in points)


def _describe(marks: Sequence[Mark]) -> str:
    sentences = []
    for mark in marks:
        curve = mark.curve
        if mark.style == "rule":
            sentences.append(f"{mark.label}: {format_number(curve.values[-1])}.")
            continue
        at, least = curve.lowest()
        sentences.append(
            f"{mark.label}: from {format_number(curve.values[0])} at update {format_number(curve.updates[0])} to "
            f"{format_number(curve.values[-1])} at update {format_number(curve.updates[-1])}, lowest "
            f"{format_number(least)} at update {format_number(at)}."
        )
    return " ".join(sentences)
