"""Trains a small voice on digits, then on corrections: with replay, without, and with wrong corrections (1 hour).

``python -m experiments.corrections FOLDER`` prints the values in docs/reading_your_run.md and docs/benchmarks.md:
speech metrics early and late in training, and the acceptance decisions. All speech is synthesized by espeak-ng.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from vits_trainer.cli.main import main
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.data.preparation.espeak_corpus import Espeak

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CORRECTIONS = (
    "fifteen nineteen", "thirteen sixteen", "eighteen fourteen", "seventeen fifteen",
    "nineteen thirteen", "sixteen eighteen", "fourteen seventeen", "thirteen nineteen",
)  # fmt: skip
HELD_OUT = 0.1
CASES = (
    ("replayed", False, 0.85),
    ("replayed less", False, 0.75),
    ("not replayed", False, 0),
    ("shuffled", True, 0.85),
)


def called(command: str, **settings: object) -> int:
    return main([command, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))])


def speak(folder: Path) -> None:
    espeak = Espeak("en-us")

    def say(text: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pcm16_wav(path, to_pcm16(espeak.speak(text)), espeak.rate_hz)

    lines = []
    for text in (f"{one} {other}" for one in DIGITS for other in DIGITS):
        name = text.replace(" ", "_")
        say(text, folder / f"digits/wavs/{name}.wav")
        lines.append(f"{name}|{text}\n")
    (folder / "digits/metadata.csv").write_text("".join(lines))
    for number, text in enumerate(CORRECTIONS):
        for kind, said in (("right", text), ("shuffled", CORRECTIONS[(number + 3) % len(CORRECTIONS)])):
            say(text, folder / kind / f"c{number}.wav")
            (folder / kind / f"c{number}.txt").write_text(said)


def train(folder: Path, updates: int) -> Path:
    data = folder / "training"
    called("prepare_data", dataset=folder / "digits", output_dir=data, trim_silence="true")
    settings = {"validate_every_updates": updates // 12, "save_every_updates": updates // 12, "keep_checkpoints": 0}
    settings |= {"validation_fraction": HELD_OUT, "validation_scores": "mcd,f0,duration,cer", "report_to": "none"}
    settings |= {"checkpoint_dir": folder / "checkpoints", "output_dir": folder / "late", "run_name": "digits"}
    called("train_vits", config="tiny", data_dir=data, learning_rate=8e-4, max_updates=updates, **settings)
    main(["export", str(folder / f"checkpoints/checkpoint-{updates // 12}"), "--output_dir", str(folder / "early")])
    models = f"{folder / 'early'},{folder / 'late'}"
    called("evaluate", models=models, data_dir=data, validation_fraction=HELD_OUT, output_dir=folder / "evaluation")
    return data


def correct(folder: Path, data: Path, name: str, shuffled: bool, replay: float, passes: int) -> str:
    place = folder / name.replace(" ", "_")
    served = shutil.copytree(folder / "late", place / "served")
    before = hashlib.sha256((served / "model.safetensors").read_bytes()).hexdigest()
    code = called(
        "train_feedback", feedback_dir=folder / ("shuffled" if shuffled else "right"), model_dir=served, data_dir=data,
        output_dir=place / "new", replay_fraction=replay, validation_fraction=HELD_OUT, learning_rate=5e-4,
        epochs=passes, report_to="none",
    )  # fmt: skip
    words = json.loads((place / "new_work/verdict.json").read_text())["words"]
    same = hashlib.sha256((served / "model.safetensors").read_bytes()).hexdigest() == before
    return f"{name}: exit {code}, the served voice {'is byte-identical' if same else 'was replaced'}. {words}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=2400)
    parser.add_argument("--passes", type=int, default=30)
    arguments = parser.parse_args()
    speak(arguments.folder)
    prepared = train(arguments.folder, arguments.updates)
    for line in [correct(arguments.folder, prepared, *case, arguments.passes) for case in CASES]:
        print(line)
