"""Benchmarks of the alignment search and the data pipeline."""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TypeVar

import numpy as np
import soundfile as sf
import soxr
import torch

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.data.audio import read_recording, to_rate
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import Batch, PreparedClipDataset
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.sampler import BucketBatchSampler, MicroBatchSpec
from vits_trainer.distributed.launch_environment import uses_gpu
from vits_trainer.models.alignment import search
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.utils.errors import InstallationError

Result = TypeVar("Result")

_ALIGNMENT_SIZES = ((16, 180, 400), (64, 180, 500), (64, 256, 1024))
_FEW, _CLIPS = 64, 1024
_SOURCE_RATE_HZ = 48_000
_TEXT = "the old boat crossed the quiet river and came home before the rain "


def benchmark_alignment(config: BenchmarkConfig) -> dict[str, float]:
    """Times the alignment search, ours on the run's device and the PyPI package's, per (clips, tokens, frames).

    Returns:
        Milliseconds of both, their ratio, and whether the paths are equal.

    Raises:
        InstallationError: the package monotonic-alignment-search is not installed.
    """
    try:
        from monotonic_alignment_search import maximum_path  # noqa: PLC0415 - only for this comparison
    except ImportError as error:
        raise InstallationError(
            "--suite alignment needs the package monotonic-alignment-search: pip install monotonic-alignment-search."
        ) from error
    draw = torch.Generator().manual_seed(config.seed)
    device = torch.device("cuda" if uses_gpu(os.environ) else "cpu")
    metrics: dict[str, float] = {}
    for clips, tokens, frames in _ALIGNMENT_SIZES:
        scores = torch.randn(clips, frames, tokens, generator=draw) * 30
        on_device = [value.to(device) for value in (scores, *_lengths(clips, frames, tokens))]
        transposed, mask = scores.transpose(1, 2).contiguous(), torch.ones(clips, tokens, frames)
        ours = partial(_search, *on_device)
        theirs = partial(maximum_path, transposed, mask)
        durations_s = [(_timed(ours)[1], _timed(theirs)[1]) for _ in range(2 * config.updates + 1)]
        ours_s, theirs_s = map(statistics.median, zip(*durations_s[1:], strict=True))
        name = f"{clips}x{tokens}x{frames}"
        metrics |= {f"{name} ms": 1000 * ours_s, f"{name} ms_pypi": 1000 * theirs_s, f"{name} ratio": theirs_s / ours_s}
        path = torch.nn.functional.one_hot(ours().cpu(), tokens).transpose(1, 2)
        metrics[f"{name} equal_paths"] = float(torch.equal(path, theirs().to(path.dtype)))
    return metrics


def benchmark_data_pipeline(config: BenchmarkConfig) -> dict[str, float]:
    """Measures clips per second of decoding and resampling on all cores, of prepare_data, and of the data loader.

    Rates come from the difference between a large and a small workload, so that process start-up is excluded.
    """
    with tempfile.TemporaryDirectory(prefix="vits_trainer-benchmark-") as folder:
        source = _recordings(Path(folder, "source"), config)
        limit = _limit_clips_per_s(sorted((source / "wavs").iterdir()))
        (_, few_s), (target, all_s) = (_timed(partial(_prepare, source, clips)) for clips in (_FEW, _CLIPS))
        metrics = {
            "limit_clips_per_s": limit,
            "prepare_clips_per_s": (_CLIPS - _FEW) / (all_s - few_s),
            "prepare_share_of_limit": (_CLIPS - _FEW) / (all_s - few_s) / limit,
            "prepare_clips_per_s_with_start": _CLIPS / all_s,
            "cores": float(len(os.sched_getaffinity(0))),
        }
        prepared = open_prepared(target)
        dataset = PreparedClipDataset(prepared, build_tokenizer([_TEXT]), AudioSpec(16000), None)
        rows = list(range(len(prepared.rows)))
        sampler = BucketBatchSampler(rows, prepared.frames(rows, 256), config.seed, config.batch_size, 1, 1)
        few, many = (list(islice(_endless_epochs(sampler), passes * sampler.updates_per_epoch)) for passes in (2, 12))
        for workers in (0, 1, 2):
            _read(dataset, few, 0)  # fills the text cache and the page cache
            (_, few_s), (_, many_s) = (_timed(partial(_read, dataset, specs, workers)) for specs in (few, many))
            metrics[f"loader_clips_per_s_workers_{workers}"] = 10 * _CLIPS / (many_s - few_s)
        uncached = PreparedClipDataset(prepared, build_tokenizer([_TEXT]), AudioSpec(16000), None)
        for rate in (500, 1000):
            batches = _prefetch_in_thread(build_dataloader(uncached, few, 2))
            fraction = _data_wait_fraction(batches, config.batch_size / rate)
            metrics[f"data_wait_fraction_at_{rate}_clips_per_s"] = fraction
        return metrics


def _prefetch_in_thread(batches: Iterator[Batch]) -> Iterator[Batch | None]:
    """Reads batches in a thread, as the loader does when it pins memory for a GPU."""
    ready: Queue[Batch | None] = Queue(1)

    def prefetch() -> None:
        for batch in chain(batches, [None]):
            ready.put(batch)

    Thread(target=prefetch, daemon=True).start()
    return iter(ready.get, None)


def _data_wait_fraction(batches: Iterator[Batch | None], update_s: float) -> float:
    """Returns the fraction of time that a device with ``update_s`` per batch waits for data; text cache empty."""
    next(batches)  # workers have started
    start, waited_s = time.perf_counter(), 0.0
    while True:
        time.sleep(update_s)
        requested = time.perf_counter()
        batch = next(batches, None)
        waited_s += time.perf_counter() - requested
        if batch is None:
            return waited_s / (time.perf_counter() - start)


def _prepare(source: Path, clips: int) -> Path:
    target = source.with_name(f"prepared-{clips}")
    prepare(PrepareConfig(dataset=str(source), output_dir=str(target), max_samples=clips))
    return target


def _limit_clips_per_s(paths: list[Path]) -> float:
    """Returns the rate of decoding and resampling alone, with one process per core."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_decode, paths[: 8 * cores]))  # processes have started
        _, limit_s = _timed(lambda: list(pool.map(_decode, paths, chunksize=8)))
    return len(paths) / limit_s


def _decode(path: Path) -> int:
    return len(to_rate(*read_recording(path), 16000))


def _endless_epochs(sampler: BucketBatchSampler) -> Iterator[MicroBatchSpec]:
    for epoch in count(1):
        yield from sampler.epoch(epoch, 0)


def _read(dataset: PreparedClipDataset, specs: list[MicroBatchSpec], workers: int) -> None:
    for _ in build_dataloader(dataset, specs, workers):
        pass


def _recordings(folder: Path, config: BenchmarkConfig) -> Path:
    """Writes noise clips in LJ Speech layout, as FLAC at 48 kHz."""
    (folder / "wavs").mkdir(parents=True)
    draw = np.random.default_rng(config.seed)
    samples = soxr.resample(draw.standard_normal(int(config.clip_s * 8000)) * 0.1, 8000, _SOURCE_RATE_HZ)
    lines = []
    for number in range(_CLIPS):
        sf.write(folder / f"wavs/{number:04}.flac", np.roll(samples, 1000 * number), _SOURCE_RATE_HZ)
        lines.append(f"{number:04}|{_TEXT}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def _lengths(clips: int, frames: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((clips,), frames), torch.full((clips,), tokens)


def _search(scores: torch.Tensor, frame_lengths: torch.Tensor, token_lengths: torch.Tensor) -> torch.Tensor:
    """Searches, and waits for the device."""
    path = search(scores, frame_lengths, token_lengths)
    if path.is_cuda:
        torch.cuda.synchronize(path.device)
    return path


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
