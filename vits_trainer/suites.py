"""Benchmarks of what stands beside the networks: the alignment search, and the way of the data."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile as sf
import soxr
import torch

from vits_trainer.alignment import search
from vits_trainer.audio import AudioSpec
from vits_trainer.config import PrepareConfig
from vits_trainer.config_tools import BenchmarkConfig
from vits_trainer.data import ClipReader, load, open_prepared
from vits_trainer.errors import InstallationError
from vits_trainer.order import MicroBatch, Order
from vits_trainer.preparation import prepare
from vits_trainer.recordings import read_recording, to_rate
from vits_trainer.text import build_tokenizer

Result = TypeVar("Result")

_SIZES = ((16, 180, 400), (64, 180, 500), (64, 256, 1024))
_CLIPS = 256
_SOURCE_RATE_HZ = 48_000
_TEXT = "the old boat crossed the quiet river and came home before the rain "


def alignment_figures(config: BenchmarkConfig) -> dict[str, float]:
    """Milliseconds of the search, ours and the PyPI package's, for batches of (clips, tokens, frames), and the ratio.

    Raises:
        InstallationError: the package is not there.
    """
    try:
        from monotonic_alignment_search import maximum_path  # noqa: PLC0415 - needed for this comparison only
    except ImportError as error:
        raise InstallationError("--suite alignment needs the package monotonic-alignment-search.") from error
    draw = torch.Generator().manual_seed(config.seed)
    figures: dict[str, float] = {}
    for clips, tokens, frames in _SIZES:
        scores = torch.randn(clips, frames, tokens, generator=draw) * 30
        turned, mask = scores.transpose(1, 2).contiguous(), torch.ones(clips, tokens, frames)
        ours = partial(search, scores, torch.full((clips,), frames), torch.full((clips,), tokens))
        theirs = partial(maximum_path, turned, mask)
        took_s = [(_timed(ours)[1], _timed(theirs)[1]) for _ in range(2 * config.updates + 1)]
        ours_s, theirs_s = map(statistics.median, zip(*took_s[1:], strict=True))
        name = f"{clips}x{tokens}x{frames}"
        figures |= {f"{name} ms": 1000 * ours_s, f"{name} ms_pypi": 1000 * theirs_s, f"{name} ratio": theirs_s / ours_s}
        path = torch.nn.functional.one_hot(ours(), tokens).transpose(1, 2)
        figures[f"{name} equal_paths"] = float(torch.equal(path, theirs().to(path.dtype)))
    return figures


def data_figures(config: BenchmarkConfig) -> dict[str, float]:
    """Clips a second: what decoding and resampling allow, prepare_data, reading back with batches, the loader."""
    with tempfile.TemporaryDirectory(prefix="vits_trainer-benchmark-") as folder:
        source = _recordings(Path(folder, "source"), config)
        paths = sorted((source / "wavs").iterdir())
        _, limit_s = _timed(lambda: [to_rate(*read_recording(path), 16000) for path in paths[:64]])
        cores = len(os.sched_getaffinity(0))
        target = Path(folder, "prepared")
        _, prepare_s = _timed(lambda: prepare(PrepareConfig(dataset=str(source), output_dir=str(target))))
        prepared = open_prepared(target)
        reader = ClipReader(prepared, build_tokenizer([_TEXT]), AudioSpec(16000), None)
        rows = list(range(len(prepared.rows)))
        order = Order(rows, prepared.frames(rows, 256), config.seed, config.batch_size, 1, 1)
        figures = {
            "limit_clips_per_s_a_core": 64 / limit_s,
            "prepare_clips_per_s_with_start": _CLIPS / prepare_s,
            "prepare_cores": float(cores),
        }
        for workers in (0, 2):
            passes = [partial(_read, reader, list(order.epoch(epoch, 0)), workers) for epoch in range(3)]
            figures[f"read_and_collate_clips_per_s_workers_{workers}"] = _CLIPS / min(_timed(one)[1] for one in passes)
        return figures


def _read(reader: ClipReader, places: list[MicroBatch], workers: int) -> None:
    for _ in load(reader, places, workers):
        pass


def _recordings(folder: Path, config: BenchmarkConfig) -> Path:
    """An LJ Speech folder of noise, FLAC at 48 kHz."""
    (folder / "wavs").mkdir(parents=True)
    draw = np.random.default_rng(config.seed)
    samples = soxr.resample(draw.standard_normal(int(config.clip_s * 8000)) * 0.1, 8000, _SOURCE_RATE_HZ)
    lines = []
    for number in range(_CLIPS):
        sf.write(folder / f"wavs/{number:04}.flac", np.roll(samples, 1000 * number), _SOURCE_RATE_HZ)
        lines.append(f"{number:04}|{_TEXT}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began
