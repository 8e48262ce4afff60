"""``demo``: a few updates of it, as a whole."""

from pathlib import Path

import pytest

from tests.voices import wandb_history
from vits_trainer.__main__ import main

PNG = b"\x89PNG\r\n\x1a\n"


def test_demo_leaves_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder), "--updates", "2"]) == 0
    shown = capsys.readouterr().out
    assert "best constant frame" in shown
    named = [line.split()[-1] for line in shown.splitlines() if str(folder) in line and "Next" not in line]
    named = [place for place in named if place.startswith(str(folder))]
    assert len(named) >= 6
    assert all(Path(place).exists() for place in named)
    pictures = [Path(place) for place in named if place.endswith(".png")]
    assert len(pictures) == 3
    assert all(picture.read_bytes()[:8] == PNG for picture in pictures)
    (file,) = folder.glob("training/runs/demo/wandb/offline-run-*/run-*.wandb")
    media = [item for line in wandb_history(file) for item in line.items() if item[0].startswith("samples/0/")]
    assert {value for key, value in media if key.endswith("/_type")} == {"audio-file", "image-file"}
    paths = [file.parent / "files" / value for key, value in media if key.endswith("/path")]
    assert len(paths) == 6  # three a validation
    assert all(path.is_file() for path in paths)


def test_other_folders_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
