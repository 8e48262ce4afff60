"""The packaged voice learns eight corrections: ``python -m experiments.corrections_of_voice FOLDER [--epochs 5]
[--learning_rate 3e-5]``.

``FOLDER/training`` is the prepared corpus of experiments/base_voice.py. Whisper listens to the voice speak new
sentences of its grammar. The eight that it understands least are corrected: with recordings of the corpus's
synthesizer, and with recordings of other sentences. Prints the decisions of ``train_feedback``, and the character error
rates of the eight before and after, under other seeds than those that chose them.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from statistics import fmean

from experiments.base_voice import sentences
from vits_trainer.cli.main import main
from vits_trainer.evaluation.recognizers import WHISPER, load_recognizer
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.evaluation.transcripts import transcript_errors
from vits_trainer.utils.packaged import BASE_VOICE

TRAINED_ON, NEW, CORRECTIONS = 8000, 60, 8
CHOSEN_BY, JUDGED_BY = range(1), range(1, 6)
"""Seeds. Under the one that chose the worst sentences, any other voice would seem better."""


def error_rates(voice_dir: Path, texts: list[str], seeds: range) -> list[float]:
    voice, recognizer = Voice.load(str(voice_dir)), load_recognizer(WHISPER)

    def error_rate(text: str, seed: int) -> float:
        heard = recognizer.transcribe(voice.synthesize(text, SynthesisOptions(seed=seed)))
        return transcript_errors(text, heard, "en")["cer"]

    return [fmean(error_rate(text, seed) for seed in seeds) for text in texts]


def correct(folder: Path, texts: list[str], spoken: list[str], asked: argparse.Namespace) -> None:
    """Records ``spoken`` as corrections of ``texts``, and trains on them."""
    feedback, voice = folder / "feedback", folder / "voice"
    feedback.mkdir(parents=True)
    shutil.copytree(BASE_VOICE, voice)
    for number, (text, said) in enumerate(zip(texts, spoken, strict=True)):
        subprocess.run(["flite", "-voice", "slt", "-t", said, "-o", str(feedback / f"c{number}.wav")], check=True)
        (feedback / f"c{number}.txt").write_text(text, encoding="utf-8")
    before = error_rates(voice, texts, JUDGED_BY)
    flags = {"feedback_dir": feedback, "model_dir": voice, "output_dir": folder / "new", "epochs": asked.epochs}
    flags |= {"data_dir": folder.parent / "training", "report_to": "none", "learning_rate": asked.learning_rate}
    main(["train_feedback", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])
    verdict = json.loads((folder / "new_work/verdict.json").read_text(encoding="utf-8"))
    new = voice if verdict["accepted"] else folder / "new_work/refused"
    after = error_rates(new, texts, JUDGED_BY)
    print(f"{folder.name}: {verdict['words']}")
    print(f"CER of the {len(texts)} corrected sentences: {fmean(before):.1%} -> {fmean(after):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    asked = parser.parse_args()
    new = sentences(TRAINED_ON + NEW)[TRAINED_ON:]
    worst = sorted(zip(error_rates(BASE_VOICE, new, CHOSEN_BY), new, strict=True), reverse=True)[:CORRECTIONS]
    texts = [text for _, text in worst]
    correct(asked.folder / "right", texts, texts, asked)
    correct(asked.folder / "wrong", texts, texts[3:] + texts[:3], asked)
