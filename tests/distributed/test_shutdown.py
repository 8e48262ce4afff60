"""The time limit of a run (--save_before_s)."""

import os
import signal
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


def test_ctrl_c_ends_at_once_while_there_is_nothing_to_save_and_the_third_time(tmp_path: Path) -> None:
    with ShutdownRequest(tmp_path / "STOP") as request:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        request.has_progress = True
        os.kill(os.getpid(), signal.SIGINT)
        assert request.reason_to_stop(0) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_other_signals_end_at_once_while_there_is_nothing_to_save(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with ShutdownRequest(tmp_path / "STOP") as request:
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), number)
        assert end.value.code == 128 + number
        request.has_progress = True
        os.kill(os.getpid(), number)
        assert request.reason_to_stop(0) == number.name


def test_signals_under_a_launcher_are_recorded_before_the_first_update_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    with ShutdownRequest(tmp_path / "STOP") as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.reason_to_stop(0) == "SIGTERM"
