"""The time limit of a run (--save_before_s)."""

from pathlib import Path

import pytest

from vits_trainer.distributed.shutdown import ShutdownRequest


@pytest.mark.parametrize(
    ("needs_s", "limit_s", "stops"), [(39, 100, False), (40, 100, True), (5, 64, True), (9, 0, False)]
)
def test_time_limit_includes_the_time_to_save(
    needs_s: float, limit_s: float, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vits_trainer.distributed.shutdown._seconds_since_start", lambda: 60.0)
    assert bool(ShutdownRequest(tmp_path / "STOP", limit_s).reason_to_stop(needs_s)) is stops
