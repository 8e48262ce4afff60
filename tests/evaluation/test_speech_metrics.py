"""Speech metrics on cases with known results: identical speech, noise, pitch, length, hand-counted edits."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from tests.support.audio import voice
from vits_trainer.config.options import POCKETSPHINX, SCORES
from vits_trainer.data.audio import read_pcm16_wav
from vits_trainer.data.preparation.espeak_corpus import SENTENCES, speak_corpus
from vits_trainer.evaluation import speech_metrics
from vits_trainer.evaluation.speech_metrics import (
    ClipScore,
    SpeechMetrics,
    bootstrap_interval,
    means,
    worst_first,
)
from vits_trainer.utils.errors import ConfigError

pytestmark = pytest.mark.slow

LJSPEECH = Path(__file__).parents[3] / "shared/data/ljspeech"

pytest.importorskip("mel_cepstral_distance", reason="the extra 'evaluate' is not installed")
pytest.importorskip("pocketsphinx", reason="the extra 'evaluate' is not installed")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, np.ndarray, int]]:
    folder = speak_corpus(tmp_path_factory.mktemp("speech"))
    read = [read_pcm16_wav(folder / f"wavs/sentence_{n:03}.wav") for n in (1, 2, 3)]
    texts = SENTENCES.splitlines()[:3]
    return [(text, pcm.astype(np.float32) / 32768, rate) for text, (pcm, rate) in zip(texts, read, strict=True)]


def with_noise(speech, noise_db: int | None) -> dict[str, float]:
    rng, metrics, clips = np.random.default_rng(0), SpeechMetrics(["mcd", "cer"], speech[0][2], POCKETSPHINX), []
    for text, samples, _ in speech:
        level = 0 if noise_db is None else np.sqrt((samples**2).mean()) * 10 ** (-noise_db / 20)
        noisy = (samples + level * rng.standard_normal(len(samples))).astype(np.float32)
        clips.append(ClipScore(text, text, None, metrics.measure(text, samples, noisy).metrics))
    return means(clips)


def test_speech_compared_with_itself_is_perfect(speech):
    text, samples, rate_hz = speech[0]
    result = SpeechMetrics(["mcd", "f0", "duration"], rate_hz).measure(text, samples, samples).metrics
    assert result == {"mcd_db": 0, "log_f0_rmse": 0, "voicing_error": 0, "duration_error": 0}


def test_more_noise_worsens_spectrum_and_intelligibility(speech):
    by_noise = [with_noise(speech[:2], noise_db) for noise_db in (20, 5)]
    for metric in ("mcd_db", "cer"):
        assert by_noise[0][metric] < by_noise[1][metric]


@pytest.mark.skipif(not LJSPEECH.is_dir(), reason="../shared/data/ljspeech does not exist")
def test_natural_speech_is_recognized_and_noise_lowers_accuracy():
    lines = (LJSPEECH / "metadata.csv").read_text(encoding="utf-8").splitlines()
    files = {path.stem: path for path in LJSPEECH.rglob("*.wav")}
    names_and_texts = [(line.split("|")[0], line.split("|")[-1]) for line in lines]
    shortest = sorted(names_and_texts, key=lambda pair: files[pair[0]].stat().st_size)[:2]
    natural = [(text, *sf.read(files[name], dtype="float32")) for name, text in shortest]
    by_noise = [with_noise(natural, noise_db) for noise_db in (None, 15, 0)]
    assert by_noise[0]["mcd_db"] == 0
    assert by_noise[0]["cer"] < 0.25
    for better, worse in pairwise(by_noise):
        assert better["mcd_db"] < worse["mcd_db"]
        assert better["cer"] <= worse["cer"]
    assert by_noise[-1]["cer"] > 0.5


def test_log_f0_error_of_a_pitch_a_fifth_higher():
    low, high = voice(1.5, 16000, 120), voice(1.5, 16000, 180)
    result = SpeechMetrics(["f0"], 16000).measure("a", low, high).metrics
    assert result["log_f0_rmse"] == pytest.approx(np.log(1.5), abs=0.02)


def test_frames_voiced_in_only_one_are_voicing_errors():
    spoken = voice(1.0, 16000)
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    result = SpeechMetrics(["f0"], 16000).measure("a", spoken, noise).metrics
    assert result["voicing_error"] > 0.7


def test_duration_error_of_speech_a_quarter_longer():
    result = SpeechMetrics(["duration"], 16000).measure("a", voice(2.0, 16000), voice(2.5, 16000)).metrics
    assert result == {"duration_error": 0.25}


def test_silence_and_very_short_speech_can_be_measured():
    metrics = SpeechMetrics(["mcd", "f0", "duration"], 16000)
    recorded = voice(0.5, 16000)
    for spoken in (np.zeros(8000, dtype=np.float32), recorded[:10]):
        result = metrics.measure("a", recorded, spoken).metrics
        assert result["mcd_db"] > 5
        assert "log_f0_rmse" not in result or np.isfinite(result["log_f0_rmse"])


def test_interval_contains_the_mean_and_narrows_with_the_clips():
    values = np.random.default_rng(0).normal(5, 1, 400)
    low, high = bootstrap_interval(list(values))
    assert low < values.mean() < high
    # the normal approximation: 1.96 standard errors on each side
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)


def test_worst_first_is_independent_of_units():
    clips = [
        ClipScore("good", "", None, {"mcd_db": 5.0, "cer": 0.0}),
        ClipScore("medium", "", None, {"mcd_db": 9.0, "cer": 0.0}),
        ClipScore("bad", "", None, {"mcd_db": 8.0, "cer": 0.9}),
    ]
    assert [clip.clip for clip in worst_first(clips)] == ["bad", "medium", "good"]
    by_similarity = [ClipScore(str(n), "", None, {"speaker_similarity": n / 3}) for n in range(3)]
    assert [clip.clip for clip in worst_first(by_similarity)] == ["0", "1", "2"]


def test_dnsmos_is_that_of_speechmos_and_noise_lowers_it(speech):
    speechmos = pytest.importorskip("speechmos.dnsmos", reason="speechmos or its own requirements are not installed")
    metrics = SpeechMetrics(["dnsmos"], 16000)
    short = soxr.resample(speech[0][1], speech[0][2], 16000).clip(-1, 1)[:60_000]  # is doubled: 15 s
    clean, noisy = (
        (short + level * np.random.default_rng(0).standard_normal(len(short))).astype(np.float32).clip(-1, 1)
        for level in (0, 0.05)
    )
    results = [metrics.measure("", one, one).metrics for one in (clean, noisy)]
    theirs = speechmos.run(noisy, 16000)
    names = {"dnsmos": "ovrl_mos", "dnsmos_signal": "sig_mos", "dnsmos_background": "bak_mos"}
    assert results[1] == pytest.approx({ours: theirs[name] for ours, name in names.items()}, abs=1e-3)
    assert results[0]["dnsmos_background"] > results[1]["dnsmos_background"] + 0.5
    assert set(metrics.measure("", clean, np.zeros(10, np.float32)).metrics) == set(SCORES["dnsmos"])


def test_cer_of_a_language_without_recognizer_is_left_out(caplog):
    metrics = SpeechMetrics(["duration", "cer"], 16000, language="deu")
    assert metrics.names == SCORES["duration"]
    assert "no recognizer for deu is installed. Give --asr a model of this language" in caplog.text
    with pytest.raises(ConfigError, match="choose other scores"):
        SpeechMetrics(["cer"], 16000, language="deu")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "utmos_pytorch", None)
    with pytest.raises(ConfigError, match="pip install 'utmos-pytorch'"):
        SpeechMetrics(["utmos"], 16000)


def test_speaker_similarity_recognizes_a_voice(tmp_path: Path):
    pytest.importorskip("resemblyzer", reason="the optional package resemblyzer is not installed")
    spoken = [speak_corpus(tmp_path / name, name) for name in ("en-us", "en-us+f3")]
    one, other, female = (
        read_pcm16_wav(folder / f"wavs/sentence_{n:03}.wav")[0].astype(np.float32) / 32768
        for folder, n in ((spoken[0], 1), (spoken[0], 2), (spoken[1], 2))
    )
    metrics = SpeechMetrics(["similarity"], 22050)
    same = metrics.measure("", one, other).metrics["speaker_similarity"]
    assert same > metrics.measure("", one, female).metrics["speaker_similarity"] + 0.05


def test_every_score_is_registered() -> None:
    assert set(speech_metrics._MEASURES) == set(SCORES)
