"""Objective metrics of speech against a recording of the same text: spectrum, pitch, duration, intelligibility.

They approximate what listeners perceive, which training losses do not. They need the extra ``evaluate``.
"""

import importlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vits_trainer.config.options import AUTO, HIGHER_IS_BETTER, POCKETSPHINX, SCORES
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.evaluation.optional_packages import MODEL_RATE_HZ, load_optional_model, load_package
from vits_trainer.evaluation.recognizers import choose_recognizer, knows_only_english, load_recognizer
from vits_trainer.evaluation.transcripts import transcript_errors
from vits_trainer.utils.errors import require

logger = logging.getLogger(__name__)

Samples = NDArray[np.float32]

_STEP_MS = 8


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


@dataclass(frozen=True)
class MetricSettings:
    """What metrics may depend on."""

    rate_hz: int
    """Sampling rate of the recordings and the speech."""
    recognizer: str | None = None
    """Name of the speech recognizer."""
    language: str | None = None
    """Of the texts, as named by voices."""


_Loader = Callable[[MetricSettings], Measure]
_MEASURES: dict[str, _Loader] = {}
"""By the keys of :data:`config.SCORES`: loads packages and models."""


def _registered(score: str) -> Callable[[_Loader], _Loader]:
    def register(load: _Loader) -> _Loader:
        _MEASURES[score] = load
        return load

    return register


class SpeechMetrics:
    """Computes the requested metrics; loads their packages and models once."""

    def __init__(self, scores: Iterable[str], rate_hz: int, asr: str = AUTO, language: str | None = None) -> None:
        """Args:
        scores: keys of :data:`config.SCORES`.
        rate_hz: sampling rate of the recordings and the speech.
        asr: speech recognizer for ``cer``. If it is ``auto`` and none knows the language, ``cer`` is left out with a
            warning.
        language: of the texts, as named by voices (None = unknown).

        Raises:
            ConfigError: a package is not installed, a model cannot be loaded, or the recognizer does not know the
                language.
        """
        requested = tuple(scores)
        self.recognizer = choose_recognizer(asr, language) if "cer" in requested else None
        is_left_out = "cer" in requested and self.recognizer is None
        self.scores = tuple(score for score in requested if score != "cer" or not is_left_out)
        if is_left_out:
            remedy = f"no recognizer for {language} is installed. Give --asr a model of this language"
            require(bool(self.scores), f"cer: {remedy}, or choose other scores.")
            logger.warning("cer is left out: %s.", remedy)
        settings = MetricSettings(rate_hz, self.recognizer, language)
        self._measures = [_MEASURES[score](settings) for score in self.scores]

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
def _load_mel_cepstral_distance(settings: MetricSettings) -> Measure:
    """Mel-cepstral distance in dB, aligned by dynamic time warping (Kubichek 1993)."""
    package = load_package("mcd")
    logging.getLogger("mel_cepstral_distance").setLevel(logging.ERROR)  # it warns of frame lengths not a power of 2

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        with _as_files(recorded, spoken, settings.rate_hz) as files:
            return ClipMetrics({"mcd_db": float(package.compare_audio_files(*files, hop_len=_STEP_MS)[0])}, None)

    return measure


@_registered("f0")
def _load_pitch(settings: MetricSettings) -> Measure:
    """Log F0 RMSE over the frames voiced in both, and the fraction of frames voiced in only one, aligned as above."""
    pyworld = load_package("f0")
    load_package("mcd")

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        with _as_files(recorded, spoken, settings.rate_hz) as files:
            path = _warping(files, settings.rate_hz)
        return ClipMetrics(_pitch_metrics(pyworld, recorded, spoken, settings.rate_hz, path), None)

    return measure


@_registered("duration")
def _load_duration(settings: MetricSettings) -> Measure:  # noqa: ARG001
    """Duration error |T' - T| / T."""

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        return ClipMetrics({"duration_error": abs(len(spoken) - len(recorded)) / len(recorded)}, None)

    return measure


@_registered("cer")
def _load_error_rates(settings: MetricSettings) -> Measure:
    """Character and word error rates of the transcript."""
    load_package("cer")
    recognizer = load_recognizer(settings.recognizer or POCKETSPHINX)
    language = settings.language or ("en" if knows_only_english(recognizer.name) else None)

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        # Recognizers are trained on recordings, which have no digital silence.
        heard = _with_dither(_resample(spoken, settings.rate_hz), MODEL_RATE_HZ, noise_steps=8)
        transcript = recognizer.transcribe(heard)
        return ClipMetrics(transcript_errors(text, transcript, language), transcript)

    return measure


@_registered("dnsmos")
def _load_dnsmos(settings: MetricSettings) -> Measure:
    """Predicted opinions of P.835: overall, signal, background (Reddy et al. 2022, DNSMOS), from 1 to 5."""
    weights = Path(load_package("dnsmos").__path__[0]) / "dnsmos_models/sig_bak_ovr.onnx"
    runtime = load_package("dnsmos_runtime")
    session = load_optional_model("dnsmos", lambda: runtime.InferenceSession(str(weights)))

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        samples = np.clip(_resample(spoken, settings.rate_hz), -1, 1)
        windows = _dnsmos_windows(np.pad(samples, (0, max(0, MODEL_RATE_HZ // 10 - len(samples)))))
        # One by one: the activations of a window take 0.1 GB.
        raw = np.stack([session.run(None, {"input_1": window[None]})[0][0] for window in windows])  # (windows, 3)
        opinions = [float(np.polyval(p, x).mean()) for p, x in zip(_DNSMOS_POLYNOMIALS, raw.T, strict=True)]
        return ClipMetrics(dict(zip(("dnsmos_signal", "dnsmos_background", "dnsmos"), opinions, strict=True)), None)

    return measure


_DNSMOS_POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)
"""From the network's outputs to opinions, as in the package speechmos."""
_DNSMOS_SAMPLES = int(9.01 * MODEL_RATE_HZ)


def _dnsmos_windows(samples: Samples) -> NDArray[np.float32]:
    """Returns windows of 9.01 s, one per second, (windows, samples); shorter speech is doubled until it fills one."""
    while len(samples) < _DNSMOS_SAMPLES:
        samples = np.concatenate([samples, samples])
    count = int(len(samples) // MODEL_RATE_HZ - 9.01) + 1
    windows: NDArray[np.float32] = sliding_window_view(samples, _DNSMOS_SAMPLES)[::MODEL_RATE_HZ][:count]
    return windows


@_registered("utmos")
def _load_utmos(settings: MetricSettings) -> Measure:
    """Predicted mean opinion score (Saeki et al. 2022)."""
    package, torch = load_package("utmos"), importlib.import_module("torch")
    model = load_optional_model("utmos", lambda: package.UTMOSScoreScripted(None, "cpu"))

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        samples = torch.from_numpy(_resample(spoken, settings.rate_hz))
        return ClipMetrics({"utmos": float(model.score(samples[None]).mean())}, None)

    return measure


@_registered("similarity")
def _load_speaker_similarity(settings: MetricSettings) -> Measure:
    """Cosine of the angle between speaker embeddings."""
    package = load_package("similarity")
    encoder = load_optional_model("similarity", lambda: package.VoiceEncoder("cpu", verbose=False))

    def measure(text: str, recorded: Samples, spoken: Samples) -> ClipMetrics:  # noqa: ARG001
        a, b = (np.asarray(encoder.embed_utterance(_resample(s, settings.rate_hz))) for s in (recorded, spoken))
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


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the mean (Efron's percentile bootstrap)."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.float64), (resamples, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _resample(samples: Samples, rate_hz: int) -> Samples:
    resampled: Samples = soxr.resample(samples, rate_hz, MODEL_RATE_HZ).astype(np.float32)
    return resampled


def _with_dither(samples: Samples, rate_hz: int, noise_steps: int) -> Samples:
    """Pads to at least 0.1 s, and adds noise of ``noise_steps`` 16-bit steps to avoid silence; deterministic."""
    padded = np.pad(samples, (0, max(0, rate_hz // 10 - len(samples))))
    noise = np.random.default_rng(0).uniform(-1, 1, len(padded)).astype(np.float32) * noise_steps / 32768
    return np.asarray(padded + noise, dtype=np.float32)


def _warping(files: Sequence[Path], rate_hz: int) -> NDArray[np.int64]:
    """Returns the indices of aligned frames, (2, P), by dynamic time warping of the cepstra."""
    mcd, warp = load_package("mcd"), importlib.import_module("fastdtw").fastdtw
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
