"""Objective metrics of speech against a recording of the same text: spectrum, pitch, duration, intelligibility.

They approximate what listeners perceive, which training losses do not. They need optional packages:
``pip install 'vits-trainer[evaluate]'``.
"""

import importlib
import logging
import math
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_MODEL_RATE_HZ = 16000
"""Sampling rate of speech recognition, UTMOS and speaker embedding models."""
_PACKAGES = {
    "mcd": ("mel_cepstral_distance", "vits-trainer[evaluate]"),
    "f0": ("pyworld", "vits-trainer[evaluate]"),
    "cer": ("jiwer", "vits-trainer[evaluate]"),
    POCKETSPHINX: ("pocketsphinx", "vits-trainer[evaluate]"),
    "utmos": ("utmos_pytorch", "utmos-pytorch"),
    "similarity": ("resemblyzer", "resemblyzer"),
}


class ClipMetrics(NamedTuple):
    """Metrics and transcript of one clip."""

    metrics: dict[str, float]
    """By the names in :data:`config.SCORES`; undefined metrics are absent, such as pitch of a whisper."""
    transcript: str | None
    """Output of speech recognition; None if it was not run."""


@dataclass(frozen=True)
class ClipScore:
    """Metrics and transcript of one clip, with its id and text."""

    clip: str
    text: str
    transcript: str | None
    metrics: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {"clip": self.clip, "text": self.text, "heard": self.transcript, "figures": dict(self.metrics)}


def means(clips: Sequence[ClipScore]) -> dict[str, float]:
    """Returns the mean of each metric over the clips that have it."""
    names = sorted({name for clip in clips for name in clip.metrics})
    return {name: float(np.mean([c.metrics[name] for c in clips if name in c.metrics])) for name in names}


def worst_first(clips: Sequence[ClipScore]) -> list[ClipScore]:
    """Sorts clips by their mean rank over all metrics, so that metrics of different units weigh the same."""
    ranks: dict[str, list[float]] = {clip.clip: [] for clip in clips}
    for name in sorted({name for clip in clips for name in clip.metrics}):
        sign = -1 if name in HIGHER_IS_BETTER else 1
        badness = {clip.clip: sign * clip.metrics[name] for clip in clips if name in clip.metrics}
        values = np.asarray(sorted(badness.values()))
        for clip, value in badness.items():
            below, upto = np.searchsorted(values, value, "left"), np.searchsorted(values, value, "right")
            ranks[clip].append((below + upto) / 2 / len(values))  # ties share their ranks
    return sorted(clips, key=lambda clip: float(np.mean(ranks[clip.clip] or [0.0])), reverse=True)


Measure = Callable[[str, Samples, Samples], ClipMetrics]
"""Compares speech, (T',), with a recording of the same text, (T,), both with full scale at 1."""

_MEASURES: dict[str, Callable[[int, str], Measure]] = {}
"""By the keys of :data:`config.SCORES`: loads packages and models for a sampling rate and a recognizer."""


def _registered(score: str) -> Callable[[Callable[[int, str], Measure]], Callable[[int, str], Measure]]:
    def register(load: Callable[[int, str], Measure]) -> Callable[[int, str], Measure]:
        _MEASURES[score] = load
        return load

    return register


class SpeechMetrics:
    """Computes the requested metrics; loads their packages and models once."""

    def __init__(self, scores: Iterable[str], rate_hz: int, asr: str = POCKETSPHINX) -> None:
        """Args:
        scores: keys of :data:`config.SCORES`.
        rate_hz: sampling rate of the recordings and the speech.
        asr: speech recognition for ``cer``: pocketsphinx (English, offline), or a model of transformers.

        Raises:
            ConfigError: a package is not installed, or a model cannot be loaded.
        """
        self.scores = tuple(scores)
        self._measures = [_MEASURES[score](rate_hz, asr) for score in self.scores]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(name for score in self.scores for name in SCORES[score])

    def measure(self, text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:
        """Compares speech, (T',), with a recording of the same text, (T,), both with full scale at 1."""
        results = [measure(text, recorded, spoken) for measure in self._measures]
        metrics = {name: value for result in results for name, value in result.metrics.items() if math.isfinite(value)}
        transcripts = [result.transcript for result in results if result.transcript is not None]
        return ClipMetrics(metrics, transcripts[0] if transcripts else None)


@_registered("mcd")
def _load_mel_cepstral_distance(rate_hz: int, asr: str) -> Measure:  # noqa: ARG001
    """Mel-cepstral distance in dB, aligned by dynamic time warping (Kubichek 1993)."""
    package = _package("mcd")
    logging.getLogger("mel_cepstral_distance").setLevel(logging.ERROR)  # it warns of frame lengths not a power of 2

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        with _as_files(recorded, spoken, rate_hz) as files:
            return ClipMetrics({"mcd_db": float(package.compare_audio_files(*files, hop_len=_STEP_MS)[0])}, None)

    return measure


@_registered("f0")
def _load_pitch(rate_hz: int, asr: str) -> Measure:  # noqa: ARG001
    """Log F0 RMSE over the frames voiced in both, and the fraction of frames voiced in only one, aligned as above."""
    pyworld = _package("f0")
    _package("mcd")

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        with _as_files(recorded, spoken, rate_hz) as files:
            path = _warping(files, rate_hz)
        return ClipMetrics(_pitch_metrics(pyworld, recorded, spoken, rate_hz, path), None)

    return measure


@_registered("duration")
def _load_duration(rate_hz: int, asr: str) -> Measure:  # noqa: ARG001
    """Duration error |T' - T| / T."""

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        return ClipMetrics({"duration_error": abs(len(spoken) - len(recorded)) / len(recorded)}, None)

    return measure


@_registered("cer")
def _load_error_rates(rate_hz: int, asr: str) -> Measure:
    """Character and word error rates of the transcript."""
    _package("cer")
    recognize = _load_recognizer(asr)

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        # Recognizers are trained on recordings, which have no digital silence.
        transcript = recognize(_with_dither(_resample(spoken, rate_hz), _MODEL_RATE_HZ, noise_steps=8))
        return ClipMetrics(transcript_errors(text, transcript), transcript)

    return measure


@_registered("utmos")
def _load_utmos(rate_hz: int, asr: str) -> Measure:  # noqa: ARG001
    """Predicted mean opinion score (Saeki et al. 2022)."""
    package, torch = _package("utmos"), importlib.import_module("torch")
    model = _load_model("utmos", lambda: package.UTMOSScoreScripted(None, "cpu"))

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        samples = torch.from_numpy(_resample(spoken, rate_hz))
        return ClipMetrics({"utmos": float(model.score(samples[None]).mean())}, None)

    return measure


@_registered("similarity")
def _load_speaker_similarity(rate_hz: int, asr: str) -> Measure:  # noqa: ARG001
    """Cosine of the angle between speaker embeddings."""
    package = _package("similarity")
    encoder = _load_model("similarity", lambda: package.VoiceEncoder("cpu", verbose=False))

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        a, b = (np.asarray(encoder.embed_utterance(_resample(s, rate_hz))) for s in (recorded, spoken))
        return ClipMetrics({"speaker_similarity": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))}, None)

    return measure


@contextmanager
def _as_files(recorded: Samples, spoken: Samples, rate_hz: int) -> Iterator[list[Path]]:
    """Inside, both are WAV files: mel_cepstral_distance reads files."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("recorded.wav", "spoken.wav")]
        for file, samples in zip(files, (recorded, spoken), strict=True):
            # A cepstrum needs at least one frame, and the logarithm of silence is -Inf.
            write_pcm16_wav(file, to_pcm16(_with_dither(samples, rate_hz, noise_steps=1)), rate_hz)
        yield files


def transcript_errors(text: str, transcript: str) -> dict[str, float]:
    """Returns character and word error rate of ``transcript`` against ``text``, ignoring case and punctuation.

    Empty if the text has no letters, as the rates are then undefined.
    """
    jiwer = _package("cer")
    reference, hypothesis = spoken_form(text), spoken_form(transcript)
    if not reference:
        return {}
    return {"cer": float(jiwer.cer(reference, hypothesis)), "wer": float(jiwer.wer(reference, hypothesis))}


def spoken_form(text: str) -> str:
    """Normalizes text: lower case, no apostrophes or punctuation, single spaces."""
    kept = [character for character in unicodedata.normalize("NFKC", text).lower() if character not in "'’"]
    return " ".join("".join(character if _is_spoken(character) else " " for character in kept).split())


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the mean (Efron's percentile bootstrap)."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.float64), (resamples, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _is_spoken(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _package(score: str) -> Any:
    module, install = _PACKAGES[score]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pyworld's, about how it finds its version
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{score} needs an uninstalled package ({error}): pip install '{install}'.") from error


def _load_model(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name} contains custom code, which is not executed. Use a model that transformers supports natively."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name}: the model could not be loaded ({reason}). Omit it, or download it.") from error


def _load_recognizer(name: str) -> Callable[[Samples], str]:
    if name == POCKETSPHINX:
        decoder = _package(POCKETSPHINX).Decoder(samprate=_MODEL_RATE_HZ, loglevel="FATAL")

        def recognize(samples: Samples) -> str:
            decoder.reinit_feat()  # resets the loudness estimate, so that results do not depend on earlier clips
            decoder.start_utt()
            decoder.process_raw(to_pcm16(samples).tobytes(), no_search=False, full_utt=True)
            decoder.end_utt()
            hypothesis = decoder.hyp()
            return "" if hypothesis is None else str(hypothesis.hypstr)

        return recognize
    pipeline = importlib.import_module("transformers").pipeline
    model = _load_model(
        f"--asr {name}", lambda: pipeline("automatic-speech-recognition", model=name, trust_remote_code=False)
    )
    return lambda samples: str(model({"raw": samples, "sampling_rate": _MODEL_RATE_HZ})["text"])


def _resample(samples: Samples, rate_hz: int) -> Samples:
    resampled: Samples = soxr.resample(samples, rate_hz, _MODEL_RATE_HZ).astype(np.float32)
    return resampled


def _with_dither(samples: Samples, rate_hz: int, noise_steps: int) -> Samples:
    """Pads to at least 0.1 s, and adds noise of ``noise_steps`` 16-bit steps to avoid silence; deterministic."""
    padded = np.pad(samples, (0, max(0, rate_hz // 10 - len(samples))))
    noise = np.random.default_rng(0).uniform(-1, 1, len(padded)).astype(np.float32) * noise_steps / 32768
    return np.asarray(padded + noise, dtype=np.float32)


def _warping(files: Sequence[Path], rate_hz: int) -> NDArray[np.int64]:
    """Returns the indices of aligned frames, (2, P), by dynamic time warping of the cepstra."""
    mcd, warp = _package("mcd"), importlib.import_module("fastdtw").fastdtw
    cepstra = []
    for file in files:
        magnitude = mcd.get_amplitude_spectrogram(file, hop_len=_STEP_MS)
        cepstra.append(mcd.get_mfccs(mcd.get_mel_spectrogram(magnitude, rate_hz, 32))[1:17].T)
    _, path = warp(*cepstra, radius=10, dist=2)
    return np.asarray(path, dtype=np.int64).T


def _pitch_metrics(
    pyworld: Any, recorded: Samples, spoken: Samples, rate_hz: int, path: NDArray[np.int64]
) -> dict[str, float]:
    pitches_hz = []
    for samples, frames in zip((recorded, spoken), path, strict=True):
        f0_hz, _ = pyworld.harvest(samples.astype(np.float64), rate_hz, frame_period=_STEP_MS)
        # A cepstrum frame starts at its time and lasts 32 ms: its centre is two steps later.
        pitches_hz.append(f0_hz[np.minimum(frames + 2, len(f0_hz) - 1)])
    voiced = [pitch_hz > 0 for pitch_hz in pitches_hz]
    both = voiced[0] & voiced[1]
    metrics = {"voicing_error": float((voiced[0] != voiced[1]).mean())}
    if both.any():
        difference = np.log(pitches_hz[0][both]) - np.log(pitches_hz[1][both])
        metrics["log_f0_rmse"] = float(np.sqrt((difference**2).mean()))
    return metrics
