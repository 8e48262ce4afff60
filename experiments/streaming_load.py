"""Prepares many short clips to shards in parts, streams an epoch and counts it: time, memory, clips per second.

    python -m experiments.streaming_load --rows 200000 --parts 4

Rows are synthetic: 0.3 to 0.7 s of a tone with noise, as WAV in Parquet. Each part is a separate process, two at a
time. The epoch is streamed with two data workers and with none, from all rows and from a tenth of them, and read
map-style from the same shards, without computing on the clips. Peak memory is that of a process and its children.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.audio import encode, voice

BATCH_CLIPS = 16
ROWS_PER_FILE = 10_000


def write_source(folder: Path, rows: int) -> None:
    """Writes Parquet files with audio, text and one of 200 speakers."""
    folder.mkdir(parents=True)
    draw, tone = np.random.default_rng(0), voice(2.0, 16000)
    for first in range(0, rows, ROWS_PER_FILE):
        columns: dict[str, list[Any]] = {"audio": [], "text": [], "speaker": []}
        for number in range(first, min(rows, first + ROWS_PER_FILE)):
            start, samples = int(draw.integers(0, 16000)), int(draw.integers(4800, 11200))
            content = encode(tone[start : start + samples] + 0.01 * draw.standard_normal(samples, np.float32), 16000)
            columns["audio"].append({"bytes": content, "path": None})
            columns["text"].append(f"{number:06d}"[-6:] + ".")
            columns["speaker"].append(f"speaker {number % 200:03d}")
        pq.write_table(pa.table(columns), folder / f"{first:09d}.parquet", row_group_size=500)


def prepare(source: Path, folder: Path, shards: int, parts: int) -> list[tuple[float, float]]:
    """Runs the parts two at a time; returns seconds and peak MiB of each."""

    def part(number: int) -> tuple[float, float]:
        words = ["prepare_data", "--dataset", str(source), "--output_dir", str(folder), "--shards", str(shards)]
        words += ["--part", f"{number}/{parts}"] if parts > 1 else []
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "vits_trainer", *words, "--processes", "1"], stdout=subprocess.DEVNULL
        )
        peak_mib = watch(process.pid)
        if process.wait():
            raise SystemExit(f"part {number} ended with {process.returncode}")
        return time.perf_counter() - began, peak_mib()

    found: list[tuple[float, float]] = []
    for first in range(1, parts + 1, 2):
        threads = [
            threading.Thread(target=lambda n=number: found.append(part(n)))
            for number in range(first, min(first + 2, parts + 1))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def watch(pid: int) -> Any:
    """Samples the memory of a process and its children ten times per second; returns a function for their peak in MiB.

    Shared memory (such as torch, after a fork) counts once.
    """
    peak = [0.0]

    def look() -> None:
        while True:
            try:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                peak[0] = max(peak[0], sum(process.memory_full_info().pss for process in family) / 2**20)
            except psutil.Error:
                return
            time.sleep(0.1)

    threading.Thread(target=look, daemon=True).start()
    return lambda: peak[0]


def epoch(address: str, workers: int, streaming: bool, queue: Any) -> None:
    """Reads an epoch and puts counts, speed and memory into the queue. Runs in a separate process."""
    from vits_trainer.config.framing import AudioSpec
    from vits_trainer.data.dataloader import build_dataloader
    from vits_trainer.data.dataset import PreparedClipDataset
    from vits_trainer.data.prepared import open_prepared
    from vits_trainer.data.sampler import BucketBatchSampler
    from vits_trainer.data.streaming import StreamingClipDataset, open_stream
    from vits_trainer.data.streaming_sampler import StreamingBatchSampler
    from vits_trainer.text.tokenizer import build_tokenizer

    spec = AudioSpec(16000)
    if streaming:
        stream = open_stream(address)
        reader: Any = StreamingClipDataset(stream, build_tokenizer(stream.texts), spec, None)
        order: Any = StreamingBatchSampler(stream.groups, stream.shard_of_group, (), 1, BATCH_CLIPS, 1, 1)
    else:
        prepared = open_prepared(Path(address))
        reader = PreparedClipDataset(prepared, build_tokenizer(prepared.texts), spec, None)
        rows = range(len(prepared.rows))
        order = BucketBatchSampler(rows, prepared.frames(rows, spec.hop), 1, BATCH_CLIPS, 1, 1)
    peak_mib = watch(multiprocessing.current_process().pid or 0)
    counts: Counter[str] = Counter()
    began, frames, padded = time.perf_counter(), 0, 0
    for batch in build_dataloader(reader, order.epoch(0, 0), workers):
        counts.update(batch.clip_ids)
        frames += int(batch.frame_lengths.sum())
        padded += batch.waveform.numel() // spec.hop
    took_s = time.perf_counter() - began
    queue.put({
        "clips": len(counts),
        "more than once": sum(count > 1 for count in counts.values()),
        "clips/s": round(counts.total() / took_s),
        "padding": f"{padded / frames - 1:.1%}",
        "peak MiB": round(peak_mib()),
        "of the process MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    })  # fmt: skip


def apart(*words: Any) -> dict[str, Any]:
    """Returns the result of :func:`epoch`, run in a spawned process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=epoch, args=(*words, queue))
    process.start()
    found: dict[str, Any] = queue.get(timeout=3600)
    process.join()
    return found


def hashes_agree(folder: Path) -> str:
    """Describes how many shards match the manifest."""
    shards = json.loads((folder / "shards.json").read_text())["shards"]
    files = [folder / "shards" / shard["name"] for shard in shards]
    good = sum(
        hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
        and pq.read_metadata(file).num_rows == sum(shard["groups"])
        for file, shard in zip(files, shards, strict=True)
    )
    return f"{good} of {len(shards)} shards match the manifest's hash and count"


def measure(folder: Path, rows: int, shards: int, parts: int) -> None:
    """Measures and prints everything."""
    sets = {rows // 10: 1, rows: parts}
    for count, in_parts in sets.items():
        write_source(folder / f"source-{count}", count)
        found = prepare(folder / f"source-{count}", folder / str(count), shards, in_parts)
        runs = ", ".join(f"{took_s:.0f} s {peak_mib:.0f} MiB" for took_s, peak_mib in found)
        print(f"{count} rows prepared in {in_parts} part(s): {runs}", flush=True)
        summary = json.loads((folder / str(count) / "dataset.json").read_text())
        print(f"  accepted {summary['accepted']}; {hashes_agree(folder / str(count))}", flush=True)
    for workers in (0, 2):
        for count in sets:
            read = apart(str(folder / str(count)), workers, True)
            print(f"streamed, {count} rows, {workers} workers: {read}", flush=True)
    for workers in (0, 2):
        print(f"map style, {rows} rows, {workers} workers:", apart(str(folder / str(rows)), workers, False), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--parts", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streaming-") as temporary:
        measure(Path(temporary), asked.rows, asked.shards, asked.parts)
