"""How far speech is from a recording of the same text: spectrum, melody, rhythm, and whether it is understood.

Loss is not quality: these are figures of what a listener hears. The packages behind them are an extra of this one:
``pip install 'vits-trainer[evaluate]'``.
"""

import importlib
import logging
import math
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from vits_trainer.config.options import HIGHER_IS_BETTER, SCORES
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.utils.errors import ConfigError

Samples = NDArray[np.float32]

POCKETSPHINX = "pocketsphinx"
_STEP_MS = 8
_HEARING_HZ = 16000
"""At which recognisers and judges listen."""
_PACKAGES = {
    "mcd": ("mel_cepstral_distance", "vits-trainer[evaluate]"),
    "f0": ("pyworld", "vits-trainer[evaluate]"),
    "cer": ("jiwer", "vits-trainer[evaluate]"),
    POCKETSPHINX: ("pocketsphinx", "vits-trainer[evaluate]"),
    "utmos": ("utmos_pytorch", "utmos-pytorch"),
    "similarity": ("resemblyzer", "resemblyzer"),
}


class ClipMetrics(NamedTuple):
    """What came of one clip."""

    figures: dict[str, float]
    """By the names in :data:`config.SCORES`; what the clip does not have, as whispers have no melody, is absent."""
    transcript: str | None
    """What the recogniser understood, where it was asked."""


@dataclass(frozen=True)
class ClipScore:
    """What the jury says of one clip."""

    clip: str
    text: str
    transcript: str | None
    figures: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"clip": self.clip, "text": self.text, "heard": self.transcript, "figures": dict(self.figures)}


def means(clips: Sequence[ClipScore]) -> dict[str, float]:
    """Of each figure, over the clips that have it."""
    names = sorted({name for clip in clips for name in clip.figures})
    return {name: float(np.mean([c.figures[name] for c in clips if name in c.figures])) for name in names}


def worst_first(clips: Sequence[ClipScore]) -> list[ClipScore]:
    """By the mean of each clip's rank in every figure: figures of different units weigh the same."""
    ranks: dict[str, list[float]] = {clip.clip: [] for clip in clips}
    for name in sorted({name for clip in clips for name in clip.figures}):
        sign = -1 if name in HIGHER_IS_BETTER else 1
        badness = {clip.clip: sign * clip.figures[name] for clip in clips if name in clip.figures}
        values = np.asarray(sorted(badness.values()))
        for clip, value in badness.items():
            below, upto = np.searchsorted(values, value, "left"), np.searchsorted(values, value, "right")
            ranks[clip].append((below + upto) / 2 / len(values))  # ties share their places
    return sorted(clips, key=lambda clip: float(np.mean(ranks[clip.clip] or [0.0])), reverse=True)


class SpeechMetrics:
    """Gives the figures that were asked for; loads what they need once."""

    def __init__(self, scores: Iterable[str], rate_hz: int, asr: str = POCKETSPHINX) -> None:
        """Args:
        scores: keys of :data:`config.SCORES`.
        rate_hz: of the recordings and the speech.
        asr: for ``cer``: pocketsphinx (English, offline), or a speech recognition model of transformers.

        Raises:
            ConfigError: a package or a model is not there.
        """
        self.scores = tuple(scores)
        self.rate_hz = rate_hz
        logging.getLogger("mel_cepstral_distance").setLevel(logging.ERROR)  # it warns of frames that are no power of 2
        self._packages = {score: _package(score) for score in self.scores if score in _PACKAGES}
        self._recognise = _recogniser(asr) if "cer" in self.scores else None
        self._utmos = self._quality_judge() if "utmos" in self.scores else None
        self._embed = self._embedder() if "similarity" in self.scores else None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the figures."""
        return tuple(name for score in self.scores for name in SCORES[score])

    def measure(self, text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:
        """Compares speech with a recording of the same text, (T,) and (T',), full scale at 1.

        Sources: Kubichek 1993 (mel-cepstral distance, along a time warping, in dB); log F0 RMSE over the frames that
        both have voiced, and the share of frames that only one has, along the same warping; |T' - T| / T; edits of
        characters and words over those of the text.
        """
        figures: dict[str, float] = {}
        heard = None
        if {"mcd", "f0"} & set(self.scores):
            figures |= self._along_the_warping(recorded, spoken)
        if "duration" in self.scores:
            figures["duration_error"] = abs(len(spoken) - len(recorded)) / len(recorded)
        if self._recognise is not None:
            # Recognisers learnt from recordings: none has heard the silence of a computer.
            heard = self._recognise(_with_dither(_resampled(spoken, self.rate_hz), _HEARING_HZ, noise_steps=8))
            figures |= transcript_errors(text, heard)
        if self._utmos is not None:
            figures["utmos"] = self._utmos(_resampled(spoken, self.rate_hz))
        if self._embed is not None:
            a, b = (self._embed(_resampled(samples, self.rate_hz)) for samples in (recorded, spoken))
            figures["speaker_similarity"] = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        return ClipMetrics({name: value for name, value in figures.items() if math.isfinite(value)}, heard)

    def _along_the_warping(self, recorded: Samples, spoken: Samples) -> dict[str, float]:
        figures = {}
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("recorded.wav", "spoken.wav")]
            for file, samples in zip(files, (recorded, spoken), strict=True):
                # A cepstrum needs a frame, and the logarithm of silence is none.
                audible = _with_dither(samples, self.rate_hz, noise_steps=1)
                write_pcm16_wav(file, to_pcm16(audible), self.rate_hz)
            if "mcd" in self.scores:
                distance = self._packages["mcd"].compare_audio_files(*files, hop_len=_STEP_MS)[0]
                figures["mcd_db"] = float(distance)
            if "f0" in self.scores:
                path = _warping(files, self.rate_hz)
                figures |= _melody(self._packages["f0"], recorded, spoken, self.rate_hz, path)
        return figures

    def _quality_judge(self) -> Callable[[Samples], float]:
        torch = importlib.import_module("torch")
        judge = _loaded("utmos", lambda: self._packages["utmos"].UTMOSScoreScripted(None, "cpu"))
        return lambda samples: float(judge.score(torch.from_numpy(samples)[None]).mean())

    def _embedder(self) -> Callable[[Samples], NDArray[np.float32]]:
        encoder = _loaded("similarity", lambda: self._packages["similarity"].VoiceEncoder("cpu", verbose=False))
        return lambda samples: np.asarray(encoder.embed_utterance(samples))


def transcript_errors(text: str, transcript: str) -> dict[str, float]:
    """Character and word error rate of what was ``transcript`` against the ``text``, without case and punctuation.

    Empty where the text has no letter: there is nothing to divide by.
    """
    jiwer = _package("cer")
    said, understood = spoken_form(text), spoken_form(transcript)
    if not said:
        return {}
    return {"cer": float(jiwer.cer(said, understood)), "wer": float(jiwer.wer(said, understood))}


def spoken_form(text: str) -> str:
    """Lower case, apostrophes and punctuation away, single spaces."""
    kept = [character for character in unicodedata.normalize("NFKC", text).lower() if character not in "'’"]
    return " ".join("".join(character if _is_said(character) else " " for character in kept).split())


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % of the means of as many values drawn with replacement (Efron's percentile bootstrap)."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.float64), (resamples, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _is_said(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _package(score: str) -> Any:
    module, install = _PACKAGES[score]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pyworld's, of its way to find its version
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{score} needs a package that is not there ({error}): pip install '{install}'.") from error


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name}: it brings code of its own, which is not run. Name a model that transformers itself knows."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{name}: what it needs could not be loaded ({reason}). Leave it out, or fetch it."
        ) from error


def _recogniser(name: str) -> Callable[[Samples], str]:
    if name == POCKETSPHINX:
        decoder = _package(POCKETSPHINX).Decoder(samprate=_HEARING_HZ, loglevel="FATAL")

        def recognise(samples: Samples) -> str:
            decoder.reinit_feat()  # forgets the loudness of the clips before: a clip's figures are its own
            decoder.start_utt()
            decoder.process_raw(to_pcm16(samples).tobytes(), no_search=False, full_utt=True)
            decoder.end_utt()
            found = decoder.hyp()
            return "" if found is None else str(found.hypstr)

        return recognise
    pipeline = importlib.import_module("transformers").pipeline
    model = _loaded(
        f"--asr {name}", lambda: pipeline("automatic-speech-recognition", model=name, trust_remote_code=False)
    )
    return lambda samples: str(model({"raw": samples, "sampling_rate": _HEARING_HZ})["text"])


def _resampled(samples: Samples, rate_hz: int) -> Samples:
    heard: Samples = soxr.resample(samples, rate_hz, _HEARING_HZ).astype(np.float32)
    return heard


def _with_dither(samples: Samples, rate_hz: int, noise_steps: int) -> Samples:
    """At least 0.1 s, and nowhere quite silent: with noise of so many 16-bit steps, the same each time."""
    padded = np.pad(samples, (0, max(0, rate_hz // 10 - len(samples))))
    noise = np.random.default_rng(0).uniform(-1, 1, len(padded)).astype(np.float32) * noise_steps / 32768
    return np.asarray(padded + noise, dtype=np.float32)


def _warping(files: Sequence[Path], rate_hz: int) -> NDArray[np.int64]:
    """Which frames belong together, (2, P), by dynamic time warping of the cepstra."""
    mcd, warp = _package("mcd"), importlib.import_module("fastdtw").fastdtw
    cepstra = []
    for file in files:
        magnitude = mcd.get_amplitude_spectrogram(file, hop_len=_STEP_MS)
        cepstra.append(mcd.get_mfccs(mcd.get_mel_spectrogram(magnitude, rate_hz, 32))[1:17].T)
    _, path = warp(*cepstra, radius=10, dist=2)
    return np.asarray(path, dtype=np.int64).T


def _melody(
    pyworld: Any, recorded: Samples, spoken: Samples, rate_hz: int, path: NDArray[np.int64]
) -> dict[str, float]:
    melodies = []
    for samples, frames in zip((recorded, spoken), path, strict=True):
        f0_hz, _ = pyworld.harvest(samples.astype(np.float64), rate_hz, frame_period=_STEP_MS)
        # The cepstrum's frame begins at its time and lasts 32 ms: its middle is two steps later.
        melodies.append(f0_hz[np.minimum(frames + 2, len(f0_hz) - 1)])
    voiced = [melody > 0 for melody in melodies]
    both = voiced[0] & voiced[1]
    figures = {"voicing_error": float((voiced[0] != voiced[1]).mean())}
    if both.any():
        difference = np.log(melodies[0][both]) - np.log(melodies[1][both])
        figures["log_f0_rmse"] = float(np.sqrt((difference**2).mean()))
    return figures
