"""``demo`` with a few updates."""

import re
from pathlib import Path

import pytest
import soundfile as sf

from tests.support.voices import prepared_folder, train_flags, wandb_history
from vits_trainer.cli import demo, demo_of_speaker
from vits_trainer.cli.main import main
from vits_trainer.data.audio import read_pcm16_wav
from vits_trainer.evaluation.recognizers import has_whisper
from vits_trainer.utils.packaged import HUMAN_CLIPS

PNG = b"\x89PNG\r\n\x1a\n"


def listed_files(shown: str, folder: Path) -> list[Path]:
    names = re.split(r"[\s,]+", "\n".join(line for line in shown.splitlines() if "YOUR_RECORDINGS" not in line))
    return [Path(name.rstrip(":")) for name in names if name.startswith(str(folder))]


def test_packaged_clips_are_those_that_the_licence_note_describes() -> None:
    lines = (HUMAN_CLIPS / "metadata.csv").read_text("utf-8").splitlines()
    lengths_s = [sf.info(HUMAN_CLIPS / f"{line.split('|')[0]}.opus").duration for line in lines]
    assert len(lengths_s) == 20
    assert 120 < sum(lengths_s) < 180
    assert sum(path.stat().st_size for path in HUMAN_CLIPS.iterdir()) < 1e6
    assert "Public domain" in (HUMAN_CLIPS / "LICENSE").read_text("utf-8")


def test_voice_is_fine_tuned_to_the_packaged_clips_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("phonemizer", reason="the extra 'text' is not installed")
    pytest.importorskip("mel_cepstral_distance", reason="the extra 'evaluate' is not installed")
    prepared_folder(tmp_path / "base", clips=4)
    settings = {"phonemes": "true", "language": "en-us", "max_updates": 1, "report_to": "none"}
    assert main(["train_vits", *train_flags(tmp_path / "base", **settings)]) == 0
    monkeypatch.setattr(demo_of_speaker, "BASE_VOICE", tmp_path / "base/final_model")
    monkeypatch.setattr(demo_of_speaker, "_SENTENCES", demo_of_speaker._SENTENCES[:1])  # Whisper is slow on noise
    capsys.readouterr()
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder), "--updates", "2"]) == 0
    shown = capsys.readouterr().out
    files = listed_files(shown, folder)
    assert len(files) >= 8
    assert [path for path in files if not path.exists()] == []
    for name in ("before", "after"):
        wavs = sorted((folder / name).iterdir())
        assert [path.name for path in wavs] == ["1.wav", "2.wav"]
        assert {read_pcm16_wav(path)[1] for path in wavs} == {16000}
    assert (folder / "before/1.wav").read_bytes() != (folder / "after/1.wav").read_bytes()
    assert len((folder / "training/metadata.csv").read_text("utf-8").splitlines()) == 20
    number = r"[+-]?\d+\.\d\d"
    compared = rf"before {number} dB, after {number} dB +\({number} dB, 95 % interval {number} to {number}: "
    assert re.search(f"MCD to 5 held-out clips +{compared}", shown)
    assert "The old boat crossed the quiet river." in (folder / "listening.html").read_text("utf-8")
    if has_whisper():
        assert shown.count("heard before") == shown.count("heard after") == 2
        assert re.search(r"CER of 2 unseen sentences +before \d+\.\d%, after \d+\.\d%", shown)
    # A second demo replaces the first one.
    demo._clear(folder)
    assert not list(folder.glob("*/*.wav"))


@pytest.mark.parametrize("has_player", [True, False])
def test_speech_is_played_at_a_terminal(tmp_path: Path, monkeypatch, capsys, has_player: bool) -> None:
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/played\n')
    player.chmod(0o755 if has_player else 0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    demo_of_speaker._play([Path("a.wav")])  # no terminal
    assert not (tmp_path / "played").exists()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    demo_of_speaker._play([Path("a.wav"), Path("b.wav")])
    shown = capsys.readouterr().out
    if has_player:
        assert (tmp_path / "played").read_text().splitlines() == ["-q a.wav", "-q b.wav"]
        assert shown.splitlines() == ["playing a.wav", "playing b.wav"]
    else:
        assert shown.splitlines() == ["playing a.wav", "No sound on this machine: open listening.html in a browser."]


def test_demo_without_the_base_voice_trains_from_scratch_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    monkeypatch.setattr(demo_of_speaker, "BASE_VOICE", tmp_path / "absent")
    assert main(["demo", "--output_dir", str(folder), "--updates", "2"]) == 0
    shown = capsys.readouterr().out
    assert f"The base voice is not in this source tree ({tmp_path / 'absent'})." in shown
    assert "best constant frame" in shown
    listed = listed_files(shown, folder)
    assert len(listed) >= 6
    assert all(path.exists() for path in listed)
    pictures = [path for path in listed if path.suffix == ".png"]
    assert len(pictures) == 2
    assert b"generator/mel" in (folder / "report.html").read_bytes()
    assert all(picture.read_bytes()[:8] == PNG for picture in pictures)
    (file,) = folder.glob("training/runs/demo/wandb/offline-run-*/run-*.wandb")
    media = [item for line in wandb_history(file) for item in line.items() if item[0].startswith("samples/0/")]
    assert {value for key, value in media if key.endswith("/_type")} == {"audio-file", "image-file"}
    paths = [file.parent / "files" / value for key, value in media if key.endswith("/path")]
    assert len(paths) == 7  # three per validation, and the recording once
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("marker", [".vits_trainer.json", "demo.json"])  # of earlier versions
def test_only_files_of_the_demo_are_removed(tmp_path: Path, marker: str) -> None:
    ours = ["corpus/a.wav", "before/1.wav", "listening.html", "training/wavs/a.wav", "training/metadata.csv"]
    ours += ["training/runs/demo/train.log"]
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
