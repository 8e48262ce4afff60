"""Measures weak scaling on this machine from one rank to two, with one thread each, and the cost of communication.

    python -m experiments.scaling --rounds 2

Each rank trains on eight clips per update with the recipe ``tiny``; a round runs one rank, then two. Values are over
whole passes of the built-in corpus, without the first. Gradient exchange of both networks is measured separately;
within an update part of it overlaps with computation.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from vits_trainer.cli.main import main as vits_trainer
from vits_trainer.data.preparation.espeak_corpus import speak_corpus
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import RankTiming

ROOT = Path(__file__).parents[1]
PASSES = 4
CLIPS = 64


def audio_s_per_s(folder: Path, data: Path, ranks: int) -> float:
    """Returns the median over all passes except the first."""
    updates = CLIPS // (8 * ranks)
    settings = {
        "config": "tiny",
        "data_dir": data,
        "checkpoint_dir": folder / "checkpoints",
        "output_dir": folder / "voice",
        "runs_dir": folder / "runs",
        "run_name": "run",
        "max_updates": updates * PASSES,
        "log_every_updates": updates,
        "validation_fraction": 0,
        "validate_every_updates": 0,
        "save_every_updates": 0,
        "data_workers": 0,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    launch(ranks, ["-m", "vits_trainer", "train_vits", *flags])
    lines = map(json.loads, (folder / "runs/run/metrics.jsonl").read_text().splitlines())
    whole = [line["throughput/audio_s_per_s"] for line in lines if line["update"] % updates == 0]
    return statistics.median(whole[1:])


def launch(ranks: int, target: list[str]) -> str:
    """Launches ranks with one thread each, and returns their stdout."""
    topology = ROOT / f"accelerate_configs/{'cpu_2proc' if ranks == 2 else 'cpu'}.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(topology)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*launcher, *target], check=True, capture_output=True, cwd=ROOT, env=environment, text=True)
    return ended.stdout


def exchange(values: int) -> None:
    """Prints the median seconds of 20 all-reduces of ``values`` float32 over two ranks. Runs on every rank."""
    runtime = Runtime("fp32", 1)
    gradients, took_s = torch.zeros(values), []
    for _ in range(20):
        runtime.all_gather_object(0)
        began = time.perf_counter()
        torch.distributed.all_reduce(gradients)
        took_s.append(time.perf_counter() - began)
    if runtime.is_main_process:
        print(statistics.median(took_s))
    runtime.close()


def shares() -> None:
    """Prints ms and bytes of gathering rank timing at a log point, over two ranks. Runs on every rank."""
    runtime = Runtime("fp32", 1)
    share = RankTiming(10, 80, 400.0, 3.7, 0.1, 1.2)
    took_ms = []
    for _ in range(200):
        runtime.all_reduce_sum(torch.zeros(1))  # so that no rank waits for the other below
        began = time.perf_counter()
        runtime.all_gather_object(share)
        took_ms.append(1000 * (time.perf_counter() - began))
    if runtime.is_main_process:
        least, median, most = min(took_ms), statistics.median(took_ms), max(took_ms)
        size = len(pickle.dumps(share))
        print(f"{least:.2f} {median:.2f} {most:.2f} ms (min, median, max of 200), {size} bytes per rank")
    runtime.close()


def weights(checkpoint: Path) -> int:
    """Returns the number of weights of both networks."""
    files = (checkpoint / f"{network}.safetensors" for network in ("generator", "discriminator"))
    return sum(tensor.numel() for file in files for tensor in load_file(file).values())


def measure(folder: Path, rounds: int) -> None:
    """Prints one row per round, and the medians of the ratios."""
    corpus = speak_corpus(folder / "corpus")
    assert vits_trainer(["prepare_data", "--dataset", str(corpus), "--output_dir", str(folder / "data")]) == 0
    print("round  1 rank  2 ranks  scaling  update  exchange alone   (seconds of audio per second; s)", flush=True)
    rows = []
    for number in range(rounds):
        one, two = (audio_s_per_s(folder / f"{number}-{ranks}", folder / "data", ranks) for ranks in (1, 2))
        place = next((folder / f"{number}-2/checkpoints").glob("checkpoint-*"))
        alone_s = float(launch(2, ["-m", "experiments.scaling", "--exchange", str(weights(place))]))
        seconds = json.loads((folder / "data/dataset.json").read_text())["seconds"]
        update_s = seconds / CLIPS * 16 / two
        rows.append((two / (2 * one), alone_s / update_s))
        print(f"{number:5}  {one:6.2f}  {two:7.2f}  {rows[-1][0]:7.2f}  {update_s:6.3f}  {alone_s:14.4f}", flush=True)
    scaling, share = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"cost of a log point: {launch(2, ['-m', 'experiments.scaling', '--shares']).strip()}")
    print(f"median: weak scaling {scaling:.2f}, gradient exchange at most {share:.1%} of the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--exchange", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--shares", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.shares:
        shares()
    elif asked.exchange:
        exchange(asked.exchange)
    else:
        with tempfile.TemporaryDirectory(prefix="scaling-") as temporary:
            measure(Path(temporary), asked.rounds)
