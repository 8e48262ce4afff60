"""Self-checks of ``check``."""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from vits_trainer.diagnostics import self_check


def test_gradient_norm_is_the_norm_over_all_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).square().sum().backward()
    expected = clip_grad_norm_(layer.parameters(), float("inf")).item()
    assert self_check._gradient_norm(layer) == pytest.approx(expected)
