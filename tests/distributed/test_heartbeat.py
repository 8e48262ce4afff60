"""Rank heartbeats, with a store that responds and one that does not."""

import threading
import time

import pytest
from torch.distributed import HashStore

from tests.support.limits import start_s
from vits_trainer.distributed import heartbeat
from vits_trainer.distributed.heartbeat import DaemonThread, RankHeartbeats
from vits_trainer.utils.errors import OtherRankError

CABLE_PULLED = threading.Event()


class SilentStore:
    """Like the store of a machine that lost its network: no call returns."""

    def check(self, keys):
        return CABLE_PULLED.wait()

    def add(self, key, amount):
        return CABLE_PULLED.wait()

    def set(self, key, value):
        return CABLE_PULLED.wait()


def three_ranks():
    store = HashStore()
    return [RankHeartbeats(store, rank, 3, 5) for rank in range(3)]


def test_rank_that_is_behind_is_reported():
    ranks = three_ranks()
    for rank in (0, 1, 2, 0, 2):
        ranks[rank].beat()
    assert ranks[0].describe_missing_ranks().startswith("rank 1 died or does not keep up: waited up to 5 s")


def test_all_other_ranks_are_reported_if_none_is_behind():
    ranks = three_ranks()
    for rank in ranks:
        rank.beat()
    assert (
        ranks[1]
        .describe_missing_ranks()
        .startswith("rank 0 or 2 died or cannot be reached during a collective")
    )


def test_reason_of_a_failed_rank_is_reported():
    ranks = three_ranks()
    ranks[2].report_failure("RuntimeError: broken")
    assert ranks[0].describe_missing_ranks() == "rank 2 failed: RuntimeError: broken"


def test_unresponsive_store_is_reported_as_rank_0s_machine(monkeypatch):
    monkeypatch.setattr(heartbeat, "_STORE_TIMEOUT_S", 0.1)
    cut_off = RankHeartbeats(SilentStore(), 1, 2, timeout_s=0.1)
    start_time_s = time.monotonic()
    cut_off.report_failure("failed")
    assert cut_off.describe_missing_ranks().startswith("rank 0's machine or its launcher is gone or cannot be reached")
    with pytest.raises(OtherRankError, match=r"rank 0's machine .* \(no answer within 0.1 s\)"):
        cut_off.beat()
    assert time.monotonic() - start_time_s < 5 * start_s()


def test_thread_raises_the_functions_error():
    def refuse():
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        DaemonThread().call(refuse, 5)


def test_one_thread_serves_all_calls_until_one_does_not_return():
    thread, never = DaemonThread(), threading.Event()
    first, second = (thread.call(threading.get_ident, 30) for _ in range(2))
    assert first == second != threading.get_ident()
    with pytest.raises(TimeoutError, match=r"no answer within 0.1 s"):
        thread.call(never.wait, 0.1)
    assert thread.call(threading.get_ident, 30) != first
    never.set()
