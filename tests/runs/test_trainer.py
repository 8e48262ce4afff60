"""The discriminator's warm-up, the dry run, and out-of-memory errors."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.voices import metrics, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.data.dataset import Batch
from vits_trainer.training.meter import TrainingMetrics
from vits_trainer.training.objective import Objective
from vits_trainer.training.trainer import Trainer


def test_only_the_discriminator_is_trained_during_warmup(tmp_path: Path) -> None:
    prepared_folder(tmp_path)
    flags = train_flags(tmp_path, discriminator_warmup_updates=2, max_updates=3, save_every_updates=1)
    assert main(["train_vits", *flags]) == 0
    one, two, three = (
        {
            network: load_file(tmp_path / f"checkpoints/checkpoint-{update}/{network}.safetensors")
            for network in ("generator", "discriminator")
        }
        for update in (1, 2, 3)
    )
    name = "decoder.conv_pre.weight"
    assert (one["generator"][name] == two["generator"][name]).all()
    assert (two["generator"][name] != three["generator"][name]).any()
    name = "discriminators.0.convs.0.bias"
    assert (one["discriminator"][name] != two["discriminator"][name]).any()
    lines = [line for line in metrics(tmp_path) if "generator/mel" in line]
    assert ["grad_norm/generator" in line for line in lines] == [False, False, True]


def test_dry_run_changes_nothing_in_the_memory_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first updates equal those without it. The longest clips run with gradients, moments and dropout in memory."""
    prepared_folder(tmp_path)
    settings = {"max_updates": 2, "ema_decay": 0.9}
    time_pass, held = Trainer._time_pass_s, []

    def recorded(self: Trainer, batch: Batch) -> float:
        optimizers = [optimizer.optimizer for optimizer in self.train_step.optimizers]
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        moments = [sum(map(len, optimizer.state.values())) for optimizer in optimizers]
        took_s = time_pass(self, batch)
        gradients = sum(p.grad is not None for p in parameters) / len(parameters)
        held.append((gradients, all(moments), self.generator.training))
        return took_s

    monkeypatch.setattr(Trainer, "_time_pass_s", recorded)
    assert main(["train_vits", *train_flags(tmp_path, **settings)]) == 0
    assert [moments for _, moments, _ in held[:2]] == [False, True]
    assert all(training and gradients > 0.9 for gradients, _, training in held)
    with_it = metrics(tmp_path)
    # A single process can omit it.
    monkeypatch.setattr(Trainer, "dry_run", lambda self: 1.0)
    changes = {**settings, "checkpoint_dir": tmp_path / "other", "runs_dir": tmp_path / "other_runs"}
    assert main(["train_vits", *train_flags(tmp_path, **changes)]) == 0
    lines = (tmp_path / "other_runs/run/metrics.jsonl").read_text().splitlines()
    for ours, other in zip(with_it, map(json.loads, lines), strict=True):
        for name in ours:
            if name.startswith(("generator/", "discriminator/", "grad_norm/", "validation/", "data/")):
                assert ours[name] == other[name], name


def test_out_of_memory_error_has_the_clips_and_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Raises the message of PyTorch's CPU allocator instead of exhausting the memory."""

    def exhausted(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")

    prepared_folder(tmp_path)
    monkeypatch.setattr(Objective, "discriminator_losses", exhausted)
    assert main(["train_vits", *train_flags(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "on cpu with 3 clips of 1.0, 1.0, 1.1 s" in message
    assert "--batch_size" in message


def test_target_hours_follow_the_measured_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run expects an update per hour, so one epoch; the first two take 36 s each, so ten updates fit."""
    monkeypatch.setattr(Trainer, "_time_pass_s", lambda self, batch: 3600.0)
    monkeypatch.setattr(
        TrainingMetrics, "speed_of_first_updates_s", property(lambda self: 36.0 if self._done == 2 else None)
    )
    prepared_folder(tmp_path, clips=9)  # 8 for training
    assert main(["train_vits", *train_flags(tmp_path, max_updates=0, target_hours=0.1)]) == 0
    assert metrics(tmp_path)[-1]["update"] == 10
    state = json.loads((tmp_path / "checkpoints/checkpoint-10/state.json").read_text())
    assert state["plan"]["total_updates"] == 10
