"""``benchmark`` from the command line."""

import json
from pathlib import Path

import pytest

from tests.support.benchmark import SMALL
from vits_trainer.cli.main import main
from vits_trainer.diagnostics import benchmark


def test_benchmark_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    search = benchmark.alignment.search
    assert main(["benchmark", *arguments, "--compare", "reference", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
    parts = sum(value for name, value in figures.items() if name.removeprefix("ms_") in benchmark.TIMED_PARTS)
    assert parts == pytest.approx(figures["ms_update"], rel=0.6)
    assert all(figures[f"ms_{part}"] > 0 for part in benchmark.TIMED_PARTS)
    assert figures["host_syncs"] == 0
    assert figures["ratio"] > 0
    assert benchmark.alignment.search is search


def test_alignment_suite_has_equal_paths(tmp_path: Path) -> None:
    arguments = ["--suite", "alignment", "--updates", "1", "--json", str(tmp_path / "figures.json")]
    assert main(["benchmark", *arguments]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [value for name, value in figures.items() if name.endswith("equal_paths")] == [1.0] * 3


def test_text_that_cannot_be_aligned_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--clip_s", "1", "--tokens", "180"]) == 2
    assert "62 frames" in capsys.readouterr().err
