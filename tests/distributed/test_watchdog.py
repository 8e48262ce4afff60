"""The watchdog reports a stall once, with a stack trace, until it is reset."""

import logging
import time

import pytest

from vits_trainer.distributed.watchdog import StallWatchdog


def slow_function(seconds: float) -> None:
    time.sleep(seconds)


def test_stall_is_reported_once_with_a_stack_trace(caplog: pytest.LogCaptureFixture):
    reported: list[str] = []
    with caplog.at_level(logging.WARNING, "vits_trainer"), StallWatchdog(0.2, reported.append) as watchdog:
        slow_function(1.0)
        assert len(reported) == 1
        assert "no update for 0 s" in reported[0]
        assert "slow_function" in caplog.text
        watchdog.reset()
        slow_function(0.6)
    assert len(reported) == 2


def test_resets_prevent_reports_and_exit_stops_the_thread():
    reported: list[str] = []
    with StallWatchdog(0.5, reported.append) as watchdog:
        for _ in range(10):
            time.sleep(0.1)
            watchdog.reset()
    time.sleep(0.7)
    assert reported == []
