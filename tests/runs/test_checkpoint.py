"""Checkpoints: damaged ones are reported and skipped; pruning; the best checkpoint; export."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import launch
from tests.support.voices import metrics, prepared_folder, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.training.checkpoint_record import list_newest_first, verify_checkpoint
from vits_trainer.training.resume import resolve_checkpoint
from vits_trainer.utils.errors import CheckpointError
from vits_trainer.utils.files import sha256


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    prepared_folder(folder)
    settings = {"save_every_updates": 1, "keep_checkpoints": 0, "validate_every_updates": 2, "report_to": "none"}
    assert main(["train_vits", *train_flags(folder, **settings)]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run with checkpoints 1 to 3."""
    shutil.copytree(trained / "training", tmp_path / "training")
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints", ignore=shutil.ignore_patterns("checkpoint-4"))
    return tmp_path


def flip_a_bit(checkpoint_dir: Path) -> None:
    file = checkpoint_dir / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # safetensors does not detect it
    file.write_bytes(content)
    load_file(file)


def truncate(checkpoint_dir: Path) -> None:
    file = checkpoint_dir / "optimizer_discriminator.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {
    "the content of generator.safetensors is not what was written": flip_a_bit,
    "optimizer_discriminator.safetensors has": truncate,
    "manifest.json is missing": lambda path: (path / "manifest.json").unlink(),
    "voice/vocab.json": lambda path: (path / "voice/vocab.json").write_text("{}"),
    "state.json has": lambda path: (path / "state.json").write_text("{"),
    "manifest.json: expected object": lambda path: (path / "manifest.json").write_text("[]"),
    "discriminator.safetensors is missing": lambda path: (path / "discriminator.safetensors").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_checkpoint_is_reported_and_the_previous_one_selected(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = folder / "checkpoints/checkpoint-3"
    DAMAGE[what](damaged)
    assert resolve_checkpoint(folder / "checkpoints", "latest") == folder / "checkpoints/checkpoint-2"
    (message,) = [r.message for r in caplog.records if "is damaged" in r.message]
    assert what in message
    assert str(damaged) in message
    assert "RESUMING FROM THE PREVIOUS ONE" in message
    assert damaged.is_dir()


def test_run_resumed_before_a_damaged_checkpoint_ends_with_the_same_weights(
    trained: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_a_bit(folder / "checkpoints/checkpoint-3")
    flags = train_flags(folder, save_every_updates=1, keep_checkpoints=0, validate_every_updates=2)
    assert main(["train_vits", *flags, "--resume_from_checkpoint", "latest"]) == 0
    assert "RESUMING FROM THE PREVIOUS ONE" in caplog.text
    assert weights(folder, 4) == weights(trained, 4)
    assert [line["update"] for line in metrics(folder)] == [1, 2, 3, 4]
    assert (folder / "checkpoints/set-aside-checkpoint-3").is_dir()  # not deleted
    assert weights(folder, 1) == weights(trained, 1)


def test_all_damaged_checkpoints_are_reported_if_none_is_intact(folder: Path) -> None:
    for checkpoint_dir in list_newest_first(folder / "checkpoints"):
        truncate(checkpoint_dir)
    with pytest.raises(CheckpointError, match=r"No checkpoint is intact\..*checkpoint-3.*checkpoint-2.*checkpoint-1"):
        resolve_checkpoint(folder / "checkpoints", "auto")


def test_requested_checkpoint_that_is_damaged_is_rejected(folder: Path) -> None:
    checkpoint_dir = folder / "checkpoints/checkpoint-2"
    flip_a_bit(checkpoint_dir)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is damaged.*latest selects the newest intact one"):
        resolve_checkpoint(folder / "checkpoints", str(checkpoint_dir))


def test_resuming_from_an_older_checkpoint_moves_newer_ones_away(folder: Path) -> None:
    checkpoint_dir = folder / "checkpoints/checkpoint-1"
    flags = train_flags(folder, resume_from_checkpoint=checkpoint_dir, max_updates=2, validate_every_updates=2)
    assert main(["train_vits", *flags]) == 0
    assert {path.name for path in (folder / "checkpoints").iterdir()} - {".lock"} == {
        *("checkpoint-1", "checkpoint-2", "set-aside-checkpoint-2", "set-aside-checkpoint-3", "best.json")
    }


def test_checkpoint_of_another_folder_is_not_mixed_with_others(folder: Path, trained: Path) -> None:
    with pytest.raises(CheckpointError, match="is not in --checkpoint_dir"):
        resolve_checkpoint(folder / "checkpoints", str(trained / "checkpoints/checkpoint-1"))
    assert resolve_checkpoint(folder / "empty", str(trained / "checkpoints/checkpoint-1"))


def test_auto_starts_a_new_run_without_checkpoints(folder: Path) -> None:
    assert resolve_checkpoint(folder / "none", "auto") is None
    assert resolve_checkpoint(folder / "checkpoints", "auto") == folder / "checkpoints/checkpoint-3"


def test_best_checkpoint_has_the_best_validation_and_is_never_pruned(trained: Path, folder: Path) -> None:
    pointer = json.loads((trained / "checkpoints/best.json").read_text())
    validated = {line["update"]: line["validation/mel"] for line in metrics(trained) if "validation/mel" in line}
    best = min(validated, key=lambda update: validated[update])
    assert pointer == {"checkpoint": f"checkpoint-{best}", "validation/mel": validated[best]}
    # Give the second a better score: the next saves keep it in addition to the newest.
    checkpoint_dir = folder / "checkpoints/checkpoint-2"
    record = json.loads((checkpoint_dir / "state.json").read_text())
    record["state"]["selection"]["score"] = 0.001
    (checkpoint_dir / "state.json").write_text(json.dumps(record))
    flags = train_flags(folder, save_every_updates=1, keep_checkpoints=1, resume_from_checkpoint="latest")
    assert main(["train_vits", *flags]) == 0
    names = {path.name for path in (folder / "checkpoints").iterdir()} - {".lock"}
    assert names == {"checkpoint-2", "checkpoint-4", "best.json"}
    assert json.loads((folder / "checkpoints/best.json").read_text())["checkpoint"] == "checkpoint-2"


def test_nothing_in_a_checkpoint_is_pickled(trained: Path) -> None:
    files = {path.suffix for path in (trained / "checkpoints/checkpoint-4").rglob("*") if path.is_file()}
    assert files == {".safetensors", ".json", ".yaml"}
    verify_checkpoint(trained / "checkpoints/checkpoint-4")


def test_older_checkpoint_format_is_rejected_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint_dir = folder / "checkpoints/checkpoint-3"
    record = json.loads((checkpoint_dir / "state.json").read_text())
    (checkpoint_dir / "state.json").write_text(json.dumps(record | {"format": 1}))
    manifest = json.loads((checkpoint_dir / "manifest.json").read_text())
    state = checkpoint_dir / "state.json"
    manifest["files"]["state.json"] = {"bytes": state.stat().st_size, "sha256": sha256(state)}
    (checkpoint_dir / "manifest.json").write_text(json.dumps(manifest))
    assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="latest")]) == 2
    assert "another version of vits_trainer (format 1" in capsys.readouterr().err


def test_full_disk_leaves_earlier_checkpoints_unchanged(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulates a full disk for one file; tests/reliability fills a real one."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "optimizer_generator.safetensors")

    monkeypatch.setattr("vits_trainer.training.checkpoint._optimizer_state", full)
    flags = train_flags(folder, resume_from_checkpoint="latest")
    assert main(["train_vits", *flags]) == 1
    assert "No space left on device" in capsys.readouterr().err
    names = [path.name for path in list_newest_first(folder / "checkpoints")]
    assert names == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    assert weights(folder, 3) == weights(trained, 3)


def test_every_checkpoint_can_be_exported(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint_dir = trained / "checkpoints/checkpoint-4"
    assert main(["export", str(checkpoint_dir), "--output_dir", str(tmp_path / "voice")]) == 0
    assert "voice" in capsys.readouterr().out
    ours, final = (load_file(voice / "model.safetensors") for voice in (tmp_path / "voice", trained / "final_model"))
    assert ours.keys() == final.keys()
    assert all(torch.equal(ours[name], final[name]) for name in ours)
    assert (tmp_path / "voice/discriminator.safetensors").read_bytes() == (
        trained / "final_model/discriminator.safetensors"
    ).read_bytes()
    assert main(["export", str(trained / "checkpoints/checkpoint-1")]) == 0
    assert (trained / "exported/checkpoint-1/model.safetensors").is_file()


def test_damaged_checkpoint_is_not_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_bit(folder / "checkpoints/checkpoint-3")
    assert main(["export", str(folder / "checkpoints/checkpoint-3")]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert main(["export"]) == 2
    assert "checkpoint-500" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a file system")
def test_full_disk_of_the_run_folder_ends_the_run_in_one_line_and_saved(tmp_path: Path) -> None:
    prepared_folder(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        flags = train_flags(tmp_path, max_updates=400, runs_dir=small, report_to="none", save_every_updates=0)
        ended = launch.run(1, None, [*flags, "--validation_samples", "0"])
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("vits-trainer: "))
    assert "could not be written" in line
    assert "Free disk space" in line
    (saved,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    verify_checkpoint(saved)
