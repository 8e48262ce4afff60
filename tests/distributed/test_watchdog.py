"""Silence is told once, with the place where the process is; life makes it quiet."""

import logging
import time

import pytest

from vits_trainer.distributed.watchdog import StallWatchdog


def somewhere_slow(seconds: float) -> None:
    time.sleep(seconds)


def test_silence_is_told_once_with_where_it_is(caplog: pytest.LogCaptureFixture):
    told: list[str] = []
    with caplog.at_level(logging.WARNING, "vits_trainer"), StallWatchdog(0.2, told.append) as alarm:
        somewhere_slow(1.0)
        assert len(told) == 1
        assert "no update for 0 s" in told[0]
        assert "somewhere_slow" in caplog.text
        alarm.reset()
        somewhere_slow(0.6)
    assert len(told) == 2


def test_life_keeps_it_quiet_and_leaving_ends_it():
    told: list[str] = []
    with StallWatchdog(0.5, told.append) as alarm:
        for _ in range(10):
            time.sleep(0.1)
            alarm.reset()
    time.sleep(0.7)
    assert told == []
