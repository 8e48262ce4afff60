"""What ranks learn of one another from a store, and from one that does not answer."""

import threading
import time

import pytest
from torch.distributed import HashStore

from tests.support.limits import start_s
from vits_trainer.distributed import heartbeat
from vits_trainer.distributed.heartbeat import RankHeartbeats, call_with_timeout
from vits_trainer.utils.errors import OtherRankError

CABLE_PULLED = threading.Event()


class SilentStore:
    """As the store of a machine that has lost its network: no call returns."""

    def check(self, keys):
        return CABLE_PULLED.wait()

    def add(self, key, amount):
        return CABLE_PULLED.wait()

    def set(self, key, value):
        return CABLE_PULLED.wait()


def three_ranks():
    store = HashStore()
    return [RankHeartbeats(store, rank, 3, 5) for rank in range(3)]


def test_rank_that_is_behind_is_named():
    ranks = three_ranks()
    for rank in (0, 1, 2, 0, 2):
        ranks[rank].beat()
    assert ranks[0].describe_missing_ranks().startswith("rank 1 died or does not keep up: waited for it at most 5 s")


def test_ranks_that_are_level_are_all_named():
    ranks = three_ranks()
    for rank in ranks:
        rank.beat()
    assert (
        ranks[1]
        .describe_missing_ranks()
        .startswith("rank 0 or 2 died or cannot be reached, in the midst of an exchange")
    )


def test_reason_of_a_rank_that_failed_is_told():
    ranks = three_ranks()
    ranks[2].report_failure("RuntimeError: broken")
    assert ranks[0].describe_missing_ranks() == "rank 2 failed: RuntimeError: broken"


def test_store_that_does_not_answer_is_rank_0s_machine(monkeypatch):
    monkeypatch.setattr(heartbeat, "_PATIENCE_S", 0.1)
    cut_off = RankHeartbeats(SilentStore(), 1, 2, timeout_s=0.1)
    began_s = time.monotonic()
    cut_off.report_failure("whatever")
    assert cut_off.describe_missing_ranks().startswith("rank 0's machine or its launcher is gone or cannot be reached")
    with pytest.raises(OtherRankError, match=r"rank 0's machine .* \(no answer within 0.1 s\)"):
        cut_off.beat()
    assert time.monotonic() - began_s < 5 * start_s()


def test_error_of_the_one_asked_is_raised():
    def refuse():
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        call_with_timeout(refuse, 5)
