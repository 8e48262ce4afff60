"""Time and memory before the first update, for made-up clips: as wavs/, as shards in map style, and streamed.

``python -m experiments.startup FOLDER [--clips 1000000]``

Clips are a tenth of a second of silence, with distinct texts, of 100 speakers. Each layout is opened in a process of
its own, by the calls of a run that grow with the number of clips. Prints the table of docs/benchmarks.md.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ, SAMPLES, SPEAKERS, SHARDS, LINKED = 16000, 1600, 100, 64, 20_000


def text(number: int) -> str:
    return f"sentence {number} of a made-up corpus"


def summary(clips: int) -> str:
    each = {f"speaker{n:03d}": clips // SPEAKERS for n in range(SPEAKERS)}
    characters = "".join(sorted(set("sentence of a made-up corpus 0123456789")))
    facts = {"accepted": clips, "sampling_rate": RATE_HZ, "speakers": SPEAKERS, "speaker_clips": each}
    return json.dumps({**facts, "characters": characters})


def write_wavs(folder: Path, clips: int) -> None:
    """Writes hard links to a few files: a million files of their own take minutes."""
    from vits_trainer.data.audio import write_pcm16_wav

    (folder / "wavs").mkdir(parents=True)
    lines = []
    for number in range(clips):
        path = folder / f"wavs/audio_{number:06d}.wav"
        if number % LINKED == 0:
            original = path
            write_pcm16_wav(path, np.zeros(SAMPLES, np.int16), RATE_HZ)
        else:
            os.link(original, path)
        lines.append(f"{path.name}|{text(number)}|speaker{number % SPEAKERS:03d}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    (folder / "dataset.json").write_text(summary(clips), encoding="utf-8")


def write_shards(folder: Path, clips: int) -> None:
    from vits_trainer.data.shards import FOLDER, Manifest, ShardWriter, shard_name

    (folder / FOLDER).mkdir(parents=True)
    records = []
    for shard, numbers in enumerate(np.array_split(np.arange(clips), SHARDS)):
        with ShardWriter(folder / FOLDER / shard_name(shard), RATE_HZ, "pcm16") as writer:
            for number in numbers.tolist():
                name, speaker = f"audio_{number:06d}.wav", f"speaker{number % SPEAKERS:03d}"
                writer.add(name, np.zeros(SAMPLES, np.int16), text(number), speaker)
            records.append(writer.close())
    Manifest(RATE_HZ, "pcm16", tuple(records)).write(folder)
    (folder / "dataset.json").write_text(summary(clips), encoding="utf-8")


def start(folder: str, streaming: bool, results: Any) -> None:
    """Does what a run does before its first update, as far as it grows with the clips."""
    from vits_trainer.config.framing import AudioSpec
    from vits_trainer.config.train import TrainConfig
    from vits_trainer.data.training_data import open_training_data
    from vits_trainer.text.tokenizer import build_tokenizer

    spec, tokenizer = AudioSpec(RATE_HZ), build_tokenizer([text(1234567890)])
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times_s: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began_s = time.process_time()
        result = call()
        times_s[name] = time.process_time() - began_s
        return result

    config = TrainConfig(data_dir=folder, streaming=streaming, batch_size=32)
    data = timed("open and split", lambda: open_training_data(config))
    sampler = timed("sampler", lambda: data.sampler(spec, 1))
    timed("first epoch", lambda: next(iter(sampler.epoch(0, 0))))
    timed("dataset", lambda: data.dataset(tokenizer, spec, {name: n for n, name in enumerate(data.speakers)}))
    accounting = timed("accounting", lambda: data.accounting(sampler))
    timed("fingerprint", data.fingerprint)
    timed("missing characters", lambda: data.missing_characters(tokenizer))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mib
    results.put({"clips": accounting.clips, "peak MiB": peak_mib, **times_s})


def measure(root: Path, clips: int) -> None:
    """Prints a row per layout."""
    if not (root / "wavs/dataset.json").is_file():
        write_wavs(root / "wavs", clips)
    if not (root / "shards/dataset.json").is_file():
        write_shards(root / "shards", clips)
    context = multiprocessing.get_context("spawn")
    for layout, streaming in (("wavs", False), ("shards", False), ("shards", True)):
        results = context.Queue()
        process = context.Process(target=start, args=(str(root / layout), streaming, results))
        process.start()
        row = results.get(timeout=3600)
        process.join()
        total_s = sum(value for name, value in row.items() if name not in ("clips", "peak MiB"))
        parts = ", ".join(f"{name} {value:.2f}" for name, value in row.items() if name not in ("clips", "peak MiB"))
        each_us = 1e6 * total_s / row["clips"]
        title = f"{layout}{', streamed' if streaming else ''}"
        print(f"| {title} | {total_s:.1f} s | {each_us:.1f} us | {row['peak MiB']:.0f} MiB | {parts} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=1_000_000)
    asked = parser.parse_args()
    measure(asked.folder, asked.clips)
