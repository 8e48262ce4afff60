"""Signs of life: what each rank leaves where the others can read it when an exchange between them fails.

They lie in the store that the ranks met by, which the launcher of rank 0 keeps. Where its machine has lost its power or
its network, no call to the store returns (torch 2.14; TCP gives up after a quarter of an hour): hence each call is a
thread's, whose answer is waited for so long and no longer.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from torch.distributed.distributed_c10d import Store

from vits_trainer.utils.errors import OtherRankError

Answer = TypeVar("Answer")

_PATIENCE_S = 5.0
"""With the store, once an exchange has failed."""
_LOOK = "Look at its messages and its machine, then --resume_from_checkpoint auto"
_STORE_IS_GONE = (
    "rank 0's machine or its launcher is gone or cannot be reached, with what the ranks know of one another. " + _LOOK
)


class RankHeartbeats:
    """How often each rank has come to an exchange, and why it failed."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        """Args:
        store: the same on all ranks.
        rank: this process's number.
        world_size: number of processes.
        timeout_s: how long the ranks wait for one another.
        """
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._timeout_s = timeout_s

    def beat(self) -> None:
        """Tells that this rank has come to its next exchange.

        Raises:
            OtherRankError: whoever keeps the signs is gone.
        """
        try:
            call_with_timeout(lambda: self._store.add(f"exchanges/{self._rank}", 1), self._timeout_s)
        except (RuntimeError, TimeoutError) as error:
            raise OtherRankError(f"{_STORE_IS_GONE} ({' '.join(str(error).split())[:200]})") from error

    def report_failure(self, reason: str) -> None:
        """Leaves why this rank fails, if there still is a place to leave it.

        Args:
            reason: one line.
        """
        try:
            call_with_timeout(lambda: self._store.set(f"failed/{self._rank}", reason[:500]), _PATIENCE_S)
        except (RuntimeError, TimeoutError):  # the rank that keeps the store may be the one that died
            return

    def describe_missing_ranks(self) -> str:
        """Which ranks have failed, died or are late, as far as it is known, after an exchange that failed."""
        try:
            return call_with_timeout(self._read, _PATIENCE_S)
        except (RuntimeError, TimeoutError):
            return _STORE_IS_GONE

    def _read(self) -> str:
        failed = [rank for rank in self._others if self._store.check([f"failed/{rank}"])]
        if failed:
            return "; ".join(f"rank {rank} failed: {self._store.get(f'failed/{rank}').decode()}" for rank in failed)
        own, *counts = (self._store.add(f"exchanges/{rank}", 0) for rank in (self._rank, *self._others))
        behind = [str(rank) for rank, count in zip(self._others, counts, strict=True) if count < own]
        waited = f"waited for it at most {self._timeout_s:g} s (--rank_timeout_s). {_LOOK}"
        if not behind:
            names = " or ".join(map(str, self._others))
            return f"rank {names} died or cannot be reached, in the midst of an exchange: {waited}"
        return f"rank {', '.join(behind)} died or does not keep up: {waited}"


def call_with_timeout(ask: Callable[[], Answer], patience_s: float) -> Answer:
    """What ``ask`` returns or raises.

    Args:
        ask: may never return; its thread does not keep the process alive.
        patience_s: how long to wait for it.

    Raises:
        TimeoutError: it has not returned by then.
    """
    answers: list[Answer] = []
    errors: list[RuntimeError] = []

    def run() -> None:
        try:
            answers.append(ask())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {patience_s:g} s")
    return answers[0]
