"""The discriminator's warm-up, the dry run, and out-of-memory errors."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.voices import metrics, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.training.objective import Objective


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


def test_dry_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update after two passes of the dry run equals that without them."""
    prepared_folder(tmp_path)
    assert main(["train_vits", *train_flags(tmp_path, max_updates=2)]) == 0
    with_it = metrics(tmp_path)
    # A single process can omit it.
    monkeypatch.setattr("vits_trainer.training.trainer.Trainer.dry_run", lambda self: 1.0)
    changes = {"checkpoint_dir": tmp_path / "other", "runs_dir": tmp_path / "other_runs"}
    assert main(["train_vits", *train_flags(tmp_path, max_updates=2, **changes)]) == 0
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
    assert "1.2" in message  # the longest of the synthetic clips, which the dry run reads first
    assert "--batch_size" in message
