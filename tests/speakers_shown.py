"""A voice of one speaker is extended to six, by the digits of FSDD (10 min): does each come nearer?

``python -m tests.speakers_shown FOLDER [--data ../shared/data/fsdd]`` prints the validation mel of each speaker before
the first update and at the end, for the voice that was extended and for one that all six train as one speaker. Figures
of docs/speakers.md.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

from vits_trainer.__main__ import main

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIRST = "jackson"
SIZES = {
    "hidden_size": 96, "num_hidden_layers": 2, "ffn_dim": 256, "posterior_encoder_num_wavenet_layers": 6,
    "prior_encoder_num_wavenet_layers": 2, "upsample_initial_channel": 96, "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}  # fmt: skip
JUDGES = {"periods": [2, 3], "channels_divisor": 8}
RUNS = {"extended": {"extend_speakers": "true"}, "mixed": {}}


def called(command: str, **settings: object) -> None:
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    if main([command, *words]):
        raise SystemExit(f"{command} failed")


def prepare(folder: Path, recordings: Path, takes: int) -> Path:
    """Of each speaker and digit so many takes; the test split (takes 0 to 4) is left out."""
    source = folder / "digits"
    source.mkdir(parents=True)
    lines = ["file_name,text,speaker\n"]
    for path in sorted(recordings.rglob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        if 5 <= int(take) < 5 + takes:
            shutil.copy(path, source)
            lines.append(f"{path.name},{DIGITS[int(digit)]},{speaker}\n")
    (source / "metadata.csv").write_text("".join(lines))
    called("prepare_data", dataset=source, output_dir=folder / "training")
    return folder / "training"


def train(folder: Path, data: Path, updates: int) -> None:
    """The voice of one speaker, and two that begin with it."""
    shared = {
        "data_dir": data, "batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": 5e-4,
        "validation_fraction": 0.1, "validation_max_clips": 60, "validation_samples": 0, "save_every_updates": 0,
        "report_to": "none", "data_workers": 0, "segment_frames": 16,
    }  # fmt: skip
    recipe = folder / "small.yaml"
    recipe.write_text(json.dumps({"model_name": None, "architecture": SIZES, "discriminator": JUDGES}))
    called("train_vits", config=recipe, **shared, only_speakers=FIRST, max_updates=updates,
           validate_every_updates=0, checkpoint_dir=folder / "one", output_dir=folder / "voice",
           run_name="one")  # fmt: skip
    for run, settings in RUNS.items():
        called("train_vits", **shared, **settings, model_name=folder / "voice", max_updates=updates,
               validate_every_updates=updates // 4, checkpoint_dir=folder / run, output_dir=folder / f"{run}_voice",
               run_name=run)  # fmt: skip


def show(data: Path) -> None:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for run in RUNS:
        with (data / f"runs/{run}/speakers.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["speaker"], run), {})[int(row["update"])] = float(row["mel"])
        for line in map(json.loads, (data / f"runs/{run}/metrics.jsonl").read_text().splitlines()):
            if "validation/mel_from_text" in line:
                of_all = found.setdefault(("all, from text", run), {})
                of_all[line["update"]] = line["validation/mel_from_text"]
    first, *updates = sorted(next(iter(found.values())))
    print(f"| speaker | {first} | {' | '.join(f'{run}, {update}' for run in RUNS for update in updates)} |")
    print("|---" * (2 + len(RUNS) * len(updates)) + "|")
    for speaker in dict.fromkeys(name for name, _ in sorted(found, key=lambda key: key[0].startswith("all"))):
        start = sorted({f"{found[speaker, run][first]:.6f}" for run in RUNS})
        figures = [f"{found[speaker, run][update]:.3f}" for run in RUNS for update in updates]
        print(f"| {speaker} | {' and '.join(start)} | {' | '.join(figures)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder to be made")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/fsdd"), help="FSDD, as it is published")
    parser.add_argument("--takes", type=int, default=12, help="of each speaker and digit")
    parser.add_argument("--updates", type=int, default=300, help="of each of the three runs")
    given = parser.parse_args()
    prepared = prepare(given.folder, given.data, given.takes)
    train(given.folder, prepared, given.updates)
    show(prepared)
