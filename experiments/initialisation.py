"""Compares initial weights of training from scratch: VITS's, N(0, 0.01) in the decoder, and transformers'.

``python -m experiments.initialisation FOLDER [--starts vits normal_decoder] [--updates 1000] [--seeds 1 2]``

Built-in corpus, recipe ``tiny``, equal seed, clips and updates; only the initial weights differ. Prints the tables of
docs/benchmarks.md. VITS's source asks for N(0, 0.01) in the decoder, but after weight norm, which overwrites it.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from transformers import VitsModel

from vits_trainer.cli.main import main
from vits_trainer.data.preparation.espeak_corpus import speak_corpus
from vits_trainer.models.initialization import init_vits_weights

NAMES = ("generator/mel", "generator/kl", "generator/duration", "grad_norm/generator")
INITIALIZED = "vits_trainer.models.initialization.init_vits_weights"


def with_normal_decoder(model: VitsModel) -> None:
    """VITS's initial weights, but N(0, 0.01) in the decoder's upsampling and residual convolutions."""
    init_vits_weights(model)
    for module in [*model.decoder.upsampler, *model.decoder.resblocks.modules()]:
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            module.weight = nn.init.normal_(torch.empty_like(module.weight), std=0.01)


STARTS = {"vits": init_vits_weights, "normal_decoder": with_normal_decoder, "transformers": lambda model: None}


def run(folder: Path, starts: list[str], updates: int, seeds: list[int], batch_size: int) -> None:
    """Prepares the data, trains once per start and seed, and prints a table for each seed."""
    training = folder / "training"
    if not (training / "dataset.json").is_file():
        speak_corpus(folder / "corpus")
        assert main(["prepare_data", "--dataset", str(folder / "corpus"), "--output_dir", str(training)]) == 0
    for seed in seeds:
        lines = {start: _trained(folder, start, updates, seed, batch_size) for start in starts}
        print(f"seed {seed}\n| update | {' | '.join(f'{name}, {start}' for name in NAMES for start in lines)} |")
        for part in (0.005, 0.05, 0.1, 0.25, 0.5, 0.75, 1):
            update = max(1, round(part * updates))
            cells = [f"{_mean(lines[start], update, name):.4g}" for name in NAMES for start in lines]
            print(f"| {update} | {' | '.join(cells)} |")
        for start, found in lines.items():
            last = found[-1]
            names = ("mel", "mel_from_text", "constant_frame_mel")
            shown = {name: round(last[f"validation/{name}"], 4) for name in names}
            print(f"{start}: validation after {updates} updates {shown}", flush=True)


def _trained(folder: Path, start: str, updates: int, seed: int, batch_size: int) -> list[dict[str, float]]:
    place = folder / f"{start}-{seed}"
    settings = {
        "config": "tiny",
        "data_dir": folder / "training",
        "checkpoint_dir": place / "checkpoints",
        "output_dir": place / "voice",
        "runs_dir": place / "runs",
        "run_name": "run",
        "seed": seed,
        "batch_size": batch_size,
        "max_updates": updates,
        "validate_every_updates": updates // 4,
        "save_every_updates": updates // 10,
        "keep_checkpoints": 1,
        "log_every_updates": 1,
        "report_to": "none",
        "resume_from_checkpoint": "auto",
    }
    path = place / "runs/run/outcome.json"
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["outcome"] != "done":
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        with mock.patch(INITIALIZED, STARTS[start]):
            assert main(["train_vits", *flags]) == 0
    return [json.loads(line) for line in path.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _mean(lines: list[dict[str, float]], update: int, name: str) -> float:
    """Mean over the twenty updates up to this one."""
    values = [line[name] for line in lines if update - 20 < line["update"] <= update and name in line]
    return sum(values) / len(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=["vits", "transformers"])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--batch_size", type=int, default=8)
    asked = parser.parse_args()
    run(asked.folder, asked.starts, asked.updates, asked.seeds, asked.batch_size)
