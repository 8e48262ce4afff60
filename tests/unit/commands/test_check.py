"""``check``: what it proves, and that it can say no."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from vits_trainer import proofs
from vits_trainer.__main__ import main
from vits_trainer.objective import Objective


def test_everything_is_proved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    shown = capsys.readouterr().out.splitlines()
    names = [line[4:].partition(":")[0] for line in shown if line.startswith("ok  ")]
    assert names == [
        *("versions", "machine", "VitsModel.forward", "data", "gradients and update", "training"),
        *("saving and resuming", "Weights & Biases", "export"),
    ]
    assert shown[-1] == "ALL TESTS PASSED"


def test_part_without_a_gradient_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Objective.generator_losses

    def without_durations(self, discriminator, comparison):
        losses = whole(self, discriminator, comparison)
        return losses | {"total": losses["total"] - losses["duration"]}

    monkeypatch.setattr(Objective, "generator_losses", without_durations)
    assert main(["check"]) == 1
    assert "duration_predictor" in capsys.readouterr().err


def test_full_disk_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert main(["check"]) == 1
    assert "TMPDIR" in capsys.readouterr().err


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["check"]) == 1
    assert "Start it as one" in capsys.readouterr().err


def test_gradient_norm_is_the_norm_over_all_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).square().sum().backward()
    expected = clip_grad_norm_(layer.parameters(), float("inf")).item()
    assert proofs._gradient_norm(layer) == pytest.approx(expected)
