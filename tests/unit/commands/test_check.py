"""``check``: what it proves, and that it can say no."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from vits_trainer import __main__ as command_line
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


REFERENCE = Path(__file__).parents[4] / "shared/reference"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")
def test_golden_values_agree_and_a_wrong_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in REFERENCE.glob("single_sdp.*"):
        shutil.copy(path, tmp_path)
    assert main(["check", "--golden", str(tmp_path)]) == 0
    assert "ALL TESTS PASSED" in capsys.readouterr().out
    case = json.loads((tmp_path / "single_sdp.json").read_text())
    case["losses"]["loss_kl"] *= 1.001
    (tmp_path / "single_sdp.json").write_text(json.dumps(case))
    assert main(["check", "--golden", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert [line.split(":")[0] for line in shown.out.splitlines() if line.startswith("WRONG")] == [
        "WRONG single_sdp loss_kl"
    ]
    assert "1 figure(s)" in shown.err


def test_folder_without_golden_values_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--golden", str(tmp_path)]) == 2
    assert "holds no golden case" in capsys.readouterr().err


def test_packages_that_do_not_go_together_are_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mock, as breaking the real installation would break the tests beside this one."""

    def broken(_: str) -> None:
        raise OSError("libtorchaudio.so: undefined symbol")

    monkeypatch.setattr(command_line.importlib, "import_module", broken)
    assert main(["check"]) == 1
    message = capsys.readouterr().err
    assert "libtorchaudio" in message
    assert "torchaudio>=2.11,<2.12" in message
