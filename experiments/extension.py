"""Trains a small voice on one speaker of real digits, and extends it by five more.

``python -m experiments.extension FOLDER`` prints the table of docs/benchmarks.md: each speaker's validation/speaker_mel
of the original voice, and of the extended one from update 0 on.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

from experiments.command import run

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDINGS = Path(__file__).parents[2] / "shared/data/fsdd/recordings"
UNTOUCHED = {"max_updates": 1, "learning_rate": 1e-30}


def prepare(folder: Path, recordings: Path, takes: int) -> Path:
    """Prepares the last takes of each digit and speaker; the first five are the dataset's test split."""
    source = folder / "source"
    source.mkdir(parents=True)
    with (source / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "speaker"])
        for path in sorted(recordings.glob("*.wav")):
            digit, speaker, take = path.stem.split("_")
            if int(take) >= 50 - takes:
                shutil.copyfile(path, source / path.name)
                table.writerow([path.name, DIGITS[int(digit)], speaker])
    run("prepare_data", dataset=source, output_dir=folder / "training", target_sr=16000)
    return folder / "training"


SMALL = {"batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 5e-4, "save_every_updates": 0}


def train(folder: Path, name: str, **settings: object) -> list[dict[str, Any]]:
    """Returns the metrics of all validations; the first is before the first update."""
    run(
        "train_vits", data_dir=folder / "training", checkpoint_dir=folder / name / "checkpoints",
        output_dir=folder / name / "voice", run_name=name, segment_frames=16, validation_samples=0,
        validation_fraction=0.1, validation_max_clips=60, report_to="none", keep_checkpoints=1, data_workers=0,
        **settings,
    )  # fmt: skip
    lines = (folder / "training/runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "validation/mel" in line]


def show(folder: Path, old: dict[str, Any], course: list[dict[str, Any]]) -> None:
    names = json.loads((folder / "six/voice/config.json").read_text())["speakers"]
    print("| speaker | the old voice |" + "".join(f" {int(line['update'])} |" for line in course))
    print("|---" * (len(course) + 2) + "|")
    for key in [*(f"speaker_mel/{name}" for name in names), "mel_from_text"]:
        values = [line[f"validation/{key}"] for line in (old, *course)]
        print(f"| {key.rpartition('/')[2]} |" + "".join(f" {value:.4f} |" for value in values))
    same = {key: course[0][key] for key in old if key.startswith("validation/") and old[key] != course[0][key]}
    print(f"Validation metrics that differ before the first update: {same or 'none'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--takes", type=int, default=10)
    parser.add_argument("--first_updates", type=int, default=200, help="updates on one speaker")
    parser.add_argument("--updates", type=int, default=800, help="updates on all six")
    given = parser.parse_args()
    prepare(given.folder, given.recordings, given.takes)
    train(given.folder, "one", config="tiny", only_speakers="george", max_updates=given.first_updates)
    tuned = {**SMALL, "config": "more_speakers", "model_name": given.folder / "one/voice"}
    before = train(given.folder, "mixed", **{**tuned, **UNTOUCHED}, extend_speakers="false")[0]
    each = {"max_updates": given.updates, "validate_every_updates": given.updates // 4}
    show(given.folder, before, train(given.folder, "six", **tuned, **each))
