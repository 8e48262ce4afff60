"""Compares training from scratch with VITS's initialization and with transformers'.

``python -m experiments.initialisation FOLDER``

Built-in corpus, recipe ``tiny``, equal seed, clips and updates; only the initial weights differ. Prints the table of
docs/benchmarks.md.
"""

import json
import sys
from pathlib import Path
from unittest import mock

from vits_trainer.cli.main import main
from vits_trainer.data.preparation.espeak_corpus import speak_corpus

UPDATES = 200
SHOWN = (1, 10, 20, 50, 100, 150, 200)
NAMES = ("generator/mel", "generator/kl", "generator/duration", "grad_norm/generator")


def run(folder: Path) -> None:
    """Prepares the data, trains twice, and prints a table."""
    training = folder / "training"
    if not (training / "dataset.json").is_file():
        speak_corpus(folder / "corpus")
        assert main(["prepare_data", "--dataset", str(folder / "corpus"), "--output_dir", str(training)]) == 0
    lines = {start: _trained(folder, start) for start in ("vits", "transformers")}
    print(f"| update | {' | '.join(f'{name}, {start}' for name in NAMES for start in lines)} |")
    for update in SHOWN:
        cells = [f"{_at(lines[start], update)[name]:.4g}" for name in NAMES for start in lines]
        print(f"| {update} | {' | '.join(cells)} |")
    for start, found in lines.items():
        last = found[-1]
        shown = {name: round(last[f"validation/{name}"], 4) for name in ("mel", "mel_from_text", "constant_frame_mel")}
        print(f"{start}: validation after {UPDATES} updates {shown}")


def _trained(folder: Path, start: str) -> list[dict[str, float]]:
    settings = {
        "config": "tiny",
        "data_dir": folder / "training",
        "checkpoint_dir": folder / start / "checkpoints",
        "output_dir": folder / start / "voice",
        "runs_dir": folder / start / "runs",
        "run_name": "run",
        "max_updates": UPDATES,
        "validate_every_updates": UPDATES // 2,
        "save_every_updates": 0,
        "log_every_updates": 1,
        "report_to": "none",
    }
    path = folder / start / "runs/run/metrics.jsonl"
    if not path.is_file():
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        as_it_is = mock.patch("vits_trainer.models.initialization.init_vits_weights")
        if start == "transformers":
            as_it_is.start()
        try:
            assert main(["train_vits", *flags]) == 0
        finally:
            mock.patch.stopall()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _at(lines: list[dict[str, float]], update: int) -> dict[str, float]:
    return next(line for line in lines if line["update"] == update)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
