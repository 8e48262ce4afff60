"""Figures of speech against what is known of it: itself, noise, other pitch, other lengths, hand-counted edits."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import voice
from vits_trainer.config.options import SCORES
from vits_trainer.data.audio import read_pcm16_wav
from vits_trainer.data.preparation.espeak_corpus import SENTENCES, speak_corpus
from vits_trainer.evaluation.speech_metrics import (
    ClipScore,
    SpeechMetrics,
    bootstrap_interval,
    means,
    spoken_form,
    transcript_errors,
    worst_first,
)
from vits_trainer.utils.errors import ConfigError

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
    rng, jury, clips = np.random.default_rng(0), SpeechMetrics(["mcd", "cer"], speech[0][2]), []
    for text, samples, _ in speech:
        level = 0 if noise_db is None else np.sqrt((samples**2).mean()) * 10 ** (-noise_db / 20)
        noisy = (samples + level * rng.standard_normal(len(samples))).astype(np.float32)
        clips.append(ClipScore(text, text, None, jury.measure(text, samples, noisy).figures))
    return means(clips)


def test_speech_against_itself_is_perfect(speech):
    text, samples, rate_hz = speech[0]
    found = SpeechMetrics(["mcd", "f0", "duration"], rate_hz).measure(text, samples, samples).figures
    assert found == {"mcd_db": 0, "log_f0_rmse": 0, "voicing_error": 0, "duration_error": 0}


def test_more_noise_is_worse_by_spectrum_and_by_what_is_understood(speech):
    by_noise = [with_noise(speech, noise_db) for noise_db in (20, 10, 0)]
    for figure in ("mcd_db", "cer"):
        assert by_noise[0][figure] < by_noise[1][figure] < by_noise[2][figure]


@pytest.mark.skipif(not LJSPEECH.is_dir(), reason="../shared/data/ljspeech is not here")
def test_natural_speech_is_understood_and_less_so_in_noise():
    lines = (LJSPEECH / "metadata.csv").read_text(encoding="utf-8").splitlines()
    files = {path.stem: path for path in LJSPEECH.rglob("*.wav")}
    names_and_texts = [(line.split("|")[0], line.split("|")[-1]) for line in lines]
    shortest = sorted(names_and_texts, key=lambda pair: files[pair[0]].stat().st_size)[:2]
    natural = [(text, *sf.read(files[name], dtype="float32")) for name, text in shortest]
    by_noise = [with_noise(natural, noise_db) for noise_db in (None, 20, 10, 0)]
    assert by_noise[0]["mcd_db"] == 0
    assert by_noise[0]["cer"] < 0.25
    for better, worse in pairwise(by_noise):
        assert better["mcd_db"] < worse["mcd_db"]
        assert better["cer"] <= worse["cer"]
    assert by_noise[-1]["cer"] > 0.5


def test_pitch_a_fifth_higher_is_the_logarithm_of_its_ratio():
    low, high = voice(1.5, 16000, 120), voice(1.5, 16000, 180)
    found = SpeechMetrics(["f0"], 16000).measure("a", low, high).figures
    assert found["log_f0_rmse"] == pytest.approx(np.log(1.5), abs=0.02)


def test_what_only_one_has_voiced_is_a_voicing_error():
    spoken = voice(1.0, 16000)
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    found = SpeechMetrics(["f0"], 16000).measure("a", spoken, noise).figures
    assert found["voicing_error"] > 0.7


def test_speech_a_quarter_longer_is_that_wrong():
    found = SpeechMetrics(["duration"], 16000).measure("a", voice(2.0, 16000), voice(2.5, 16000)).figures
    assert found == {"duration_error": 0.25}


def test_silence_and_a_few_samples_are_judged_too():
    jury = SpeechMetrics(["mcd", "f0", "duration"], 16000)
    recorded = voice(0.5, 16000)
    for spoken in (np.zeros(8000, dtype=np.float32), recorded[:10]):
        found = jury.measure("a", recorded, spoken).figures
        assert found["mcd_db"] > 5
        assert "log_f0_rmse" not in found or np.isfinite(found["log_f0_rmse"])


def test_edits_are_counted_by_hand():
    # "the old boat" heard as "the odd boats": l -> d, + s; two of three words
    found = transcript_errors("The old boat!", "the odd boats")
    assert found == {"cer": pytest.approx(2 / 12), "wer": pytest.approx(2 / 3)}
    assert transcript_errors("...", "anything") == {}
    assert transcript_errors("Gar-nichts", "") == {"cer": 1, "wer": 1}


def test_spoken_form_keeps_letters_of_every_script():
    assert spoken_form("It’s “Çêl” — ＡＢ 3.5,  हिन्दी!") == "its çêl ab 3 5 हिन्दी"


def test_interval_holds_the_mean_and_narrows_with_the_clips():
    values = np.random.default_rng(0).normal(5, 1, 400)
    low, high = bootstrap_interval(list(values))
    assert low < values.mean() < high
    # the normal approximation: 1.96 standard errors on each side
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)


def test_worst_is_first_whatever_the_units():
    clips = [
        ClipScore("good", "", None, {"mcd_db": 5.0, "cer": 0.0}),
        ClipScore("middling", "", None, {"mcd_db": 9.0, "cer": 0.0}),
        ClipScore("bad", "", None, {"mcd_db": 8.0, "cer": 0.9}),
    ]
    assert [clip.clip for clip in worst_first(clips)] == ["bad", "middling", "good"]
    similar = [ClipScore(str(n), "", None, {"speaker_similarity": n / 3}) for n in range(3)]
    assert [clip.clip for clip in worst_first(similar)] == ["0", "1", "2"]


def test_absent_package_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "utmos_pytorch", None)
    with pytest.raises(ConfigError, match="pip install 'utmos-pytorch'"):
        SpeechMetrics(["utmos"], 16000)


def test_speaker_similarity_knows_a_voice_again(tmp_path: Path):
    pytest.importorskip("resemblyzer", reason="the optional package resemblyzer is not installed")
    spoken = [speak_corpus(tmp_path / name, name) for name in ("en-us", "en-us+f3")]
    one, other, female = (
        read_pcm16_wav(folder / f"wavs/sentence_{n:03}.wav")[0].astype(np.float32) / 32768
        for folder, n in ((spoken[0], 1), (spoken[0], 2), (spoken[1], 2))
    )
    jury = SpeechMetrics(["similarity"], 22050)
    same = jury.measure("", one, other).figures["speaker_similarity"]
    assert same > jury.measure("", one, female).figures["speaker_similarity"] + 0.05


def test_any_recogniser_of_transformers_listens(tmp_path: Path):
    """A tiny random CTC model in a folder: what it hears is noise, but it is asked and answers."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4}))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=5, **size, **convolutions)).save_pretrained(tmp_path)
    judged = SpeechMetrics(["cer"], 22050, str(tmp_path)).measure("ab", voice(1, 22050), voice(1, 22050))
    assert set(judged.transcript.replace("<unk>", "")) <= set("ab ")
    assert set(judged.figures) == set(SCORES["cer"])


def test_recogniser_that_is_nowhere_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="could not be loaded"):
        SpeechMetrics(["cer"], 16000, str(tmp_path / "nowhere"))
