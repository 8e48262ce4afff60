"""DataLoaders: the same batches whatever the workers, and signals."""

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


def test_workers_give_what_the_process_itself_gives(folder):
    order = BucketBatchSampler(tuple(range(6)), [40] * 6, seed=1, batch_size=2, world_size=1, accumulation=1)
    reader, places = reader_of(folder), list(order.epoch(0, 0))
    alone, helped = (list(build_dataloader(reader, iter(places), workers)) for workers in (0, 2))
    assert len(alone) == len(helped) == 3
    for ours, theirs, place in zip(alone, helped, places, strict=True):
        assert ours.spec == theirs.spec == place
        assert ours.clip_ids == theirs.clip_ids == tuple(f"{i}.wav" for i in place.indices)
        assert torch.equal(ours.waveform, theirs.waveform)
        assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_without_a_good_clip_is_a_record_from_a_worker_too(folder, workers):
    (folder / "wavs" / "3.wav").unlink()
    batches = build_dataloader(
        reader_of(folder), [MicroBatchSpec((3,), 0, 0, True), MicroBatchSpec((2,), 0, 1, True)], workers
    )
    bad, good = batches
    assert [(r.clip, r.kind) for r in bad.rejections] == [("3.wav", "missing-file")]
    assert good.clip_ids == ("2.wav",)


def test_signals_to_the_group_leave_the_workers_alive(folder, tmp_path):
    """Ctrl-C and a scheduler reach every process of the group; the training process must go on to its save."""
    places = [MicroBatchSpec((n % 6,), 0, n, True) for n in range(40)]
    with ShutdownRequest(tmp_path / "STOP") as interruption:
        batches = build_dataloader(reader_of(folder), places, 2)
        first = [next(batches).spec, next(batches).spec]  # both workers have begun
        for worker in batches._workers:
            for number in SIGNALS:  # from another process, as a terminal or a scheduler sends them
                subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
        assert [*first, *(batch.spec for batch in batches)] == places
    assert interruption.signal is None  # it was theirs


def test_no_thread_of_a_worker_takes_a_signal_from_the_one_that_waits_for_it(folder):
    """torch starts its pool in a worker before anything of ours runs there; a SIGTERM that reached it got lost."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)  # makes the pool that the workers then make anew
    batches = build_dataloader(reader_of(folder), [MicroBatchSpec((n % 6,), 0, n, True) for n in range(40)], 2)
    torch.set_num_threads(usual)
    next(batches), next(batches)
    for worker in batches._workers:
        masks = [
            int(re.search(r"^SigBlk:\s*(\w+)", (task / "status").read_text(), re.M)[1], 16)
            for task in Path(f"/proc/{worker.pid}/task").iterdir()
        ]
        unblocked = [mask >> (signal.SIGTERM - 1) & 1 == 0 for mask in masks]
        assert len(masks) > 2  # the main thread, the one that waits, and torch's
        assert sum(unblocked) == 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the process itself still heeds it


def test_process_can_end_its_own_workers(folder):
    """As multiprocessing does at exit, where it then waits for them without a limit."""
    batches = build_dataloader(reader_of(folder), [MicroBatchSpec((n % 6,), 0, n, True) for n in range(40)], 2)
    next(batches)
    for worker in batches._workers:
        worker.terminate()
        worker.join(timeout=HANG_S)
        assert worker.exitcode == 0


def test_micro_batches_are_joined_by_update(folder):
    places = [MicroBatchSpec((n,), 0, n, closes_update=n in (1, 2, 5)) for n in range(6)]
    updates = list(group_by_update(build_dataloader(reader_of(folder), places, 0)))
    assert [[batch.spec.number for batch in update] for update in updates] == [[0, 1], [2], [3, 4, 5]]


def test_making_a_loader_leaves_the_global_generator_alone(folder):
    before = torch.random.get_rng_state()
    list(build_dataloader(reader_of(folder), [MicroBatchSpec((0,), 0, 0, True)], 0))
    assert torch.equal(torch.random.get_rng_state(), before)
