"""Detection of stragglers, metrics per rank, and the compute timer."""

import time
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from vits_trainer.distributed import stragglers as stragglers_module
from vits_trainer.distributed.stragglers import (
    ComputeTimer,
    RankInfo,
    RankTiming,
    StragglerDetector,
    describe_topology,
    rank_metrics,
)

TYPICAL = RankTiming(updates=10, clips=40, audio_s=200.0, elapsed_s=10.0, waited_s=0.1, compute_s=3.0)
"""40 clips in ten updates of 1 s: 1 % of the time waiting, 0.3 s of computing per update."""


def rank_infos(count: int, per_host: int = 4) -> list[RankInfo]:
    return [RankInfo(rank, rank % per_host, f"node{rank // per_host}", "NVIDIA H100") for rank in range(count)]


def with_one(rank: int, count: int = 4, **changes: float) -> list[RankTiming]:
    """Timings of ``count`` ranks, all typical except those of ``rank``."""
    return [replace(TYPICAL, **changes) if number == rank else TYPICAL for number in range(count)]  # type: ignore[arg-type]


def messages(detector: StragglerDetector, logs: list[list[RankTiming]]) -> list[tuple[int, str]]:
    """The notices, each with the number of its log, from 1."""
    return [(number, notice.message) for number, log in enumerate(logs, 1) for notice in detector.update(log)]


SLOW_READING = with_one(2, waited_s=4.1)
SLOW_COMPUTING = with_one(3, compute_s=4.8)
EQUAL = with_one(0)


def test_slow_reading_is_reported_once_after_five_consecutive_logs() -> None:
    assert messages(StragglerDetector(rank_infos(4)), [SLOW_READING] * 20) == [
        (
            5,
            (
                "rank 2 on host node0 (local rank 2, NVIDIA H100) is slow at reading: it waits 41% of the time for "
                "clips, the others 1%. Check its disk, other load on its CPU, and --data_workers"
            ),
        )
    ]


def test_slow_computing_is_reported_with_host_and_ratio() -> None:
    # 4.8 / 3.0 = 1.6; 1.8 s of 10 s are 18 % more.
    assert messages(StragglerDetector(rank_infos(4, per_host=2)), [SLOW_COMPUTING] * 20) == [
        (
            5,
            (
                "rank 3 on host node1 (local rank 1, NVIDIA H100) is slow at computing: 1.6 times the others' median "
                "(480 ms per update outside of collectives, the others 300). Check its device and CPU for other jobs "
                "and thermal throttling"
            ),
        )
    ]


@pytest.mark.parametrize(
    "log",
    [
        EQUAL,
        with_one(1, waited_s=0.55),  # 5.5 times the others, but 4.5 % of the time
        [replace(timing, waited_s=8.0) for timing in EQUAL],  # a disk that is slow for all ranks
        with_one(1, compute_s=3.8),  # 1.27 times
        [replace(timing, compute_s=timing.compute_s / 10) for timing in SLOW_COMPUTING],  # 1.6 times, 1.8 % of the time
        with_one(3, compute_s=4.8, audio_s=300.0),  # 1.6 times the time for 1.5 times the audio
        with_one(3, compute_s=2.0, audio_s=50.0),  # fixed cost of short clips
        with_one(3, compute_s=1.0, audio_s=0.0, clips=0),  # placeholder batches
        with_one(3, compute_s=1.0),  # a faster rank
    ],
)
def test_differences_that_are_not_a_ranks_fault_are_not_reported(log: list[RankTiming]) -> None:
    assert messages(StragglerDetector(rank_infos(4)), [log] * 20) == []


def test_four_slow_logs_followed_by_a_normal_one_are_not_reported() -> None:
    assert messages(StragglerDetector(rank_infos(4)), ([SLOW_READING] * 4 + [EQUAL]) * 5) == []


def test_rank_is_reported_again_after_five_normal_logs() -> None:
    logs = [SLOW_READING] * 5 + ([EQUAL] * 4 + [SLOW_READING]) + [EQUAL] * 5 + [SLOW_READING] * 5
    notices = messages(StragglerDetector(rank_infos(4)), logs)
    assert [(number, message.partition(":")[0].partition(" is ")[2]) for number, message in notices] == [
        (5, "slow at reading"),
        (15, "no longer slow at reading"),
        (20, "slow at reading"),
    ]


def test_slow_rank_of_two_is_reported() -> None:
    # The median of both, 1.5 and 1.0, would be 1.25, and 1.5 is less than 1.3 times that.
    (notice,) = messages(StragglerDetector(rank_infos(2)), [with_one(1, count=2, compute_s=4.5)] * 5)
    assert "rank 1 on host node0" in notice[1]


def test_two_slow_ranks_of_eight_are_reported_each_with_its_cause() -> None:
    log = with_one(3, count=8, compute_s=6.0)
    log[6] = replace(TYPICAL, waited_s=3.0)
    notices = [message.partition(":")[0] for _, message in messages(StragglerDetector(rank_infos(8)), [log] * 5)]
    assert notices == [
        "rank 3 on host node0 (local rank 3, NVIDIA H100) is slow at computing",
        "rank 6 on host node1 (local rank 2, NVIDIA H100) is slow at reading",
    ]


def test_single_rank_is_never_reported() -> None:
    assert messages(StragglerDetector(rank_infos(1)), [[replace(TYPICAL, waited_s=9.9)]] * 20) == []


def test_metrics_of_each_rank() -> None:
    log = [TYPICAL, replace(TYPICAL, clips=20, waited_s=3.1, compute_s=1.0)]
    assert rank_metrics(log) == pytest.approx(
        {
            "time/data_wait_fraction": 0.16,
            "time/data_wait_fraction_max": 0.31,
            "ranks/0/utterances_per_s": 4.0,
            "ranks/1/utterances_per_s": 2.0,
            "ranks/0/data_wait_fraction": 0.01,
            "ranks/1/data_wait_fraction": 0.31,
            "ranks/0/compute_s_per_update": 0.3,
            "ranks/1/compute_s_per_update": 0.1,
        }
    )


def test_more_than_sixteen_ranks_are_summarized_by_three_values() -> None:
    log = [replace(TYPICAL, compute_s=float(number)) for number in range(1, 18)]
    metrics = rank_metrics(log)
    compute = {name: value for name, value in metrics.items() if name.endswith("compute_s_per_update")}
    assert compute == pytest.approx(
        {
            "ranks/min/compute_s_per_update": 0.1,
            "ranks/median/compute_s_per_update": 0.9,
            "ranks/max/compute_s_per_update": 1.7,
        }
    )
    assert len(metrics) == 2 + 3 * 3
    assert len(rank_metrics(log[:16])) == 2 + 3 * 16


def test_single_rank_has_no_metrics_per_rank() -> None:
    assert rank_metrics([TYPICAL]) == {"time/data_wait_fraction": 0.01}


def test_topology_lists_hosts_and_devices_in_one_line() -> None:
    mixed = [*rank_infos(4, per_host=2), RankInfo(4, 0, "old", "NVIDIA A100"), RankInfo(5, 2, "node0", "NVIDIA H100")]
    assert describe_topology(rank_infos(4, per_host=2)) == (
        "4 processes on 2 hosts: node0 0-1 (NVIDIA H100), node1 2-3 (NVIDIA H100)"
    )
    assert describe_topology(mixed) == (
        "6 processes on 3 hosts: node0 0-1+5 (NVIDIA H100), node1 2-3 (NVIDIA H100), old 4 (NVIDIA A100)"
    )


def test_compute_timer_excludes_collectives() -> None:
    timer = ComputeTimer(torch.device("cpu"))
    with timer.interrupted():  # as in a dry run
        time.sleep(0.05)
    with timer.measuring():
        time.sleep(0.02)
        with timer.interrupted():
            time.sleep(0.2)
        time.sleep(0.03)
    assert 0.05 <= timer.read() < 0.2
    assert timer.read() == 0


class Event:
    """A fake CUDA event: its time is known once the host has waited for it."""

    queue_ms = 0.0
    recorded: ClassVar[list["Event"]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.known = False

    def record(self) -> None:
        self.at_ms = Event.queue_ms
        Event.recorded.append(self)

    def synchronize(self) -> None:
        for event in Event.recorded[: Event.recorded.index(self) + 1]:
            event.known = True

    def elapsed_time(self, end: "Event") -> float:
        assert self.known
        assert end.known
        return end.at_ms - self.at_ms


def test_compute_timer_on_a_gpu_waits_for_the_device_only_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fake events: the host waits once, for the last event."""
    monkeypatch.setattr(stragglers_module.torch.cuda, "Event", Event)
    timer = ComputeTimer(torch.device("cuda"))
    for _ in range(2):
        with timer.measuring():
            Event.queue_ms += 30
            with timer.interrupted():
                Event.queue_ms += 1000
            Event.queue_ms += 12
    assert not any(event.known for event in Event.recorded)
    assert timer.read() == pytest.approx(2 * 0.042)
    assert timer.read() == 0
