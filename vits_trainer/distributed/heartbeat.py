"""Rank heartbeats in the rendezvous store, read when a collective fails, to report which rank is missing and why.

The launcher of rank 0 hosts the store. If its machine loses power or network, calls to the store do not return (torch
2.14; TCP gives up after 15 minutes): each call therefore runs in a thread, with a timeout.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from torch.distributed.distributed_c10d import Store

from vits_trainer.utils.errors import OtherRankError

Result = TypeVar("Result")

_STORE_TIMEOUT_S = 5.0
"""Timeout of a call to the store once a collective has failed."""
_REMEDY = "Check its log and its machine, then resume with --resume_from_checkpoint latest"
_STORE_IS_GONE = (
    "rank 0's machine or its launcher is gone or cannot be reached; the state of the other ranks is unknown. " + _REMEDY
)


class RankHeartbeats:
    """Counts the collectives that each rank has reached, and records why a rank failed."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        """Args:
        store: the same on all ranks.
        rank: of this process.
        world_size: number of processes.
        timeout_s: timeout of collectives.
        """
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._timeout_s = timeout_s
        self._thread = DaemonThread()

    def beat(self) -> None:
        """Records that this rank has reached its next collective.

        Raises:
            OtherRankError: the store does not respond.
        """
        try:
            self._thread.call(lambda: self._store.add(f"exchanges/{self._rank}", 1), self._timeout_s)
        except (RuntimeError, TimeoutError) as error:
            raise OtherRankError(f"{_STORE_IS_GONE} ({' '.join(str(error).split())[:200]})") from error

    def report_failure(self, reason: str) -> None:
        """Writes why this rank fails to the store, if the store still responds.

        Args:
            reason: one line.
        """
        try:
            self._thread.call(lambda: self._store.set(f"failed/{self._rank}", reason[:500]), _STORE_TIMEOUT_S)
        except (RuntimeError, TimeoutError):  # the process that hosts the store may be the one that died
            return

    def describe_missing_ranks(self) -> str:
        """Returns which ranks have failed, died or are late, as far as known, after a collective failed."""
        try:
            return self._thread.call(self._read, _STORE_TIMEOUT_S)
        except (RuntimeError, TimeoutError):
            return _STORE_IS_GONE

    def _read(self) -> str:
        failed = [rank for rank in self._others if self._store.check([f"failed/{rank}"])]
        if failed:
            return "; ".join(f"rank {rank} failed: {self._store.get(f'failed/{rank}').decode()}" for rank in failed)
        own, *counts = (self._store.add(f"exchanges/{rank}", 0) for rank in (self._rank, *self._others))
        behind = [str(rank) for rank, count in zip(self._others, counts, strict=True) if count < own]
        waited = f"waited up to {self._timeout_s:g} s (--rank_timeout_s). {_REMEDY}"
        if not behind:
            ranks = " or ".join(map(str, self._others))
            return f"rank {ranks} died or cannot be reached during a collective: {waited}"
        return f"rank {', '.join(behind)} died or does not keep up: {waited}"


class DaemonThread:
    """Runs calls one after another in a thread that does not keep the process alive.

    One thread for all calls: starting one takes 50 us to 2 ms, and there is a call in each update.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[Any]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], Result], timeout_s: float) -> Result:
        """Returns or raises what ``function`` does.

        Args:
            function: may never return; the next call then runs in another thread.
            timeout_s: how long to wait for it.

        Raises:
            TimeoutError: it has not returned by then.
        """
        if self._thread is None:
            self._calls = SimpleQueue()
            self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True)
            self._thread.start()
        results: SimpleQueue[Any] = SimpleQueue()
        self._calls.put((function, results))
        try:
            result, error = results.get(timeout=timeout_s)
        except Empty:
            self._thread = None
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None
        if error is not None:
            raise error
        return cast("Result", result)


def _serve(calls: "SimpleQueue[tuple[Callable[[], Any], SimpleQueue[Any]]]") -> None:
    while True:
        function, results = calls.get()
        try:
            results.put((function(), None))
        except Exception as error:  # noqa: BLE001 - raised by the caller
            results.put((None, error))
