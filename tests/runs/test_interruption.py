"""Signals, the STOP file and the time limit in a run of one process."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.voices import ended_wandb_run, metrics, prepared_folder, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.distributed.shutdown import SIGNALS
from vits_trainer.training.checkpoint import CheckpointManager
from vits_trainer.training.trainer import Trainer
from vits_trainer.utils.files import try_lock


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    prepared_folder(folder)
    assert main(["train_vits", *train_flags(folder, save_every_updates=2)]) == 0
    return folder


@pytest.fixture
def folder(uninterrupted: Path, tmp_path: Path) -> Path:
    shutil.copytree(uninterrupted / "training", tmp_path / "training", ignore=shutil.ignore_patterns("runs"))
    return tmp_path


def at_update(update: int, action: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls ``action`` during ``update``."""
    original_step = Trainer.step

    def step(self: Trainer, batches: object, denominators: object) -> None:
        original_step(self, batches, denominators)
        if self.state.update + 1 == update:
            action()

    monkeypatch.setattr(Trainer, "step", step)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def comparable(folder: Path) -> list[dict[str, float]]:
    excluded = ("time/", "throughput/", "memory/", "ranks/")
    return [{key: value for key, value in line.items() if not key.startswith(excluded)} for line in metrics(folder)]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_saves_and_exits_with_its_code_and_the_run_resumes(
    number: signal.Signals, uninterrupted: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        at_update(2, lambda: send(number), patched)
        assert main(["train_vits", *train_flags(folder)]) == 128 + number
    assert signal.getsignal(number) == before
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder / "final_model").exists()
    run = folder / "training/runs/run"
    assert f'"stopped at update 2 ({number.name} on rank 0)"' in (run / "outcome.json").read_text()
    records = ended_wandb_run(run)
    assert "preempting" in [record.WhichOneof("record_type") for record in records]
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [128 + number]
    assert weights(folder, 2) == weights(uninterrupted, 2)
    assert comparable(folder) == comparable(uninterrupted)[:2]
    if number == signal.SIGTERM:  # the checkpoints of all signals are equal
        assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="latest")]) == 0
        assert weights(folder, 4) == weights(uninterrupted, 4)
        assert comparable(folder) == comparable(uninterrupted)


def test_further_signals_do_not_interrupt_the_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_update(2, lambda: send(signal.SIGTERM), monkeypatch)
    saves = CheckpointManager.save

    def save(self: CheckpointManager, *arguments: object) -> Path:
        send(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        path = saves(self, *arguments)
        send(signal.SIGINT)
        return path

    monkeypatch.setattr(CheckpointManager, "save", save)
    assert main(["train_vits", *train_flags(folder)]) == 128 + signal.SIGTERM
    assert (folder / "checkpoints/checkpoint-2/manifest.json").is_file()


def test_signal_under_a_launcher_exits_with_0(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    at_update(1, lambda: send(signal.SIGTERM), monkeypatch)
    assert main(["train_vits", *train_flags(folder)]) == 0
    assert "stopped at update 1" in (folder / "training/runs/run/outcome.json").read_text()


def test_stop_file_stops_the_run_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = folder / "training/runs/run/STOP"
    with monkeypatch.context() as patched:
        at_update(3, stop.touch, patched)
        assert main(["train_vits", *train_flags(folder, save_every_updates=3)]) == 0
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert "STOP on rank 0" in (folder / "training/runs/run/outcome.json").read_text()
    assert not stop.exists()
    assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="auto")]) == 0
    assert '"done", "update": 4' in (folder / "training/runs/run/outcome.json").read_text()


def test_time_limit_leaves_time_to_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour is left at the start, and 6 s after the second update; the first save is expected to take twice 5 s."""
    since_start_s = [0.0]
    monkeypatch.setattr("vits_trainer.distributed.shutdown._seconds_since_start", lambda: since_start_s[0])
    at_update(2, lambda: since_start_s.__setitem__(0, 3594), monkeypatch)
    assert main(["train_vits", *train_flags(folder, save_before_s=3600)]) == 0
    assert (folder / "checkpoints/checkpoint-2/manifest.json").is_file()
    assert "stopped at update 2 (--save_before_s 3600" in (folder / "training/runs/run/outcome.json").read_text()


def test_run_stopped_before_the_first_update_saves_nothing(folder: Path) -> None:
    # The test process started more than a second ago.
    assert main(["train_vits", *train_flags(folder, save_before_s=1)]) == 0
    assert not list((folder / "checkpoints").glob("checkpoint-*"))
    assert "stopped at update 0" in (folder / "training/runs/run/outcome.json").read_text()
    assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="auto", max_updates=1)]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_before_the_first_update_ends_the_run_at_once(
    number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "dry_run", lambda _: send(number))
        try:
            code = main(["train_vits", *train_flags(folder)])
        except SystemExit as end:
            code = end.code
    assert code == 128 + number
    run = folder / "training/runs/run"
    assert '"stopped without saving after update 0"' in (run / "outcome.json").read_text()
    log = (run / "train.log").read_text()
    assert "Traceback" not in log + capsys.readouterr().err
    assert "failed" not in log
    records = ended_wandb_run(run)
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [128 + number]
    assert not [r for r in records if r.WhichOneof("record_type") == "alert"]
    assert main(["train_vits", *train_flags(folder, resume_from_checkpoint="auto", max_updates=1)]) == 0


def test_launched_run_that_got_a_signal_during_the_dry_run_does_not_validate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(Trainer, "dry_run", lambda _: send(signal.SIGTERM) or 1.0)
    assert main(["train_vits", *train_flags(folder)]) == 0
    run = folder / "training/runs/run"
    assert "stopped at update 0 (SIGTERM on rank 0)" in (run / "outcome.json").read_text()
    assert not (run / "metrics.jsonl").read_text()


def test_restart_by_the_launcher_resumes_what_this_launch_saved(
    uninterrupted: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command resumes after a restart; checkpoints of another launch are an error."""
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr("vits_trainer.training.resume.launch_id", lambda: "another launch")
    assert main(["train_vits", *train_flags(folder)]) == 2
    assert "already contains checkpoint-2" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train_vits", *train_flags(folder)]) == 0
    assert weights(folder, 4) == weights(uninterrupted, 4)


def test_dead_launcher_stops_its_ranks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    at_update(2, lambda: monkeypatch.setattr(os, "getppid", lambda: 1), monkeypatch)
    assert main(["train_vits", *train_flags(folder)]) == 0
    assert "stopped at update 2 (its launcher is gone" in (folder / "training/runs/run/outcome.json").read_text()


def test_concurrent_run_is_rejected(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vits_trainer.training.checkpoint._PATIENCE_S", 1)
    (folder / "checkpoints").mkdir()
    lock = try_lock(folder / "checkpoints/.lock")
    assert main(["train_vits", *train_flags(folder)]) == 2
    assert "another run is using it" in capsys.readouterr().err
    lock.close()
    assert main(["train_vits", *train_flags(folder, max_updates=1)]) == 0
