"""Teaches a published Piper voice its missing parts, then tunes it.

``python -m experiments.learn_posterior VOICE.onnx RECORDINGS FOLDER [--learn_updates 300] [--tune_updates 100]
[--teacher own|recordings] [--channels_divisor 1]``

Converts the voice; trains its posterior encoder with the recipe ``learn_posterior``, on its own speech of sentences
from a small grammar (English) or on the recordings (an LJ Speech folder); fine-tunes the result on the recordings;
evaluates the voices. Prints the validation metrics by update; continues where an earlier call ended.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.base_voice import sentences
from experiments.command import run
from vits_trainer.data.audio import to_pcm16
from vits_trainer.evaluation.alignment_scores import Aligner
from vits_trainer.evaluation.synthesis import Speech, Voice
from vits_trainer.models.pretrained import model_from_config
from vits_trainer.training.checkpoint import load_networks

OWN_CLIPS, ALIGNED_CLIPS, RATE_HZ = 140, 20, 22050
SHOWN = ("mel", "constant_frame_mel", "mel_from_text", "kl", "duration")


def speak(voice: Path, folder: Path) -> None:
    """Writes the voice's own speech as an LJ Speech folder."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    lines = []
    speaker = Voice.load(str(voice))
    for number, text in enumerate(sentences(OWN_CLIPS)):
        speaker.speak(text, seed=number).save(folder / f"wavs/own_{number:03}.wav")
        lines.append(f"own_{number:03}|{text}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")


def prepare(source: Path, folder: Path) -> Path:
    if not (folder / "dataset.json").is_file():
        run("prepare_data", dataset=source, output_dir=folder, target_sr=RATE_HZ, processes=1)
    return folder


def train(folder: Path, name: str, data: Path, **flags: object) -> Path:
    voice = folder / name
    if not voice.is_dir():
        run(
            "train_vits", data_dir=data, checkpoint_dir=folder / f"{name}_checkpoints", output_dir=voice,
            run_name=name, resume_from_checkpoint="auto", report_to="none", validation_samples=0, log_every_updates=10,
            validation_fraction=0.25, **flags,
        )  # fmt: skip
    print(f"| update of {name} | {' | '.join(SHOWN)} |")
    for line in (data / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "validation/mel" in values:
            cells = [f"{values[f'validation/{shown}']:.3f}" for shown in SHOWN]
            print(f"| {values['update']} | {' | '.join(cells)} |")
    return voice


def word_errors_ms(aligner: Aligner, speech: list[tuple[str, Speech]]) -> list[float]:
    """Returns how far each word begins from where the voice spoke it."""
    errors = []
    for text, one in speech:
        found = aligner.timings(text, to_pcm16(one.samples), "", one.sampling_rate).words
        errors += [1000 * abs(a.start_s - b.start_s) for a, b in zip(found, one.timings.words, strict=True)]
    return errors


def print_alignment_errors(original: Path, checkpoints: Path) -> None:
    """Compares alignments of the voice's own speech, of sentences that it did not learn from, with its durations."""
    voice, texts = Voice.load(str(original)), sentences(OWN_CLIPS + ALIGNED_CLIPS)[OWN_CLIPS:]
    speech = [(text, voice.speak(text, seed=number)) for number, text in enumerate(texts)]
    print("| update | mean error of word starts, ms | words within 50 ms |")
    for checkpoint in sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
        model = model_from_config(checkpoint / "voice")
        load_networks(checkpoint, model, None)
        errors = np.array(word_errors_ms(Aligner(model, voice.tokenizer), speech))
        print(f"| {checkpoint.name} | {errors.mean():.0f} | {(errors < 50).mean():.0%} |")


def compare(
    onnx: Path,
    recordings: Path,
    folder: Path,
    learn_updates: int,
    tune_updates: int,
    channels_divisor: int,
    teacher: str,
) -> None:
    """Runs all steps that are not done yet."""
    original = folder / "original"
    if not original.is_dir():
        run("convert", input=onnx, output=original)
    data = prepare(recordings, folder / "training")
    if teacher == "own" and not (folder / "own/metadata.csv").is_file():
        speak(original, folder / "own")
    first = prepare(folder / "own", folder / "own_training") if teacher == "own" else data
    batches = {"gradient_accumulation_steps": 1, "discriminator.channels_divisor": channels_divisor}
    complete = train(
        folder, "complete", first, config="learn_posterior", model_name=original, max_updates=learn_updates,
        validate_every_updates=50, save_every_updates=50, keep_checkpoints=20, batch_size=6 if teacher == "own" else 4,
        **batches,
    )  # fmt: skip
    if teacher == "own":
        print_alignment_errors(original, folder / "complete_checkpoints")
    # All that decides what is said stays as it is.
    tuned = train(
        folder, "tuned", data, model_name=complete, max_updates=tune_updates, validate_every_updates=25, batch_size=4,
        save_every_updates=25, learning_rate=1e-4, freeze="text_encoder,duration_predictor", ema_decay=0.97,
        schedule="cosine", **batches,
    )  # fmt: skip
    voices = ",".join(map(str, (original, complete, tuned)))
    run("evaluate", models=voices, data_dir=data, output_dir=folder / "evaluation", validation_fraction=0.25)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learn_updates", type=int, default=300)
    parser.add_argument("--tune_updates", type=int, default=100)
    parser.add_argument("--teacher", choices=["own", "recordings"], default="own")
    # Discriminators of full size take most of an update's time on a CPU.
    parser.add_argument("--channels_divisor", type=int, default=1)
    compare(**vars(parser.parse_args()))
