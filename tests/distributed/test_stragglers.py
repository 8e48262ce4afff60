"""Who is named as slow, and when; what is logged of ranks; what is measured of their work."""

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
    scalars,
)

USUAL = RankTiming(updates=10, clips=40, audio_s=200.0, elapsed_s=10.0, waited_s=0.1, compute_s=3.0)
"""40 clips in ten updates of a second each: 1 % of it waiting, 0.3 s an update alone."""


def seats(count: int, per_host: int = 4) -> list[RankInfo]:
    return [RankInfo(rank, rank % per_host, f"node{rank // per_host}", "NVIDIA H100") for rank in range(count)]


def with_one(rank: int, count: int = 4, **changes: float) -> list[RankTiming]:
    """The usual, but for one rank."""
    return [replace(USUAL, **changes) if number == rank else USUAL for number in range(count)]  # type: ignore[arg-type]


def told(stragglers: StragglerDetector, logs: list[list[RankTiming]]) -> list[tuple[int, str]]:
    """What is said after which log, from 1."""
    return [(number, found.words) for number, log in enumerate(logs, 1) for found in stragglers.update(log)]


READS_LATE = with_one(2, waited_s=4.1)
COMPUTES_LATE = with_one(3, compute_s=4.8)
ALIKE = with_one(0)


def test_slow_reader_is_named_once_in_the_fifth_log_in_a_row() -> None:
    assert told(StragglerDetector(seats(4)), [READS_LATE] * 20) == [
        (
            5,
            (
                "rank 2 on host node0 (local rank 2, NVIDIA H100) is slow at reading: it waits 41% of the time for "
                "clips, the others 1%. Look at its disk, at what else its CPU does, and at --data_workers"
            ),
        )
    ]


def test_slow_computer_is_named_with_its_host_and_by_how_much() -> None:
    # 4.8 / 3.0 = 1.6; 1.8 s of 10 s are 18 % more.
    assert told(StragglerDetector(seats(4, per_host=2)), [COMPUTES_LATE] * 20) == [
        (
            5,
            (
                "rank 3 on host node1 (local rank 1, NVIDIA H100) is slow at computing: 1.6 times the others' median "
                "(480 ms an update between exchanges, theirs 300). Look for other jobs on its device and its CPU, and "
                "for heat"
            ),
        )
    ]


@pytest.mark.parametrize(
    "log",
    [
        ALIKE,
        with_one(1, waited_s=0.55),  # 5.5 times the others, and 4.5 % of the time
        [replace(share, waited_s=8.0) for share in ALIKE],  # a disk that is slow for all
        with_one(1, compute_s=3.8),  # 1.27 times
        [replace(share, compute_s=share.compute_s / 10) for share in COMPUTES_LATE],  # 1.6 times, and 1.8 % of the time
        with_one(3, compute_s=4.8, audio_s=300.0),  # 1.6 times as long for 1.5 times as much
        with_one(3, compute_s=2.0, audio_s=50.0),  # what a short clip costs beside its length
        with_one(3, compute_s=1.0, audio_s=0.0, clips=0),  # silence stood in
        with_one(3, compute_s=1.0),  # a faster one
    ],
)
def test_nobody_is_named_for_what_is_no_fault_of_a_rank(log: list[RankTiming]) -> None:
    assert told(StragglerDetector(seats(4)), [log] * 20) == []


def test_four_logs_and_one_that_is_well_name_nobody() -> None:
    assert told(StragglerDetector(seats(4)), ([READS_LATE] * 4 + [ALIKE]) * 5) == []


def test_named_again_once_it_has_recovered_for_as_long() -> None:
    logs = [READS_LATE] * 5 + ([ALIKE] * 4 + [READS_LATE]) + [ALIKE] * 5 + [READS_LATE] * 5
    found = told(StragglerDetector(seats(4)), logs)
    assert [(number, words.partition(":")[0].partition(" is ")[2]) for number, words in found] == [
        (5, "slow at reading"),
        (15, "no longer slow at reading"),
        (20, "slow at reading"),
    ]


def test_of_two_ranks_the_slow_one_is_named_although_it_is_half_of_them() -> None:
    # Of both, 1.5 and 1.0, the median were 1.25, and 1.5 not 1.3 times it.
    (only,) = told(StragglerDetector(seats(2)), [with_one(1, count=2, compute_s=4.5)] * 5)
    assert "rank 1 on host node0" in only[1]


def test_two_slow_ranks_of_eight_are_both_named_each_by_its_cause() -> None:
    log = with_one(3, count=8, compute_s=6.0)
    log[6] = replace(USUAL, waited_s=3.0)
    found = [words.partition(":")[0] for _, words in told(StragglerDetector(seats(8)), [log] * 5)]
    assert found == [
        "rank 3 on host node0 (local rank 3, NVIDIA H100) is slow at computing",
        "rank 6 on host node1 (local rank 2, NVIDIA H100) is slow at reading",
    ]


def test_one_rank_is_never_named() -> None:
    assert told(StragglerDetector(seats(1)), [[replace(USUAL, waited_s=9.9)]] * 20) == []


def test_scalars_of_each_rank() -> None:
    log = [USUAL, replace(USUAL, clips=20, waited_s=3.1, compute_s=1.0)]
    assert scalars(log) == pytest.approx(
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


def test_more_ranks_than_sixteen_have_three_figures_together() -> None:
    log = [replace(USUAL, compute_s=float(number)) for number in range(1, 18)]
    found = scalars(log)
    own = {name: value for name, value in found.items() if name.endswith("compute_s_per_update")}
    assert own == pytest.approx(
        {
            "ranks/min/compute_s_per_update": 0.1,
            "ranks/median/compute_s_per_update": 0.9,
            "ranks/max/compute_s_per_update": 1.7,
        }
    )
    assert len(found) == 2 + 3 * 3
    assert len(scalars(log[:16])) == 2 + 3 * 16


def test_one_rank_has_no_scalars_of_ranks() -> None:
    assert scalars([USUAL]) == {"time/data_wait_fraction": 0.01, "time/data_wait_fraction_max": 0.01}


def test_hosts_and_devices_in_one_line() -> None:
    mixed = [*seats(4, per_host=2), RankInfo(4, 0, "old", "NVIDIA A100"), RankInfo(5, 2, "node0", "NVIDIA H100")]
    assert describe_topology(seats(4, per_host=2)) == (
        "4 process(es) on 2 host(s): node0 0-1 (NVIDIA H100), node1 2-3 (NVIDIA H100)"
    )
    assert describe_topology(mixed) == (
        "6 process(es) on 3 host(s): node0 0-1+5 (NVIDIA H100), node1 2-3 (NVIDIA H100), old 4 (NVIDIA A100)"
    )


def test_time_alone_leaves_exchanges_out() -> None:
    alone = ComputeTimer(torch.device("cpu"))
    with alone.interrupted():  # as in a rehearsal
        time.sleep(0.05)
    with alone.measuring():
        time.sleep(0.02)
        with alone.interrupted():
            time.sleep(0.2)
        time.sleep(0.03)
    assert 0.05 <= alone.read() < 0.2
    assert alone.read() == 0


class Event:
    """A stand-in for CUDA's: a place in the device's queue, whose time is known once the host has waited for it."""

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


def test_time_alone_on_a_gpu_is_the_devices_and_is_read_at_the_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried with a stand-in: the host waits once, for the last event."""
    monkeypatch.setattr(stragglers_module.torch.cuda, "Event", Event)
    alone = ComputeTimer(torch.device("cuda"))
    for _ in range(2):
        with alone.measuring():
            Event.queue_ms += 30
            with alone.interrupted():
                Event.queue_ms += 1000
            Event.queue_ms += 12
    assert not any(event.known for event in Event.recorded)
    assert alone.read() == pytest.approx(2 * 0.042)
    assert alone.read() == 0
