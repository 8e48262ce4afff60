"""Plants faults in real speech, and counts what check_data finds of them and what training gains by dropping it.

``python -m experiments.planted_faults FOLDER RECORDINGS plant``
"""

import argparse
import csv
import random
from pathlib import Path

import numpy as np

from vits_trainer.cli.main import main
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.data.prepared import open_prepared, train_validation_split

TEXT_FAULTS = ("shuffled", "cut", "doubled")
FRACTION = 0.1
SNR_DB = 10.0
RATE_HZ = 16000
HELD_OUT = {"fraction": 0.5, "max_clips": 40, "seed": 1234}
"""Split of the training runs: the validation clips get no fault."""


def run(command: str, *words: object, **flags: object) -> None:
    code = main([command, *map(str, words), *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])
    if code:
        raise SystemExit(f"{command} ended with exit code {code}")


def with_noise(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds white noise at 10 dB below the speech."""
    speech = pcm.astype(np.float64) / 32768
    noise = rng.standard_normal(len(speech)) * np.sqrt(np.mean(speech**2) / 10 ** (SNR_DB / 10))
    mixed = speech + noise
    return to_pcm16(mixed / max(1.0, np.abs(mixed).max()))


def cut(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


def plant(folder: Path, recordings: Path) -> None:
    """Writes an LJ Speech folder with faults, and faults.csv: the name and the fault of each faulty clip."""
    run("prepare_data", dataset=recordings, output_dir=folder / "clean", target_sr=RATE_HZ, processes=1)
    clean = open_prepared(folder / "clean")
    training, _ = train_validation_split(clean, HELD_OUT["fraction"], min(HELD_OUT["max_clips"], len(clean.rows) // 8), HELD_OUT["seed"])
    draw, rng = random.Random(0), np.random.default_rng(0)
    each = round(FRACTION * len(clean.rows))
    drawn = draw.sample(training, 4 * each + 2)
    fault = {row: kind for kind, start in zip((*TEXT_FAULTS, "noise"), range(0, 4 * each, each), strict=True) for row in drawn[start : start + each]}
    fault |= dict.fromkeys(drawn[4 * each :], "swapped")
    texts = list(clean.rows.text)
    shuffled = [row for row in drawn if fault[row] == "shuffled"]
    for row, other in zip(shuffled, shuffled[1:] + shuffled[:1], strict=True):
        texts[row] = clean.rows.text[other]
    one, other = drawn[4 * each :]
    texts[one], texts[other] = texts[other], texts[one]
    (folder / "planted_source/wavs").mkdir(parents=True)
    for row, name in enumerate(clean.rows.filename):
        if fault.get(row) == "cut":
            texts[row] = cut(texts[row])
        elif fault.get(row) == "doubled":
            texts[row] = f"{texts[row]} {texts[row]}"
        pcm, rate_hz = clean.recordings.read(row)
        pcm = with_noise(pcm, rng) if fault.get(row) == "noise" else pcm
        write_pcm16_wav(folder / "planted_source/wavs" / name, pcm, rate_hz)
    lines = (f"{name}|{text}\n" for name, text in zip(clean.rows.filename, texts, strict=True))
    (folder / "planted_source/metadata.csv").write_text("".join(lines), encoding="utf-8")
    with (folder / "faults.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("clip", "fault"), *((clean.rows.filename[row], kind) for row, kind in sorted(fault.items()))])
    run("prepare_data", dataset=folder / "planted_source", output_dir=folder / "planted", target_sr=RATE_HZ, processes=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recordings", type=Path)
    arguments = parser.parse_args()
    plant(arguments.folder, arguments.recordings)
