"""Output folders: files of the user are kept, and concurrent commands exclude each other."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.audio import encode, voice
from tests.support.fork_server import python
from tests.support.voices import MINIATURE, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.feedback import decision
from vits_trainer.models import pretrained, voice_versions
from vits_trainer.tracking import run_folder
from vits_trainer.utils import files

ROOT = Path(voice_versions.__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    prepared_folder(folder)
    assert main(["train_vits", *train_flags(folder, max_updates=2, report_to="none")]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with files of a user."""
    for module in (voice_versions, run_folder):
        monkeypatch.setattr(module, "_LOCK_TIMEOUT_S", 0.1)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "training/thesis").write_text("precious")
    (tmp_path / "final_model/MY_NOTES.md").write_text("mine")
    return tmp_path


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def train(folder: Path, **changes: object) -> int:
    return main(["train_vits", *train_flags(folder, **{"max_updates": 1, "report_to": "none", **changes})])


def export(folder: Path, output: Path, *flags: str) -> int:
    return main(["export", str(folder / "checkpoints/checkpoint-2"), "--output_dir", str(output), *flags])


def test_retrained_voice_keeps_the_previous_version_and_other_files(folder: Path) -> None:
    before = hashes(folder / "final_model")
    for number in range(3):
        assert train(folder, checkpoint_dir=folder / f"again{number}", keep_versions=2) == 0
        assert (folder / "final_model/MY_NOTES.md").read_text() == "mine"
    kept = sorted(path.name for path in (folder / "final_model_versions").iterdir())
    assert kept == ["1", "2"]
    assert export(folder, folder / "final_model", "--keep_versions", "0") == 0
    kept = sorted(path.name for path in (folder / "final_model_versions").iterdir())
    assert kept == ["1", "2", "3"]
    assert json.loads((folder / "final_model/learnt.json").read_text())["version"] == 4
    # the exported checkpoint is that of the first voice, without a model card
    now = hashes(folder / "final_model")
    assert {name: now[name] for name in ("model.safetensors", "vocab.json", "MY_NOTES.md")}.items() <= before.items()


def test_finetuning_in_place_keeps_the_initial_voice(folder: Path) -> None:
    tuned = {key: value for key, value in MINIATURE.items() if key not in ("architecture", "discriminator")}
    (folder / "tuned.yaml").write_text(yaml.safe_dump({**tuned, "model_name": str(folder / "final_model")}))
    before = hashes(folder / "final_model")
    changes = {"checkpoint_dir": folder / "again", "output_dir": f"{folder}/final_model/"}
    assert train(folder, config=folder / "tuned.yaml", **changes) == 0
    kept = hashes(folder / "final_model_versions/0")
    assert kept == {name: value for name, value in before.items() if name != "MY_NOTES.md"}
    assert hashes(folder / "final_model")["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("training", "--data_dir"),
        (".", "--data_dir"),
        ("checkpoints", "--checkpoint_dir"),
        ("training/thesis", "is a file"),
    ],
)
def test_output_dir_that_would_replace_other_files_is_rejected(
    folder: Path, capsys: pytest.CaptureFixture[str], output: str, expected: str
) -> None:
    before = hashes(folder)
    assert train(folder, checkpoint_dir=folder / "checkpoints/again", output_dir=folder / output) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "update 1" not in message
    assert hashes(folder) == before


def test_checkpoint_is_not_exported_over_itself_or_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(folder)
    for output in (folder / "checkpoints/checkpoint-2", folder / "checkpoints", folder, folder / "training"):
        assert export(folder, output) == 2
        assert f"--output_dir {output} " in capsys.readouterr().err
    assert hashes(folder) == before


def test_concurrent_run_of_the_same_name_is_rejected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.try_lock(folder / "training/runs/run/.lock") as held:  # type: ignore[union-attr]
        before = hashes(folder)
        assert train(folder, checkpoint_dir=folder / "again", output_dir=folder / "other") == 2
        assert "--run_name run: a run of this name is active" in capsys.readouterr().err
        assert {name: value for name, value in hashes(folder).items() if name != "again/.lock"} == before
    assert held.closed


def test_concurrent_writer_of_a_voice_is_rejected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.try_lock(folder / ".final_model.lock"):  # type: ignore[union-attr]
        assert train(folder, checkpoint_dir=folder / "again", run_name="other") == 2
        assert export(folder, folder / "final_model") == 2
        assert capsys.readouterr().err.count("is in use by another process") == 2
    assert export(folder, folder / "final_model") == 0


def test_concurrent_exports_leave_an_intact_voice(folder: Path) -> None:
    command = [python(), "-m", "vits_trainer", "export", str(folder / "checkpoints/checkpoint-2")]
    command += ["--output_dir", str(folder / "final_model")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    errors = [process.communicate()[1] for process in started]
    codes = [process.returncode for process in started]
    assert 0 in codes
    assert all(code == 0 or "is in use by another process" in error for code, error in zip(codes, errors, strict=True))
    pretrained.load_model(str(folder / "final_model"))
    assert (folder / "final_model/MY_NOTES.md").read_text() == "mine"
    kept = sorted(path.name for path in (folder / "final_model_versions").iterdir())
    assert kept == [str(number) for number in range(codes.count(0))]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.08])
def test_killed_export_leaves_an_intact_voice(folder: Path, delay_s: float) -> None:
    """Killed after its temporary folder exists: while it is written, read back, or moved."""
    command = [python(), "-m", "vits_trainer", "export", str(folder / "checkpoints/checkpoint-2")]
    command += ["--output_dir", str(folder / "final_model")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and not list(folder.glob(".final_model.*.tmp")):
        time.sleep(0.002)
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    pretrained.load_model(str(folder / "final_model"))
    assert export(folder, folder / "final_model") == 0
    assert (folder / "final_model/MY_NOTES.md").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_checkpoints_of_another_trainer_are_never_pruned(folder: Path) -> None:
    theirs = folder / "checkpoints/checkpoint-1"
    theirs.mkdir()
    (theirs / "optimizer.pt").write_text("precious")
    (folder / "checkpoints/.tmp-checkpoint-4").mkdir()
    (folder / "checkpoints/.tmp-checkpoint-4/mine").write_text("precious")
    flags = {"resume_from_checkpoint": "latest", "keep_checkpoints": 1, "save_every_updates": 1, "max_updates": 4}
    assert train(folder, **flags, validation_fraction=0.1) == 0
    assert (theirs / "optimizer.pt").read_text() == "precious"
    assert (folder / "checkpoints/set-aside-.tmp-checkpoint-4/mine").read_text() == "precious"
    assert not (folder / "checkpoints/checkpoint-3").exists()


# train_feedback


def learn(folder: Path, **changes: object) -> int:
    (folder / "feedback").mkdir(exist_ok=True)
    if not (folder / "feedback/one.txt").exists():
        (folder / "feedback/one.wav").write_bytes(encode(voice(1, 16000), 16000))
        (folder / "feedback/one.txt").write_text("number 1")
    settings = {
        "feedback_dir": folder / "feedback", "model_dir": folder / "final_model", "output_dir": folder / "new",
        "epochs": 1, "learning_rate": 1e-3, "report_to": "none", **changes,
    }  # fmt: skip
    return main(["train_feedback", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output_dir": "training", "data_dir": "training"}, "--output_dir {}/training is or contains --data_dir"),
        ({"output_dir": "training"}, "--output_dir {}/training contains dataset.json, metadata.csv, runs"),
        ({"output_dir": "."}, "is or contains --feedback_dir"),
        ({"output_dir": "feedback"}, "is or contains --feedback_dir"),
        ({"model_dir": "training"}, "--model_dir {}/training contains dataset.json, metadata.csv, runs"),
        ({"output_dir": "mine"}, "(--output_dir with _work appended), was not made by it"),
        ({"output_dir": "mine", "data_dir": "mine_work"}, "appended), is or contains --data_dir"),
    ],
)
def test_feedback_rejects_folders_with_other_files(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], expected: str
) -> None:
    (folder / "mine_work/corrections").mkdir(parents=True)
    (folder / "mine_work/corrections/a.wav").write_text("precious")
    (folder / "feedback").mkdir()
    before = hashes(folder)
    assert learn(folder, **{key: folder / value for key, value in changes.items()}) == 2
    assert expected.format(folder) in capsys.readouterr().err
    assert {name: value for name, value in hashes(folder).items() if not name.startswith("feedback/")} == before


def test_feedback_keeps_other_files_whether_accepted_or_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "final_model", folder / "new")
    before = hashes(folder / "final_model")
    for text, reasons in (("number 2", []), ("number 3", ["it is worse"]), ("number 4", [])):
        monkeypatch.setattr(decision, "reasons_to_reject", lambda *_, reasons=reasons: reasons)
        assert learn(folder) == len(reasons)
        for name in ("new", "final_model"):
            assert (folder / name / "MY_NOTES.md").read_text() == "mine"
        if reasons:
            assert (folder / "new_work/refused/model.safetensors").is_file()
            assert sorted(path.name for path in (folder / "new").iterdir()) == [files.MARKER, "MY_NOTES.md"]
        (folder / "new_work/mine").write_text("mine")
        (folder / "feedback/one.txt").write_text(text)  # makes it a new correction
    assert (folder / "new_work/mine").read_text() == "mine"
    for name in ("new", "final_model"):
        assert hashes(folder / f"{name}_versions/0").items() < before.items()
    assert sorted(path.name for path in (folder / "final_model_versions").iterdir()) == ["0", "1"]
