"""Which validation metric selects the best checkpoint? ``python -m experiments.selection DATA_DIR VOICE VOICE ...``.

Measures each voice on 20 validation clips as training does (mel, mel from text, CER, MCD, DNSMOS), and the character
error rate of 100 other texts, which Whisper hears. Prints a row for each voice, and the rank correlation of each
metric with that error rate.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from experiments.base_voice import TEST_SENTENCES, sentences
from vits_trainer.data.prepared import PreparedData, open_prepared, train_validation_split
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.evaluation.comparison import evaluate_voice, voice_synthesizer
from vits_trainer.evaluation.recognizers import WHISPER, load_recognizer
from vits_trainer.evaluation.speech_metrics import SpeechMetrics
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.evaluation.transcripts import transcript_errors
from vits_trainer.feedback.pipeline import measure_mel

SCORES = {"cer": "cer", "mcd": "mcd_db", "dnsmos": "dnsmos"}
"""Names for SpeechMetrics, and of their values."""
CLIPS, OTHERS, TRAINED_ON = 20, 60, 8000


def large_set() -> list[str]:
    """Texts that no run was trained on."""
    return [*TEST_SENTENCES, *sentences(TRAINED_ON + OTHERS)[TRAINED_ON:]]


def error_rate(voice: Voice, texts: Sequence[str]) -> float:
    recognizer = load_recognizer(WHISPER)
    heard = [recognizer.transcribe(voice.synthesize(text, SynthesisOptions(seed=0))) for text in texts]
    return fmean(transcript_errors(a, b, "en")["cer"] for a, b in zip(texts, heard, strict=True))


def measure(name: str, prepared: PreparedData, rows: Sequence[int], runtime: Runtime) -> dict[str, float]:
    voice = Voice.load(name)
    metrics = SpeechMetrics(list(SCORES), prepared.sampling_rate, WHISPER, "en")
    evaluation = evaluate_voice(name, voice_synthesizer(voice, prepared, 0), prepared, rows, metrics, timed=False)
    summary = evaluation.summary(list(SCORES.values()))
    mels = measure_mel(name, prepared, rows, runtime, 0)
    return {
        **{metric: float(np.mean(values)) for metric, values in mels.items()},
        **{metric: summary[metric]["mean"] for metric in SCORES.values()},
        f"cer_of_{len(large_set())}": error_rate(voice, large_set()),
    }


def compare(data_dir: Path, voices: Sequence[str], validation_fraction: float) -> None:
    prepared = open_prepared(data_dir)
    rows = train_validation_split(prepared, validation_fraction, 64, 1234)[1][:CLIPS]
    runtime = Runtime("fp32", 1)
    table = []
    for name in voices:
        table.append(measure(name, prepared, rows, runtime))
        if len(table) == 1:
            print(f"| voice | {' | '.join(table[0])} |\n{'|---' * (len(table[0]) + 1)}|")
        print(f"| {Path(name).name} | {' | '.join(f'{value:.3f}' for value in table[-1].values())} |", flush=True)
    *names, target = table[0]
    for name in names:
        correlation, p = spearmanr([row[name] for row in table], [row[target] for row in table])
        print(f"{name}: rank correlation with {target} {correlation:+.2f} (p = {p:.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("voices", nargs="+")
    parser.add_argument("--validation_fraction", type=float, default=0.25)
    compare(**vars(parser.parse_args()))
