"""Self-checks of ``check``."""

from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from vits_trainer.diagnostics import self_check
from vits_trainer.utils.errors import CheckFailedError


def test_gradient_norm_is_the_norm_over_all_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).square().sum().backward()
    expected = clip_grad_norm_(layer.parameters(), float("inf")).item()
    assert self_check._gradient_norm(layer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        ("", 1.0, None),
        ("generator/kl", 1.0001, "generator/kl is"),
        ("gradient norm of decoder", 1.001, "gradient norm of decoder is"),
        ("generator/mel", float("nan"), "generator/mel is nan on cuda"),
    ],
)
def test_another_loss_or_gradient_on_the_gpu_is_an_error(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, name: str, factor: float, expected: str | None
) -> None:
    """The GPU is a stand-in: the CPU with one value changed. ``check`` on a machine with a GPU is the real test."""
    values_on = self_check._Update.values_on

    def on_another_device(update: self_check._Update, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        values = values_on(update, torch.device("cpu"), dtype)
        return {key: value * (factor if device.type == "cuda" and key == name else 1) for key, value in values.items()}

    monkeypatch.setattr(self_check._Update, "values_on", on_another_device)
    if expected is None:
        assert self_check.device_parity(prepared, torch.device("cuda")).startswith("float64 within 0.0e+00")
        return
    with pytest.raises(CheckFailedError, match=expected):
        self_check.device_parity(prepared, torch.device("cuda"))
