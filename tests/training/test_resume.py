"""Comparison of a checkpoint's settings with the run's; whole resumes are in tests/runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from vits_trainer.training import resume
from vits_trainer.training.checkpoint_record import RunFingerprint
from vits_trainer.utils.errors import CheckpointError


@pytest.mark.parametrize(
    ("then", "now", "change"),
    [
        ({"seed": 1, "discriminator.resolutions": []}, {"seed": 1, "discriminator.resolutions": []}, ""),
        ({"seed": 1}, {"seed": 1, "discriminator.resolutions": []}, ""),  # written before the setting existed
        ({"seed": 1}, {"seed": 1, "discriminator.resolutions": [[512, 50, 240]]}, "discriminator.resolutions"),
        ({"seed": 1}, {"seed": 2}, "seed 1 -> 2"),
        ({"seed": 1, "clips": 3}, {"seed": 1}, "clips 3 -> None"),
    ],
)
def test_setting_that_a_checkpoint_lacks_counts_as_its_default(
    monkeypatch: pytest.MonkeyPatch, then: dict[str, object], now: dict[str, object], change: str
) -> None:
    record = SimpleNamespace(fingerprint=RunFingerprint(then, {}, ""))
    monkeypatch.setattr(resume, "read_record", lambda path: record)
    fingerprint = RunFingerprint(now, {}, "")
    if change:
        with pytest.raises(CheckpointError, match=change):
            resume.diff_fingerprint(Path("checkpoint-1"), fingerprint)
    else:
        resume.diff_fingerprint(Path("checkpoint-1"), fingerprint)
