"""Replay of a kept update: what cannot be replayed."""

from pathlib import Path

import pytest

from vits_trainer.cli.main import main


def test_what_cannot_be_replayed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert main(["check", "--replay", str(tmp_path / "x.safetensors")]) == 2
    assert "is no kept update" in capsys.readouterr().err
