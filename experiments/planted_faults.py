"""Plants faults in real speech, and counts what check_data finds of them and what training gains from dropping it.

``python -m experiments.planted_faults FOLDER RECORDINGS [--voice VOICE] [--scores dnsmos,cer] [--updates 0]``

10 % of the clips each get the text of another one (shuffled), the first half of their text (cut), their text twice
(doubled), and white noise at 10 dB; two clips exchange their recordings (swapped). The validation clips get none.
Prints precision and recall of each signal at its default threshold: precision over all faults, recall by fault. With
--updates, fine-tunes the voice to the planted clips and to those that remain after prepare_data --drop, and prints the
validation metrics of both, and the character error rates of the validation texts.
"""

import argparse
import csv
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.command import run
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.data.prepared import PreparedData, open_prepared, train_validation_split

FRACTION, SNR_DB, RATE_HZ = 0.1, 10.0, 16000
FAULTS = ("shuffled", "cut", "doubled", "noise", "swapped")
SHOWN = ("mel", "mel_from_text", "kl", "duration")


def split_of(clips: int) -> dict[str, float]:
    """Returns the settings of the split: an eighth, at most 40 clips, whatever --drop leaves out of the others."""
    return {"validation_fraction": 0.5, "validation_max_clips": min(40, clips // 8), "seed": 1234}


def held_out(prepared: PreparedData, split: dict[str, float]) -> tuple[list[int], list[int]]:
    """Returns the rows of the training clips and of the validation clips."""
    return train_validation_split(
        prepared, split["validation_fraction"], int(split["validation_max_clips"]), int(split["seed"])
    )


def with_noise(pcm: NDArray[np.int16], draw: np.random.Generator) -> NDArray[np.int16]:
    speech = pcm.astype(np.float64) / 32768
    noise = draw.standard_normal(len(speech)) * np.sqrt(np.mean(speech**2) / 10 ** (SNR_DB / 10))
    mixed = speech + noise
    return to_pcm16(mixed / max(1.0, np.abs(mixed).max()))


def choose_faults(training: list[int], clips: int) -> dict[int, str]:
    """Returns the fault of each faulty row."""
    each = round(FRACTION * clips)
    drawn = random.Random(0).sample(training, 4 * each + 2)
    kinds = [kind for kind in FAULTS[:4] for _ in range(each)] + ["swapped"] * 2
    return dict(zip(drawn, kinds, strict=True))


def faulty_texts(texts: list[str], fault: dict[int, str]) -> list[str]:
    changed = list(texts)
    for kind in ("shuffled", "swapped"):
        rows = [row for row in fault if fault[row] == kind]
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
            changed[row] = texts[other]
    for row, kind in fault.items():
        words = texts[row].split()
        if kind == "cut":
            changed[row] = " ".join(words[: max(1, len(words) // 2)])
        elif kind == "doubled":
            changed[row] = f"{texts[row]} {texts[row]}"
    return changed


def plant(folder: Path, recordings: Path) -> None:
    """Prepares the recordings, and writes them with faults as an LJ Speech folder; faults.csv names the faulty ones."""
    run("prepare_data", dataset=recordings, output_dir=folder / "clean", target_sr=RATE_HZ, processes=1)
    clean = open_prepared(folder / "clean")
    names = clean.rows.filename
    fault = choose_faults(held_out(clean, split_of(len(names)))[0], len(names))
    texts, draw = faulty_texts(clean.texts, fault), np.random.default_rng(0)
    (folder / "source/wavs").mkdir(parents=True)
    for row, name in enumerate(names):
        pcm, rate_hz = clean.recordings.read(row)
        pcm = with_noise(pcm, draw) if fault.get(row) == "noise" else pcm
        write_pcm16_wav(folder / "source/wavs" / name, pcm, rate_hz)
    lines = (f"{name}|{text}\n" for name, text in zip(names, texts, strict=True))
    (folder / "source/metadata.csv").write_text("".join(lines), encoding="utf-8")
    with (folder / "faults.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("clip", "fault"), *((names[row], fault[row]) for row in sorted(fault))])


def prepare(folder: Path, name: str, drop: Path | None = None) -> None:
    if not (folder / name / "dataset.json").is_file():
        flags = {} if drop is None else {"drop": drop}
        run(
            "prepare_data", dataset=folder / "source", output_dir=folder / name, target_sr=RATE_HZ, processes=1, **flags
        )


def print_table(folder: Path) -> None:
    with (folder / "faults.csv").open(encoding="utf-8", newline="") as file:
        fault = {row["clip"]: row["fault"] for row in csv.DictReader(file)}
    with (folder / "planted/sources.csv").open(encoding="utf-8", newline="") as file:
        kept = {row["source"] for row in csv.DictReader(file)}
    planted = {kind: {clip for clip in kept if fault.get(clip) == kind} for kind in FAULTS}
    found: dict[str, set[str]] = defaultdict(set)
    with (folder / "check/suspicious.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for signal in (*row["signals"].split("; "), "any signal"):
                found[signal].add(row["source"])
    counts = ", ".join(f"{len(planted[kind])} {kind}" for kind in FAULTS)
    print(f"{len(kept)} clips, with {counts}; rejected at preparation: {len(fault.keys() - kept)} faulty")
    print(f"| signal | clips | precision | {' | '.join(FAULTS)} |")
    for signal, clips in sorted(found.items(), key=lambda item: item[0] == "any signal"):
        recalls = [len(clips & planted[kind]) / max(1, len(planted[kind])) for kind in FAULTS]
        precision = len(clips & fault.keys()) / len(clips)
        print(f"| `{signal}` | {len(clips)} | {precision:.2f} | {' | '.join(f'{one:.2f}' for one in recalls)} |")


def train(folder: Path, name: str, voice: Path, updates: int, split: dict[str, float]) -> None:
    run(
        "train_vits", model_name=voice, data_dir=folder / name, checkpoint_dir=folder / f"{name}_checkpoints",
        output_dir=folder / f"{name}_voice", run_name=name, max_updates=updates, report_to="none", validation_samples=0,
        validate_every_updates=updates, save_every_updates=updates, best_metric="mel", batch_size=4,
        gradient_accumulation_steps=1, segment_frames=16, learning_rate=1.5e-4, schedule="cosine", precision="fp32",
        max_rejected_fraction=0.1,  # texts that are doubled may have more tokens than their recordings have frames
        resume_from_checkpoint="auto", **split,
    )  # fmt: skip
    print(f"| {name}, update | {' | '.join(SHOWN)} |")
    for line in (folder / name / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "validation/mel" in values:
            cells = [f"{values[f'validation/{shown}']:.3f}" for shown in SHOWN]
            print(f"| {values['update']} | {' | '.join(cells)} |")


def list_without_validation(folder: Path, split: dict[str, float]) -> Path:
    """Returns suspicious.csv without validation clips: both trainings must validate on the same ones."""
    planted = open_prepared(folder / "planted")
    names = {planted.rows.filename[row] for row in held_out(planted, split)[1]}
    with (folder / "check/suspicious.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    with (folder / "drop.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *(line for line in lines if line[0] not in names)])
    return folder / "drop.csv"


def main_of(asked: argparse.Namespace) -> None:
    folder = asked.folder
    if not (folder / "faults.csv").is_file():
        plant(folder, asked.recordings)
    prepare(folder, "planted")
    split = split_of(len(open_prepared(folder / "planted").rows))
    if not (folder / "check/suspicious.csv").is_file():
        voice = {} if asked.voice is None else {"model_name": asked.voice}
        output = {"output_dir": folder / "check", "scores": asked.scores, "processes": 1}
        run("check_data", folder / "planted", **output, **voice, **split)
    print_table(folder)
    if asked.updates:
        prepare(folder, "dropped", list_without_validation(folder, split))
        for name in ("planted", "dropped"):
            train(folder, name, asked.voice, asked.updates, split)
        voices = ",".join(str(folder / f"{name}_voice") for name in ("planted", "dropped"))
        output = {"output_dir": folder / "evaluation", "scores": "cer"}
        run("evaluate", models=voices, data_dir=folder / "planted", **output, **split)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--voice", type=Path)
    parser.add_argument("--scores", default="")
    parser.add_argument("--updates", type=int, default=0)
    main_of(parser.parse_args())
