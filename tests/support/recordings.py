"""Recordings of several packaged sentences of human speech."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from tests.support.audio import encode
from vits_trainer.data.audio import read_recording, to_rate
from vits_trainer.utils.packaged import HUMAN_CLIPS

RATE_HZ = 16000
PAUSE_S = 0.8
ROWS = (8, 10, 4)
"""Of the packaged sentences that are joined: short ones, without a pause inside."""


@cache
def sentences() -> list[tuple[str, NDArray[np.float32]]]:
    """Text and samples, (T,), of each joined sentence."""
    lines = (HUMAN_CLIPS / "metadata.csv").read_text(encoding="utf-8").splitlines()
    chosen = []
    for name, text in (lines[row].split("|")[:2] for row in ROWS):
        samples, rate_hz = read_recording(HUMAN_CLIPS / f"{name}.opus")
        chosen.append((text, to_rate(samples, rate_hz, RATE_HZ)))
    return chosen


TEXTS = [text for text, _ in sentences()]


def joined() -> tuple[NDArray[np.float32], list[tuple[float, float]]]:
    """Samples, (T,), of all sentences with pauses, and where each begins and ends, in seconds."""
    pause, parts, spans, position = np.zeros(round(PAUSE_S * RATE_HZ), np.float32), [], [], 0
    for _, samples in sentences():
        spans.append((position / RATE_HZ, (position + len(samples)) / RATE_HZ))
        parts += [samples, pause]
        position += len(samples) + len(pause)
    return np.concatenate(parts), spans


def write_recording(folder: Path, name: str = "talk.wav", **texts: str) -> Path:
    """Writes the joined sentences, and files with their text by ending: ``txt="..."``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode(joined()[0], RATE_HZ, Path(name).suffix[1:].upper()))
    for ending, text in texts.items():
        (folder / name).with_suffix(f".{ending}").write_text(text, encoding="utf-8")
    return folder


def srt(cues: Sequence[tuple[float, float, str]]) -> str:
    """Subtitles with these times in seconds."""
    return "\n".join(
        f"{number}\n{_time(start_s)} --> {_time(end_s)}\n{text}\n"
        for number, (start_s, end_s, text) in enumerate(cues, 1)
    )


def _time(time_s: float) -> str:
    return f"00:{int(time_s // 60):02d}:{time_s % 60:06.3f}".replace(".", ",")


def hearing(transcripts: Sequence[str]) -> Callable[[NDArray[np.float32]], str]:
    """Returns a recognizer that hears these, one after another, and fails at one clip more."""
    left = list(transcripts)
    return lambda samples: left.pop(0)


def chords(duration_s: float) -> NDArray[np.float32]:
    """Returns music, (T,): two chords in turn, plucked every half second."""
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    samples = np.zeros(len(time_s))
    for first_hz, second_hz, third_hz, beat in ((262, 330, 392, 0), (220, 262, 330, 1)):
        played = (time_s // 0.5 % 2 == beat) * np.exp(-4 * (time_s % 0.5))
        tones_hz = [tone_hz * k for tone_hz in (first_hz, second_hz, third_hz) for k in (1, 2, 3)]
        harmonics = (np.sin(2 * np.pi * tone_hz * time_s) for tone_hz in tones_hz)
        samples += played * sum(harmonics)
    return (0.1 * samples).astype(np.float32)


def write_samples(file: Path, samples: NDArray[np.float32]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sf.write(file, samples, RATE_HZ)
