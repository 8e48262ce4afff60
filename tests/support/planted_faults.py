"""Noise with the unevenness of speech, and a set of clips with planted faults."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support import audio
from tests.support.audio import encode

RATE_HZ = 16000
CLIPS = 30
FAULTS = {4: ["snr"], 9: ["rate"], 13: ["duplicate"], 17: ["clipping", "level"], 21: ["edge_silence"]}
"""Signals of the clips with a fault."""


def speech(seconds: float = 3.0, seed: int = 0, rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    """Syllables of noise in changing bands, with pauses between them: broad and uneven, as speech is."""
    rng = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * rate_hz:
        syllable = rng.standard_normal(round(rng.uniform(0.08, 0.25) * rate_hz)).astype(np.float32)
        spectrum = np.fft.rfft(syllable) * np.exp(-rng.uniform(0, 4) * np.linspace(0, 1, len(syllable) // 2 + 1))
        parts.append(np.fft.irfft(spectrum, len(syllable)) * np.hanning(len(syllable)) * rng.uniform(0.3, 1))
        parts.append(3e-4 * rng.standard_normal(round(rng.uniform(0.03, 0.1) * rate_hz)))
    samples = np.concatenate(parts)[: round(seconds * rate_hz)]
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


def write_set(folder: Path) -> Path:
    """Clips of 2 to 3 s with texts of proportional length, some with a fault."""
    lines, clips = [], {}
    rng = np.random.default_rng(0)
    for n in range(CLIPS):
        (fault, *_) = FAULTS.get(n, [""])
        seconds = 2 + 0.031 * (n * 7 % CLIPS)
        samples = speech(seconds, n)
        text = f"{n} " + "word " * round(4 * seconds)
        if fault == "snr":
            samples = samples + 0.05 * rng.standard_normal(len(samples)).astype(np.float32)
        elif fault == "rate":
            text = f"{n} word word"
        elif fault == "duplicate":
            samples, text = 0.7 * speech(2 + 0.031 * 14, 2), lines[2].partition("|")[2]
        elif fault == "clipping":
            samples = np.clip(20 * samples, -0.9, 0.9)
        elif fault == "edge_silence":
            samples = np.concatenate([samples, np.float32(1e-4) * rng.standard_normal(3 * RATE_HZ).astype(np.float32)])
        lines.append(f"c{n}|{text}")
        clips[f"wavs/c{n}.wav"] = encode(0.7 * samples, RATE_HZ)
    return audio.write_lj_speech(folder, lines, clips)
