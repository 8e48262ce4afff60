"""DataLoaders: the same batches for any number of workers, and signal handling."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.limits import HANG_S
from tests.support.prepared_data import reader_of, write_clip, write_folder
from vits_trainer.data.dataloader import build_dataloader, group_by_update
from vits_trainer.data.sampler import BucketBatchSampler, MicroBatchSpec
from vits_trainer.distributed.shutdown import SIGNALS, ShutdownRequest


@pytest.fixture
def folder(tmp_path):
    for n in range(6):
        write_clip(tmp_path / "wavs" / f"{n}.wav", 8000 + 700 * n)
    return write_folder(tmp_path, [f"{n}.wav|ab {n}" for n in range(6)])


def test_workers_give_the_same_batches_as_no_workers(folder):
    sampler = BucketBatchSampler(tuple(range(6)), [40] * 6, seed=1, batch_size=2, world_size=1, accumulation=1)
    dataset, specs = reader_of(folder), list(sampler.epoch(0, 0))
    in_process, in_workers = (list(build_dataloader(dataset, iter(specs), workers)) for workers in (0, 2))
    assert len(in_process) == len(in_workers) == 3
    for ours, theirs, spec in zip(in_process, in_workers, specs, strict=True):
        assert ours.spec == theirs.spec == spec
        assert ours.clip_ids == theirs.clip_ids == tuple(f"{i}.wav" for i in spec.indices)
        assert torch.equal(ours.waveform, theirs.waveform)
        assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_without_a_usable_clip_has_an_incident(folder, workers):
    (folder / "wavs" / "3.wav").unlink()
    batches = build_dataloader(
        reader_of(folder), [MicroBatchSpec((3,), 0, 0, True), MicroBatchSpec((2,), 0, 1, True)], workers
    )
    unusable, usable = batches
    assert [(r.clip, r.kind) for r in unusable.rejections] == [("3.wav", "missing-file")]
    assert usable.clip_ids == ("2.wav",)


def test_signals_to_the_process_group_do_not_end_the_workers(folder, tmp_path):
    """Ctrl-C and schedulers signal every process of the group; the training process must still be able to save."""
    specs = [MicroBatchSpec((n % 6,), 0, n, True) for n in range(40)]
    with ShutdownRequest(tmp_path / "STOP") as interruption:
        batches = build_dataloader(reader_of(folder), specs, 2)
        first = [next(batches).spec, next(batches).spec]  # both workers have started
        for worker in batches._workers:
            for number in SIGNALS:  # from another process, as terminals and schedulers do
                subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
        assert [*first, *(batch.spec for batch in batches)] == specs
    assert interruption.signal is None  # only the workers received it


def test_only_the_waiting_thread_of_a_worker_receives_sigterm(folder):
    """torch starts its thread pool in a worker before worker_init_fn; a SIGTERM delivered to it was lost."""
    original = torch.get_num_threads()
    torch.set_num_threads(2)  # starts the pool, which the workers then restart
    batches = build_dataloader(reader_of(folder), [MicroBatchSpec((n % 6,), 0, n, True) for n in range(40)], 2)
    torch.set_num_threads(original)
    next(batches), next(batches)
    for worker in batches._workers:
        masks = [
            int(re.search(r"^SigBlk:\s*(\w+)", (task / "status").read_text(), re.M)[1], 16)
            for task in Path(f"/proc/{worker.pid}/task").iterdir()
        ]
        unblocked = [mask >> (signal.SIGTERM - 1) & 1 == 0 for mask in masks]
        assert len(masks) > 2  # the main thread, the waiting thread, and torch's
        assert sum(unblocked) == 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # not blocked in the main process


def test_main_process_can_terminate_its_workers(folder):
    """As multiprocessing does at exit, before it joins them without a timeout."""
    batches = build_dataloader(reader_of(folder), [MicroBatchSpec((n % 6,), 0, n, True) for n in range(40)], 2)
    next(batches)
    for worker in batches._workers:
        worker.terminate()
        worker.join(timeout=HANG_S)
        assert worker.exitcode == 0


def test_micro_batches_are_grouped_by_update(folder):
    specs = [MicroBatchSpec((n,), 0, n, closes_update=n in (1, 2, 5)) for n in range(6)]
    updates = list(group_by_update(build_dataloader(reader_of(folder), specs, 0)))
    assert [[batch.spec.number for batch in update] for update in updates] == [[0, 1], [2], [3, 4, 5]]


def test_creating_a_loader_does_not_advance_the_global_generator(folder):
    before = torch.random.get_rng_state()
    list(build_dataloader(reader_of(folder), [MicroBatchSpec((0,), 0, 0, True)], 0))
    assert torch.equal(torch.random.get_rng_state(), before)
