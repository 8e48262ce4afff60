"""``check``: its self-checks, and that they can fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from vits_trainer.cli.main import main
from vits_trainer.diagnostics import golden
from vits_trainer.training.objective import Objective


def test_all_self_checks_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    shown = capsys.readouterr().out.splitlines()
    names = [line[4:].partition(":")[0] for line in shown if line.startswith("ok  ")]
    assert names == [
        *("versions", "machine", "VitsModel.forward", "data", "gradients and update", "GPU against CPU", "training"),
        *("saving and resuming", "Weights & Biases", "export"),
    ]
    assert shown[-1] == "ALL TESTS PASSED"


def test_part_without_a_gradient_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Objective.generator_losses

    def without_durations(self, discriminator, pair):
        losses = original(self, discriminator, pair)
        return losses | {"total": losses["total"] - losses["duration"]}

    monkeypatch.setattr(Objective, "generator_losses", without_durations)
    assert main(["check"]) == 1
    assert "duration_predictor" in capsys.readouterr().err


REFERENCE = Path(__file__).parents[3] / "shared/reference"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference does not exist")
def test_wrong_golden_values_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in REFERENCE.glob("single_sdp.*"):
        shutil.copy(path, tmp_path)
    case = json.loads((tmp_path / "single_sdp.json").read_text())
    case["losses"]["loss_kl"] *= 1.00005
    case["generator_gradient_norms"]["enc_p.proj.weight"] *= 1.001
    (tmp_path / "single_sdp.json").write_text(json.dumps(case))
    assert main(["check", "--golden", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines() if line.startswith("WRONG")] == [
        "WRONG single_sdp loss_kl",
        "WRONG single_sdp generator gradient enc_p.proj.weight",
    ]
    assert "single_sdp: 883 of 885 values agree in float64, 7 of 7 losses in float32" in printed.out
    assert "2 values" in printed.err
    assert "Do not train" in printed.err


def replace_compared_values(monkeypatch: pytest.MonkeyPatch, loss_in_float32: float) -> None:
    """Replaces the compared values: one of each kind, all of which agree except the loss in float32."""
    exact = [
        golden.ComparedValue("loss_mel", 4.0, 4.000002, golden.LOSS),
        golden.ComparedValue("norm", 0.5, 0.50001, golden.GRADIENT_NORM),
        golden.ComparedValue("posterior sample", 0.0, 3e-9, golden.POSTERIOR),
    ]
    rounded = [golden.ComparedValue("loss_mel in float32", 4.0, loss_in_float32, golden.LOSS_FLOAT32)]
    monkeypatch.setattr(golden, "read_cases", lambda _: [golden.Case("case", {}, {})])
    monkeypatch.setattr(
        golden, "compare_case", lambda _, dtype=torch.float64: exact if dtype == torch.float64 else rounded
    )


def test_worst_golden_value_of_each_kind_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_compared_values(monkeypatch, loss_in_float32=4.0001)
    assert main(["check", "--golden", "."]) == 0
    assert capsys.readouterr().out.splitlines()[-6:] == [
        "case: 3 of 3 values agree in float64, 1 of 1 losses in float32",
        "worst of the losses in float64: 5.00e-07 (at most 1e-06), case loss_mel",
        "worst of the losses in float32: 2.50e-05 (at most 1e-04), case loss_mel in float32",
        "worst of the gradient norms in float64: 2.00e-05 (at most 1e-04), case norm",
        "worst of the posterior sample in float64: 3.00e-09 (at most 1e-08), case posterior sample",
        "ALL TESTS PASSED",
    ]


def test_imprecise_float32_is_not_reported_as_a_wrong_objective(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Like a machine that multiplies float32 with fewer bits (ONEDNN_DEFAULT_FPMATH_MODE=BF16)."""
    replace_compared_values(monkeypatch, loss_in_float32=4.005)
    assert main(["check", "--golden", "."]) == 1
    printed = capsys.readouterr()
    assert "case: 3 of 3 values agree in float64, 0 of 1 losses in float32" in printed.out
    assert "Beyond tolerance only in float32: 1 loss:" in printed.err
    assert "Do not train" not in printed.err
