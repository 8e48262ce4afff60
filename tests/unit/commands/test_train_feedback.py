"""``train_feedback``: corrections into a new voice beside the old one."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.speech import encode, voice
from tests.voices import prepared_folder, train_flags
from vits_trainer.__main__ import main


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    prepared_folder(folder)
    assert main(["train_vits", *train_flags(folder, max_updates=10)]) == 0
    return folder / "final_model"


def corrections(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for n in range(count):
        (folder / f"word{n}.wav").write_bytes(encode(voice(0.9 + 0.1 * n, 16000, 120 + 20 * n), 16000))
        (folder / f"word{n}.txt").write_text(f"number {n}\n")
    return folder


def flags(served: Path, feedback: Path, output: Path, **changes: object) -> list[str]:
    settings = {"feedback_dir": feedback, "model_dir": served, "output_dir": output, "run_name": "learnt", **changes}
    return ["train_feedback", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_corrections_are_learnt_and_the_served_voice_is_untouched(served: Path, tmp_path: Path) -> None:
    before = hashes(served)
    feedback = corrections(tmp_path / "feedback")
    # A voice of random noise, so it takes more than the default's low rate to hear it learn.
    assert main(flags(served, feedback, tmp_path / "new", learning_rate=5e-3, epochs=40)) == 0
    lines = (tmp_path / "new_work/runs/learnt/metrics.jsonl").read_text().splitlines()
    mels = {line["update"]: line["validation/mel"] for line in map(json.loads, lines) if "validation/mel" in line}
    assert mels[max(mels)] < 0.95 * mels[0]
    assert hashes(served) == before
    assert hashes(tmp_path / "new")["model.safetensors"] != before["model.safetensors"]


def test_bad_corrections_are_rejected_like_any_clip(served: Path, tmp_path: Path) -> None:
    feedback = corrections(tmp_path / "feedback")
    (feedback / "word0.wav").write_bytes(b"no audio")
    (feedback / "word1.txt").unlink()
    assert main(flags(served, feedback, tmp_path / "new", epochs=1)) == 0
    rejected = (tmp_path / "new_work/corrections/rejected.csv").read_text()
    assert "word0,unreadable-audio" in rejected
    assert "word1,empty-text" in rejected


def test_no_correction_is_said(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "feedback").mkdir()
    assert main(flags(served, tmp_path / "feedback", tmp_path / "new")) == 2
    assert "NAME.wav" in capsys.readouterr().err


def test_served_voice_is_never_the_output(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feedback = corrections(tmp_path / "feedback")
    assert main(flags(served, feedback, served)) == 2
    assert "Name another folder" in capsys.readouterr().err


def test_first_voice_is_the_base_model_where_none_is_served(served: Path, tmp_path: Path) -> None:
    base = shutil.copytree(served, tmp_path / "base")
    feedback = corrections(tmp_path / "feedback", count=2)
    absent = tmp_path / "absent"
    assert main(flags(absent, feedback, tmp_path / "new", base_model=base, epochs=1)) == 0
    assert (tmp_path / "new/model.safetensors").is_file()
