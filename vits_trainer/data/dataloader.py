"""DataLoaders of clip batches, and signal handling in their workers."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from vits_trainer.data.dataset import Batch, ClipDataset
from vits_trainer.data.sampler import MicroBatchSpec


def build_dataloader(
    dataset: ClipDataset, specs: Iterable[MicroBatchSpec], workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Reads the batches that ``specs`` schedule, in their order; ``workers`` processes read ahead.

    Args:
        dataset: reads a batch.
        specs: which clips.
        workers: number of processes; 0 = this one.
        pin_memory: for batches that go to a GPU. It opens a CUDA context, so a run on the CPU must not.
    """
    loader = DataLoader(
        dataset,
        sampler=specs,
        batch_size=None,  # the dataset makes whole batches
        collate_fn=_unchanged,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_group_signals,
        # Separate: creating the loader must not advance the global generator, or resuming would not be exact.
        generator=torch.Generator(),
    )
    # A worker's first threads (torch's pool) start before its init function: they inherit this signal mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def group_by_update(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Yields the micro-batches of each update as a list."""
    update: list[Batch] = []
    for batch in batches:
        update.append(batch)
        if batch.spec.closes_update:
            yield update
            update = []


def _unchanged(batch: Batch) -> Batch:
    return batch


def _ignore_group_signals(worker: int) -> None:  # noqa: ARG001 - the DataLoader's signature
    """Ignores signals sent to the whole process group (Ctrl-C, a scheduler's): workers must outlive the last save."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: a scheduler's SIGTERM ends the workers
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        return
    # The main process ends its workers with SIGTERM, then joins them without a timeout. All threads block SIGTERM, so
    # that only the thread below receives it: the mask is inherited by fork, and set here for workers not forked.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, lambda *_: None)  # not fatal in a thread that a library starts
    threading.Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_from(parent_pid: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent_pid:
        pass
    os._exit(0)
