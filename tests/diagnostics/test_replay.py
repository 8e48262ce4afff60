"""Files that cannot be replayed."""

from pathlib import Path

import pytest

from vits_trainer.cli.main import main


def test_invalid_replay_file_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert main(["check", "--replay", str(tmp_path / "x.safetensors")]) == 2
    assert "is not a saved update" in capsys.readouterr().err
