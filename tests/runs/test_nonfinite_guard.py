"""Updates with NaN or Inf, on one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.poison import Poison, poisoned
from tests.support.voices import ended_wandb_run, metrics, prepared_folder, train_flags, wandb_history
from vits_trainer.cli.main import main
from vits_trainer.training.nonfinite_guard import LAG_UPDATES, NonFiniteGuard
from vits_trainer.training.objective import Objective
from vits_trainer.training.train_step import GanTrainStep
from vits_trainer.training.trainer import Trainer


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Returns a function that makes the samples of clips NaN in the settings updates, by default in all."""

    def begin(clips: str, updates: str = "") -> None:
        monkeypatch.setattr(Trainer, "step", poisoned)
        monkeypatch.setenv("POISON", clips)
        monkeypatch.setenv("POISON_UPDATES", updates)

    return begin


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepared_folder(folder, clips=12)
    return folder / "training"


def flags(folder: Path, prepared: Path, **changes: Any) -> list[str]:
    settings = {"data_dir": prepared, "runs_dir": folder / "training/runs", "validation_fraction": 0, "max_updates": 6}
    return train_flags(folder, **{**settings, **changes})


def incidents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training/runs/run/rejected.jsonl").read_text().splitlines()]


def test_masked_update_changes_neither_weights_nor_means(prepared: Path, tmp_path: Path, poison: Poison) -> None:
    """Weights before and after are equal, and its losses are excluded from the means."""
    poison("all", "3")
    assert main(["train_vits", *flags(tmp_path, prepared, save_every_updates=1, keep_checkpoints=0)]) == 0
    before, masked, after = (
        load_file(tmp_path / f"checkpoints/checkpoint-{update}/generator.safetensors") for update in (2, 3, 4)
    )
    assert all(torch.equal(before[name], masked[name]) for name in before)
    assert not all(torch.equal(masked[name], after[name]) for name in before)
    lines = {line["update"]: line for line in metrics(tmp_path)}
    assert "generator/mel" not in lines[3]
    assert "generator/mel" in lines[4]
    assert (lines[6]["data/trained"], lines[6]["data/masked"], lines[6]["data/nonfinite_updates"]) == (20, 4, 1)
    log = (tmp_path / "training/runs/run/train.log").read_text()
    assert "epoch 1: 8 trained + 0 rejected + 0 validation + 4 in masked updates = 12 clips" in log
    assert "epoch 2: 12 trained + 0 rejected + 0 validation = 12 clips" in log


def test_result_is_read_back_after_the_lag_without_waiting(
    prepared: Path, tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison("all", "2")
    seen: list[int] = []
    exchange = NonFiniteGuard.exchange

    def recorded(self: NonFiniteGuard, own: Any, any_rank: bool, update: int, *rest: Any) -> Any:
        if any_rank:
            seen.append(update - 1)
        return exchange(self, own, any_rank, update, *rest)

    monkeypatch.setattr(NonFiniteGuard, "exchange", recorded)
    settings = {"log_every_updates": 100, "max_updates": 12, "batch_size": 2}  # nothing else reads the device
    assert main(["train_vits", *flags(tmp_path, prepared, **settings)]) == 0
    assert seen == [2 + LAG_UPDATES]
    (record,) = incidents(tmp_path)
    assert (record["update"], record["kind"]) == (2, "non-finite-loss")


def test_replay_finds_the_clip(
    prepared: Path, tmp_path: Path, poison: Poison, capsys: pytest.CaptureFixture[str]
) -> None:
    poison("audio_000002.wav")
    assert main(["train_vits", *flags(tmp_path, prepared, max_updates=3)]) == 0
    (record,) = incidents(tmp_path)
    assert "audio_000002.wav" in record["clip"].split(", ")
    (file,) = (tmp_path / "training/runs/run/nonfinite").glob("update-*/rank0.safetensors")
    assert str(file) in record["message"]
    capsys.readouterr()
    assert main(["check", "--replay", str(file)]) == 1
    printed = capsys.readouterr()
    single_clips = printed.out.splitlines()[1:]
    assert [line.startswith("WRONG") for line in single_clips] == ["audio_000002.wav" in line for line in single_clips]
    assert len(single_clips) == 4
    assert "NaN or Inf is reproduced by: audio_000002.wav." in printed.err


def test_finite_replay_is_reported(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The objective was faulty in the run, and is not in the replay."""
    losses = Objective.generator_losses

    def faulty(self: Objective, *arguments: Any) -> dict[str, torch.Tensor]:
        values = losses(self, *arguments)
        return {name: value * torch.nan for name, value in values.items()} if faulty.armed else values

    faulty.armed = False
    step = Trainer.step

    def arm_once(self: Trainer, *arguments: Any) -> None:
        faulty.armed = self.state.update == 1
        step(self, *arguments)
        faulty.armed = False

    monkeypatch.setattr(Objective, "generator_losses", faulty)
    monkeypatch.setattr(Trainer, "step", arm_once)
    assert main(["train_vits", *flags(tmp_path, prepared)]) == 0
    (file,) = (tmp_path / "training/runs/run/nonfinite").glob("update-*/rank0.safetensors")
    assert main(["check", "--replay", str(file)]) == 0
    assert "All values are finite in this replay" in capsys.readouterr().out


def test_consecutive_nonfinite_updates_end_the_run_after_saving(
    prepared: Path, tmp_path: Path, poison: Poison, capsys: pytest.CaptureFixture[str]
) -> None:
    poison("all", "4,5,6,7,8,9")
    settings = {"max_updates": 30, "log_every_updates": 100, "max_nonfinite_updates": 1}
    assert main(["train_vits", *flags(tmp_path, prepared, **settings)]) == 1
    assert "2 consecutive updates had NaN or Inf losses or gradients" in capsys.readouterr().err
    (path,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    assert all(tensor.isfinite().all() for tensor in load_file(path / "generator.safetensors").values())
    run = tmp_path / "training/runs/run"
    assert json.loads((run / "outcome.json").read_text())["outcome"].startswith("failed: NonFiniteLossError")
    records = ended_wandb_run(run)
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [1]
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    tables = [line for line in wandb_history(file) if any(name.startswith("errors") for name in line)]
    assert tables
    # The run and its accounting resume from there: the interrupted epoch adds up.
    poison("none")
    update = int(path.name.split("-")[1])
    again = flags(tmp_path, prepared, max_updates=9, resume_from_checkpoint="latest")
    assert main(["train_vits", *again]) == 0
    assert update < 9
    assert "epoch 3: " in (run / "train.log").read_text()


def without_recordings(prepared: Path, path: Path, clips: tuple[int, ...]) -> Path:
    shutil.copytree(prepared, path, ignore=shutil.ignore_patterns("runs"))
    for clip in clips:
        (path / f"wavs/audio_{clip:06}.wav").unlink()
    return path


def test_run_stopped_before_unreadable_clips_counts_them_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = without_recordings(prepared, tmp_path / "data", tuple(range(0, 12, 2)))
    run = tmp_path / "training/runs/run"
    step, steps = Trainer.step, []

    def stopping(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        steps.append(self.state.update)
        if len(steps) in (1, 3):
            (run / "STOP").touch()

    monkeypatch.setattr(Trainer, "step", stopping)
    settings = {"max_rejected_fraction": 1, "resume_from_checkpoint": "auto", "batch_size": 2, "max_updates": 12}
    for _ in range(3):
        assert main(["train_vits", *flags(tmp_path, data, **settings)]) == 0
    log = (run / "train.log").read_text()
    assert log.count("stopped at update") == 2
    for epoch in (1, 2):
        assert f"epoch {epoch}: 6 trained + 6 rejected + 0 validation = 12 clips" in log
    last = metrics(tmp_path)[-1]
    assert (last["data/trained"], last["data/rejected"]) == (12, 12)
    assert len(incidents(tmp_path)) == 12


def test_run_that_rejected_too_many_resumes_with_a_higher_limit(prepared: Path, tmp_path: Path) -> None:
    data = without_recordings(prepared, tmp_path / "data", (1, 4))
    settings = {"batch_size": 2, "max_updates": 6, "resume_from_checkpoint": "auto"}
    assert main(["train_vits", *flags(tmp_path, data, max_rejected_fraction=0.1, **settings)]) == 1
    assert main(["train_vits", *flags(tmp_path, data, max_rejected_fraction=0.2, **settings)]) == 0
    log = (tmp_path / "training/runs/run/train.log").read_text()
    assert "2 of 12 clips cannot be used, more than --max_rejected_fraction 0.1 allows" in log
    assert "epoch 1: 10 trained + 2 rejected + 0 validation = 12 clips" in log


def test_replay_has_the_random_numbers_of_the_update(
    prepared: Path, tmp_path: Path, poison: Poison, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last of three micro-batches is faulty: the losses of the others are the same as in the run."""
    seen: dict[str, float] = {}
    train_step = GanTrainStep.__call__

    def recording(self: GanTrainStep, batch: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        values = train_step(self, batch, *args, **kwargs)
        kl = float(values["generator/kl"].detach()) * args[0].frames / float(batch.frame_lengths.sum())
        seen[", ".join(batch.clip_ids)] = kl
        return values

    poison("audio_000011.wav", "1")
    settings = {"max_updates": 1, "batch_size": 4, "gradient_accumulation_steps": 3, "learning_rate": 1e-12}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GanTrainStep, "__call__", recording)
        assert main(["train_vits", *flags(tmp_path, prepared, **settings)]) == 1  # the only update is masked
    (file,) = (tmp_path / "training/runs/run/nonfinite").glob("update-*/rank0.safetensors")
    capsys.readouterr()
    assert main(["check", "--replay", str(file)]) == 1
    good, other, bad, *single_clips = capsys.readouterr().out.splitlines()
    assert (good[:2], other[:2], bad[:5], len(single_clips)) == ("ok", "ok", "WRONG", 4)
    for line in (good, other):
        clips, values = line.split(maxsplit=1)[1].split(": ")
        assert f"generator/kl {seen[clips]:.4g}" in values
