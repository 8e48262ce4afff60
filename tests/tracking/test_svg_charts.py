"""Charts as SVG: hand-computed coordinates, downsampling that keeps spikes, and extreme values."""

import math
import random
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vits_trainer.tracking.svg_charts import (
    BOTTOM_PX,
    LEFT_PX,
    RIGHT_PX,
    TOP_PX,
    Curve,
    Mark,
    downsample,
    format_number,
    log_ticks,
    panel,
    tick_label,
    ticks,
)


def draw(*marks: Mark, unit: str = "nats", last_update: float = 100, may_be_log: bool = True) -> ElementTree.Element:
    return ElementTree.fromstring(panel("generator/mel", unit, marks, last_update, may_be_log))


def paths(svg: ElementTree.Element, kind: str) -> list[str]:
    return [path.get("d", "") for path in svg.iter("path") if path.get("class") == kind]


def circles(svg: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(circle.get("cx", "nan")), float(circle.get("cy", "nan"))) for circle in svg.iter("circle")]


def test_line_has_hand_computed_coordinates() -> None:
    """The plot extends from x 46 to 290 and y 146 to 20. The axis ends 6 % above the maximum, at 106: 50 is at
    146 - 126 * 50 / 106 = 86.57, 100 at 146 - 126 * 100 / 106 = 27.13."""
    svg = draw(Mark("training", Curve([0, 50, 100], [0, 50, 100]), "line"))
    assert paths(svg, "line") == ["M46.0 146.0L168.0 86.6L290.0 27.1"]


def test_wide_ranges_use_a_logarithmic_axis() -> None:
    """1 to 100 with a margin of 100 ** 0.04 on both sides: log10 from -0.08 to 2.08, with 10 in the middle."""
    svg = draw(Mark("training", Curve([0, 50, 100], [1, 10, 100]), "line"))
    assert paths(svg, "line") == ["M46.0 141.3L168.0 83.0L290.0 24.7"]
    assert "nats (log scale)" in "".join(svg.itertext())
    linear = draw(Mark("training", Curve([0, 50, 100], [1, 10, 100]), "line"), may_be_log=False)
    assert "log" not in "".join(linear.itertext())
    assert paths(linear, "line") != paths(svg, "line")


def test_validation_and_baseline_share_the_axes_of_the_line() -> None:
    svg = draw(
        Mark("training", Curve([0, 100], [0, 100]), "line"),
        Mark("validation", Curve([50], [50]), "dots"),
        Mark("constant frame", Curve([50, 100], [70, 50]), "rule"),
    )
    assert circles(svg) == [(168.0, 86.6)]
    assert paths(svg, "rule") == ["M46 86.6H290"]
    assert svg.findtext("circle/title") == "validation, update 50: 50"


def test_panel_has_a_text_description() -> None:
    svg = draw(Mark("training", Curve([1, 2, 3], [4.0, 0.5, 1.25]), "line"), Mark("frame", Curve([3], [1.5]), "rule"))
    assert svg.get("role") == "img"
    assert svg.findtext("title") == "generator/mel"
    assert svg.findtext("desc") == (
        "training: from 4 at update 1 to 1.25 at update 3, lowest 0.5 at update 2. frame: 1.5."
    )


def test_text_is_escaped() -> None:
    svg = ElementTree.fromstring(panel("<a> & b", "<u>", [Mark("<m>", Curve([1], [1]), "dots")], 1))
    assert svg.findtext("title") == "<a> & b"
    assert svg.findtext("desc", "").startswith("<m>: from")
    assert {element.tag for element in svg.iter()} == {"svg", "title", "desc", "path", "text", "circle"}


def test_single_point_is_a_dot() -> None:
    svg = draw(Mark("training", Curve([100], [3]), "line"))
    assert paths(svg, "line") == []
    assert [x for x, _ in circles(svg)] == [290.0]


def test_downsampling_keeps_both_ends_and_the_extremes_of_each_segment() -> None:
    """Six of ten: both ends, and minimum and maximum of indices 1 to 4 and 5 to 8, in order."""
    reduced = downsample(Curve(range(10), [0, 1, 9, 2, 3, 5, 4, 8, 7, 6]), max_points=6)
    assert list(reduced.updates) == [0, 1, 2, 6, 7, 9]
    assert list(reduced.values) == [0, 1, 9, 4, 8, 6]


def test_downsampling_keeps_spikes() -> None:
    generator = random.Random(0)
    values = [generator.random() for _ in range(100_000)]
    values[54_321], values[77_777] = 9.0, -9.0
    reduced = downsample(Curve(range(100_000), values))
    assert len(reduced.values) <= 400
    assert (max(reduced.values), min(reduced.values)) == (9.0, -9.0)
    assert list(reduced.updates) == sorted(set(reduced.updates))
    assert [values[int(update)] for update in reduced.updates] == list(reduced.values)
    assert (reduced.updates[0], reduced.updates[-1]) == (0, 99_999)


def test_short_curve_is_not_downsampled() -> None:
    curve = Curve(range(400), range(400))
    assert downsample(curve) is curve


@pytest.mark.parametrize(
    ("computed", "expected"),
    [
        (ticks(0, 900, 4), [0, 200, 400, 600, 800]),
        (ticks(0.88, 3.12, 4), [1, 1.5, 2, 2.5, 3]),
        (ticks(-1, 1, 4), [-1, -0.5, 0, 0.5, 1]),
        (log_ticks(0.7, 60), [1, 2, 5, 10, 20, 50]),
        (log_ticks(0.005, 2), [0.01, 0.1, 1]),
    ],
)
def test_ticks_are_round_numbers(computed: list[float], expected: list[float]) -> None:
    assert computed == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (12_345_678, "12,345,678"), (1234.5, "1,234"), (0.123456, "0.1235"),
        (1e-5, "1e-05"), (-2.5, "-2.5"), (1e37, "1e+37"),
    ],
)
def test_number_format(value: float, expected: str) -> None:
    assert format_number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3G"),
        (0.000495, "4.95e-4"), (1e-5, "1e-5"), (0.25, "0.25"), (1e-100, "1e-100"), (-5e36, "-5e36"),
    ],
)
def test_tick_label_format(value: float, expected: str) -> None:
    assert tick_label(value) == expected


VALUES = st.floats(-1e38, 1e38, allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 10**7), VALUES), min_size=1, max_size=30), st.sampled_from(["line", "dots"]))
def test_all_points_are_within_the_plot_for_any_values(points: list[tuple[int, float]], style: str) -> None:
    points.sort()
    curve = Curve([update for update, _ in points], [value for _, value in points])
    svg = draw(Mark("training", curve, style), last_update=points[-1][0])  # type: ignore[arg-type]
    (line,) = paths(svg, "line") + paths(svg, "join") or [""]
    coordinates = circles(svg) + [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([^L]+)", line)]
    assert len(coordinates) >= len(points)
    for x, y in coordinates:
        assert LEFT_PX <= x <= RIGHT_PX
        assert TOP_PX <= y <= BOTTOM_PX
    labels = [text.text for text in svg.iter("text") if text.get("class") == "tick end"]
    assert len(labels) >= 1
    assert math.isfinite(sum(map(float, re.findall(r"[\d.]+", " ".join(paths(svg, "grid"))))))
