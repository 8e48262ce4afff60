"""Teaches a published Piper voice its missing parts, then tunes it.

``python -m experiments.learn_posterior VOICE.onnx RECORDINGS FOLDER [--learn_updates 600] [--tune_updates 300]
[--channels_divisor 1]``

Converts the voice, prepares the recordings (an LJ Speech folder), trains the voice's posterior encoder with the recipe
``learn_posterior``, fine-tunes the result, and evaluates the voice before and after. Prints the validation metrics by
update; continues where an earlier call ended.
"""

import argparse
import json
from pathlib import Path

from vits_trainer.cli.main import main

SHOWN = ("mel", "constant_frame_mel", "mel_from_text", "kl", "duration")


def run(command: str, **flags: object) -> None:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    code = main([command, *words])
    if code:
        raise SystemExit(f"{command} ended with exit code {code}")


def train(folder: Path, name: str, **flags: object) -> Path:
    voice = folder / name
    if not voice.is_dir():
        run(
            "train_vits", data_dir=folder / "training", checkpoint_dir=folder / f"{name}_checkpoints", output_dir=voice,
            run_name=name, resume_from_checkpoint="auto", report_to="none", validation_samples=0, log_every_updates=10,
            validation_fraction=0.25, **flags,
        )  # fmt: skip
    print(f"| update of {name} | {' | '.join(SHOWN)} |")
    for line in (folder / "training/runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "validation/mel" in values:
            cells = [f"{values[f'validation/{shown}']:.3f}" for shown in SHOWN]
            print(f"| {values['update']} | {' | '.join(cells)} |")
    return voice


def compare(
    onnx: Path, recordings: Path, folder: Path, learn_updates: int, tune_updates: int, channels_divisor: int
) -> None:
    """Runs all steps that are not done yet."""
    original = folder / "original"
    if not original.is_dir():
        run("convert", input=onnx, output=original)
    if not (folder / "training/dataset.json").is_file():
        run("prepare_data", dataset=recordings, output_dir=folder / "training", target_sr=22050, processes=1)
    batches = {"batch_size": 4, "gradient_accumulation_steps": 1, "discriminator.channels_divisor": channels_divisor}
    complete = train(
        folder, "complete", config="learn_posterior", model_name=original, max_updates=learn_updates,
        validate_every_updates=50, save_every_updates=50, **batches,
    )  # fmt: skip
    tuned = train(
        folder, "tuned", model_name=complete, max_updates=tune_updates, validate_every_updates=50,
        save_every_updates=50, learning_rate=5e-5, **batches,
    )  # fmt: skip
    voices = ",".join(map(str, (original, complete, tuned)))
    run(
        "evaluate",
        models=voices,
        data_dir=folder / "training",
        output_dir=folder / "evaluation",
        validation_fraction=0.25,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learn_updates", type=int, default=600)
    parser.add_argument("--tune_updates", type=int, default=300)
    # Discriminators of full size take most of an update's time on a CPU.
    parser.add_argument("--channels_divisor", type=int, default=1)
    compare(**vars(parser.parse_args()))
