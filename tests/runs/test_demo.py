"""``demo`` with a few updates."""

from pathlib import Path

import pytest

from tests.support.voices import wandb_history
from vits_trainer.cli import demo
from vits_trainer.cli.main import main

PNG = b"\x89PNG\r\n\x1a\n"


def test_demo_writes_the_files_that_it_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder), "--updates", "2"]) == 0
    shown = capsys.readouterr().out
    assert "best constant frame" in shown
    listed = [line.split()[-1] for line in shown.splitlines() if str(folder) in line and "Next" not in line]
    listed = [path for path in listed if path.startswith(str(folder))]
    assert len(listed) >= 6
    assert all(Path(path).exists() for path in listed)
    pictures = [Path(path) for path in listed if path.endswith(".png")]
    assert len(pictures) == 2
    assert b"generator/mel" in (folder / "report.html").read_bytes()
    assert all(picture.read_bytes()[:8] == PNG for picture in pictures)
    (file,) = folder.glob("training/runs/demo/wandb/offline-run-*/run-*.wandb")
    media = [item for line in wandb_history(file) for item in line.items() if item[0].startswith("samples/0/")]
    assert {value for key, value in media if key.endswith("/_type")} == {"audio-file", "image-file"}
    paths = [file.parent / "files" / value for key, value in media if key.endswith("/path")]
    assert len(paths) == 6  # three per validation
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("marker", [".vits_trainer.json", "demo.json"])  # of earlier versions
def test_only_files_of_the_demo_are_removed(tmp_path: Path, marker: str) -> None:
    ours = ["corpus/a.wav", "training/wavs/a.wav", "training/metadata.csv", "training/runs/demo/train.log"]
    mine = ["notes.txt", "training/runs/own/train.log", "training/final_model_2/config.json", "training/ideas.txt"]
    for name in (*ours, *mine):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / marker).write_text('{"kind": "demo"}')
    demo._clear(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*mine, ".vits_trainer.json"}


def test_folders_of_others_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    assert "Choose another folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
