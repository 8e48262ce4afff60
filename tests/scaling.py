"""Weak scaling on this machine: one rank with one thread against two, and the share of the time that ranks wait.

    python -m tests.scaling --rounds 2

Each rank takes eight clips an update of the recipe ``tiny``; a round runs one rank, two ranks, and two ranks that
exchange no gradients, in turn. Each figure is over whole passes of the built-in corpus, the first one left out.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from vits_trainer.__main__ import main as vits_trainer
from vits_trainer.corpus import speak_corpus
from vits_trainer.runtime import Runtime
from vits_trainer.trainer import Trainer

ROOT = Path(__file__).parents[1]
PASSES = 4
CLIPS = 64


def audio_s_per_s(folder: Path, data: Path, ranks: int, exchange: bool) -> float:
    """Median over the passes but the first."""
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
    topology = ROOT / f"accelerate_configs/{'cpu_2proc' if ranks == 2 else 'cpu'}.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(topology)]
    subprocess.run(
        [*launcher, "-m", "tests.scaling", "--worker", *flags],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "EXCHANGE": str(int(exchange)), "PYTHONPATH": str(ROOT)},
    )
    lines = map(json.loads, (folder / "runs/run/metrics.jsonl").read_text().splitlines())
    whole = [line["throughput/audio_s_per_s"] for line in lines if line["update"] % updates == 0]
    return statistics.median(whole[1:])


def worker(flags: list[str]) -> int:
    """A rank; without the exchange of gradients its weights are its own."""
    if os.environ["EXCHANGE"] == "0":
        Runtime.wrap = lambda self, network: network
        Runtime.accumulating = lambda self, *networks, synchronise: contextlib.nullcontext()
        Trainer._compare_ranks = lambda self: None
    return vits_trainer(["train_vits", *flags])


def measure(folder: Path, rounds: int) -> None:
    """Prints a row a round, and the medians of the ratios."""
    corpus = speak_corpus(folder / "corpus")
    assert vits_trainer(["prepare_data", "--dataset", str(corpus), "--output_dir", str(folder / "data")]) == 0
    print("round  1 rank  2 ranks  2 ranks, no exchange   scaling  waiting   (seconds of audio a second)", flush=True)
    ratios = []
    for number in range(rounds):
        kinds = ((1, True), (2, True), (2, False))
        places = [folder / f"{number}-{ranks}-{exchange}" for ranks, exchange in kinds]
        one, two, apart = (
            audio_s_per_s(place, folder / "data", *kind) for place, kind in zip(places, kinds, strict=True)
        )
        ratios.append((two / (2 * one), 1 - two / apart))
        scaling, waiting = ratios[-1]
        print(f"{number:5}  {one:6.2f}  {two:7.2f}  {apart:20.2f}   {scaling:7.2f}  {waiting:7.1%}", flush=True)
    scaling, waiting = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median: weak scaling {scaling:.2f}, share of the time in communication {waiting:.1%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(worker(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scaling-") as temporary:
        measure(Path(temporary), asked.rounds)
