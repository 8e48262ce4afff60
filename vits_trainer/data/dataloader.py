"""Batches from a reader, ahead of their use: the processes that read, and how they heed signals."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from vits_trainer.data.dataset import Batch, ClipDataset
from vits_trainer.data.sampler import MicroBatchSpec


def build_dataloader(dataset: ClipDataset, specs: Iterable[MicroBatchSpec], workers: int) -> Iterator[Batch]:
    """Reads the batches that ``specs`` schedule, in their order; ``workers`` processes read ahead."""
    loader = DataLoader(
        dataset,
        sampler=specs,
        batch_size=None,  # the dataset makes whole batches
        collate_fn=_unchanged,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_process,
        # Of its own, so that making the loader does not advance the global generator: resuming needs that.
        generator=torch.Generator(),
    )
    # A worker's first threads (torch's pool) begin before its init function: they inherit the mask from here.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def group_by_update(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Joins the micro-batches of each update."""
    update: list[Batch] = []
    for batch in batches:
        update.append(batch)
        if batch.spec.closes_update:
            yield update
            update = []


def _unchanged(batch: Batch) -> Batch:
    return batch


def _leave_signals_to_the_process(worker: int) -> None:  # noqa: ARG001 - what a DataLoader calls it with
    """Ctrl-C and a scheduler's signals reach the whole group: the workers must live until the process has saved."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: the scheduler's SIGTERM ends the workers there
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        return
    # The process itself ends its workers by SIGTERM, and then waits for them for ever: none may get lost to a thread
    # that does not wait for it, so all block it (since the fork; here again for workers that were not forked).
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, lambda *_: None)  # a thread of a library's own making: not fatal there
    threading.Thread(target=_end_when_the_process_asks, args=(os.getppid(),), daemon=True).start()


def _end_when_the_process_asks(process: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != process:
        pass
    os._exit(0)
