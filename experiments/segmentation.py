"""Words that --segment puts into the right clip: ``python -m experiments.segmentation DATASET --transcribe NAME``.

Joins the clips of a data set, with pauses of 0.3 to 1.2 s, to one recording with one text, and cuts it again. Three
texts: the whole one; one that lacks every tenth sentence and has another one instead; and that of another recording.
The judge is a second recognizer; it hears the clips of the data set, too.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import read_recording, to_rate
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.sources.detect import open_source
from vits_trainer.evaluation.recognizers import load_recognizer
from vits_trainer.evaluation.transcripts import transcript_errors
from vits_trainer.utils.errors import DataError

Samples = NDArray[np.float32]
RATE_HZ = 16000
FOREIGN = "Qua nomde rilta besko, farn odi tulpem grawa siento."


def read_clips(dataset: str, count: int) -> list[tuple[str, Samples]]:
    clips = []
    for clip in open_source(PrepareConfig(dataset=dataset)).clips:
        samples, rate_hz = read_recording(clip.audio)
        clips.append((clip.text, to_rate(samples, rate_hz, RATE_HZ)))
        if len(clips) == count:
            break
    return clips


def join(clips: list[tuple[str, Samples]], file: Path) -> list[tuple[float, float]]:
    """Writes one recording; returns where each clip begins and ends, in seconds."""
    draw, spans, position = np.random.default_rng(0), [], 0
    with sf.SoundFile(file, "w", RATE_HZ, 1, "PCM_16") as recording:
        for _, samples in clips:
            spans.append((position / RATE_HZ, (position + len(samples)) / RATE_HZ))
            pause = draw.standard_normal(int(draw.uniform(0.3, 1.2) * RATE_HZ)) * 1e-4
            recording.write(samples)
            recording.write(pause)
            position += len(samples) + len(pause)
    return spans


def right_words(segments: list[dict[str, object]], sentences: list[str], spans: list[tuple[float, float]]) -> list[int]:
    """Returns the number of words in accepted clips, and of those whose source clip is in the span of their clip."""
    words = [(word, row) for row, sentence in enumerate(sentences) for word in sentence.split()]
    position = placed = right = 0
    for segment in segments:
        own = str(segment["text"]).split()
        if segment["reason"] is not None or not own:
            continue
        while [word for word, _ in words[position : position + len(own)]] != own:
            position += 1
            assert position < len(words), segment
        for _, row in words[position : position + len(own)]:
            begin, end = spans[row]
            placed += 1
            right += begin < float(str(segment["end_s"])) and end > float(str(segment["start_s"]))
        position += len(own)
    return [placed, right]


def cer(pairs: list[tuple[str, Samples]], transcribe: Callable[[Samples], str], language: str | None) -> float:
    return statistics.mean(
        transcript_errors(text, transcribe(samples), language)["cer"] for text, samples in pairs
    )


def measure(asked: argparse.Namespace, folder: Path) -> None:
    recordings = folder / "recordings"
    recordings.mkdir()
    clips = read_clips(asked.dataset, asked.clips)
    spans = join(clips, recordings / "joined.flac")
    hours = spans[-1][1] / 3600
    recognize, heard = load_recognizer(asked.transcribe).transcribe, dict[bytes, str]()

    def transcribe(samples: Samples) -> str:
        key = samples.tobytes()
        if key not in heard:
            heard[key] = recognize(samples)
        return heard[key]

    whole = [text for text, _ in clips]
    changed = [FOREIGN if row % 10 == 5 else text for row, text in enumerate(whole)]
    others = [text for text, _ in read_clips(asked.other, 200)] if asked.other else [FOREIGN] * len(whole)
    prepared: list[tuple[str, Samples]] = []
    for name, sentences in (("whole text", whole), ("a tenth replaced", changed), ("other recording", others)):
        (recordings / "joined.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        output = folder / name
        config = PrepareConfig(
            dataset=str(recordings), output_dir=str(output), segment=True, transcribe=asked.transcribe, processes=1
        )
        start_s = time.process_time()
        try:
            prepare(config, transcribe=transcribe)
        except DataError as error:
            print(f"{name}: {error}")
        spent_s = time.process_time() - start_s
        segments = json.loads((output / "segments" / "joined.flac.json").read_text("utf-8"))["segments"]
        reasons = [str(segment["reason"]) for segment in segments if segment["reason"]]
        placed, right = right_words(segments, sentences, spans) if name != "other recording" else (0, 0)
        errors = [1 - float(segment["confidence"]) for segment in segments if segment["reason"] is None]
        total = sum(len(sentence.split()) for sentence in whole)
        counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))
        cells = (
            *(name, total, f"{100 * placed / total:.1f} %", f"{100 * right / max(1, placed):.2f} %"),
            *(f"{100 * statistics.mean(errors or [0]):.1f} %", len(segments) - len(reasons), counts),
            f"{spent_s / 60 / hours:.1f}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if name == "whole text" and (output / "metadata.csv").is_file():
            with (output / "metadata.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE))
            prepared = [(row[1], read_recording(output / "wavs" / row[0])[0]) for row in rows]
    if asked.judge and prepared:
        judge = load_recognizer(asked.judge).transcribe
        before, after = cer(clips, judge, asked.language), cer(prepared, judge, asked.language)
        print(f"CER by {asked.judge}: {100 * after:.2f} % of the cut clips, {100 * before:.2f} % of the clips joined")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--transcribe", default="whisper-tiny.en")
    parser.add_argument("--judge", help="another recognizer")
    parser.add_argument("--language", default="en")
    parser.add_argument("--other", help="data set with the text of another recording")
    parser.add_argument("--clips", type=int, default=0, help="0 = all")
    with tempfile.TemporaryDirectory() as place:
        measure(parser.parse_args(), Path(place))
