"""``check``: errors before any check runs."""

import shutil
from pathlib import Path

import pytest

from vits_trainer.cli.main import main


def test_full_disk_raises_with_the_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert main(["check"]) == 1
    assert "TMPDIR" in capsys.readouterr().err


def test_several_processes_raise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["check"]) == 1
    assert "Start it with one" in capsys.readouterr().err


def test_folder_without_golden_values_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--golden", str(tmp_path)]) == 2
    assert "contains no golden case" in capsys.readouterr().err
